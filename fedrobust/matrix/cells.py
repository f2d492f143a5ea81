"""Running the cells of a matrix, and what each of them gave."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from fedrobust.experiment import Experiment
from fedrobust.matrix.grid import Cell
from fedrobust.matrix.measures import baselines, detection, performance
from fedrobust.naming import Part
from fedrobust.parallel import Store, Teams, failure
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

    A cell that cannot be run, whatever it dies of, is kept as failed. What would end all others, too, a Ctrl-C say,
    ends the cells under way within a round, and is raised again; see `fedrobust.failures.ends_all`.
    """

    def keep(done: tuple[Cell, Outcome]) -> None:
        cell, outcome = done
        store.add(outcome)
        watch(cell, outcome)

    tasks = list[Callable[[], tuple[Cell, Outcome]]]()
    for cell in (to_run := missing(store, cells)):
        if cell.experiment is None:
            tracker.failed(cell.refused, [], cell.label, _tags(cell))
            keep((cell, Outcome(cell.digest, cell.label, failed=cell.refused)))
        else:
            tasks.append(partial(_run, cell, cell.experiment, teams, tracker))
    if tasks:
        teams.each(next(cell.experiment for cell in to_run if cell.experiment is not None), tasks, keep)


def _tags(cell: Cell) -> dict[str, str]:
    """What a person filters runs by in MLflow."""
    names = {"attack": cell.attack, "defence": cell.defence, "setting": cell.setting}
    return {**names, "phase": cell.phase, "seed": str(cell.seed)}


def _run(cell: Cell, experiment: Experiment, teams: Teams, tracker: Tracker) -> tuple[Cell, Outcome]:
    start, part = time.perf_counter(), Part(tracker.run_id, _tags(cell))
    try:
        result = teams.run(experiment, part)
        hospitals = teams.hospitals(experiment)
        figures = performance(result.rounds) | baselines(result.rounds, cell.triggers)
        figures |= detection(result.rounds, result.attackers, hospitals.label_counts())
        figures["classes"] = hospitals.tested()
    except (Exception, SystemExit) as error:
        return cell, Outcome(cell.digest, cell.label, failed=failure(error, part, cell.label, tracker))
    seconds = time.perf_counter() - start
    tracker.figures({f"cell/{name}": value for name, value in figures.items()}, result.run_id)
    return cell, Outcome(cell.digest, cell.label, result.run_id, figures, round(seconds, 3))
