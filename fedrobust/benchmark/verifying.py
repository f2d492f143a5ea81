"""Computing some cells of a row again, and saying whether they are what the row says."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random, SystemRandom
from tempfile import TemporaryDirectory
from typing import Literal

from fedrobust.benchmark.entry import BenchmarkEntry, checked_entry, classes_in, sha256_of, source_beside
from fedrobust.benchmark.row import BenchmarkRow, MeasuredCell
from fedrobust.benchmark.running import made, measured_cell, planned_row
from fedrobust.benchmark.suite import CONTROL, Suite
from fedrobust.draft import Draft
from fedrobust.errors import ExperimentError, Problem
from fedrobust.federation.pool import Pool
from fedrobust.matrices.running import CellDone
from fedrobust.private import private_files
from fedrobust.studies.study import Unwatched, Watch
from fedrobust.users_code import file_of

TOLERANCE = 0.05
"""Accuracies of a cell that differ by at most this agree: other CPUs round sums differently, see docs/benchmark.md."""
OF_SUCCESS = 0.15
"""The same for the success of a trigger, which few patches decide, and a small difference of the model."""


@dataclass(frozen=True)
class Reproduced:
    """A cell of a row that was computed again."""

    defence: str
    """The row's entry, or `mean` for a control."""
    claimed: MeasuredCell
    again: MeasuredCell
    control: bool = False
    """Whether it is one of the row's controls."""

    @property
    def verdict(self) -> Literal["the same bits", "agrees", "differs"]:
        """Return whether the row says what was found again."""
        one, two = self.claimed, self.again
        triggers = [(one.success, two.success), *self._rates()]
        if one.accuracy == two.accuracy and one.classes == two.classes and all(a == b for a, b in triggers):
            return "the same bits"
        near = _near(one.accuracy, two.accuracy, TOLERANCE) and all(_near(*pair, OF_SUCCESS) for pair in triggers)
        return "agrees" if near and one.classes == two.classes else "differs"

    @property
    def favour(self) -> dict[str, float]:
        """Return by how much `accuracy` and `success` differ in favour of the row: a better model of the entry, a worse
        one of the controls; a backdoor of less success, a trigger that does more to the oracle."""
        one, two = self.claimed, self.again
        sign = -1.0 if self.control else 1.0
        found = {}
        if one.accuracy is not None and two.accuracy is not None:
            found["accuracy"] = sign * (one.accuracy - two.accuracy)
        rates = [(one.success, two.success)] if one.success is not None else self._rates()
        known = [b - a for a, b in rates if a is not None and b is not None]
        if known:
            found["success"] = sign * math.fsum(known) / len(known)
        return found

    def _rates(self) -> list[tuple[float | None, float | None]]:
        one, two = self.claimed.base_rates, self.again.base_rates
        return [(one.get(name), two.get(name)) for name in sorted({*one, *two})]


@dataclass(frozen=True)
class Moved:
    """Cells that differ in favour of the row, together by more than rounding would."""

    what: str
    """`accuracy` or `success`."""
    where: str
    """The attack, or `all cells`."""
    cells: int
    mean: float
    """By how much they are better in the row, in the mean."""
    limit: float
    """How much it may be."""


