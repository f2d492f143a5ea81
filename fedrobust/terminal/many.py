"""Many runs: matrices, and comparisons."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from fedrobust.terminal.elements import Bar, number, plain
from fedrobust.texts import visible

if TYPE_CHECKING:
    from fedrobust.matrices.results import DefenceSummary
    from fedrobust.matrices.running import CellDone, MatrixResult
    from fedrobust.report import Comparison, Setting


class MatrixProgress(Bar):
    """A bar over the cells of a matrix, with the remaining time; a line for each cell if the output is a file."""

    def __init__(self, out: Console) -> None:
        super().__init__(out, None, "cells")

    def plan(self, items: int, finished: int) -> None:
        """There are `items` cells, at first at most; `finished` of them are done, including those of earlier
        executions."""
        self._counted(finished, items)
        self._bar.update(self._task, total=items, completed=finished)
        if not self._out.is_terminal:
            self._line(self._count())

    def done(self, item: CellDone) -> None:
        """A cell has been finished."""
        cell, run = item
        self._counted(self._done + 1, self._total)
        if math.isfinite(run.took):
            self._pace.add(run.took, time.monotonic())
        self._bar.update(self._task, completed=self._done, description=visible(cell.label), behind=self._left())
        if run.failed:
            self._line(f"{cell.label} failed: {run.failed}", keep="\n")
        elif not self._out.is_terminal:
            accuracy = number(run.figures.get("balanced_accuracy", math.nan))
            self._line(f"{self._count()}: {cell.label}: balanced accuracy {accuracy}")


def show_matrix(out: Console, findings: MatrixResult) -> None:
    """Print the headline of every defence, and where to find the rest."""
    from fedrobust.matrices.results import remarks

    if findings.unlearnt:
        out.print(plain(findings.unlearnt), soft_wrap=True)
    for setting in dict.fromkeys(verdict.setting for verdict in findings.verdicts):
        title = plain(f"{setting}: least robustness over the attacks, fresh seeds")
        table = Table(title=title, title_justify="left")
        for column in ("defence", "robustness", "between", "worst attack", "backdoor gain", "cost"):
            table.add_column(column)
        own = [verdict for verdict in findings.verdicts if verdict.setting == setting]
        for verdict in own:
            least = verdict.robustness
            between = f"{least.low:.3f} – {least.high:.3f}" if math.isfinite(least.low) else _undefined(verdict)
            figures = [number(estimate.value) for estimate in (least, verdict.gain, verdict.cost)]
            line = (verdict.defence, figures[0], between, verdict.worst_attack or "–", *figures[1:])
            table.add_row(*map(plain, line))
        out.print(table)
        for remark in remarks(own):
            out.print(plain(remark), soft_wrap=True)
    if failed := int((findings.table["state"] == "failed").sum()):
        out.print(f"{failed} cells failed; they are listed in table.md, and run again when the matrix is started again")
    out.print(plain(f"tables and pictures: {findings.folder}"), soft_wrap=True)


def _undefined(verdict: DefenceSummary) -> str:
    """Return in a word why there is no interval; the whole reason is below the table."""
    if verdict.lacks:
        return "incomplete"
    return "too few seeds" if verdict.why.get("robustness") == "too few seeds" else "–"


def show_comparison(out: Console, comparison: Comparison, page: Path) -> None:
    """Print each setting with its candidates, their figures and what their differences mean, and where the files are.

    comparison: of runs.
    page: its HTML page; the tables for programs are beside it.
    """
    from fedrobust.report.comparison_tables import averaged_in_words, side_by_side

    for note in comparison.notes:
        out.print(plain(note), soft_wrap=True)
    beside = side_by_side(comparison)
    if beside:
        count = len(comparison.settings)
        out.print(f"{count} settings: the runs did not all have the same task, and are ranked only within a setting")
        for title, table in beside.items():
            out.print(_table(table, title))
    for place, setting in enumerate(comparison.settings, start=1):
        if beside:
            out.print()
            out.print(plain(f"setting {place}: {setting.title}"), style="bold", soft_wrap=True)
        out.print(plain(setting.facts), soft_wrap=True)
        for each in _fitting(out, comparison, setting):
            out.print(each)
        out.print(plain(f"{averaged_in_words(setting)}: mean ± standard deviation over the seeds"), soft_wrap=True)
        for line in (*setting.sentences(), *setting.notes):
            out.print(plain(line), soft_wrap=True)
    out.print()
    out.print(plain(f"curves and reputations: {page}"), soft_wrap=True)
    out.print(
        plain(f"tables for programs: candidates.csv, differences.csv, compare.json in {page.parent}"), soft_wrap=True
    )


def _fitting(out: Console, comparison: Comparison, setting: Setting) -> Iterator[Table]:
    """Yield the tables of a setting: as one if that fits, otherwise one for each deciding figure; then all others."""
    from fedrobust.report.comparison_tables import deciding, figures_table, verdict_table

    whole = _table(verdict_table(comparison, setting))
    if Measurement.get(out, out.options.update(max_width=10_000), whole).maximum <= out.width:
        yield whole
    else:
        yield from (_table(verdict_table(comparison, setting, figure)) for figure in deciding(comparison))
    others = figures_table(comparison, setting)
    if len(others[0]) > 1:
        yield _table(others)


def _table(table: tuple[Sequence[str], Sequence[Sequence[str]]], title: str = "") -> Table:
    """Return a table of texts; words are broken only where a single one is wider than its column."""
    heads, rows = table
    made = Table(title=plain(title) if title else None, title_justify="left")
    for head in heads:
        made.add_column(plain(head), overflow="fold", min_width=min(9, max(map(len, head.split()), default=0)))
    for row in rows:
        made.add_row(*map(plain, row))
    return made
