"""A matrix from start to end: controls, screening, the worst again on fresh seeds, tables."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedrobust.federation.pool import Pool
from fedrobust.matrix.cells import Outcome, missing, run_cells
from fedrobust.matrix.files import headline_metrics, write_results
from fedrobust.matrix.grid import Cell, Grid
from fedrobust.matrix.results import Verdict, table_of, to_measure_again, verdicts
from fedrobust.parallel import Store, Teams, parent_run, refuse_fruitless, writable, written_in_any_case
from fedrobust.private import private_files
from fedrobust.texts import file_name
from fedrobust.tracking import flatten

MATRICES = Path("mlruns/matrix")
"""Where each matrix keeps its folder, below the working folder."""
GO_ON = "started again with the same command, the matrix goes on"
"""What is told behind an error that ends one."""


class Watch(Protocol):
    """Is told how far a matrix is; one call at a time, not always from the same thread."""

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


@private_files()
def run_matrix(
    grid: Grid,
    watch: Watch | None = None,
    teams: int | None = None,
    out: Path | None = None,
    pool: Pool | None = None,
) -> Findings:
    """Run what is missing of a matrix, and write its tables; those of what there is, where it is stopped.

    A cell that is finished is in `cells.jsonl` of the folder, under the digest of its experiment, and is not run again;
    one that failed is.

    teams: cells at a time, each on one client actor; by default as many as the cluster has cores.
    out: the folder, instead of one named after the matrix.
    pool: leases teams that are there already; `teams` then says nothing.

    A cell that cannot be run, whatever it dies of, has failed. What would end all others, too, ends the matrix:
    `DataError` where there are no data, `AuditError`, `TrackingError`, `NoPlaceError`, a full disk, and a Ctrl-C; what
    is finished stays. Raises `FederationError` where every cell has failed, when all is written.
    """
    watch = watch or _Silent()
    folder = out or MATRICES / file_name(grid.matrix.name)
    with ExitStack() as stack:
        grid.check_data()
        cells = [*grid.controls(), *grid.screening()]
        leased = stack.enter_context(Teams(watch.say, teams, pool))
        leased.check([cell.experiment for cell in cells if cell.experiment is not None])
        store = stack.enter_context(closing(Store(folder / "cells.jsonl", Outcome)))
        with writable(folder):
            (folder / "matrix.json").write_text(grid.matrix.model_dump_json(indent=2) + "\n", encoding="utf-8")
        watch.say("opening MLflow")
        params = flatten(grid.matrix.model_dump(mode="json", exclude={"quick"}))
        name, tags = grid.matrix.name, {"matrix": grid.matrix.name}
        opened = parent_run(folder, grid.tracking, params, tags, f"matrix {name}", [])
        tracker = stack.enter_context(opened)

        def write(complete: bool) -> None:
            watch.say("writing the tables")
            table = table_of(cells, store.outcomes)
            found = write_results(folder, grid, table, complete)
            if complete:
                tracker.figures(headline_metrics(found))
            counts = Counter(table["state"])
            tracker.figures({f"cells/{state}": counts[state] for state in ("done", "failed", "missing")})
            tracker.upload(folder, again=True)

        watch.plan(grid.most, len(cells) - len(missing(store, cells)))
        with written_in_any_case(write, GO_ON):
            run_cells(cells, store, leased, tracker, watch.cell)
            screened = table_of(cells, store.outcomes)
            again = to_measure_again(screened, grid.matrix.worst, grid.matrix.backdoors, grid.backdoors)
            fresh = grid.fresh(again)
            cells += fresh
            watch.plan(len(cells), len(cells) - len(missing(store, fresh)))
            run_cells(fresh, store, leased, tracker, watch.cell)
        table = table_of(cells, store.outcomes)
        refuse_fruitless(list(table["failed"][table["state"] == "failed"]), len(table), "cells", folder / "table.md")
    return Findings(folder, table, verdicts(table, grid.matrix.control, grid.backdoors))


class _Silent:
    def plan(self, cells: int, finished: int) -> None:
        pass

    def cell(self, cell: Cell, outcome: Outcome) -> None:
        pass

    def say(self, what: str) -> None:
        pass