def moved(found: Sequence[Reproduced]) -> list[Moved]:
    """Return which groups of cells differ in favour of their row by more than rounding would: those of each attack on
    the entry, the controls, and all together.

    What rounding does has no direction. So the mean of k cells may differ by the limit of one, divided by √k.
    """
    groups: dict[str, list[Reproduced]] = {"all cells": [*found]}
    for each in found:
        control = "the mean's controls, " if each.control else ""
        groups.setdefault(f"{control}{each.claimed.attack}", []).append(each)
    said = []
    for where, cells in groups.items():
        for what, limit in (("accuracy", TOLERANCE), ("success", OF_SUCCESS)):
            values = [each.favour[what] for each in cells if what in each.favour]
            if values and (mean := math.fsum(values) / len(values)) > (most := limit / math.sqrt(len(values))):
                said.append(Moved(what, where, len(values), mean, most))
    return said


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

    row, entry: as `read_row` and `measured_entry` return them.
    cells: how many; at most all. See `sampled`.
    watch, teams, pool: as in `run_entry`. Results of earlier runs are not used.
    """
    suite.check_data()
    planned = planned_row(entry, suite)
    sample = sampled(row, cells, SystemRandom())
    runs = [planned.runs[each.key, defence] for defence, each, _ in sample]
    with TemporaryDirectory() as folder:
        found = made(planned, runs, watch or Unwatched(), Path(folder), teams, pool)
    return [
        Reproduced(defence, claimed, measured_cell(planned.grid.triggers, claimed.key, run), control)
        for (defence, claimed, control), run in zip(sample, found, strict=True)
    ]


def sampled(row: BenchmarkRow, cells: int, draw: Random) -> list[tuple[str, MeasuredCell, bool]]:
    """Return a random sample of cells with their defences, and whether they are controls: one of each defence, setting
    and attack before there is a second one of any, so that no attack is left out of a large sample.

    cells: how many; at most all.
    """
    every = [(CONTROL, each, True) for each in row.controls] + [(row.name, each, False) for each in row.cells]
    draw.shuffle(every)
    taken = Counter[tuple[bool, str, str]]()
    turns = []
    for _, each, control in every:
        group = (control, each.setting, each.attack)
        turns.append(taken[group])
        taken[group] += 1
    order = sorted(range(len(every)), key=turns.__getitem__)
    return [every[place] for place in order[:cells]]


@contextmanager
def measured_entry(row: BenchmarkRow, path: Path, suite: Suite) -> Iterator[BenchmarkEntry]:
    """The entry that a row says it is of, for the time of the block.

    path: the file of the row.

    Its classes are looked for beside the file, in the current folder, and among what is installed. A file that is there
    is read once; if it is the one that was measured, a copy is imported from a folder that has nothing else, so that no
    bytecode, package or `__init__.py` beside it is run instead.

    Raises `ExperimentError` if the code is not there, or is other code.
    """
    code = row.entry.code
    possible = set(classes_in(row.entry.options))
    others = [name for name in possible - code.keys() if _exists(name, path)]
    if others or not code.keys() <= possible:
        raise _wrong_classes(path, possible)
    with TemporaryDirectory() as alone:
        folders = [_alone(name, digest, path, Path(alone)) for name, digest in code.items()]
        beside = tuple(dict.fromkeys(each for each in folders if each is not None))
        draft = replace(Draft.of(f"{path}: entry.options", row.entry.options), beside=beside)
        entry = checked_entry(row.name, draft, suite)
        if entry.code.keys() != code.keys():
            raise _wrong_classes(path, entry.code)
        for name, digest in code.items():
            if entry.code[name] != digest:  # an installed one
                raise _other_code(name, entry.code[name], digest, path)
        yield entry


def _alone(name: str, digest: str, path: Path, folder: Path) -> Path | None:
    """Return the folder from which "module:Class" is to be imported: `folder`, with a copy of the measured file, or the
    one from which that file was imported before in this process. None if the file is neither beside the row nor here.
    """
    module = name.partition(":")[0]
    earlier = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    if earlier.is_file() and sha256_of(earlier) == digest:
        depth = module.count(".") + (earlier.name == "__init__.py")
        return earlier.absolute().parents[depth]
    file = source_beside(name, _folders(path))
    if file is None:
        return None
    copy = folder.joinpath(*module.split(".")) / "__init__.py"
    copy = copy if file.name == copy.name else copy.parent.with_suffix(".py")
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(file.read_bytes())
    if (found := sha256_of(copy)) != digest:
        raise _other_code(name, found, digest, file)
    if first := file_of(module):
        hint = "use the command fedrobust and not python -m, and no PYTHONPATH that leads there"
        raise ExperimentError(Problem(f"{first} would be imported instead", hint=hint).at(file))
    return folder


def _exists(name: str, path: Path) -> bool:
    """Whether there is a module for "module:Class"; nothing is imported."""
    return source_beside(name, _folders(path)) is not None or file_of(name.partition(":")[0]) is not None


def _folders(path: Path) -> tuple[Path, Path]:
    return path.parent, Path()


def _near(one: float | None, two: float | None, tolerance: float) -> bool:
    """Return whether two figures agree; one that is missing agrees with none."""
    return one == two or (one is not None and two is not None and abs(one - two) <= tolerance)


def _wrong_classes(path: Path, names: Iterable[str]) -> ExperimentError:
    reason = "must have each class of the options, and no other"
    return ExperimentError(Problem(reason, "entry.code", allowed=tuple(sorted(names))).at(path))


def _other_code(name: str, found: str, claimed: str, file: Path) -> ExperimentError:
    reason = f"{name} is not the code that was measured: its SHA-256 is {found[:8]}…, the row says {claimed[:8]}…"
    return ExperimentError(Problem(reason).at(file))
