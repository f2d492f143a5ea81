"""Archives and folders that others made: what they claim is checked, and what is wrong is said in a line."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from foreigners import PAGE, POINTER, little_memory, refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from refused import check

from fedrobust.data import Camelyon17, Folder, Histology, Idc, Medmnist, Npz, Pcam, foreign
from fedrobust.errors import DataError


def npy(array: np.ndarray) -> bytes:
    packed = io.BytesIO()
    np.lib.format.write_array(packed, array, allow_pickle=True)
    return packed.getvalue()


def header(shape: tuple[int, ...], dtype: str = "|u1", version: bytes = b"\1\0") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(text)) + text


IMAGES, LABELS = np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 2


def archive(path: Path, packing: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """An .npz file whose members are these bytes, good ones by default."""
    whole = {"images": npy(IMAGES), "labels": npy(LABELS)} | members
    with zipfile.ZipFile(path, "w", packing) as file:
        for key, data in whole.items():
            file.writestr(f"{key}.npy", data)
    return path


def lying(path: Path, size: int) -> Path:
    """The archive with `size` as what its first member is said to hold, in the directory and beside the member."""
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\1\2")
    struct.pack_into("<II", data, directory + 20, size, size)
    struct.pack_into("<II", data, 18, size, size)
    path.write_bytes(data)
    return path


# Claims


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"images": header((10**9, 256, 256, 3))}, {"path": "images", "says": "(1000000000, 256, 256, 3)"}),
        ({"images": header((2**62, 2**62, 2**62, 3))}, {"path": "images", "says": "claims uint8"}),
        ({"images": header((-6, 8, 8, 3)) + bytes(2000)}, {"path": "images", "says": "claims uint8"}),
        ({"labels": header((6,), "<i8")}, {"path": "labels", "says": "48 bytes", "found": "0"}),
        ({"groups": header((6,), "<U250000000")}, {"path": "groups", "says": "claims"}),
        ({"groups": header((10**15,), "<U0")}, {"path": "groups", "found": str(10**15)}),
        ({"labels": header((10**15, 0), "<i8")}, {"path": "labels", "found": str(10**15)}),
        ({"images": header((6, 8, 8, 3), version=b"\2\0") + bytes(1152)}, {"path": "images", "says": "plain"}),
        (
            {"labels": npy(np.array([2**40, 1, 0, 1, 0, 1]))},
            {"path": "labels", "found": f"0..{2**40}, 3 different ones"},
        ),
        (
            {"labels": npy(np.array([2**63, 1, 0, 1, 0, 1], np.uint64))},
            {"path": "labels", "found": f"0..{2**63}, 3 different ones"},
        ),
        ({"labels": npy(np.array(3))}, {"path": "labels", "found": "0"}),
        ({"images": b"not an array"}, {"path": "", "says": "read"}),
        ({"images": npy(IMAGES[..., 0])}, {"path": "images", "found": "uint8 (6, 8, 8)"}),
        ({"split": npy(np.array(["a\nb\x1b[2J"] * 6))}, {"path": "split", "found": "'a\nb\x1b[2J'"}),
    ],
)
def test_claims_of_npz_headers(tmp_path, members, problem):
    source = Npz(path=str(archive(tmp_path / "a.npz", **members)))
    with little_memory():
        refuses(source, file=tmp_path / "a.npz", **problem)


def test_an_archive_of_180_terabytes(tmp_path):
    """One that says so in its header, and one that says so in its directory, too."""
    frank = archive(tmp_path / "a.npz", images=header((2 * 10**10, 56, 56, 3)))
    lied = lying(archive(tmp_path / "b.npz", images=header((10**6, 36, 36, 3))), 2**32 - 2)
    with little_memory():
        refuses(Npz(path=str(frank)), file=frank, path="images", says="(20000000000, 56, 56, 3)")
        refuses(Npz(path=str(lied)), file=lied, path="images", says="4.0 GiB")


def test_bombs(tmp_path):
    """320 MiB in one. What is dense, but small, is read: white patches are."""
    shape = (5 * 2**18, 8, 8, 4)
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        with packed.open("images.npy", "w", force_zip64=True) as stream:
            stream.write(header(shape))
            for _ in range(20):
                stream.write(bytes(2**24))
        packed.writestr("labels.npy", npy(LABELS))
    with little_memory():
        refuses(Npz(path=str(file)), file=file, path="images", says="0.3 GiB")
    white = np.full((600, 32, 32, 3), 255, np.uint8)
    np.savez_compressed(file, images=white, labels=np.arange(600) % 2)
    assert len(Npz(path=str(file)).load(0)) == 600


def test_what_memory_cannot_hold_is_refused_and_what_it_can_is_not(tmp_path, monkeypatch):
    file = archive(tmp_path / "a.npz")
    monkeypatch.setattr(foreign, "_free_memory", lambda: 1000)
    refuses(Npz(path=str(file)), file=file, says="memory")
    monkeypatch.setattr(foreign, "_free_memory", lambda: 2000)
    assert len(Npz(path=str(file)).load(0)) == 6
    refuses(Npz(path=str(file), size=16), file=None, says="16 x 16", hint="set `limit` or a smaller `size`")


def test_memory_that_is_free():
    assert 2**20 < foreign._free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "source",
    [
        Histology(patients=10**12),
        Histology(patients=10**6, patches_per_patient=10**6, size=512),
        Histology(patients=1, patches_per_patient=10**15),
    ],
)
def test_generated_patches_that_memory_cannot_hold(source):
    with little_memory():
        refuses(source, file=None, says="memory")


def test_a_size_that_memory_cannot_hold(tmp_path):
    file = archive(tmp_path / "a.npz")
    refuses(Npz(path=str(file), size=10**9), says="6 patches of 1000000000 x 1000000000")
    for number in range(4):
        (tmp_path / "set" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "set" / str(number % 2) / f"{number}.png")
    refuses(Folder(path=str(tmp_path / "set"), size=10**9), says="4 patches of 1000000000 x 1000000000")


@pytest.mark.parametrize("key", ["images", "labels", "groups", "centres", "label_names", "split"])
def test_python_objects_are_named_and_never_loaded(tmp_path, key):
    class Loaded:
        def __reduce__(self):
            return pytest.fail, ("loaded",)

    count = 2 if key == "label_names" else 6
    file = archive(tmp_path / "a.npz", **{key: npy(np.array([Loaded()] * count, dtype=object))})
    refuses(Npz(path=str(file)), file=file, path=key, found="dtype object", says="pickle")


def test_an_encrypted_member(tmp_path):
    file = archive(tmp_path / "a.npz")
    data = bytearray(file.read_bytes())
    for place in (6, data.index(b"PK\1\2") + 8):
        data[place] |= 1
    file.write_bytes(data)
    refuses(Npz(path=str(file)), file=file, path="images", says="encrypted")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), packing=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_damaged_archives_are_read_or_refused_in_a_line(tmp_path, data, packing):
    whole = bytearray(archive(tmp_path / "whole.npz", packing, groups=npy(np.array(list("aabbcc")))).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.npz").write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        Npz(path=str(tmp_path / "a.npz")).load(0)
    except DataError as error:
        check(error.problems[0], file=tmp_path / "a.npz")


shapes = st.lists(st.integers(-2, 2**70) | st.integers(0, 9), max_size=5).map(tuple)
kinds = st.sampled_from(
    ["|u1", "<i8", "<f8", "<U3", "|S4", "|b1", "<M8[s]", "|V9", "|O", "<U0", "<c16", "bogus", ">u2"]
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["images", "labels", "groups", "centres", "split", "label_names"]),
    shape=shapes,
    kind=kinds,
    content=st.binary(max_size=200),
)
def test_headers_of_any_kind_are_refused_in_a_line(tmp_path, key, shape, kind, content):
    file = archive(tmp_path / "a.npz", **{key: header(shape, kind) + content})
    try:
        Npz(path=str(file)).load(0)
    except DataError as error:
        check(error.problems[0], file=file)


# What was put in the place of the data


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (POINTER, "git-lfs"),
        (PAGE, "web page"),
        (b"\xef\xbb\xbf<html>", "web page"),
        (b"", "empty"),
        (npy(IMAGES), "(.npy)"),
        (gzip.compress(b"PK\3\4", mtime=0), "gzip"),
        (pickle.dumps({"images": IMAGES}, 5), "pickle"),
        (pickle.dumps({"images": IMAGES}, 4), "pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"BZh9" + bytes(99), "bzip2"),
        (b"PK\3\4" + bytes(99), "read"),
        (bytes(99), "read"),
    ],
)
def test_what_is_no_npz(tmp_path, content, word):
    for name in ("x.npz", "x.npy", "x.npz.gz"):
        (tmp_path / name).write_bytes(content)
        refuses(Npz(path=str(tmp_path / name)), file=tmp_path / name, says=word)
    (tmp_path / "pathmnist.npz").write_bytes(content)
    refuses(Medmnist(path=str(tmp_path)), file=tmp_path / "pathmnist.npz", says=word)


@pytest.mark.parametrize(
    ("content", "word"), [(POINTER, "git-lfs"), (PAGE, "web page"), (b"", "empty"), (b"PK\3\4", "zip")]
)
def test_what_is_no_image(tmp_path, content, word):
    for number in range(4):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / str(number % 2) / f"{number}.png")
    (tmp_path / "1" / "3.png").write_bytes(content)
    refuses(Folder(path=str(tmp_path)), file=tmp_path / "1" / "3.png", says=word)


def test_a_file_where_a_folder_is_due_and_the_reverse(tmp_path):
    file = tmp_path / "set.zip"
    archive(file)
    for source in (Folder, Idc, Camelyon17, Pcam):
        refuses(source(path=str(file)), file=file, says="zip")
    (tmp_path / "plain").write_text("x")
    refuses(Folder(path=str(tmp_path / "plain")), file=tmp_path / "plain", says="a file")
    (tmp_path / "a" / "x.npz").mkdir(parents=True)
    refuses(Npz(path=str(tmp_path / "a")), file=tmp_path / "a", says="no .npz")
    os.mkfifo(tmp_path / "pipe.npz")
    refuses(Npz(path=str(tmp_path / "pipe.npz")), file=tmp_path / "pipe.npz", says="neither")
    refuses(Npz(path="/dev/zero"), file="/dev/zero", says="neither")
    (tmp_path / "pathmnist.npz").mkdir()
    refuses(Medmnist(path=str(tmp_path)), file=None, says="pathmnist.npz")


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-of-this-name/x", "/dev/null/x"])
@pytest.mark.parametrize("source", [Npz, Folder, Idc, Medmnist, Pcam, Camelyon17])
def test_paths_that_lead_nowhere(source, path, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError) as caught:
        source(path=path).check()
    (problem,) = caught.value.problems
    assert str(problem).isprintable() and path[:100] in str(problem)


def test_crc_errors_are_found(tmp_path):
    file = archive(tmp_path / "a.npz")
    data = bytearray(file.read_bytes())
    data[data.index(npy(IMAGES)) + 500] ^= 1
    file.write_bytes(data)
    assert zlib.crc32(bytes(data))
    refuses(Npz(path=str(file)), file=file, says="CRC")
