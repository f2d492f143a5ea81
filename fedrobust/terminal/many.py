"""Many runs: matrices, and comparisons."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from fedrobust.terminal.elements import Bar, columns, number, plain
from fedrobust.texts import visible

if TYPE_CHECKING:
    from fedrobust.matrix.results import DefenceSummary
    from fedrobust.matrix.running import CellDone, MatrixResult
    from fedrobust.report import Comparison


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
    from fedrobust.matrix.results import remarks

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
    """Print the groups and their final figures, notes for the reader, and the path of the page."""
    from fedrobust.report.compare import shown

    figures = [name for name in comparison.figures if name not in _IN_THE_PAGE]
    numbers = {"": [str(place) for place in range(1, len(comparison.groups) + 1)]}
    options = {path: [group.options.get(path, "–") for group in comparison.groups] for path in comparison.columns}
    measured = {"n": [str(len(group.runs)) for group in comparison.groups]} | {
        comparison.figures[name]: [shown(name, group.figures[name], len(group.runs)) for group in comparison.groups]
        for name in figures
    }
    whole = columns(numbers | options | measured)
    if Measurement.get(out, out.options.update(max_width=10_000), whole).maximum <= out.width:
        out.print(whole)
    else:
        out.print(columns(numbers | options), columns(numbers | measured), sep="\n")
    out.print("mean ± standard deviation over n seeds")
    for note in comparison.notes:
        out.print(plain(note), soft_wrap=True)
    out.print(plain(f"curves and reputations: {page}"), soft_wrap=True)


_IN_THE_PAGE = ("defense/precision", "defense/recall")
"""Figures that are shown only on the page, because the terminal is too narrow."""
