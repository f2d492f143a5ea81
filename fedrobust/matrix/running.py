"""A matrix from start to end: controls, screening, the worst attacks again on fresh seeds, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedrobust.federation.pool import Pool
from fedrobust.matrix.files import headline_metrics, write_results
from fedrobust.matrix.grid import Cell, MatrixPlan
from fedrobust.matrix.measures import baselines, detection, performance
from fedrobust.matrix.results import DefenceSummary, table_of, to_measure_again, verdicts
from fedrobust.private import private_files
from fedrobust.runner import Result
from fedrobust.studies.finished import FinishedRun
from fedrobust.studies.study import Measured, Study, Unwatched, Watch, open_study
from fedrobust.studies.writing import refuse_fruitless, written_in_any_case

CellDone = tuple[Cell, FinishedRun]
"""The item that a matrix's `Watch` receives."""


@dataclass(frozen=True)
class MatrixResult:
    """The result of a matrix."""

    folder: Path
    table: Any
    """A pandas table with a line for each cell, as in `cells.csv`."""
    verdicts: list[DefenceSummary]


def measured(study: Study, cell: Cell, result: Result) -> Measured:
    """Return the figures of a cell; see `fedrobust.matrix.measures`, and `classes`: the number of labels that occur in
    the test."""
    assert cell.experiment is not None
    hospitals = study.teams.hospitals(cell.experiment)
    recorded = result.recorded
    figures = performance(recorded.evaluations) | baselines(recorded.evaluations, cell.triggers)
    figures |= detection(recorded.rounds, recorded.attackers, hospitals.label_counts())
    figures["classes"] = hospitals.tested()
    return Measured({f"cell/{name}": value for name, value in figures.items()}, figures)


@private_files()
def run_matrix(
    grid: MatrixPlan,
    watch: Watch[CellDone] | None = None,
    *,
    teams: int | None = None,
    out: Path | None = None,
    pool: Pool | None = None,
) -> MatrixResult:
    """Run what is missing of a matrix, and write its tables; if it is stopped, the tables of what there is.

    Failed cells are run again. For watch, teams, out and pool, and for errors before the first run, see
    `fedrobust.studies.study.open_study`; for errors that end a matrix, see `Study.make_all`: finished cells are kept.
    Raises `FederationError` if every cell has failed, after all files are written.
    """
    watch = watch or Unwatched()
    grid.check_data()
    cells = [*grid.controls(), *grid.screening()]
    samples = [cell.experiment for cell in cells if cell.experiment is not None]
    with open_study(grid.matrix, samples, out=out, watch=watch, teams=teams, pool=pool) as study:

        def write(complete: bool) -> None:
            watch.say("writing the tables")
            table = table_of(cells, study.finished.by_digest)
            found = write_results(study.folder, grid, table, complete)
            if complete:
                study.tracker.figures(headline_metrics(found))
            counts = Counter(table["state"])
            study.tracker.figures({f"cells/{state}": counts[state] for state in ("done", "failed", "missing")})
            study.tracker.upload(study.folder, again=True)

        def run(chosen: Sequence[Cell]) -> None:
            study.make_all(chosen, partial(measured, study), lambda cell, run: watch.done((cell, run)))

        watch.plan(grid.most, len(cells) - len(study.missing(cells)))
        with written_in_any_case(write):
            run(cells)
            screened = table_of(cells, study.finished.by_digest)
            again = to_measure_again(screened, grid.matrix.worst, grid.matrix.backdoors, grid.backdoors)
            fresh = grid.fresh(again)
            cells += fresh
            watch.plan(len(cells), len(cells) - len(study.missing(fresh)))
            run(fresh)
        table = table_of(cells, study.finished.by_digest)
        reasons = list(table["failed"][table["state"] == "failed"])
        refuse_fruitless(reasons, len(table), "cells", study.folder / "table.md")
        return MatrixResult(study.folder, table, verdicts(table, grid.matrix.control, grid.backdoors))
