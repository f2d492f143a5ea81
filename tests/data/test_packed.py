"""Files that were left packed: the error says so, and how they are unpacked."""

from __future__ import annotations

import bz2
import gzip
import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from foreigners import pcam, refuses

from fedrobust.data import Camelyon17, Folder, Idc, Medmnist, Npz, Pcam
from fedrobust.data.packed import packed, unpacking


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("FEDROBUST_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def archive(file: Path) -> bytes:
    kept = io.BytesIO()
    np.savez(kept, images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.array([0, 1, 0, 1]))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(kept.getvalue(), mtime=0))
    return kept.getvalue()


@pytest.mark.parametrize("named", ["p.npz", "p.npz.gz", "."])
def test_npz(tmp_path, named):
    whole = archive(tmp_path / "p.npz.gz")
    refuses(Npz(path=str(tmp_path / named)), says="`gunzip p.npz.gz`")
    (tmp_path / "p.npz.gz").unlink()
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as outer:
        outer.writestr("p.npz", whole)
    refuses(Npz(path=str(tmp_path / "p.zip")), says="holds p.npz: unpack it first")


def test_medmnist_and_hdf5(tmp_path):
    archive(tmp_path / "pathmnist.npz.gz")
    refuses(Medmnist(path=str(tmp_path)), says="`gunzip pathmnist.npz.gz`")
    for end in ("x.h5", "y.h5"):
        name = f"camelyonpatch_level_2_split_test_{end}"
        file = pcam(tmp_path) / name
        Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
        file.unlink()
        refuses(Pcam(path=str(tmp_path)), file=file, says=f"`gunzip {name}.gz`")


def test_a_packed_table_is_not_taken_for_a_missing_one(tmp_path):
    table = pcam(tmp_path) / "camelyonpatch_level_2_split_valid_meta.csv"
    Path(f"{table}.gz").write_bytes(gzip.compress(b"wsi\n", mtime=0))
    refuses(Pcam(path=str(tmp_path)), file=table, says="is packed")
    (tmp_path / "wilds" / "patches").mkdir(parents=True)
    (tmp_path / "wilds" / "metadata.csv.gz").write_bytes(gzip.compress(b"patient\n", mtime=0))
    refuses(Camelyon17(path=str(tmp_path / "wilds")), says="`gunzip metadata.csv.gz`")


@pytest.mark.parametrize("source", [Folder, Idc, Camelyon17, Pcam])
@pytest.mark.parametrize(
    ("name", "command"),
    [("set.zip", "unzip"), ("set.tar.gz", "tar -xf"), ("set.tgz", "tar -xf"), ("set.tar", "tar -xf"), ("a.7z", "7z x")],
)
def test_a_folder_that_was_never_unpacked(tmp_path, source, name, command):
    file = tmp_path / name
    with tarfile.open(file, "w") as outer:
        outer.addfile(tarfile.TarInfo("0/a.png"))
    refuses(source(path=str(tmp_path)), says=f"holds {name}, which is packed: unpack it first, with `{command} {name}`")
    refuses(source(path=str(file)), file=file, says="packed with tar")


@pytest.mark.parametrize("name", ["a b.npz.gz", "a b.npz"])
@pytest.mark.parametrize(("pack", "ending"), [(gzip.compress, ".gz"), (bz2.compress, ".bz2")])
def test_the_commands_unpack(tmp_path, name, pack, ending):
    name = name.replace(".gz", ending)
    said = packed(pack(b"whole"), name)
    *rename, command, _ = said.split("`")
    program = command.split()[0]
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    file = tmp_path / name
    file.write_bytes(pack(b"whole"))
    if "rename it to" in rename[0]:
        file.rename(tmp_path / f"{name}{ending}")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "a b.npz").read_bytes() == b"whole"


def test_plain_names_need_no_command():
    assert [unpacking(name) for name in ("a.npz", "gz", "a.csv", "a.tart")] == [""] * 4
