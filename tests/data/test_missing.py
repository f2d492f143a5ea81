"""Values that are missing are no values, and what cannot be learnt or measured is said before the training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from refused import refused

from fedrobust.data import (
    Dirichlet,
    Folder,
    Histology,
    Medmnist,
    NoNormalisation,
    Npz,
    Patches,
    Source,
    Split,
    StainShift,
)
from fedrobust.data.hospitals import Hospitals, divide
from fedrobust.data.patches import nothing
from fedrobust.data.split import refuse_one_label
from fedrobust.errors import DataError

N = 12
GOOD = {"images": np.zeros((N, 8, 8, 3), np.uint8), "labels": np.arange(N) % 2}


def npz(path: Path, **changes: np.ndarray) -> Npz:
    np.savez(path / "a.npz", **GOOD | changes)
    return Npz(path=str(path / "a.npz"))


@pytest.mark.parametrize("key", ["groups", "centres"])
@pytest.mark.parametrize(
    "values",
    [
        np.array([1.0, np.nan, 3, np.nan] * 3),
        np.array(["p1", "", "p2", "  "] * 3),
        np.array(["p1", "nan", "p2", "NaN"] * 3),
        np.array(["p1", None, "p2", None] * 3).astype(str),
        np.array(["p1", pd.NA, "p2", pd.NaT] * 3).astype(str),
        np.array([b"p1", b"", b"p2", b"nan"] * 3),
        np.array(["2020-01-01", "NaT", "2020-01-02", "NaT"] * 3, dtype="datetime64[D]"),
        np.array([1.0, np.inf, 3, -np.inf] * 3),
        np.ma.array(["p1", "x", "p2", "y"] * 3, mask=[0, 1, 0, 1] * 3).astype(str).filled("--"),
    ],
    ids=str,
)
def test_missing_patients_and_centres(tmp_path, key, values):
    with refused(DataError, file=tmp_path / "a.npz", path=key, says="6 of 12") as caught:
        npz(tmp_path, **{key: values}).load(0)
    assert caught.value.problems[0].found.endswith(" as number 1")


@pytest.mark.parametrize("key", ["groups", "centres", "labels"])
def test_what_a_mask_hides_is_missing(key):
    hidden = np.ma.array(np.arange(N) % 2 if key == "labels" else np.arange(N), mask=[0, 0, 1, 0] * 3)
    with refused(DataError, path=key, says="3 of 12"):
        Patches(**GOOD | {"label_names": ("a", "b"), key: hidden})


@pytest.mark.parametrize("key", ["groups", "centres"])
@pytest.mark.parametrize("gone", [None, float("nan"), pd.NA, pd.NaT, np.float64("nan"), ""])
def test_sources_of_users_meet_the_same_check(key, gone):
    values = pd.Series(["p1", gone, "p2", "p3"] * 3, dtype=object).to_numpy()
    with refused(DataError, path=key, says="3 of 12"):
        Patches(**GOOD, label_names=("a", "b"), **{key: values})


def test_what_looks_like_nothing_and_is_something():
    kept = np.array(["0", "none of them", "nana", "N", "-", "1.0", "inf", "anna"])
    assert not nothing(kept).any()
    assert nothing(np.array(["", " ", "NaN", "nan", "None", "<NA>", "NaT", "null", "NA", "n/a", "--"])).all()
    patches = Patches(**GOOD, label_names=("none", "NA"), groups=np.arange(N))
    assert patches.label_names == ("none", "NA"), "a label may be called so"


def test_blanks_around_an_id_make_no_other_patient():
    groups = np.array(["p1", "p1 ", " p1", "p1\t"] * 3)
    assert set(Patches(**GOOD, label_names=("a", "b"), groups=groups).groups) == {"p1"}


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        (np.array([("a", 1)] * N, dtype="U1,i4"), {"found": "[('f0', '<U1'), ('f1', '<i4')]"}),
        (np.array([b"\xff"] * N), {"says": "UTF-8"}),
        (np.zeros((N, 2)), {"found": "(12, 2)"}),
    ],
)
def test_ids_that_are_no_texts(groups, problem):
    with refused(DataError, path="groups", **problem):
        Patches(**GOOD, label_names=("a", "b"), groups=groups)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (np.array([0, 255] * 6), {"found": "0..255, 2 different ones"}),
        (np.array([1, 2] * 6), {"found": "1..2, 2 different ones"}),
        (np.array([0, 1, 3] * 4), {"found": "0..3, 3 different ones"}),
        (np.array([-1, 0, 1] * 4), {"found": "-1..1, 3 different ones"}),
        (np.array([2**40, 0] * 6), {"found": "0..1099511627776, 2 different ones"}),
        (np.zeros(N, int), {"says": "all 12 are 0"}),
        (np.full(N, 7), {"says": "all 12 are 7"}),
        (np.array([0, 1, np.nan] * 4), {"says": "4 of 12", "found": "'nan' as number 2"}),
        (np.array([0.0, 1.0] * 6), {"found": "float64 (12,)", "says": "integers"}),
        (np.array([True, False] * 6), {"found": "bool (12,)", "says": "integers"}),
        (np.array(["a", "b"] * 6), {"found": "<U1 (12,)", "says": "integers"}),
        (np.array(["1", ""] * 6), {"says": "6 of 12"}),
        (np.eye(2)[np.arange(N) % 2].astype(int), {"found": "int64 (12, 2)", "says": "integers"}),
    ],
)
def test_labels_of_npz_files(tmp_path, labels, problem):
    with refused(DataError, file=tmp_path / "a.npz", path="labels", **problem):
        npz(tmp_path, labels=labels).load(0)


def test_pixels_that_were_cut_to_0_and_1(tmp_path):
    fractions = np.random.default_rng(0).random((N, 8, 8, 3))
    for images, problem in (
        (np.rint(fractions).astype(np.uint8), {"says": "1 of 255"}),
        (fractions, {"found": "float64 (12, 8, 8, 3)", "says": "uint8"}),
        ((fractions * 65535).astype(np.uint16), {"found": "uint16 (12, 8, 8, 3)", "says": "uint8"}),
    ):
        with refused(DataError, path="images", **problem):
            npz(tmp_path, images=images).load(0)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a", ""], {"path": "label_names", "says": "1 of 2"}),
        ([0.0, np.nan], {"path": "label_names", "says": "1 of 2"}),
        (["a", "a"], {"path": "label_names", "says": "2 labels", "found": "'a'"}),
        ([["a", "b"]], {"path": "label_names", "found": "(1, 2)"}),
        (["a"], {"path": "labels", "says": "0..0", "found": "0..1"}),
    ],
)
def test_names_of_labels(tmp_path, names, problem):
    with refused(DataError, **problem):
        npz(tmp_path, label_names=np.array(names)).load(0)


# What is left after the split


class Made(Source):
    """Patches of given labels: how many of each, for each part."""

    name: Literal["made"] = "made"
    train: tuple[int, ...] = (20, 20)
    validation: tuple[int, ...] = (4, 4)
    test: tuple[int, ...] = (8, 8)
    names: ClassVar[tuple[str, ...]] = ("benign", "malignant", "stroma")

    def load(self, seed: int) -> Patches:
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        labels = np.concatenate([np.repeat(np.arange(len(count)), count) for count in counts.values()])
        split = np.repeat(list(counts), [sum(count) for count in counts.values()])
        images = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
        return Patches(images=images, labels=labels, label_names=self.names[: len(self.train)], split=split)


def divided(source: Source, split: Split, cache: Path) -> Hospitals:
    return divide(source, split, Dirichlet(alpha=10, minimum=1), StainShift(), NoNormalisation(), 2, 0, cache)


@pytest.mark.parametrize(
    ("counts", "path", "words"),
    [
        ({"test": (16, 0)}, "split", "16 patches for test"),
        ({"test": (0, 1)}, "split", "1 patches for test"),
        ({"train": (0, 40)}, "split", "0 benign, 40 malignant"),
        ({"train": (40, 0), "validation": (8, 0), "test": (16, 0)}, "labels", "64 patches are 'benign'"),
    ],
)
def test_one_label_is_too_little(tmp_path, counts, path, words):
    with refused(DataError, path=path, says=words):
        divided(Made(**counts), Split(by="official"), tmp_path)


@pytest.mark.parametrize(
    ("counts", "words", "tested"),
    [
        ({"validation": (8, 0)}, "validation has no patch of 'malignant'", 2),
        (
            {"train": (20, 20, 0), "validation": (4, 4, 0), "test": (8, 8, 0)},
            "train has no patch of 'stroma'; validation has no patch of 'stroma'; test has no patch of 'stroma' "
            "(train: 20 benign, 20 malignant, 0 stroma;",
            2,
        ),
        ({"train": (20, 20, 9), "validation": (), "test": (8, 0, 8)}, "test has no patch of 'malignant'", 2),
    ],
)
def test_a_label_that_a_part_lacks_is_told(tmp_path, caplog, counts, words, tested):
    hospitals = divided(Made(**counts), Split(by="official", validation=0.0), tmp_path)
    (message,) = caplog.messages
    assert words in message and "chance are those of the labels that occur" in message
    assert caplog.records[0].levelno == logging.WARNING and hospitals.tested() == tested


def test_where_every_part_has_every_label_nothing_is_told(tmp_path, caplog):
    hospitals = divided(Made(), Split(by="official"), tmp_path)
    assert caplog.messages == [] and hospitals.tested() == 2


def test_all_sources_are_checked(tmp_path):
    """One label, from wherever the patches come."""
    for number in range(12):
        file = tmp_path / "set" / ("a", "b")[number == 11] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    one = np.zeros((4, 1), np.uint8)
    parts = {f"{part}_labels": one for part in ("train", "val", "test")}
    parts |= {f"{part}_images": np.zeros((4, 28, 28, 3), np.uint8) for part in ("train", "val", "test")}
    np.savez(tmp_path / "pathmnist.npz", **parts)
    named = npz(tmp_path, labels=np.zeros(N, int), label_names=np.array(["a", "b"]))
    for source, by, path in (
        (named, "patch", "labels"),
        (Folder(path=str(tmp_path / "set")), "patch", "split"),
        (Medmnist(path=str(tmp_path)), "official", "labels"),
    ):
        with refused(DataError, path=path, says="patches"):
            divided(source, Split(by=by), tmp_path)


def test_many_labels_are_listed_in_part():
    labels = np.concatenate([np.arange(100), [0]])
    images = np.zeros((101, 1, 1, 3), np.uint8)
    patches = Patches(images=images, labels=labels, label_names=tuple(map(str, range(100))))
    with refused(DataError, path="split", says="1 19, and 80 more") as caught:
        refuse_one_label(patches, {"train": np.arange(100), "test": np.array([100])})
    assert len(str(caught.value)) < 500


def test_ids_for_labels_are_told_in_part_or_refused(tmp_path, caplog):
    labels = np.arange(400) % 100
    labels[:60] = 0
    images = np.zeros((400, 1, 1, 3), np.uint8)
    patches = Patches(images=images, labels=labels, label_names=tuple(map(str, range(200))))
    refuse_one_label(patches, {"train": np.arange(300), "test": np.arange(300, 400)})
    assert "and 80 more" in caplog.text and len(caplog.text) < 2000

    class Ids(Source):
        name: Literal["ids"] = "ids"

        def load(self, seed: int) -> Patches:
            images = np.zeros((500_000, 1, 1, 3), np.uint8)
            return Patches(
                images=images, labels=np.arange(len(images)), label_names=tuple(map(str, range(len(images))))
            )

    with refused(DataError, says="500000 labels"):
        divided(Ids(), Split(by="patch"), tmp_path)


def test_generated_patches_are_checked(tmp_path):
    source = Histology(patients=3, patches_per_patient=1, size=16)
    with refused(DataError, path="labels", says="patches"):
        divided(source, Split(), tmp_path)
