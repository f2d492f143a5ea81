"""Where patients are unknown, the first advice is how to name them; `patch` comes last, and says what it is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_docs import blocks

import fedrobust
from fedrobust.data import Folder, Npz, Patches, Split
from fedrobust.data.partition import ByCentre, ByGroup, Dirichlet, Partition
from fedrobust.data.patches import PATIENTS_FROM
from fedrobust.data.sources import FileSource
from fedrobust.data.split import LEAKS, OFFICIAL, PATIENT, doubts
from fedrobust.errors import DataError
from fedrobust.options import members
from fedrobust.preparation import hospitals_of


def unknown(source: type[FileSource] | None = None, official: bool = False, count: int = 20) -> Patches:
    return Patches(
        images=np.zeros((count, 8, 8, 3), np.uint8),
        labels=np.arange(count) % 2,
        label_names=("a", "b"),
        split=np.array(["train", "test"])[(np.arange(count) > count // 2).astype(int)] if official else None,
        patients_from=PATIENTS_FROM if source is None else source.patients_from,
    )


def advice(work: object) -> str:
    with pytest.raises(DataError) as error:
        work()  # type: ignore[operator]
    (problem,) = error.value.problems
    assert not problem.allowed
    return problem.hint


@pytest.mark.parametrize("name", ["own", *sorted(members(FileSource))])
@pytest.mark.parametrize("official", [False, True])
def test_the_first_advice_is_how_this_source_names_its_patients(name: str, official: bool) -> None:
    source = members(FileSource).get(name)
    told = advice(lambda: Split().indices(unknown(source, official), 0))
    first = PATIENTS_FROM if source is None else source.patients_from
    assert told == "; or ".join([first, *([OFFICIAL] if official else []), LEAKS])
    assert "too good" in LEAKS and "patch" not in told.partition(first)[0]


@pytest.mark.parametrize("source", [Folder, Npz])
def test_without_an_official_division_the_advice_is_the_same(source: type[FileSource]) -> None:
    told = advice(lambda: Split(by="official").indices(unknown(source), 0))
    assert told == f"{source.patients_from}, and use by=patient; or {LEAKS}"


@pytest.mark.parametrize(
    ("partition", "second"),
    [(Dirichlet(unit="patient"), "unit: patch"), (ByCentre(), "unit: patch"), (ByGroup(), "another partition")],
)
def test_hospitals_of_whole_patients_need_them_too(partition: Partition, second: str) -> None:
    patches = unknown(Folder)
    told = advice(lambda: partition.assign(patches, {"train": np.arange(20)}, 2, 0))
    assert told.startswith(Folder.patients_from) and second in told.removeprefix(Folder.patients_from)
    assert "several hospitals" in told


def write_slides(folder: Path, patients: int = 6) -> None:
    draw = np.random.default_rng(0)
    for label in ("normal", "tumour"):
        for patient in range(patients):
            for tile in range(3):
                path = folder / label / f"P{patient:02d}_tile{tile}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def test_the_example_of_the_error_finds_the_patients(tmp_path: Path) -> None:
    write_slides(tmp_path)
    patches = Folder(path=str(tmp_path)).load(0)
    (example,) = re.findall(r"'(.*?)'", advice(lambda: Split().indices(patches, 0)))
    found = Folder(path=str(tmp_path), patients=example).load(0)
    assert found.groups is not None
    assert sorted(set(found.groups)) == [f"P{patient:02d}" for patient in range(6)]
    (named,) = re.findall(r"where (\w+) is the patient of (\S+)", Folder.patients_from)
    match = re.search(example, named[1])
    assert match is not None and match[1] == named[0]


def test_the_example_of_the_guide_is_read_and_divided(workplace: Path) -> None:
    shown = blocks("data.md")
    write_slides(Path("slides"))
    (file,) = [block for block in shown if block.file == "folder.yaml"]
    (line,) = [block.text.strip() for block in shown if "folder.yaml '" in block.text]
    (override,) = re.findall(r"'(.*)'", line)
    Path(file.file).write_text(file.text, encoding="utf-8")
    hospitals = hospitals_of(fedrobust.load("folder.yaml"))
    assert hospitals.groups is not None
    train, test = (set(hospitals.groups[hospitals.indices[part]]) for part in ("train", "test"))
    assert train and test and not train & test and train | test <= {f"P{patient:02d}" for patient in range(6)}
    Path(file.file).write_text(re.sub(r" *patients:.*\n", "", file.text), encoding="utf-8")
    with pytest.raises(DataError, match="patients of these data are unknown"):
        hospitals_of(fedrobust.load("folder.yaml"))
    assert (hospitals_of(fedrobust.load("folder.yaml", [override])).groups == hospitals.groups).all()


def test_by_patch_is_refused_where_patients_are_known() -> None:
    patches = Patches(
        images=np.zeros((20, 8, 8, 3), np.uint8),
        labels=np.arange(20) % 2,
        label_names=("a", "b"),
        groups=np.arange(20) // 2,
    )
    assert advice(lambda: Split(by="patch").indices(patches, 0)) == PATIENT


# few patients


def few(labels: np.ndarray, centres: np.ndarray | None = None) -> Patches:
    return Patches(
        images=np.zeros((60, 8, 8, 3), np.uint8),
        labels=labels,
        label_names=tuple("abcde"),
        groups=np.repeat(np.arange(10), 6),
        centres=centres,
    )


PAIRS = np.repeat(np.arange(5), 12)
"""Ten patients of six patches each, five kinds of two patients."""


@pytest.mark.parametrize(
    ("patches", "kinds"),
    [(few(PAIRS), "every label"), (few(np.arange(60) % 5, PAIRS.astype(str)), "every label and every centre")],
)
def test_every_label_and_centre_comes_before_the_shares_and_a_warning_says_so(
    patches: Patches, kinds: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As docs/data.md says: where each kind belongs to two patients alone, one of the two is in the test."""
    whole = Split(validation=0).indices(patches, 0)
    assert [len(index) for index in whole.values()] == [30, 0, 30]
    assert "test has 30 of 60 patches (5 patients) where 0.2 was asked for" in caplog.text
    assert f"{kinds} comes to every part first" in caplog.text
    assert [len(index) for index in Split().indices(patches, 0).values()] == [30, 6, 24]


def test_nothing_is_said_of_parts_that_are_near_what_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert [len(index) for index in Split().indices(few(np.arange(60) % 5), 0).values()] == [42, 6, 12]
    assert not caplog.records


def test_ids_that_name_patches_are_doubted() -> None:
    patches = Patches(
        images=np.zeros((60, 8, 8, 3), np.uint8),
        labels=np.arange(60) % 2,
        label_names=("a", "b"),
        groups=np.arange(60),
    )
    indices = Split().indices(patches, 0)
    (note,) = doubts(patches, indices, np.array([0.7, 0.1, 0.2]))
    assert "60 patches has a patient of its own" in note
