"""A row from start to end on a tiny federation, and some of its cells again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benched import OWN, SUITE, write_suite
from rich.console import Console
from tiny import write_patches

from fedrobust.benchmark import BenchmarkRow, Suite, read_entry, read_row
from fedrobust.benchmark.running import run_entry
from fedrobust.benchmark.verifying import measured_entry, verify
from fedrobust.errors import FederationError
from fedrobust.federation.pool import Pool
from fedrobust.studies.study import Unwatched
from fedrobust.terminal import show_reproduced

FILE = Path("row.json")


class Counted(Unwatched):
    """Counts the runs."""

    def __init__(self) -> None:
        self.plans, self.runs = list[tuple[int, int]](), 0

    def plan(self, items: int, finished: int) -> None:
        self.plans.append((items, finished))

    def done(self, item: object) -> None:
        self.runs += 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_patches(folder / "patches.npz")
    (folder / "run_rule.py").write_text(OWN.replace("own_rule", "run_rule"))
    return folder


@pytest.fixture(scope="module")
def suite(place: Path) -> Suite:
    return write_suite(place, SUITE.replace(", many: {fraction: 0.4}", "").replace("seeds: [1, 2]", "seeds: [1]"))


@pytest.fixture(scope="module")
def row(place: Path, suite: Suite, pool: Pool) -> BenchmarkRow:
    """Of a rule of the user's own: with nobody attacking, it is the mean."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        watch = Counted()
        made = run_entry(read_entry("run_rule:Equal", suite), suite, True, watch, pool=pool)
        FILE.write_text(made.written())
        assert watch.plans == [(4, 0)]
        assert watch.runs == 4  # oracle, nobody for both, one attack
        again = Counted()
        run_entry(read_entry("run_rule:Equal", suite), suite, True, again, pool=pool)
        assert again.plans == [(4, 4)]
        assert not again.runs
        return made


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_a_row_has_what_was_measured(row: BenchmarkRow, suite: Suite) -> None:
    assert read_row(FILE, suite) == row
    nobody, patch = row.cells
    oracle, plain = row.controls
    assert (nobody.attack, patch.attack, oracle.attack, plain.attack) == ("nobody", "patch", "oracle", "nobody")
    assert nobody.accuracy == plain.accuracy
    assert patch.success is not None
    assert patch.seconds
    assert oracle.base_rates.keys() == {"patch"}
    assert oracle.classes == 2
    assert oracle.success is None
    assert row.entry.code
    assert row.versions.keys() >= {"python", "torch", "numpy", "fedrobust"}


def test_an_honest_row_is_reproduced_to_the_bit(row: BenchmarkRow, suite: Suite, pool: Pool) -> None:
    with measured_entry(row, FILE, suite) as entry:
        found = verify(row, entry, suite, 4, pool=pool)
    assert [each.verdict for each in found] == ["the same bits"] * 4


def test_a_changed_figure_is_found(row: BenchmarkRow, suite: Suite, pool: Pool) -> None:
    data = json.loads(row.written())
    data["cells"][1]["accuracy"] = max(0.0, row.cells[1].accuracy - 0.06)
    FILE.write_text(json.dumps(data))
    forged = read_row(FILE, suite)
    watch = Counted()
    with measured_entry(forged, FILE, suite) as entry:
        found = verify(forged, entry, suite, 99, watch, pool=pool)
    assert watch.runs == 4
    verdicts = {each.claimed.key: each.verdict for each in found if each.defence == forged.name}
    assert sorted(verdicts.values()) == ["differs", "the same bits"]
    out = Console(record=True, width=120)
    show_reproduced(out, found)
    assert "3 of 4 cells agree: 3 to the bit, 0 within 0.05, success within 0.15" in out.export_text()


def test_an_entry_whose_cells_all_fail_has_no_row(suite: Suite, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise FederationError("round 2: worker 0 to train: it died 3 times")

    monkeypatch.setattr("fedrobust.studies.teams.run", failing)
    with pytest.raises(FederationError, match="median: all 2 cells failed: round 2: worker 0"):
        run_entry(read_entry("median", suite), suite, True, pool=pool)
