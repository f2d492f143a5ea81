"""The files of the source `table`: CSV, TSV and Parquet in all their kinds, and what is refused."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from foreigners import PAGE, POINTER, refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refused import refused
from tabled import Frame, frame, images, saved

from fedrobust.data import PatchTable
from fedrobust.errors import DataError

# What is refused

BETWEEN, NAMES = "commas, tabs or semicolons must be between the cells", "the first row of a table names its columns"


def changed(column: str, row: int, value: str) -> Callable[[Frame], Frame]:
    def change(table: Frame) -> Frame:
        table = table.copy()
        table.loc[row, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "options", "problem"),
    [
        (lambda table: table.drop(columns="label"), {}, {"path": "columns.label", "says": "'label'"}),
        (lambda table: table, {"columns": {"patient": "patent"}}, {"hint": "did you mean 'patient'?"}),
        (lambda table: table, {"columns": {"image": "{patient}_{uid}"}}, {"path": "columns.image", "says": "'uid'"}),
        (
            lambda table: table,
            {"columns": {"image": "{patient:03}"}},
            {"path": "columns.image", "says": "'patient:03'"},
        ),
        (changed("image", 5, "p01.png"), {}, {"path": "columns.image", "line": 7, "says": "line 3"}),
        (changed("image", 5, "./p01.png"), {}, {"path": "columns.image", "line": 7, "says": "line 3"}),
        (changed("image", 5, "link.png"), {}, {"path": "columns.image", "line": 7, "says": "line 3"}),
        (changed("image", 5, "a\0b"), {}, {"file": None, "says": "1 of 12"}),
        (changed("image", 5, "x" * 5000), {}, {"says": "1 of 12"}),
        (changed("image", 5, "."), {}, {"says": "1 of 12"}),
        (changed("split", 1, "test"), {}, {"path": "columns.split", "line": 3, "says": "line 2"}),
        (changed("split", 1, "fold 3"), {}, {"path": "columns.split", "line": 3, "found": "'fold 3'"}),
        (changed("label", 1, "Tumour"), {}, {"path": "columns.label", "says": "in case alone"}),
        (changed("label", 1, "maybe"), {"label_map": {"tumour": 1, "normal": 0}}, {"path": "label_map", "line": 3}),
        (lambda table: table, {"label_map": {"tumour": 2, "normal": 0, "other": 1}}, {"says": "'other'"}),
        (
            lambda table: table.assign(label=np.arange(12) / 7).sample(frac=4, replace=True),
            {},
            {"path": "columns.image"},
        ),
        (lambda table: table.rename(columns={"centre": "label"}), {}, {"path": "label", "says": "2 columns"}),
        (lambda table: table.iloc[:0], {}, {"says": "no rows"}),
    ],
)
def test_tables_that_are_refused(
    change: Callable[[Frame], Frame], options: dict[str, Any], problem: dict[str, Any], tmp_path: Path
) -> None:
    table = change(frame(tmp_path))
    os.link(tmp_path / "p01.png", tmp_path / "link.png")
    problem = {key: value for key, value in problem.items() if value is not None}
    refuses(saved(table, tmp_path, **options), **problem)


def test_labels_that_are_measurements(tmp_path: Path) -> None:
    table = frame(tmp_path, 30).assign(label=np.arange(30) / 7)
    refuses(saved(table, tmp_path), path="columns.label", says="30 different labels")


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda text: b"", {"says": "empty"}),
        (lambda text: POINTER, {"says": "git-lfs"}),
        (lambda text: PAGE, {"says": "web page"}),
        (lambda text: gzip.compress(text.encode()), {"says": "gunzip t.csv.gz"}),
        (lambda text: text.replace(",", "|").encode(), {"path": "columns.image", "hint": BETWEEN}),
        (lambda text: text.partition("\n")[2].encode(), {"path": "columns.image", "hint": NAMES}),
        (lambda text: text.replace("tumour", "Mühle").encode("latin-1"), {"says": "utf-8", "line": 3}),
        (lambda text: text.replace("P1,", "P1,,").encode(), {"says": "6 cells", "line": 4}),
        (lambda text: text.replace("P1,", '"P\n1",,').encode(), {"says": "6 cells", "line": 4}),
        (lambda text: text.replace("P2,", '"P2,').encode(), {"says": "expected after", "line": 6}),
        (lambda text: text.replace("P5,", '"P5,').encode()[:-12], {"says": "end of data", "line": 12}),
        (lambda text: b"PAR1 and then something else", {"says": "read"}),
        (lambda text: b"PK\x03\x04" + bytes(300), {"says": "unzip"}),
        (lambda text: b"\xd0\xcf\x11\xe0" + bytes(300), {"says": "workbook"}),
    ],
)
def test_files_that_are_no_table(write: Callable[[str], bytes], problem: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(write(frame(tmp_path).to_csv(index=False)))
    refuses(PatchTable(path=str(file)), file=file, **problem)


def test_a_workbook_and_a_table_left_packed(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04" + bytes(300))
    refuses(PatchTable(path=str(tmp_path / "t.xlsx")), says="workbook")
    (tmp_path / "s").mkdir()
    (tmp_path / "s/t.csv.gz").write_bytes(gzip.compress(b"image,label"))
    refuses(PatchTable(path=str(tmp_path / "s")), says="gunzip t.csv.gz")
    refuses(PatchTable(path=str(tmp_path / "s/t.csv")), says="gunzip t.csv.gz")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("between", [",", "\t", ";", ", "])
def test_ways_to_write_the_same_text(encoding: str, between: str, tmp_path: Path) -> None:
    table = frame(tmp_path).assign(patient=[f"Mü, ller;{number // 2}\t" for number in range(12)])
    whole = saved(table, tmp_path).load(0)
    text = table.to_csv(index=False, sep=between[0], lineterminator="\r\n").replace(between[0], between)
    (tmp_path / "t.csv").write_bytes(f"\r\n{text}\r\n{4 * between[0]}\r\n".encode(encoding))
    found = PatchTable(path=str(tmp_path / "t.csv")).load(0)
    assert found.groups is not None and whole.groups is not None
    assert [each.split() for each in found.groups] == [each.split() for each in whole.groups]
    assert found.labels.tolist() == whole.labels.tolist()


def test_a_line_is_the_line_of_an_editor(tmp_path: Path) -> None:
    text = 'image,label,remark\n\np0,a,"two\nlines"\n\np1,a,x\np2,,x\n'
    (tmp_path / "t.csv").write_text(text)
    refuses(PatchTable(path=str(tmp_path)), line=7, path="columns.label")


# Parquet


def test_parquet_has_rows_not_lines(tmp_path: Path) -> None:
    table = frame(tmp_path)
    table.loc[4, "patient"] = None
    table.to_parquet(tmp_path / "t.parquet")
    with refused(DataError, path="columns.patient", file=tmp_path / "t.parquet", line=None) as caught:
        PatchTable(path=str(tmp_path)).check()
    assert "t.parquet: row 5: " in str(caught.value)


@pytest.mark.parametrize(
    ("column", "label_names", "labels"),
    [
        (pyarrow.array([True, False, True]), ("false", "true"), [1, 0, 1]),
        (pyarrow.array([1, 0, 1], pyarrow.int8()), ("0", "1"), [1, 0, 1]),
        (pyarrow.array([1.0, 0.0, 1.0]), ("0", "1"), [1, 0, 1]),
        (pyarrow.array(["b", "a", "b"]).dictionary_encode(), ("a", "b"), [1, 0, 1]),
        (pyarrow.array([b"b", b"a", b"b"]), ("a", "b"), [1, 0, 1]),
    ],
)
def test_kinds_of_labels_in_parquet(column: Any, label_names: tuple, labels: list[int], tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"image": images(tmp_path, *(f"{each}.png" for each in "abc")), "label": column}),
        tmp_path / "t.parquet",
    )
    found = PatchTable(path=str(tmp_path)).load(0)
    assert (found.label_names, found.labels.tolist()) == (label_names, labels)


def test_parquet_that_holds_the_images_themselves(tmp_path: Path) -> None:
    rows = pyarrow.table({"image": [{"bytes": b"\xff\xd8", "path": "a"}], "label": [1]})
    pyarrow.parquet.write_table(rows, tmp_path / "t.parquet")
    refuses(PatchTable(path=str(tmp_path)), path="image", says="texts or numbers", file=tmp_path / "t.parquet")


def test_whole_numbers_that_became_decimals(tmp_path: Path) -> None:
    table = Frame({"uid": [1.0, 2.0, None, 4.0], "label": [0.0, 1.0, 0.0, 1.0], "patient": [1.0, 1.0, 2.0, 2.0]})
    images(tmp_path, "1.png", "2.png", "4.png", "4.0.png")
    columns = {"image": "{uid}.png"}
    for label_map in ({0: "no", 1: "yes"}, {"0.0": "no", "1": "yes"}):
        options = {"label_map": label_map, "where": {"label": [0, 1]}, "incomplete": "skip"}
        found = saved(table, tmp_path, columns=columns, **options).load(0)
        assert found.images[:, 0, 0, 0].tolist() == [0, 1, 3]  # as written, if there is such a file
        assert found.label_names == ("no", "yes")
        assert found.groups is not None and found.groups.tolist() == ["1", "1", "2"]


# Any order, any kind of file


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(12)),
    labels=st.lists(st.sampled_from(["a", "b,", 'c"d', "ü;"]), min_size=12, max_size=12),
    numbers=st.booleans(),
)
def test_the_order_of_rows_and_the_kind_of_file_do_not_matter(
    order: list[int], labels: list[str], numbers: bool, tmp_path: Path
) -> None:
    if not (tmp_path / "p00.png").exists():
        frame(tmp_path)
    table = frame(tmp_path).assign(label=labels)
    if numbers:
        table["patient"], table["split"] = np.arange(12) // 2 + 0.0, "train"
    table.to_csv(tmp_path / "t.csv", index=False)
    table.iloc[order].to_csv(tmp_path / "p.csv", index=False)
    table.iloc[order].to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    table.iloc[order].to_parquet(tmp_path / "t.parquet")
    found = {
        PatchTable(path=str(tmp_path / name), limit=9).load(3).digest
        for name in ("t.csv", "p.csv", "t.tsv", "t.parquet")
    }
    assert len(found) == 1
