"""Suites and entries: what they compose, and what is refused."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from benched import OWN, SUITE, write_suite
from refused import refused

from fedrobust.benchmark import Suite, load_suite, read_entry, shipped_suites
from fedrobust.benchmark.suite import CellKey
from fedrobust.errors import DataError

ENTRIES = Path(__file__).parent.parent.parent / "fedrobust" / "benchmark" / "entries"
DIGESTS = {
    "histology-v1": "79b884eb6f2f4e32891805c16b04243d8ca11e410e8f738c8fd536c98869e2a4",
    "idc-v1": "7a76062c6bc907b2c00827718dfdc18948fd474a03c7fb6178c5224b188fb71f",
}
"""What decides the results of the released suites. If one of these differs, all stored rows are of another suite:
restore the suite or the default that was changed, or release a new version."""


@pytest.fixture
def suite(workplace: Path) -> Suite:
    return write_suite(workplace)


def test_released_suites_do_not_change() -> None:
    assert {name: load_suite(name).digest for name in shipped_suites()} == DIGESTS


@pytest.mark.parametrize("name", list(DIGESTS))
def test_a_released_suite_is_complete(name: str) -> None:
    suite = load_suite(name)
    assert (len(suite.cells(quick=False)), len(suite.cells(quick=True))) == (340, 54)
    assert set(suite.options.seeds).isdisjoint(range(100))  # on those, attacks and defences were searched and chosen
    assert {"large_patch", "edge_case"} <= set(suite.backdoors) & set(suite.attacks(quick=True))
    for file in ENTRIES.glob("*.yaml"):
        entry = read_entry(str(file), suite)
        assert entry.name == file.stem
        assert not entry.code


def test_the_cells_of_a_row_are_its_runs(suite: Suite) -> None:
    entry = read_entry("median", suite)
    planned = suite.planned(entry.name, entry.options, entry.folders)
    cells, controls = suite.cells(quick=False), suite.controls(quick=False)
    runs = planned.chosen(cells, controls)
    assert len(runs) == 2 * 4 * (4 + 2)
    assert [CellKey(run.setting, run.attack, run.seed) for run in runs] == [*controls, *cells]
    assert {run.defence for run in runs[: len(controls)]} == {"mean"}
    assert {run.defence for run in runs[len(controls) :]} == {"median"}
    attacked = next(run for run in runs if run.attack == "flip" and run.setting == "many")
    assert attacked.experiment is not None
    assert attacked.experiment.aggregation.rule.name == "median"
    assert attacked.experiment.attacks[0].attackers(5) == 2


def test_nobody_attacks_in_no_setting(suite: Suite) -> None:
    """So these cells, of all settings, are run once."""
    entry = read_entry("median", suite)
    runs = suite.planned(entry.name, entry.options, entry.folders).runs
    few, many = (runs[CellKey(setting, "nobody", 1), "median"] for setting in ("few", "many"))
    assert few.digest == many.digest


@pytest.mark.parametrize("text", ["own_rule:Equal", "own_rule.py:Equal", "own.yaml"])
def test_an_entry_of_ones_own(suite: Suite, text: str) -> None:
    Path("own_rule.py").write_text(OWN)
    Path("own.yaml").write_text("aggregation: {rule: 'own_rule:Equal'}\ntrust: {acts: true}\n")
    entry = read_entry(text, suite)
    assert entry.name == ("own" if text == "own.yaml" else "own_rule_Equal")
    assert entry.code == {"own_rule:Equal": sha256(OWN.encode()).hexdigest()}
    assert entry.options["trust"]["acts"] is (text == "own.yaml")
    planned = suite.planned(entry.name, entry.options, entry.folders, entry.code_digest)
    assert planned.grid.matrix.name == f"tiny-v1 {entry.code_digest[:8]}"  # other code, another folder of runs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mdian", {"path": "aggregation.rule", "allows": "median", "file": "entry 'mdian'"}),
        ("nowhere:Rule", {"path": "aggregation.rule", "says": "import"}),
        ("nowhere.py:Rule", {"file": "nowhere.py"}),
        ("nowhere.yaml", {"file": "nowhere.yaml"}),
        ("typo.yaml", {"path": "aggregation.rule", "file": "typo.yaml", "line": 1}),
        ("more.yaml", {"path": "privacy", "file": "more.yaml", "line": 2}),
        ("none.yaml", {"path": "aggregation", "file": "none.yaml"}),
        ("mean.yaml", {"says": "plain mean", "file": "mean.yaml"}),
        ("oracle.yaml", {"says": "name", "file": "oracle.yaml"}),
        ("referee.yaml", {"path": "trust.referee", "file": "referee.yaml"}),
    ],
)
def test_one_line_for_an_entry_that_cannot_be(suite: Suite, text: str, expected: dict[str, object]) -> None:
    Path("typo.yaml").write_text("aggregation: {rule: mdian}\n")
    Path("more.yaml").write_text("aggregation: {rule: mean}\nprivacy: masked\n")
    Path("none.yaml").write_text("trust: {acts: true}\n")
    Path("mean.yaml").write_text("aggregation: {rule: median}\n")
    Path("oracle.yaml").write_text("aggregation: {rule: median}\n")
    Path("referee.yaml").write_text("aggregation: {rule: mean}\ntrust: {referee: {}}\n")  # needs patches set aside
    with refused(**expected):  # type: ignore[arg-type]
        read_entry(text, suite)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: sign_flip", "name: sign_flap", {"entry": "attacks.flip"}),
        ("fraction: 0.4", "fraction: 4", {"path": "settings.many.fraction", "says": "between 0 and 1"}),
        ("clients: 5", "clients: five", {"path": "federation.clients", "line": 10}),
        ("attacks: [patch]", "attacks: [pitch]", {"path": "quick.attacks", "line": 19}),
        ("seeds: [1, 2]", "seeds: [7]", {"path": "quick.seeds", "line": 19}),
        ("name: tiny-v1", "name: a/b", {"path": "name", "line": 2}),
        ("  name: tiny\n", "  name: tiny\n  aggregation: {rule: mean}\n", {"path": "experiment.aggregation"}),
    ],
)
def test_one_line_for_a_suite_that_cannot_be(suite: Suite, old: str, new: str, expected: dict[str, object]) -> None:
    assert old in SUITE
    with refused(**expected):  # type: ignore[arg-type]
        write_suite(Path(), SUITE.replace(old, new))


def test_a_suite_that_is_not_there() -> None:
    with refused(path="suite", found="'histology'", allows="histology-v1"):
        load_suite("histology")
    with refused(file="nowhere.yaml"):
        load_suite("nowhere.yaml")


def test_the_data_of_a_suite_are_one_file(suite: Suite) -> None:
    with refused(DataError, says="not exist"):
        suite.check_data()
    np.savez("patches.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.arange(2))
    suite.check_data()
    digest = sha256(Path("patches.npz").read_bytes()).hexdigest()
    write_suite(Path(), SUITE.replace("about:", f"sha256: '{digest}'\nabout:")).check_data()
    with refused(DataError, says="SHA-256"):
        write_suite(Path(), SUITE.replace("about:", f"sha256: '{'0' * 64}'\nabout:")).check_data()
