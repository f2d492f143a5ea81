"""A matrix from start to end: controls, screening, the worst again on fresh seeds, tables."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedrobust.federation.pool import Pool
from fedrobust.matrix.cells import Outcome, missing, run_cells
from fedrobust.matrix.files import headline_metrics, write_results
from fedrobust.matrix.grid import Cell, Grid
from fedrobust.matrix.results import Verdict, table_of, to_measure_again
from fedrobust.parallel import Store, Teams, parent_run
from fedrobust.tracking import flatten

MATRICES = Path("mlruns/matrix")
"""Where each matrix keeps its folder, below the working folder."""


class Watch(Protocol):
    """Is told how far a matrix is."""

    def plan(self, cells: int, finished: int) -> None:
        """There are so many cells, so many of them finished before; told again when the number is known better."""

    def cell(self, cell: Cell, outcome: Outcome) -> None:
        """A cell has been finished."""

    def say(self, what: str) -> None:
        """What is being done now."""


@dataclass(frozen=True)
class Findings:
    """What a matrix leaves."""

    folder: Path
    table: Any
    """A pandas table with a line for each cell, as in `cells.csv`."""
    verdicts: list[Verdict]


def run_matrix(
    grid: Grid,
    watch: Watch | None = None,
    teams: int | None = None,
    out: Path | None = None,
    pool: Pool | None = None,
) -> Findings:
    """Run what is missing of a matrix, and write its tables.

    A cell that is finished is in `cells.jsonl` of the folder, under the digest of its experiment, and is not run again;
    one that failed is.

    teams: cells at a time, each on one client actor; by default as many as the cluster has cores.
    out: the folder, instead of one named after the matrix.
    pool: leases teams that are there already; `teams` then says nothing.

    Raises `ExperimentError`, `TrackingError`, and what a Ctrl-C raises; what is finished stays.
    """
    watch = watch or _Silent()
    folder = out or MATRICES / grid.matrix.name
    with ExitStack() as stack:
        store = stack.enter_context(closing(Store(folder / "cells.jsonl", Outcome)))
        grid.check_data()
        (folder / "matrix.json").write_text(grid.matrix.model_dump_json(indent=2) + "\n", encoding="utf-8")
        watch.say("opening MLflow")
        params = flatten(grid.matrix.model_dump(mode="json", exclude={"quick"}))
        name, tags = grid.matrix.name, {"matrix": grid.matrix.name}
        opened = parent_run(folder, grid.tracking, params, tags, f"matrix {name}", [])
        tracker = stack.enter_context(opened)
        leased = stack.enter_context(Teams(watch.say, teams, pool))
        cells = [*grid.controls(), *grid.screening()]
        watch.plan(grid.most, len(cells) - len(missing(store, cells)))
        run_cells(cells, store, leased, tracker, watch.cell)
        screened = table_of(cells, store.outcomes)
        again = to_measure_again(screened, grid.matrix.worst, grid.matrix.backdoors, grid.backdoors)
        fresh = grid.fresh(again)
        cells += fresh
        watch.plan(len(cells), len(cells) - len(missing(store, fresh)))
        run_cells(fresh, store, leased, tracker, watch.cell)
        watch.say("writing the tables")
        table = table_of(cells, store.outcomes)
        found = write_results(folder, grid, table)
        tracker.figures(headline_metrics(found))
        tracker.upload(folder, again=True)
    return Findings(folder, table, found)


class _Silent:
    def plan(self, cells: int, finished: int) -> None:
        pass

    def cell(self, cell: Cell, outcome: Outcome) -> None:
        pass

    def say(self, what: str) -> None:
        pass
