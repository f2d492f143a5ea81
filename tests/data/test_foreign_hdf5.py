"""HDF5 files that others made: what they claim is checked before it is believed."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from foreigners import PAGE, POINTER, little_memory, pcam, refuses

from fedrobust.data import Pcam


def replaced(folder: Path, end: str, write: Callable[[h5py.File], None]) -> Path:
    file = folder / f"camelyonpatch_level_2_split_valid_{end}"
    with h5py.File(file, "w") as opened:
        write(opened)
    return file


@pytest.mark.parametrize(
    ("end", "write", "problem"),
    [
        ("x.h5", lambda file: file.create_dataset("x", (10**10, 96, 96, 3), np.uint8, chunks=True), {"says": "claims"}),
        ("y.h5", lambda file: file.create_dataset("y", (10**12, 1), np.uint8, chunks=True), {"says": "claims"}),
        ("y.h5", lambda file: file.create_dataset("y", (5, 1), np.uint8), {"found": "5"}),
        (
            "y.h5",
            lambda file: file.create_dataset("y", (4,), h5py.string_dtype()),
            {"found": "object"},
        ),
        (
            "y.h5",
            lambda file: file.create_dataset("y", data=[0.0, 1, 1, np.nan]),
            {"found": "float64"},
        ),
        ("y.h5", lambda file: file.create_dataset("y", data=[0, 1, 255, 0]), {"found": "0..255"}),
        ("x.h5", lambda file: file.create_group("x"), {"says": "array"}),
        ("x.h5", lambda file: file.create_dataset("x", data=np.zeros((4, 12, 12))), {"found": "float64 (4, 12, 12)"}),
        ("x.h5", lambda file: file.create_dataset("x", data=1), {"found": "int64 ()"}),
        (
            "x.h5",
            lambda file: file.create_dataset("x", data=np.zeros((4, 12, 9, 3), np.uint8)),
            {"found": "uint8 (4, 12, 9, 3)"},
        ),
        (
            "x.h5",
            lambda file: file.create_dataset("x", (4, 12, 12, 3), np.uint8, external=[("/etc/passwd", 0, 1728)]),
            {"says": "other files"},
        ),
    ],
)
def test_claims_of_hdf5_files(tmp_path, end, write, problem):
    file = replaced(pcam(tmp_path), end, write)
    with little_memory():
        refuses(Pcam(path=str(tmp_path)), file=file, path=end[0], **problem)


@pytest.mark.parametrize(
    ("content", "word"),
    [(POINTER, "git-lfs"), (PAGE, "web page"), (b"", "empty"), (gzip.compress(b"x", mtime=0), "gzip")],
)
@pytest.mark.parametrize("end", ["x.h5", "y.h5"])
def test_what_is_no_hdf5(tmp_path, content, word, end):
    file = pcam(tmp_path) / f"camelyonpatch_level_2_split_test_{end}"
    file.write_bytes(content)
    refuses(Pcam(path=str(tmp_path)), file=file, says=word)


def test_hdf5_files_cut_short_packed_or_folders(tmp_path):
    file = pcam(tmp_path) / "camelyonpatch_level_2_split_test_x.h5"
    whole = file.read_bytes()
    for length in (9, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refuses(Pcam(path=str(tmp_path)), file=file, says="read")
    file.unlink()
    file.mkdir()
    refuses(Pcam(path=str(tmp_path)), file=file, says="folder")
    file.rmdir()
    Path(f"{file}.gz").write_bytes(gzip.compress(whole, mtime=0))
    refuses(Pcam(path=str(tmp_path)), file=file, says="packed")
