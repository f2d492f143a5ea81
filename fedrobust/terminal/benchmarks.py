"""The benchmark: the table of rows, suites, and cells that were computed again."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fedrobust.intervals import Estimate
from fedrobust.terminal.elements import number, plain

if TYPE_CHECKING:
    from fedrobust.benchmark import Advice, BenchmarkRow, Ranked, Suite
    from fedrobust.benchmark.row import MeasuredCell
    from fedrobust.benchmark.verifying import Reproduced
    from fedrobust.errors import ExperimentError

BEST = 3
"""As many defences are named as possible choices."""


def show_ranking(
    out: Console, lines: Sequence[Ranked], suite: Suite, quick: bool, own: Collection[BenchmarkRow] = ()
) -> None:
    """Print the table of rows.

    lines: as `ranked` returns them.
    quick: whether they are those of the quick part.
    own: the rows to mark.
    """
    attacks, seeds = suite.attacks(quick), suite.options.quick.seeds if quick else suite.options.seeds
    part = f"{suite.name}{', quick part' if quick else ''}"
    title = f"{part}: robustness against the worst of {len(attacks)} attacks, mean of {len(seeds)} seeds [95 %]"
    table = Table(title=plain(title), title_justify="left")
    settings = list(suite.options.settings)
    for column in ("", "defence"):
        table.add_column(plain(column), overflow="fold")
    for column in (*settings, "backdoor gain"):
        table.add_column(plain(column), min_width=len("0.00 [0.00, 0.00]"))
    table.add_column("cost", min_width=len("0.0 ± 0.0"))
    for line in lines:
        name = f"→ {line.row.name}" if any(line.row is each for each in own) else line.row.name
        worst = max(line.settings.values(), key=lambda each: _known(each.gain.value))
        cells = [
            str(line.rank or "–"),
            name,
            *(_beside(line.settings[setting].robustness, line.settings[setting].attack) for setting in settings),
            _beside(worst.gain, worst.backdoor),
            _cost(line),
        ]
        table.add_row(*(plain(cell, keep="\n") for cell in cells))
    out.print(table)
    out.print("cost: points of accuracy with nobody attacking, and the time of the rounds as a multiple of the mean's")
    for line in lines:
        for setting, found in line.settings.items():
            if found.lacks:
                out.print(plain(f"{line.row.name}, {setting}: no robustness: {found.lacks}"), soft_wrap=True)
            if found.left_out:
                without = f"without seeds {', '.join(map(str, found.left_out))}, on which the oracle has learnt nothing"
                out.print(plain(f"{line.row.name}, {setting}: {without}"), soft_wrap=True)


def show_advice(out: Console, advice: Advice, suite: Suite, quick: bool) -> None:
    """Print what a benchmark says about an experiment's defence, and which others could run in the experiment.

    quick: whether the lines are those of the quick part.
    """
    settings = ", ".join(suite.options.settings)
    part = f"{suite.name}{', quick part' if quick else ''}"
    table = Table(title=plain(f"{part}: robustness against the worst attack ({settings})"), title_justify="left")
    for column in ("", "defence", *suite.options.settings):
        table.add_column(plain(column))
    said = [("this experiment", [advice.own] if advice.own is not None else [])]
    said += [("possible here", advice.possible[:BEST]), ("with data.root.set_aside", advice.with_patches[:BEST])]
    for what, lines in said:
        for line in lines:
            found = [_interval(line.settings[setting].robustness) for setting in suite.options.settings]
            table.add_row(*map(plain, (what, line.row.name, *found)))
    if table.row_count:
        out.print(table)
    if advice.why:
        out.print(plain(advice.why), soft_wrap=True)
    out.print("how to choose: docs/which-defence.md")


def show_left_out(out: Console, refused: Sequence[ExperimentError]) -> None:
    """Print why files among the stored rows are none."""
    for error in refused:
        for problem in error.problems:
            out.print(plain(f"not among the rows: {problem}"), soft_wrap=True)


def show_suites(out: Console, suites: Sequence[Suite]) -> None:
    """Print what suites there are."""
    for suite in suites:
        cells = f"{len(suite.cells(quick=False))} cells, quick {len(suite.cells(quick=True))}"
        out.print(plain(f"{suite.name}: {suite.options.about}; {cells}; {suite.draft.path}"), soft_wrap=True)


def show_reproduced(out: Console, found: Sequence[Reproduced]) -> None:
    """Print which cells of a row agree with what was computed again."""
    from fedrobust.benchmark.verifying import OF_SUCCESS, TOLERANCE, moved

    table = Table()
    for column in ("defence", "attack", "setting", "seed", "the row says", "again", ""):
        table.add_column(plain(column))
    for each in found:
        cell = each.claimed
        where = (each.defence, cell.attack, cell.setting, str(cell.seed))
        table.add_row(*map(plain, (*where, _figures(cell), _figures(each.again), each.verdict)))
    out.print(table)
    same = sum(each.verdict == "the same bits" for each in found)
    agree = sum(each.verdict != "differs" for each in found)
    within = f"{agree - same} within {TOLERANCE}, success within {OF_SUCCESS}"
    out.print(f"{agree} of {len(found)} cells agree: {same} to the bit, {within}")
    for group in moved(found):
        better = f"{group.what} is better in the row than again by {group.mean:.3f}"
        limit = f"rounding: at most {group.limit:.3f}"
        out.print(plain(f"{group.where}: {better} in the mean of {group.cells}; {limit}"), soft_wrap=True)


def _beside(estimate: Estimate, name: str) -> str:
    if not math.isfinite(estimate.value):
        return "–"
    return f"{_interval(estimate)}\n{name}"


def _interval(estimate: Estimate) -> str:
    interval = f" [{estimate.low:.2f}, {estimate.high:.2f}]" if math.isfinite(estimate.low) else ""
    return f"{estimate.value:.2f}{interval}"


def _cost(line: Ranked) -> str:
    """Return the points of accuracy with half the width of their interval, and the time."""
    cost, time = line.cost, f"time × {line.time:.1f}" if math.isfinite(line.time) else ""
    if not math.isfinite(cost.value):
        return f"–\n{time}"
    half = f" ± {50 * (cost.high - cost.low):.1f}" if math.isfinite(cost.low) else ""
    return f"{100 * cost.value:.1f}{half}\n{time}"


def _figures(cell: MeasuredCell) -> str:
    if cell.failed:
        return f"failed: {cell.failed[:40]}"
    success = f", success {number(cell.success)}" if cell.success is not None else ""
    return f"{number(cell.accuracy if cell.accuracy is not None else math.nan)}{success}"


def _known(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
