"""Computing rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedrobust.benchmark.entry import BenchmarkEntry
from fedrobust.benchmark.row import LONGEST, BenchmarkRow, MeasuredCell, RowEntry
from fedrobust.benchmark.suite import CellKey, PlannedRow, Suite
from fedrobust.errors import FederationError
from fedrobust.federation.pool import Pool
from fedrobust.matrices.grid import ORACLE, Cell
from fedrobust.matrices.measures import base_rates
from fedrobust.matrices.running import CellDone, measured
from fedrobust.private import private_files
from fedrobust.records.versions import versions
from fedrobust.studies.finished import FinishedRun
from fedrobust.studies.study import Unwatched, Watch, open_study
from fedrobust.studies.writing import written_in_any_case


@private_files()
def run_entry(
    entry: BenchmarkEntry,
    suite: Suite,
    quick: bool = False,
    watch: Watch[CellDone] | None = None,
    *,
    teams: int | None = None,
    pool: Pool | None = None,
) -> BenchmarkRow:
    """Run what is missing of an entry's cells, and return its row. A cell that fails is a result.

    quick: only the quick part of the suite.
    watch, teams, pool: as in `fedrobust.matrices.running.run_matrix`.

    Raises `DataError` if the suite's data are missing, `FederationError` if every cell of the entry has failed, and
    what `open_study` and `Study.make_all` raise; finished cells are kept, and the next call goes on with them.
    """
    suite.check_data()
    planned = planned_row(entry, suite)
    cells, controls = suite.cells(quick), suite.controls(quick)
    found = made(planned, planned.chosen(cells, controls), watch or Unwatched(), None, teams, pool)
    cell_of = partial(measured_cell, planned.grid.triggers)
    row = BenchmarkRow(
        suite=suite.name,
        digest=suite.digest,
        quick=quick,
        entry=RowEntry(name=entry.name, options=dict(entry.options), code=dict(entry.code)),
        versions=versions(),
        controls=tuple(map(cell_of, controls, found[: len(controls)])),
        cells=tuple(map(cell_of, cells, found[len(controls) :])),
    )
    reasons = Counter(each.failed for each in row.cells if each.failed)
    if reasons.total() == len(row.cells):
        most, times = reasons.most_common(1)[0]
        often = "" if times == len(row.cells) else f"{times} of them, "
        raise FederationError(f"{entry.name}: all {len(row.cells)} cells failed: {often}{most}")
    return row


def planned_row(entry: BenchmarkEntry, suite: Suite) -> PlannedRow:
    """Return the runs of an entry."""
    return suite.planned(entry.name, entry.options, entry.folders, entry.code_digest)


def made(
    planned: PlannedRow,
    runs: Sequence[Cell],
    watch: Watch[CellDone],
    out: Path | None,
    teams: int | None,
    pool: Pool | None,
) -> list[FinishedRun]:
    """Make the runs, and return them in the order given.

    out: a folder for finished ones; None: the suite's.
    watch, teams, pool: as in `run_entry`.
    """
    samples = [each.experiment for each in runs if each.experiment is not None]
    different = len({each.digest for each in runs})
    with (
        open_study(planned.grid.matrix, samples, runs, out=out, watch=watch, teams=teams, pool=pool) as study,
        written_in_any_case(lambda complete: None),
    ):
        watch.plan(different, different - len(study.missing(runs)))
        study.make_all(runs, partial(measured, study), lambda cell, run: watch.done((cell, run)))
        return [study.finished.by_digest[each.digest] for each in runs]


def measured_cell(triggers: Sequence[str], key: CellKey, run: FinishedRun) -> MeasuredCell:
    """Return the result of a run as a cell of a row.

    triggers: the names of the backdoors, see `base_rates`.
    """
    if run.failed or "balanced_accuracy" not in run.figures:
        why = run.failed or "the run has no balanced accuracy"
        return MeasuredCell(**key._asdict(), failed=why[:LONGEST])
    oracle = key.attack == ORACLE
    return MeasuredCell(
        **key._asdict(),
        accuracy=run.figures["balanced_accuracy"],
        success=None if oracle else run.figures.get("attack_success"),
        classes=int(run.figures["classes"]) if oracle else None,
        base_rates=base_rates(run.figures, triggers),
        seconds=run.seconds if math.isfinite(run.seconds) else None,
    )
