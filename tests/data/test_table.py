"""The source `table`: which rows of a CSV, TSV or Parquet file are used, and what they tell."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreigners import refuses
from PIL import Image
from refused import refused
from tabled import Frame, frame, images, saved

import fedrobust
from fedrobust.data import ByCentre, NoNormalisation, PatchTable, Split, StainShift
from fedrobust.data.hospitals import divide
from fedrobust.errors import DataError


def test_a_table_tells_everything(tmp_path: Path) -> None:
    found = saved(frame(tmp_path), tmp_path).load(0)
    assert found.images[:, 0, 0, 0].tolist() == list(range(12))
    assert found.label_names == ("normal", "tumour") and found.labels.tolist() == [0, 1] * 6
    assert found.groups is not None and found.groups.tolist() == [f"P{number // 2}" for number in range(12)]
    assert found.centres is not None and found.centres.tolist() == ["A"] * 6 + ["B"] * 6
    assert found.split is not None and found.split.tolist() == ["train"] * 8 + ["test"] * 4
    assert found.notes == ()


def test_columns_have_other_names_or_are_not_used(tmp_path: Path) -> None:
    table = frame(tmp_path).rename(
        columns={"image": "file", "label": "diagnosis", "patient": "slide id", "centre": "center"}
    )
    columns = {"image": "file", "label": "diagnosis", "patient": "slide id", "split": ""}
    found = saved(table, tmp_path, columns=columns).load(0)
    assert found.groups is not None and found.centres is not None and found.split is None
    found = saved(table, tmp_path, columns=columns | {"patient": None, "centre": ""}).load(0)
    assert found.groups is None and found.centres is None
    assert "data.source.columns.patient (file, diagnosis, slide id, center, split)" in found.patients_from


def test_centres_are_hospitals(tmp_path: Path) -> None:
    table = frame(tmp_path, 24)
    table["centre"] = np.where(np.arange(24) // 4 % 2, "A", "B")
    table["label"] = np.arange(24) % 2
    source = saved(table.drop(columns="split"), tmp_path)
    found = divide(source, Split(validation=0), ByCentre(minimum=1), StainShift(), NoNormalisation(), 2, 0, tmp_path)
    for hospital in range(2):
        assert len(set(table["centre"].to_numpy()[found.hospital == hospital])) == 1


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_a_folder_with_one_table(tmp_path: Path, ending: str) -> None:
    table = saved(frame(tmp_path), tmp_path)
    table.location().rename(tmp_path / f"a{ending}")  # type: ignore[union-attr]  named by its ending, read by its contents
    assert len(PatchTable(path=str(tmp_path)).load(0)) == 12
    (tmp_path / "b.csv").write_text("")
    refuses(PatchTable(path=str(tmp_path)), says="files (", file=tmp_path)


def test_the_folder_of_the_images(tmp_path: Path) -> None:
    table = frame(tmp_path / "images")
    source = saved(table, tmp_path, root=str(tmp_path / "images"))
    assert len(source.load(0)) == 12
    refuses(source.model_copy(update={"root": str(tmp_path / "nowhere")}), path="", says="is not a folder")
    with refused(DataError, file=tmp_path / "p00.png", says="12 of 12") as caught:
        source.model_copy(update={"root": None}).load(0)
    assert f"root: {tmp_path / 'images'}" in str(caught.value)
    for absolute in (f"{tmp_path}/images/", f"{tmp_path}/images/../images/"):
        whole = table.assign(image=absolute + table["image"])
        assert len(saved(whole, tmp_path).load(0)) == 12
    windows = table.assign(image="images\\" + table["image"])
    assert len(saved(windows, tmp_path).load(0)) == 12


def test_names_without_an_ending(tmp_path: Path) -> None:
    table = frame(tmp_path)
    table["image"] = table["image"].str.removesuffix(".png")
    with refused(DataError, file=tmp_path / "p00", says="12 of 12") as caught:
        saved(table, tmp_path).load(0)
    assert "columns.image: '{image}.png'" in caught.value.problems[0].hint
    assert len(saved(table, tmp_path, columns={"image": "{image}.png"}).load(0)) == 12


def test_only_rows_that_are_chosen_need_files(tmp_path: Path) -> None:
    table = frame(tmp_path)
    for name in table["image"][:3]:
        (tmp_path / name).unlink()
    with refused(DataError, file=tmp_path / "p00.png", says="3 of 12") as caught:
        saved(table, tmp_path).load(0)
    assert str(caught.value).startswith(f"{tmp_path / 't.csv'}:2: ")
    with refused(DataError, file=tmp_path / "p02.png", says="1 of 8") as caught:
        saved(table, tmp_path, where={"patient": ["P1", "P2", "P3", "P4"]}).load(0)
    assert str(caught.value).startswith(f"{tmp_path / 't.csv'}:4: ")
    assert len(saved(table, tmp_path, where={"centre": "B"}).load(0)) == 6


# The layout of a public set of mitotic figures: three readers, and files named from two columns


@pytest.fixture
def mitoses(tmp_path: Path) -> tuple[Frame, Path]:
    sets = ["human_breast_cancer", "canine_lymphoma", "canine_lung_cancer"]
    rows = [
        {"slide": f"{number // 3:03}.tiff", "dataset": sets[number // 12], "uid": f"{number:05}"}
        for number in range(36)
    ]
    table = Frame(rows)
    votes = np.random.default_rng(0).integers(0, 2, (36, 2))
    table["expert1"], table["expert2"] = np.where(votes, "mitotic figure", "imposter").T
    third = np.where(np.arange(36) % 2, "mitotic figure", "imposter")
    table["expert3"] = np.where(votes[:, 0] != votes[:, 1], third, "")  # who is asked where the others differ
    images(tmp_path, *("patches/" + table["dataset"] + "_" + table["uid"] + ".png"))
    return table, tmp_path


READ = {
    "image": "patches/{dataset}_{uid}.png",
    "label": ["expert1", "expert2", "expert3"],
    "patient": "slide",
    "centre": "dataset",
}
LABELS = {"mitotic figure": 1, "imposter": 0}


def test_the_layout_of_a_mitosis_set(mitoses: tuple[Frame, Path]) -> None:
    table, folder = mitoses
    found = saved(table, folder, columns=READ, label_map=LABELS).load(0)
    order = np.argsort(table["dataset"] + "_" + table["uid"])
    assert found.label_names == ("imposter", "mitotic figure")
    expected = [
        ([row.expert1, row.expert2, row.expert3].count("mitotic figure") > 1) for row in table.iloc[order].itertuples()
    ]
    assert found.labels.tolist() == [int(each) for each in expected] and 0 < sum(expected) < 36
    assert found.images[:, 0, 0, 0].tolist() == order.tolist()
    assert found.groups is not None and found.groups.tolist() == table["slide"].iloc[order].tolist()
    assert found.centres is not None and len(set(found.centres)) == 3


def test_readers_who_must_all_agree(mitoses: tuple[Frame, Path], caplog: pytest.LogCaptureFixture) -> None:
    table, folder = mitoses
    source = saved(table, folder, columns=READ, label_map=LABELS, agree="all")
    differ = int((table["expert1"] != table["expert2"]).sum())
    first = int((table["expert1"] != table["expert2"]).argmax())
    with refused(DataError, path="columns.label", says=f"{differ} of 36", line=first + 2):
        source.check()
    with caplog.at_level(logging.WARNING):
        found = source.model_copy(update={"undecided": "skip"}).load(0)
    assert len(found) == 36 - differ
    note = f"{36 - differ} of 36 rows are used: {differ} undecided"
    assert found.notes == (note,) and caplog.messages == [f"table: {note}"]


def test_a_tie_is_undecided_and_no_vote_is_no_label(tmp_path: Path) -> None:
    names = images(tmp_path, *(f"{each}.png" for each in "abcdef"))
    table = Frame({"image": names, "r1": [*"xxyyx", ""], "r2": [*"xyy", "", "y", ""]})
    columns = {"label": ["r1", "r2"]}
    with refused(DataError, path="columns.label", says="1 of 6 rows have no label", line=7):
        saved(table, tmp_path, columns=columns).check()
    with refused(DataError, path="columns.label", says="2 of 5 patches", found="x, y", line=3):
        saved(table, tmp_path, columns=columns, incomplete="skip").check()
    found = saved(table, tmp_path, columns=columns, incomplete="skip", undecided="skip").load(0)
    assert found.images[:, 0, 0, 0].tolist() == [0, 2, 3] and found.labels.tolist() == [0, 1, 1]
    assert found.notes == ("3 of 6 rows are used: 1 incomplete, 2 undecided",)


def test_a_label_that_never_wins_is_no_label(tmp_path: Path) -> None:
    table = Frame({"image": images(tmp_path, *(f"{each}.png" for each in "abc")), "r1": list("xyx"), "r2": list("xyz")})
    found = saved(table, tmp_path, columns={"label": ["r1", "r2"]}, undecided="skip").load(0)
    assert found.label_names == ("x", "y") and found.labels.tolist() == [0, 1]


# Labels


@pytest.mark.parametrize(
    ("texts", "label_map", "names", "labels"),
    [
        (["b", "a", "b"], {}, ("a", "b"), [1, 0, 1]),
        (["10", "9", "10"], {}, ("9", "10"), [1, 0, 1]),
        (["1.0", "0.0", "1.0"], {}, ("0", "1"), [1, 0, 1]),
        (["True", "False", "True"], {}, ("false", "true"), [1, 0, 1]),
        (["0", "1", "0"], {1: "normal", 0: "tumour"}, ("normal", "tumour"), [1, 0, 1]),
        (["0.0", "1.0", "0.0"], {1: "normal", 0: "tumour"}, ("normal", "tumour"), [1, 0, 1]),
        (["TRUE", "FALSE", "TRUE"], {False: "no", True: "yes"}, ("no", "yes"), [1, 0, 1]),
        (["DCIS", "N", "IC"], {"N": 0, "DCIS": 1, "IC": 1}, ("N", "DCIS or IC"), [1, 0, 1]),
        (["DCIS", "N", "IC"], {"N": "benign", "DCIS": "tumour", "IC": "tumour"}, ("benign", "tumour"), [1, 0, 1]),
        (["none", "NA", "none"], {"NA": "n", "none": "0"}, ("n", "0"), [1, 0, 1]),
        (["2", "3", "5"], {}, ("2", "3", "5"), [0, 1, 2]),
    ],
)  # fmt: skip
def test_labels(texts: list[str], label_map: dict, names: tuple, labels: list[int], tmp_path: Path) -> None:
    table = Frame({"image": images(tmp_path, *(f"{each}.png" for each in "abc")), "label": texts})
    found = saved(table, tmp_path, label_map=label_map).load(0)
    assert (found.label_names, found.labels.tolist()) == (names, labels)


@pytest.mark.parametrize("label_map", [{"a": 0, "b": "x"}, {"a": 0, "b": 2}, {"a": 1, "b": 2}])
def test_a_label_map_has_names_or_numbers_without_a_gap(label_map: dict[str, object]) -> None:
    with refused(path="label_map"):
        PatchTable(label_map=label_map)


@pytest.mark.parametrize(
    ("columns", "path"),
    [
        ({"image": ""}, "columns.image"),
        ({"image": "{a"}, "columns.image"),
        ({"patient": "a}"}, "columns.patient"),
        ({"label": []}, "columns.label"),
        ({"label": ["a", "a"]}, "columns.label"),
        ({"label": ["a", ""]}, "columns.label"),
        ({"slide": "x"}, "columns.slide"),
    ],
)
def test_columns_that_cannot_be(columns: dict[str, Any], path: str) -> None:
    with refused(path=path):
        PatchTable(columns=columns)


# What is chosen


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({"mag": 40}, [0, 2, 3]),
        ({"mag": "40"}, [0, 2, 3]),
        ({"mag": [20.0, "40"], "use": [False, True], "kind": "b"}, [1]),
        ({"use": True}, [0, 1, 2]),
        ({"use": "true", "mag": 40}, [0, 2]),
        ({"kind": "a"}, [0, 2]),
        ({"kind": None}, [3]),
        ({"kind": ["a", None]}, [0, 2, 3]),
        ({"size": 0.5}, [1]),
    ],
)
def test_where(where: dict[str, Any], kept: list[int], tmp_path: Path) -> None:
    table = Frame({"image": images(tmp_path, *(f"{each}.png" for each in "abcd")), "label": [*"xyxy"]})
    table["mag"], table["use"] = [40.0, 20.0, 40.0, 40.0], [True, True, True, False]
    table["kind"], table["size"] = [*"aba", ""], [0.25, 0.5, 1, 2]
    found = saved(table, tmp_path, where=where).load(0)
    assert found.images[:, 0, 0, 0].tolist() == kept
    assert found.notes == (f"{len(kept)} of 4 rows are used: {4 - len(kept)} not chosen by `where`",)


def test_where_nothing_fits(tmp_path: Path) -> None:
    table = frame(tmp_path)
    refuses(saved(table, tmp_path, where={"centre": "a"}), path="where.centre", found="'A', 'B'")
    refuses(saved(table, tmp_path, where={"patient": "P22"}), path="where.patient", hint="did you mean 'P2'?")
    refuses(saved(table, tmp_path, where={"centre": "A", "split": "test"}), path="where", says="none of the 12 rows")
    assert (
        len(saved(table.assign(**{"2.0": "y", "True": "x"}), tmp_path, where={"2.0": "y", "True": "x"}).load(0)) == 12
    )
    refuses(saved(table, tmp_path, where={"centre": ["A", 3]}), path="where.centre", says="'3'")
    refuses(saved(table, tmp_path, where={"center": "A"}), path="where.center", hint="did you mean 'centre'?")


def test_options_from_yaml_and_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(
        "data:\n  source:\n    name: table\n    where: {mag: 40, use: true, kind: [a, null]}\n"
        "    label_map: {0: normal, 1: tumour}\n    columns: {label: [r1, r2]}\n"
    )
    changes = ["data.source.where.site=B", "data.source.columns.patient=slide", "data.source.columns.split=''"]
    source = fedrobust.load(tmp_path / "e.yaml", changes).data.source
    assert isinstance(source, PatchTable)
    assert source.where == {"mag": 40, "use": True, "kind": ("a", None), "site": "B"}
    assert source.label_map == {"0": "normal", "1": "tumour"} and source.columns.label == ("r1", "r2")
    assert (source.columns.patient, source.columns.split) == ("slide", "")
    with refused(path="data.source.where.mag", override="data.source.where.mag={a: 1}"):
        fedrobust.load(tmp_path / "e.yaml", ["data.source.where.mag={a: 1}"])


@pytest.mark.parametrize("column", ["image", "label", "patient", "centre", "split"])
@pytest.mark.parametrize("missing", ["", "NA", "nan", "  "])
def test_rows_with_something_missing(column: str, missing: str, tmp_path: Path) -> None:
    table = frame(tmp_path)
    table.loc[[3, 7], column] = missing
    refuses(saved(table, tmp_path), path=f"columns.{column}", line=5, says="2 of 12")
    found = saved(table, tmp_path, incomplete="skip").load(0)
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert found.notes == ("10 of 12 rows are used: 2 incomplete",)
    if column in ("patient", "centre", "split"):
        assert len(saved(table, tmp_path, columns={column: ""}).load(0)) == 12
    table[column] = missing
    refuses(saved(table, tmp_path, incomplete="skip"), path="incomplete")


def test_a_limit_opens_no_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(frame(tmp_path), tmp_path, limit=6)
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *rest: opened.append(file) or real(file, *rest))
    found = source.load(0)
    assert len(opened) == len(found) == 6
    assert found.centres is not None and set(found.centres) == {"A", "B"} and set(found.labels) == {0, 1}
