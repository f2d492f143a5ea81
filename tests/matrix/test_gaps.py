"""What was not measured is said, with its reason, and no headline rests on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from celled import MATRIX, outcome
from rich.console import Console

from fedrobust.matrices import MatrixPlan, load_matrix
from fedrobust.matrices.files import headline_metrics, headline_tags, write_results
from fedrobust.matrices.gaps import hopeless, unlearnt
from fedrobust.matrices.grid import Cell
from fedrobust.matrices.results import harmless, table_of, to_measure_again, verdicts
from fedrobust.matrices.running import MatrixResult
from fedrobust.studies.finished import FinishedRun
from fedrobust.terminal import show_matrix

Makes = Callable[[Cell], FinishedRun | None]
"""The outcome of a cell; None: it is missing."""


@pytest.fixture
def grid(workplace: Path) -> MatrixPlan:
    return planned()


def planned(*overrides: str) -> MatrixPlan:
    Path("base.yaml").write_text("federation: {clients: 10, rounds: 6}\n")
    Path("matrix.yaml").write_text(MATRIX)
    return load_matrix("matrix.yaml", overrides)


def run_through(grid: MatrixPlan, makes: Makes) -> Any:
    """The table of a matrix whose cells end like this."""
    cells = [*grid.controls(), *grid.screening()]
    first = table_of(cells, outcomes(cells, makes))
    cells += grid.fresh(to_measure_again(first, grid.matrix.worst, grid.matrix.backdoors, grid.backdoors))
    return table_of(cells, outcomes(cells, makes))


def outcomes(cells: Sequence[Cell], makes: Makes) -> dict[str, FinishedRun]:
    return {cell.digest: made for cell in cells if (made := makes(cell)) is not None}


def failing(*where: tuple[str, str, int], seeds: Collection[int] = ()) -> Makes:
    """Cells that fail, by attack, defence and seed; on `seeds`, nobody learns anything."""

    def made(cell: Cell) -> FinishedRun:
        if (cell.attack, cell.defence, cell.seed) in where:
            return FinishedRun(cell.digest, cell.label, failed="it died")
        return outcome(cell, seeds)

    return made


def shown(grid: MatrixPlan, table: Any) -> tuple[str, str]:
    """What the terminal and the page say."""
    found, folder = verdicts(table, "mean", grid.backdoors, grid.matrix.worst), Path("out")
    folder.mkdir(exist_ok=True)
    write_results(folder, grid, table)
    out = Console(record=True, width=250)
    show_matrix(out, MatrixResult(folder, table, found, unlearnt(table, grid.rounds)))
    return out.export_text(), (folder / "table.md").read_text()


def of(grid: MatrixPlan, table: Any, defence: str) -> Any:
    return next(each for each in verdicts(table, "mean", grid.backdoors, 1) if each.defence == defence)


def test_where_the_oracle_gives_no_figures_every_attack_is_measured_again(grid: MatrixPlan) -> None:
    """So the minimum is that of all attacks, whatever they are called."""
    table = run_through(grid, failing(seeds=[1]))
    fresh = table[table["phase"] == "fresh"]
    assert set(fresh["attack"]) == {"flip", "weak", "patch"} and len(fresh) == 3 * 2 * 3
    assert of(grid, table, "mean").worst_attack == "flip"
    assert not of(grid, table, "mean").lacks
    assert harmless(table, "here", "mean", grid.backdoors) == [], "nothing was measured"
    terminal, page = shown(grid, table)
    assert "(harmless)" not in page
    assert "–: the oracle is at chance." in page
    said = "the oracle is at chance in here (0.503 against 0.5) after 6 rounds on seed 1: more rounds or data"
    assert terminal.count("more rounds or data") == page.count("more rounds or data") == 1
    assert said in terminal and f"**T{said[1:]}.**" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("makes", "lacks"),
    [
        pytest.param(failing(("weak", "median", 11)), {"weak": "failed on seed 11"}, id="a fresh seed failed"),
        pytest.param(
            failing(*(("flip", "median", seed) for seed in (1, 11, 12, 13))),
            {"flip": "failed on seeds 11, 12, 13"},
            id="an attack always fails",
        ),
        pytest.param(
            failing(*((attack, "median", seed) for attack in ("flip", "patch") for seed in (1, 11, 12, 13))),
            {"flip": "failed on seeds 11, 12, 13", "patch": "failed on seed 1"},
            id="more attacks fail than are tried again",
        ),
        pytest.param(
            lambda cell: None if (cell.attack, cell.seed) == ("weak", 13) else outcome(cell),
            {"weak": "not finished on seed 13"},
            id="a stopped matrix",
        ),
        pytest.param(
            lambda cell: outcome(cell) if cell.phase != "fresh" else None,
            {"weak": "not finished on seeds 11, 12, 13", "patch": "not finished on seeds 11, 12, 13"},
            id="stopped after the screening",
        ),
        pytest.param(
            lambda cell: outcome(cell) if cell.phase == "control" else None,
            dict.fromkeys(["flip", "weak", "patch"], "not finished on seed 1"),
            id="stopped after the controls",
        ),
        pytest.param(
            failing(seeds=[1, 11, 12, 13]),
            dict.fromkeys(["flip", "weak", "patch"], "the oracle is at chance on seeds 11, 12, 13"),
            id="nothing learnt anywhere",
        ),
        pytest.param(
            failing(*(("oracle", "mean", seed) for seed in (1, 11, 12, 13))),
            dict.fromkeys(["flip", "weak", "patch"], "the oracle has no figure on seeds 11, 12, 13"),
            id="the oracle fails",
        ),
    ],
)
def test_a_headline_without_an_attack_that_may_be_the_worst_is_incomplete(
    grid: MatrixPlan, makes: Makes, lacks: dict[str, str]
) -> None:
    table = run_through(grid, makes)
    if set(lacks) == {"flip", "weak", "patch"} and lacks["flip"].startswith("not finished"):
        table = table[table["phase"] != "fresh"]
    found = of(grid, table, "median")
    assert found.lacks == lacks
    assert found.worst_attack == "" and math.isnan(found.robustness.value)
    assert "here/median/robustness" not in headline_metrics([found])
    tag = headline_tags(grid, table, [found])["incomplete"]
    terminal, page = shown(grid, table)
    summary = pd.read_csv("out/summary.csv", keep_default_na=False).set_index("defence").loc["median"]
    assert summary["robustness"] == ""
    for text in (terminal, page, tag, summary["incomplete"]):
        assert all(reason in text for reason in lacks.values()), text
    if len(lacks) < 3:
        assert all(attack in text for attack in lacks for text in (tag, summary["incomplete"]))
    (row,) = [line for line in page.splitlines() if line.startswith("| median | incomplete")]
    assert "best |" not in row
    assert "too few seeds" not in terminal and "nan" not in terminal + page


def test_a_complete_headline_is_not_marked(grid: MatrixPlan) -> None:
    table = run_through(grid, outcome)
    assert headline_tags(grid, table, verdicts(table, "mean", grid.backdoors)) == {"incomplete": "", "unlearnt": ""}
    terminal, page = shown(grid, table)
    assert "incomplete" not in terminal + page
    assert "at chance" not in terminal + page


def test_a_seed_without_an_oracle_is_left_out_for_all_attacks_and_this_is_said(grid: MatrixPlan) -> None:
    table = run_through(grid, failing(seeds=[13]))
    found = of(grid, table, "median")
    assert (found.worst_attack, found.lacks) == ("weak", {})
    assert found.why["robustness"] == "too few seeds with a figure: the oracle is at chance on seed 13"
    terminal, page = shown(grid, table)
    assert f"no interval: {found.why['robustness']}" in terminal and found.why["robustness"] in page


def test_two_seeds_are_too_few_and_that_is_the_reason(workplace: Path) -> None:
    grid = planned("fresh=[11,12]")
    terminal, _ = shown(grid, run_through(grid, outcome))
    assert "too few seeds" in terminal


def test_without_backdoors_their_gain_has_no_figure_for_that_reason(workplace: Path) -> None:
    grid = planned("only.attacks=[flip,weak]")
    assert "no backdoor gain: no attack here plants a backdoor" in shown(grid, run_through(grid, outcome))[0]
    grid = planned("backdoors=0", "worst=1")
    assert "no backdoor gain: no backdoor was measured again" in shown(grid, run_through(grid, outcome))[0]


def test_without_the_cells_of_nobody_there_is_no_cost(grid: MatrixPlan) -> None:
    table = run_through(grid, failing(*(("nobody", "median", seed) for seed in (1, 11, 12, 13))))
    terminal, page = shown(grid, table)
    assert "median: no cost: nobody, median: failed on seeds 1, 11, 12, 13" in terminal
    assert "–: failed." in page.partition("### Nobody attacks")[2]
    table = run_through(grid, failing(*(("nobody", "mean", seed) for seed in (1, 11, 12, 13))))
    assert harmless(table, "here", "mean", grid.backdoors) == []


def test_a_backdoor_of_unknown_gain_is_not_harmless_and_is_measured_again(grid: MatrixPlan) -> None:
    """Its success is known, and what it is without the backdoor is not: the oracle failed."""
    table = run_through(grid, failing(("oracle", "mean", 1)))
    assert "patch" not in harmless(table, "here", "mean", grid.backdoors)
    assert "weak" in harmless(table, "here", "mean", grid.backdoors), "without a backdoor, no oracle is needed"
    assert of(grid, table, "median").worst_backdoor == "patch"


def test_equal_attacks_are_all_named(grid: MatrixPlan) -> None:
    """Of attacks that are equally low in the screening, those that were not measured again are named, too."""

    def flat(cell: Cell) -> FinishedRun:
        made = outcome(cell)
        same = {"balanced_accuracy": 0.6} if cell.attack not in ("oracle", "nobody") else {}
        return FinishedRun(made.digest, made.label, made.run_id, {**made.figures, **same})

    table = run_through(grid, flat)
    assert of(grid, table, "mean").tied == ("weak",)
    terminal, page = shown(grid, table)
    said = "not measured again, although as low in the screening as the last attack that was: weak; a larger 'worst'"
    assert said in terminal and "weak; a larger" in page
    assert of(grid, table, "mean").worst_attack == "flip, patch"
    for attack in ("flip", "weak", "patch"):
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {attack} ")]
        assert "| **0.250** | **0.250** |" in row
    assert "flip, weak, patch" not in page


def test_the_sentence_about_the_oracle(workplace: Path) -> None:
    grid = planned("settings={here: {fraction: 0.2}, there: {fraction: 0.3, federation.rounds: 9}}")
    cells = grid.controls()

    def table(*flat: tuple[str, int]) -> Any:
        seeds = {setting: [seed for name, seed in flat if name == setting] for setting in ("here", "there")}
        return table_of(cells, outcomes(cells, lambda cell: outcome(cell, seeds[cell.setting])))

    every = [1, 11, 12, 13]
    assert unlearnt(table(), grid.rounds) == ""
    assert unlearnt(table(*(("there", seed) for seed in every)), grid.rounds) == (
        "the oracle is at chance in there (0.503 against 0.5) after 9 rounds: more rounds or data"
    )
    both = table(*((name, seed) for name in ("here", "there") for seed in every))
    assert unlearnt(both, grid.rounds | {"there": 6}) == (
        "the oracle is at chance (0.503 against 0.5) after 6 rounds: more rounds or data"
    )
    assert hopeless(both, [1])
    assert not hopeless(table(("here", 1)), [1]), "the other setting has learnt something"
    assert hopeless(table(("here", 1), ("there", 1)), [1])
    assert not hopeless(table(("here", 1), ("there", 1)), [1, 11])
    assert not hopeless(table_of(cells, {}), [1]), "nothing is known"
