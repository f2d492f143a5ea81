from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from refused import refused

from fedrobust.data import Camelyon17, Folder, Idc, Medmnist, Npz, Patches, PatchTable, Pcam, Source
from fedrobust.data.sources import FileSource, choose
from fedrobust.errors import DataError
from fedrobust.options import members


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("FEDROBUST_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    "source", [Npz(), Idc(), Folder(), Medmnist(), Pcam(), Camelyon17(), PatchTable()], ids=lambda s: s.name
)
def test_missing_data_says_what_where_from_and_where_to(source, tmp_path, monkeypatch):
    for given in (source, source.model_copy(update={"path": str(tmp_path / "nowhere")})):
        assert given.found() is None
        for call in (given.check, lambda given=given: given.load(0)):
            with refused(DataError, path="") as caught:
                call()
            (problem,) = caught.value.problems
            for part in (source.name, source.home, source.layout, "FEDROBUST_DATA"):
                assert part in problem.hint
    assert str(tmp_path / "nowhere") in str(problem)


def test_every_source_of_files_is_tested_above():
    assert set(members(FileSource)) == {"npz", "idc", "folder", "medmnist", "pcam", "camelyon17", "table"}
    assert set(members(FileSource)) <= set(members(Source))


def test_importing_the_sources_is_light():
    heavy = ("torch", "ray", "medmnist", "pandas", "pyarrow", "PIL", "h5py")
    code = f"import sys, fedrobust.data; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_choose_keeps_shares_and_rare_strata():
    labels = np.repeat([0, 1, 2], [900, 99, 1])
    chosen = choose(100, 0, labels)
    assert len(chosen) == 100 and (np.diff(chosen) > 0).all()
    assert np.bincount(labels[chosen]).tolist() == pytest.approx([89, 10, 1], abs=1)
    assert np.array_equal(chosen, choose(100, 0, labels)) and not np.array_equal(chosen, choose(100, 1, labels))
    assert len(choose(None, 0, labels)) == len(choose(5000, 0, labels)) == 1000


@pytest.mark.parametrize(
    ("change", "path", "found"),
    [
        ({"images": np.zeros((4, 8, 8, 3), np.float32)}, "images", "float32 (4, 8, 8, 3)"),
        ({"images": np.zeros((4, 8, 8), np.uint8)}, "images", "uint8 (4, 8, 8)"),
        ({"images": np.zeros((4, 8, 6, 3), np.uint8)}, "images", "8 x 6 pixels"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8), "labels": np.zeros(0, int), "groups": None}, "images", None),
        ({"labels": np.zeros(3, int)}, "labels", "3"),
        ({"labels": np.array([0, 1, 2, 0])}, "labels", "0..2"),
        ({"labels": np.array([0, 1, -1, 0])}, "labels", "-1..1"),
        ({"labels": np.zeros(4)}, "labels", "float64 (4,)"),
        ({"groups": np.array(["a"])}, "groups", "1"),
        ({"split": np.array(["train", "test", "val", "test"])}, "split", "'val'"),
    ],
)
def test_patches_that_do_not_fit_together_are_refused(change, path, found):
    right = {
        "images": np.zeros((4, 8, 8, 3), np.uint8),
        "labels": np.array([0, 1, 1, 0]),
        "label_names": ("a", "b"),
        "groups": np.array([1, 1, 2, 2]),
    }
    assert Patches(**right).groups.tolist() == ["1", "1", "2", "2"]
    with refused(DataError, path=path, found=found):
        Patches(**right | change)


def test_patches_cannot_be_written_to_and_the_digest_covers_everything():
    images = pixels(0, 4, 8, 8, 3)
    arrays = {"images": images, "labels": np.array([0, 1, 1, 0]), "label_names": ("a", "b")}
    patches = Patches(**arrays)
    with pytest.raises(ValueError, match="read-only"):
        patches.images[0] = 0
    images[0, 0, 0, 0] += 0  # the caller's own array stays writeable
    others = [
        {"images": images[::-1]},
        {"labels": np.array([0, 1, 0, 1])},
        {"label_names": ("a", "c")},
        {"groups": np.array(list("xxyy"))},
        {"centres": np.array(list("xxyy"))},
        {"split": np.array(["train"] * 3 + ["test"])},
    ]
    digests = {Patches(**arrays | change).digest for change in [{}, *others]}
    assert len(digests) == 7 and patches.digest in digests
