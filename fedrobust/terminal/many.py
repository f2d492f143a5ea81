"""Many runs: matrices, and comparisons."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from fedrobust.job import tell
from fedrobust.terminal.elements import Bar, columns, number, plain
from fedrobust.texts import visible

if TYPE_CHECKING:
    from fedrobust.matrix.running import CellDone, MatrixResult
    from fedrobust.report import Comparison


class MatrixProgress(Bar):
    """A bar over the cells of a matrix, with the remaining time; a line for each cell if the output is a file."""

    def __init__(self, out: Console) -> None:
        super().__init__(out, "reading", None)
        self._cells, self._finished, self._before = 0, 0, 0
        self._began: float | None = None

    def plan(self, items: int, finished: int) -> None:
        """There are at most `items` cells; `finished` of them are done, including those of earlier executions."""
        ran = self._finished - self._before
        self._began = self._began or time.monotonic()
        self._cells, self._finished, self._before = items, finished, finished - ran
        self._bar.update(self._task, total=items, completed=finished)
        tell(done=finished, of=items, what="cells")
        if not self._out.is_terminal:
            self._out.print(f"at most {items} cells, {finished} are there")

    def done(self, item: CellDone) -> None:
        """A cell has been finished."""
        cell, run = item
        self._finished += 1
        tell(done=self._finished, of=self._cells, what="cells")
        left = f"{self._left()} left"
        self._bar.update(self._task, completed=self._finished, description=visible(cell.label), behind=left)
        if run.failed:
            self._out.print(plain(f"{cell.label} failed: {run.failed}", keep="\n"), soft_wrap=True)
        elif not self._out.is_terminal:
            accuracy = number(run.figures.get("balanced_accuracy", math.nan))
            shown = f"{self._finished}/{self._cells} {cell.label}: balanced accuracy {accuracy}, at most {left}"
            self._out.print(plain(shown), soft_wrap=True)

    def _left(self) -> str:
        """Return the remaining time at the speed of this execution."""
        ran = self._finished - self._before
        if self._began is None or ran == 0:
            return "–"
        minutes = round((time.monotonic() - self._began) / ran * (self._cells - self._finished) / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def show_matrix(out: Console, findings: MatrixResult) -> None:
    """Print the headline of every defence, and where to find the rest."""
    for setting in dict.fromkeys(verdict.setting for verdict in findings.verdicts):
        title = plain(f"{setting}: least robustness over the attacks, fresh seeds")
        table = Table(title=title, title_justify="left")
        for column in ("defence", "robustness", "between", "worst attack", "backdoor gain", "cost"):
            table.add_column(column)
        for verdict in findings.verdicts:
            if verdict.setting == setting:
                least = verdict.robustness
                between = f"{least.low:.3f} – {least.high:.3f}" if math.isfinite(least.low) else "too few seeds"
                figures = [number(estimate.value) for estimate in (least, verdict.gain, verdict.cost)]
                line = (verdict.defence, figures[0], between, verdict.worst_attack, *figures[1:])
                table.add_row(*map(plain, line))
        out.print(table)
    if failed := int((findings.table["state"] == "failed").sum()):
        out.print(f"{failed} cells failed; they are listed in table.md, and run again when the matrix is started again")
    out.print(plain(f"tables and pictures: {findings.folder}"), soft_wrap=True)


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
