"""Running the cells of a matrix, and what each of them gave."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from fedrobust.errors import FederationError
from fedrobust.matrix.grid import Cell
from fedrobust.matrix.measures import baselines, detection, performance
from fedrobust.parallel import Store, Teams
from fedrobust.runner import Part
from fedrobust.tracking import Tracker


@dataclass(frozen=True)
class Outcome:
    """What a cell gave: its figures, or why there are none."""

    digest: str
    label: str
    run_id: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    """See `fedrobust.matrix.measures`; and `classes`, the labels that occur in the test."""
    seconds: float = math.nan
    failed: str = ""
    """The error that ended it."""


Watch = Callable[[Cell, Outcome], None]


def missing(store: Store[Outcome], cells: Sequence[Cell]) -> list[Cell]:
    """The cells to run: those that are not in the store or failed, each experiment once."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.digest, cell)
    return [cell for digest, cell in first.items() if store.finished(digest) is None]


def run_cells(cells: Sequence[Cell], store: Store[Outcome], teams: Teams, tracker: Tracker, watch: Watch) -> None:
    """Run those of the cells that are missing, below the MLflow run of `tracker`.

    A cell whose federation fails is kept as failed. Whatever else is raised, a Ctrl-C too, ends the cells under way
    within a round, and is raised again.
    """

    def keep(done: tuple[Cell, Outcome]) -> None:
        cell, outcome = done
        store.add(outcome)
        watch(cell, outcome)

    if to_run := missing(store, cells):
        teams.each(to_run[0].experiment, [partial(_run, cell, teams, tracker) for cell in to_run], keep)


def _run(cell: Cell, teams: Teams, tracker: Tracker) -> tuple[Cell, Outcome]:
    start = time.perf_counter()
    names = {"attack": cell.attack, "defence": cell.defence, "setting": cell.setting}
    part = Part(tracker.run_id, {**names, "phase": cell.phase, "seed": str(cell.seed)})
    try:
        result = teams.run(cell.experiment, part)
    except FederationError as error:
        return cell, Outcome(cell.digest, cell.label, failed=str(error))
    hospitals = teams.hospitals(cell.experiment)
    figures = performance(result.rounds) | baselines(result.rounds, cell.triggers)
    figures |= detection(result.rounds, result.attackers, hospitals.label_counts())
    figures["classes"] = hospitals.tested()
    seconds = time.perf_counter() - start
    tracker.figures({f"cell/{name}": value for name, value in figures.items()}, result.run_id)
    return cell, Outcome(cell.digest, cell.label, result.run_id, figures, round(seconds, 3))
