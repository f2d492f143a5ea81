"""A matrix from start to end: controls, screening, the worst attacks again on fresh seeds, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrobust.errors import UnlearntError
from fedrobust.federation.pool import Pool
from fedrobust.matrices.files import headline_metrics, headline_tags, write_results
from fedrobust.matrices.gaps import hopeless, unlearnt
from fedrobust.matrices.grid import ORACLE, Cell, MatrixPlan
from fedrobust.matrices.measures import BASELINE, base_rates, baselines, detection, performance
from fedrobust.matrices.results import DefenceSummary, table_of, to_measure_again, verdicts
from fedrobust.private import private_files
from fedrobust.result import Result
from fedrobust.studies.finished import FinishedRun
from fedrobust.studies.study import Measured, Study, Unwatched, Watch, open_study
from fedrobust.studies.writing import GO_ON_ANYWAY, refuse_fruitless, written_in_any_case

if TYPE_CHECKING:
    import pandas as pd

CellDone = tuple[Cell, FinishedRun]
"""The item that a matrix's `Watch` receives."""


@dataclass(frozen=True, repr=False)
class MatrixResult:
    """The result of a matrix."""

    folder: Path
    table: Any
    """A pandas table with a line for each cell, as in `cells.csv`."""
    verdicts: list[DefenceSummary]
    unlearnt: str = ""
    """One sentence about the oracles that are at chance; empty if every oracle has learnt something."""

    def frame(self) -> pd.DataFrame:
        """Return the cells as a pandas table: one row for each, as in `cells.csv`."""
        table: pd.DataFrame = self.table.copy()
        return table

    def summary(self) -> pd.DataFrame:
        """Return the verdicts as a pandas table: one row for each setting and defence, as in `summary.csv`."""
        import pandas as pd

        return pd.DataFrame([verdict.flat() for verdict in self.verdicts])

    def __repr__(self) -> str:
        """Return a few lines: how the cells ended, the headline of each defence, and the folder."""
        states = ", ".join(f"{count} {state}" for state, count in Counter(self.table["state"]).items())
        lines = [
            f"{verdict.setting}, {verdict.defence}: robustness {verdict.robustness.value:.3f}, worst attack "
            f"{verdict.worst_attack or 'not known'}"
            for verdict in self.verdicts[:12]
        ]
        said = [self.unlearnt] if self.unlearnt else []
        return "\n  ".join([f"MatrixResult: cells: {states}", *said, *lines, str(self.folder)])


def measured(study: Study, cell: Cell, result: Result) -> Measured:
    """Return the figures of a cell; see `fedrobust.matrices.measures`, and `classes`: the number of labels that occur
    in the test."""
    assert cell.experiment is not None
    hospitals = study.teams.hospitals(cell.experiment)
    recorded = result.recorded
    figures = performance(recorded.evaluations)
    figures |= detection(recorded.rounds, recorded.attackers, hospitals.label_counts())
    figures["classes"] = hospitals.tested()
    rates = baselines(recorded.evaluations)
    named = {f"{BASELINE}{name}": rate for name, rate in base_rates(rates, cell.triggers).items()}
    return Measured({f"cell/{name}": value for name, value in (figures | named).items()}, figures | rates)


@private_files()
def run_matrix(
    grid: MatrixPlan,
    watch: Watch[CellDone] | None = None,
    *,
    teams: int | None = None,
    out: Path | None = None,
    pool: Pool | None = None,
    anyway: bool = False,
) -> MatrixResult:
    """Run what is missing of a matrix, and write its tables; if it is stopped, the tables of what there is.

    The oracles of the screening seeds come first. If all of them, in every setting, are at chance, no figure of the
    matrix would be defined: it stops there, unless `anyway` is given.

    Failed cells are run again. For watch, teams, out and pool, and for errors before the first run, see
    `fedrobust.studies.study.open_study`; for errors that end a matrix, see `Study.make_all`: finished cells are kept.
    Raises `FederationError` if every cell has failed, and `UnlearntError` if the matrix stops because the oracles are
    at chance, both after all files are written.
    """
    watch = watch or Unwatched()
    grid.check_data()
    cells, stopped = [*grid.controls(), *grid.screening()], False
    first = [cell for cell in cells if cell.attack == ORACLE and cell.seed in grid.matrix.screening]
    samples = [cell.experiment for cell in cells if cell.experiment is not None]
    # The oracle has the triggers of all backdoors: with one more it is run again, and the other cells stay.
    planned = [cell for cell in cells if cell.attack != ORACLE]
    with open_study(grid.matrix, samples, planned, out=out, watch=watch, teams=teams, pool=pool) as study:

        def write(complete: bool) -> None:
            watch.say("writing the tables")
            table = table_of(cells, study.finished.by_digest)
            complete = complete and not stopped
            found = write_results(study.folder, grid, table, complete)
            if complete:
                study.tracker.figures(headline_metrics(found))
            study.tracker.tag(headline_tags(grid, table, found))
            counts = Counter(table["state"])
            study.tracker.figures({f"cells/{state}": counts[state] for state in ("done", "failed", "missing")})
            study.tracker.upload(study.folder, again=True)

        def run(chosen: Sequence[Cell]) -> None:
            study.make_all(chosen, partial(measured, study), lambda cell, run: watch.done((cell, run)))

        watch.plan(grid.most, len(cells) - len(study.missing(cells)))
        with written_in_any_case(write):
            run(first)
            stopped = not anyway and hopeless(table_of(first, study.finished.by_digest), grid.matrix.screening)
            if not stopped:
                run(cells)
                screened = table_of(cells, study.finished.by_digest)
                again = to_measure_again(screened, grid.matrix.worst, grid.matrix.backdoors, grid.backdoors)
                fresh = grid.fresh(again)
                cells += fresh
                watch.plan(len(cells), len(cells) - len(study.missing(fresh)))
                run(fresh)
        table = table_of(cells, study.finished.by_digest)
        warning = unlearnt(table, grid.rounds)
        if stopped:
            raise UnlearntError(f"{warning}; finished cells are kept in {study.folder}; {GO_ON_ANYWAY}")
        reasons = list(table["failed"][table["state"] == "failed"])
        refuse_fruitless(reasons, len(table), "cells", study.folder / "table.md")
        found = verdicts(table, grid.matrix.control, grid.backdoors, grid.matrix.worst)
        return MatrixResult(study.folder, table, found, warning)
