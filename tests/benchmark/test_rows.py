"""The file of a row: what it holds, and what is refused of one that was cut, forged or made for another suite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from benched import SUITE, made_row, planted, usual, write_suite
from refused import refused

from fedrobust.benchmark import Suite, read_row, shipped_suites, stored_rows
from fedrobust.benchmark.row import MeasuredCell
from fedrobust.benchmark.suite import load_suite
from fedrobust.benchmark.verifying import Reproduced, moved, sampled

FILE = Path("row.json")


@pytest.fixture
def suite(workplace: Path) -> Suite:
    return write_suite(workplace)


@pytest.mark.parametrize("quick", [False, True])
def test_a_row_is_read_as_it_was_written(suite: Suite, quick: bool) -> None:
    row = made_row(suite, lambda *key: None if key[1] == "weak" else usual(*key), planted, quick=quick)
    FILE.write_text(row.written())
    assert read_row(FILE, suite) == row
    assert len(FILE.read_text().splitlines()) < len(row.cells) + len(row.controls) + 20


def test_all_shipped_rows_are_of_their_suites() -> None:
    for name in shipped_suites():
        suite = load_suite(name)
        rows, refused = stored_rows(suite)
        assert not refused
        for row in rows:
            assert not row.entry.code or row.entry.source


def test_a_sample_has_one_cell_of_each_attack_before_a_second(suite: Suite) -> None:
    row = made_row(suite, usual, planted)
    groups = 2 * (1 + 3) + 2 * 2  # settings × (nobody and the attacks), and the controls
    for seed in range(5):
        sample = sampled(row, groups + 1, Random(seed))
        kinds = [(defence, cell.setting, cell.attack) for defence, cell, _ in sample]
        assert len(set(kinds[:groups])) == groups
        assert kinds[groups] in kinds[:groups]
    assert sampled(row, 6, Random(0)) != sampled(row, 6, Random(1))
    assert len(sampled(row, 999, Random(0))) == len(row.cells) + len(row.controls)


def again(cells: list[MeasuredCell], noise: float, shift: float, control: bool = False) -> list[Reproduced]:
    """Cells whose row claims `shift` more of accuracy and less of success, as an average over random rounding."""
    draw, found = Random(3), []
    for cell in cells:
        two = {"accuracy": cell.accuracy + draw.uniform(-noise, noise) - shift}
        if cell.success is not None:
            two["success"] = cell.success + draw.uniform(-noise, noise) + shift
        found.append(Reproduced("median", cell, cell.model_copy(update=two), control))
    return found


def test_differences_of_one_direction_are_found(suite: Suite) -> None:
    """Each of them is within what rounding does."""
    cells = [*made_row(suite, usual, planted).cells]
    assert len(cells) == 32
    for shift, noise in ((0.03, 0.0), (0.02, 0.02)):
        found = again(cells, noise, shift)
        assert {each.verdict for each in found} == {"agrees"}
        assert ("all cells", "accuracy") in {(each.where, each.what) for each in moved(found)}
        assert not moved(again(cells, noise, -shift))  # the row is worse than it could be
    few = [cell for cell in cells if cell.attack == "patch"]
    (one,) = (each for each in moved(again(few, 0.0, 0.04)) if each.where == "patch" and each.what == "accuracy")
    assert (one.cells, one.mean, one.limit) == (8, pytest.approx(0.04), pytest.approx(0.05 / 8**0.5))
    rest = again([cell for cell in cells if cell.attack != "patch"], 0.0, 0.0)
    assert {each.where for each in moved(again(few, 0.0, 0.04) + rest)} >= {"patch"}


def test_rounding_has_no_direction(suite: Suite) -> None:
    cells = [*made_row(suite, usual, planted).cells]
    assert not moved(again(cells, 0.03, 0.0))
    assert not moved(again(cells[:1], 0.0, 0.04))  # one cell may differ by as much


def test_a_better_oracle_is_in_nobodys_favour(suite: Suite) -> None:
    row = made_row(suite, usual, planted)
    oracles = [cell for cell in row.controls if cell.attack == "oracle"]
    assert not moved(again(oracles, 0.0, 0.03, control=True))
    found = moved(again(oracles, 0.0, -0.03, control=True))
    assert {(each.where, each.what) for each in found} == {
        ("all cells", "accuracy"),
        ("the mean's controls, oracle", "accuracy"),
    }
    rates = [
        Reproduced("mean", cell, cell.model_copy(update={"base_rates": {"patch": 0.0}}), control=True)
        for cell in oracles
    ]
    assert {each.what for each in moved(rates)} == {"success"}


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "the same bits"),
        ({"seconds": 9.0}, "the same bits"),
        ({"accuracy": 0.86}, "agrees"),
        ({"accuracy": 0.84}, "differs"),
        ({"success": 0.44}, "agrees"),
        ({"success": 0.46}, "differs"),
        ({"success": None}, "differs"),
        ({"base_rates": {"patch": 0.2}}, "agrees"),
        ({"base_rates": {"patch": 0.3}}, "differs"),
        ({"base_rates": {"other": 0.1}}, "differs"),
        ({"classes": 3}, "differs"),
        ({"accuracy": None, "failed": "an actor died"}, "differs"),
    ],
)
def test_a_cell_agrees_within_what_rounding_does(changed: dict[str, Any], verdict: str) -> None:
    cell = MeasuredCell(
        setting="few", attack="patch", seed=1, accuracy=0.9, success=0.3, classes=2, base_rates={"patch": 0.1}
    )
    assert Reproduced("median", cell, cell.model_copy(update=changed)).verdict == verdict
    assert Reproduced("median", cell.model_copy(update=changed), cell).verdict == verdict


def test_a_cell_that_fails_again_agrees() -> None:
    failed = MeasuredCell(setting="few", attack="flip", seed=1, failed="f is too large")
    assert Reproduced("median", failed, failed.model_copy(update={"failed": "too large"})).verdict == "the same bits"


def change(key: str, value: Any, where: int | None = None) -> Callable[[dict[str, Any]], None]:
    def changed(row: dict[str, Any]) -> None:
        (row if where is None else row["cells"][where])[key] = value

    return changed


def entry(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def changed(row: dict[str, Any]) -> None:
        row["entry"][key] = value

    return changed


def without_classes(row: dict[str, Any]) -> None:
    del next(each for each in row["controls"] if each["attack"] == "oracle")["classes"]


def repeat(row: dict[str, Any]) -> None:
    row["cells"].append(row["cells"][0])


@pytest.mark.parametrize(
    ("forge", "path", "says"),
    [
        (lambda row: row["cells"].pop(), "cells", "missing"),
        (lambda row: row["controls"].pop(0), "controls", "missing"),
        (repeat, "cells", "twice"),
        (change("attack", "patches", 2), "cells", "missing"),
        (change("accuracy", 1.2, 0), "cells.0.accuracy", ""),
        (change("accuracy", float("nan"), 0), "cells.0.accuracy", ""),
        (change("accuracy", None, 0), "cells.0.accuracy", "result"),
        (change("failed", "it was slow", 0), "cells.0.accuracy", "result"),
        (change("points", 3, 0), "cells.0.points", ""),
        (change("suite", "histology-v1"), "suite", "another suite"),
        (change("digest", "0" * 64), "digest", "another value"),
        (change("quick", True), "controls", "not in the suite"),
        (change("quick", "yes"), "quick", ""),
        (change("format", 2), "format", ""),
        (change("entry", {}), "entry.name", ""),
        (change("cells", {}), "cells", ""),
        (without_classes, "controls.0.classes", "missing"),
        (entry("name", "a" * 61), "entry.name", ""),
        (entry("name", "one\ntwo"), "entry.name", "letters"),
        (entry("name", "[red]mean[/]"), "entry.name", "letters"),
        (entry("source", "a" * 501), "entry.source", ""),
        (entry("options", {}), "entry.options", "must have"),
        (entry("options", {"aggregation": {}}), "entry.options", "must have"),
        (entry("options", {"aggregation": 3, "trust": {}}), "entry.options.aggregation", ""),
        (lambda row: row["cells"][0].update(failed="a" * 501, accuracy=None), "cells.0.failed", ""),
    ],
)
def test_one_line_for_a_forged_file(suite: Suite, forge: Callable[[Any], object], path: str, says: str) -> None:
    row = json.loads(made_row(suite, usual, planted).written())
    forge(row)
    FILE.write_text(json.dumps(row))
    with refused(path=path, says=says, file="row.json"):
        read_row(FILE, suite)


def test_one_bad_file_among_the_stored_rows_takes_no_other_away(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrobust.benchmark.row.ROWS", Path("rows"))
    assert stored_rows(suite) == ([], [])
    folder = Path("rows", suite.name)
    folder.mkdir(parents=True)
    row = made_row(suite, usual, planted)
    (folder / "good.json").write_text(row.written())
    (folder / "bad.json").write_text("{}")
    found, (error,) = stored_rows(suite)
    assert found == [row]
    assert "bad.json" in str(error)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'])
def test_one_line_for_a_file_that_is_no_row(suite: Suite, data: bytes) -> None:
    FILE.write_bytes(data)
    with refused(file="row.json"):
        read_row(FILE, suite)


def test_one_line_for_a_cut_file(suite: Suite) -> None:
    text = made_row(suite, usual, planted).written()
    FILE.write_text(text[: len(text) // 2])
    with refused(file="row.json", says="not the file of a row"):
        read_row(FILE, suite)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("about: five", "about: 5", True),
        ("attacks:\n", "attacks:  # the worst ones\n", True),
        ("rounds: 2", "rounds: 3", False),
        ("scale: 9", "scale: 8", False),
        ("fraction: 0.4", "fraction: 0.3", False),
        ("seeds: [1, 2, 3, 4]", "seeds: [1, 2, 3, 5]", False),
        ("attacks: [patch]", "attacks: [flip, patch]", True),
    ],
)
def test_the_digest_is_that_of_what_decides_results(suite: Suite, old: str, new: str, same: bool) -> None:
    """The quick part is checked by its cells."""
    assert old in SUITE
    other = write_suite(Path(), SUITE.replace(old, new))
    assert (other.digest == suite.digest) is same
