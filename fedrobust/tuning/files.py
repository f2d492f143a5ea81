"""The files of a sweep: a table for programs, and one page with pictures for readers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from fedrobust.studies.writing import drawn
from fedrobust.texts import cell
from fedrobust.tuning.again import Fresh
from fedrobust.tuning.page import sweep_html
from fedrobust.tuning.study import SweepStudy
from fedrobust.tuning.sweep import SweepPlan
from fedrobust.tuning.views import SweepView, spelled


def write_study(
    folder: Path, plan: SweepPlan, study: SweepStudy, fresh: Sequence[Fresh] = (), unlearnt: str = ""
) -> list[Path]:
    """Write `trials.csv` and `sweep.html`; return the files.

    folder: must exist.
    study: the trials; it may be unfinished, or have no finished trial.
    fresh: the best trials again, on fresh seeds.
    unlearnt: a sentence if no run is better than chance.

    The same trials give the same files.
    """
    view = SweepView.of(plan, study, unlearnt)
    folder.mkdir(parents=True, exist_ok=True)
    table, page = folder / "trials.csv", folder / "sweep.html"
    write_trials(table, view)
    with drawn(page):
        page.write_text(sweep_html(view, fresh), encoding="utf-8")
    return [table, page]


def write_trials(file: Path, view: SweepView) -> None:
    """Write the finished trials as CSV: `number`, `state`, the objectives, the searched options by dotted path,
    `reason`.

    Numbers are exact. A cell is empty if a trial has no such value; `null` is a choice. See `texts.cell`.
    """
    names = list(view.space.searched)
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out)
        table.writerow(map(cell, ("number", "state", *view.objectives, *names, "reason")))
        for row in view.rows:
            values = map(repr, row.values or ()) if row.values else [""] * len(view.objectives)
            chosen = [spelled(row.chosen[name]) if name in row.chosen else "" for name in names]
            table.writerow(map(cell, (row.number, row.state, *values, *chosen, row.reason)))
