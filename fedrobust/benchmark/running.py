"""Computing rows, and computing some of their cells again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random, SystemRandom
from tempfile import TemporaryDirectory
from typing import Literal

from fedrobust.benchmark.entry import BenchmarkEntry, checked_entry, classes_in, sha256_of, source_beside
from fedrobust.benchmark.row import BenchmarkRow, MeasuredCell, RowEntry
from fedrobust.benchmark.suite import CONTROL, CellKey, PlannedRow, Suite
from fedrobust.draft import Draft
from fedrobust.errors import ExperimentError, FederationError, Problem
from fedrobust.federation.pool import Pool
from fedrobust.matrices.grid import ORACLE, Cell
from fedrobust.matrices.measures import base_rates
from fedrobust.matrices.running import CellDone, measured
from fedrobust.private import private_files
from fedrobust.records.versions import versions
from fedrobust.studies.finished import FinishedRun
from fedrobust.studies.study import Unwatched, Watch, open_study
from fedrobust.studies.writing import written_in_any_case

TOLERANCE = 0.05
"""Accuracies of a cell that differ by at most this agree: other CPUs round sums differently, see docs/benchmark.md."""
OF_SUCCESS = 0.15
"""The same for the success of a trigger, which few patches decide, and a small difference of the model."""


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
    planned = _planned(entry, suite)
    cells, controls = suite.cells(quick), suite.controls(quick)
    found = _made(planned, planned.chosen(cells, controls), watch or Unwatched(), None, teams, pool)
    cell_of = partial(_cell, planned.grid.triggers)
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


@dataclass(frozen=True)
class Reproduced:
    """A cell of a row that was computed again."""

    defence: str
    """The row's entry, or `mean` for a control."""
    claimed: MeasuredCell
    again: MeasuredCell

    @property
    def verdict(self) -> Literal["the same bits", "agrees", "differs"]:
        """Return whether the row says what was found again."""
        one, two = self.claimed, self.again
        rates = [(one.base_rates.get(name), two.base_rates.get(name)) for name in {*one.base_rates, *two.base_rates}]
        triggers = [(one.success, two.success), *rates]
        if one.accuracy == two.accuracy and one.classes == two.classes and all(a == b for a, b in triggers):
            return "the same bits"
        near = _near(one.accuracy, two.accuracy, TOLERANCE) and all(_near(*pair, OF_SUCCESS) for pair in triggers)
        return "agrees" if near and one.classes == two.classes else "differs"


@private_files()
def verify(
    row: BenchmarkRow,
    entry: BenchmarkEntry,
    suite: Suite,
    cells: int,
    watch: Watch[CellDone] | None = None,
    *,
    teams: int | None = None,
    pool: Pool | None = None,
) -> list[Reproduced]:
    """Compute a random sample of a row's cells again, controls included, and compare.

    row, entry: as `read_row` and `entry_of` return them.
    cells: how many; at most all. See `sampled`.
    watch, teams, pool: as in `run_entry`. Results of earlier runs are not used.
    """
    suite.check_data()
    planned = _planned(entry, suite)
    sample = sampled(row, cells, SystemRandom())
    runs = [planned.runs[each.key, defence] for defence, each in sample]
    with TemporaryDirectory() as folder:
        found = _made(planned, runs, watch or Unwatched(), Path(folder), teams, pool)
    return [
        Reproduced(defence, claimed, _cell(planned.grid.triggers, claimed.key, run))
        for (defence, claimed), run in zip(sample, found, strict=True)
    ]


def sampled(row: BenchmarkRow, cells: int, draw: Random) -> list[tuple[str, MeasuredCell]]:
    """Return a random sample of cells with their defences: one of each defence, setting and attack before there is a
    second one of any, so that no attack is left out of a large sample.

    cells: how many; at most all.
    """
    every = [*((CONTROL, each) for each in row.controls), *((row.name, each) for each in row.cells)]
    draw.shuffle(every)
    taken = Counter[tuple[str, str, str]]()
    turns = []
    for defence, each in every:
        group = (defence, each.setting, each.attack)
        turns.append(taken[group])
        taken[group] += 1
    order = sorted(range(len(every)), key=turns.__getitem__)
    return [every[place] for place in order[:cells]]


def entry_of(row: BenchmarkRow, path: Path, suite: Suite) -> BenchmarkEntry:
    """Return the entry that a row says it is of. Its classes are looked for beside the file, in the current folder, and
    among what is installed; none is imported from a file that is not the one that was measured.

    path: the file of the row.

    Raises `ExperimentError` if the code is not there, or is other code.
    """
    folders = (path.parent, Path())
    named = set(classes_in(row.entry.options))
    if named != row.entry.code.keys():
        reason = "must have each class of the options, and no other"
        raise ExperimentError(Problem(reason, "entry.code", allowed=tuple(sorted(named))).at(path))
    for name, digest in row.entry.code.items():
        file = source_beside(name, folders)
        if file is not None and (found := sha256_of(file)) != digest:
            raise _other_code(name, found, digest, file)
    origin = f"{path}: entry.options"
    entry = checked_entry(row.name, replace(Draft.of(origin, row.entry.options), beside=folders), suite)
    for name, digest in row.entry.code.items():
        if entry.code[name] != digest:  # an installed one
            raise _other_code(name, entry.code[name], digest, path)
    return entry


def _near(one: float | None, two: float | None, tolerance: float) -> bool:
    """Return whether two figures agree; one that is missing agrees with none."""
    return one == two or (one is not None and two is not None and abs(one - two) <= tolerance)


def _other_code(name: str, found: str, claimed: str, file: Path) -> ExperimentError:
    reason = f"{name} is not the code that was measured: its SHA-256 is {found[:8]}…, the row says {claimed[:8]}…"
    return ExperimentError(Problem(reason).at(file))


def _planned(entry: BenchmarkEntry, suite: Suite) -> PlannedRow:
    return suite.planned(entry.name, entry.options, entry.folders, entry.code_digest)


def _made(
    planned: PlannedRow,
    runs: Sequence[Cell],
    watch: Watch[CellDone],
    out: Path | None,
    teams: int | None,
    pool: Pool | None,
) -> list[FinishedRun]:
    """Make the runs, and return them in the order given."""
    samples = [each.experiment for each in runs if each.experiment is not None]
    different = len({each.digest for each in runs})
    with (
        open_study(planned.grid.matrix, samples, runs, out=out, watch=watch, teams=teams, pool=pool) as study,
        written_in_any_case(lambda complete: None),
    ):
        watch.plan(different, different - len(study.missing(runs)))
        study.make_all(runs, partial(measured, study), lambda cell, run: watch.done((cell, run)))
        return [study.finished.by_digest[each.digest] for each in runs]


def _cell(triggers: Sequence[str], key: CellKey, run: FinishedRun) -> MeasuredCell:
    if run.failed or "balanced_accuracy" not in run.figures:
        return MeasuredCell(**key._asdict(), failed=run.failed or "the run has no balanced accuracy")
    oracle = key.attack == ORACLE
    return MeasuredCell(
        **key._asdict(),
        accuracy=run.figures["balanced_accuracy"],
        success=None if oracle else run.figures.get("attack_success"),
        classes=int(run.figures["classes"]) if oracle else None,
        base_rates=base_rates(run.figures, triggers),
        seconds=run.seconds if math.isfinite(run.seconds) else None,
    )
