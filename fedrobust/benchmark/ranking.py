"""From rows to a table: robustness against the worst attack, backdoors, cost, rank. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedrobust.benchmark.row import BenchmarkRow, MeasuredCell
from fedrobust.benchmark.suite import Suite
from fedrobust.intervals import Estimate, mean_interval
from fedrobust.matrices.grid import NOBODY, ORACLE
from fedrobust.matrices.statistics import BySeed, lowest, robustness
from fedrobust.texts import enumerated

NOTHING = Estimate(math.nan)


@dataclass(frozen=True)
class WorstCase:
    """What the attackers of one setting reach against an entry."""

    robustness: Estimate
    """The lowest mean over the seeds of any attack, with the interval of this attack's mean; NaN if `lacks`."""
    attack: str
    """That attack; several if they are equal."""
    gain: Estimate
    """The highest mean gain of any backdoor: its success minus what its trigger does to the oracle. NaN if `lacks`, or
    if there is no backdoor."""
    backdoor: str
    """That backdoor."""
    lacks: str = ""
    """Why the robustness is not known: a cell has failed."""


@dataclass(frozen=True)
class Ranked:
    """A line of the table."""

    row: BenchmarkRow
    rank: int | None
    """From 1, the same for equal scores; None for a row that lacks cells."""
    score: float
    """Mean over the settings of the robustness against the worst attack."""
    settings: Mapping[str, WorstCase]
    cost: Estimate
    """Balanced accuracy that the entry costs with nobody attacking, paired by setting and seed with the plain mean."""
    time: float
    """Duration of the rounds with nobody attacking, as a multiple of the plain mean's, the median."""


def comparable(
    own: Sequence[BenchmarkRow], stored: Sequence[BenchmarkRow], quick: bool, suite: Suite
) -> list[tuple[bool, list[BenchmarkRow], list[BenchmarkRow]]]:
    """Return the tables in which rows stand beside rows with the same cells: whether it is the quick part, which of the
    rows `own` it has, and which of the stored ones. Rows of the quick part only make a table of it, in which full rows
    are restricted to its cells; full ones make a table of their own, unless only the quick part is asked for.
    """
    found = list[tuple[bool, list[BenchmarkRow], list[BenchmarkRow]]]()
    full = [[row for row in rows if not row.quick] for rows in (own, stored)]
    if not quick and (full[0] or (full[1] and not own)):
        found.append((False, full[0], full[1]))
    if quick or any(row.quick for row in (*own, *stored)):
        part = [[row.restricted(suite) for row in rows] for rows in (own, stored)]
        found.append((True, part[0], part[1]))
    return [table for table in found if table[1] or table[2]]


def ranked(rows: Iterable[BenchmarkRow], suite: Suite) -> list[Ranked]:
    """Return the lines of the table, from the most to the least robust; rows that lack cells are last.

    rows: of this suite, with the same cells each.
    """
    found = []
    for row in rows:
        settings = {setting: worst_case(row, setting, suite.backdoors) for setting in suite.options.settings}
        values = [each.robustness.value for each in settings.values()]
        found.append((math.fsum(values) / len(values), row, settings))
    scores = [score for score, *_ in found if math.isfinite(score)]
    lines = [
        Ranked(row, _rank(score, scores), score, settings, cost(row), slowdown(row)) for score, row, settings in found
    ]
    return sorted(lines, key=lambda line: (line.rank is None, line.rank))


def worst_case(row: BenchmarkRow, setting: str, backdoors: Sequence[str]) -> WorstCase:
    """Return what the attackers reach in one setting.

    backdoors: the attacks that plant a backdoor.

    Seeds on which the oracle has learnt nothing are left out.
    """
    oracles = {each.seed: each for each in row.controls if (each.setting, each.attack) == (setting, ORACLE)}
    cells = [each for each in row.cells if each.setting == setting and each.attack != NOBODY]
    robust, gains = dict[str, dict[int, float]](), dict[str, dict[int, float]]()
    for cell in cells:
        oracle = oracles[cell.seed]
        if failed := [each for each in (oracle, cell) if each.accuracy is None]:
            return WorstCase(NOTHING, "", NOTHING, "", _why(failed[0], cells))
        assert cell.accuracy is not None and oracle.accuracy is not None
        value = robustness(cell.accuracy, oracle.accuracy, oracle.classes or 2)
        if math.isfinite(value):
            robust.setdefault(cell.attack, {})[cell.seed] = value
        if cell.attack in backdoors and cell.success is not None and cell.attack in oracle.base_rates:
            gains.setdefault(cell.attack, {})[cell.seed] = cell.success - oracle.base_rates[cell.attack]
    if not robust:
        return WorstCase(NOTHING, "", NOTHING, "", "the oracle has learnt nothing on any seed")
    attack, least = _lowest(robust)
    backdoor, negative = _lowest({name: {seed: -gain for seed, gain in many.items()} for name, many in gains.items()})
    return WorstCase(least, attack, Estimate(-negative.value, -negative.high, -negative.low), backdoor)


def cost(row: BenchmarkRow) -> Estimate:
    """Return the balanced accuracy that an entry costs with nobody attacking; its interval is over the seeds."""
    found: dict[int, list[float]] = {}
    for own, plain in _unattacked(row):
        if own.accuracy is not None and plain.accuracy is not None:
            found.setdefault(own.seed, []).append(plain.accuracy - own.accuracy)
    return mean_interval([math.fsum(many) / len(many) for many in found.values()])


def slowdown(row: BenchmarkRow) -> float:
    """Return the duration of the rounds with nobody attacking, as a multiple of the plain mean's; NaN if not known."""
    ratios = [own.seconds / plain.seconds for own, plain in _unattacked(row) if own.seconds and plain.seconds]
    return float(np.median(ratios)) if ratios else math.nan


def _unattacked(row: BenchmarkRow) -> list[tuple[MeasuredCell, MeasuredCell]]:
    """Return pairs of cells with nobody attacking: the entry's, and the plain mean's."""
    plain = {each.key: each for each in row.controls}
    return [(each, plain[each.key]) for each in row.cells if each.attack == NOBODY]


def _rank(score: float, scores: Sequence[float]) -> int | None:
    return 1 + sum(each > score for each in scores) if math.isfinite(score) else None


def _lowest(attacks: Mapping[str, BySeed]) -> tuple[str, Estimate]:
    """Return the attack with the lowest mean over the seeds, and this mean with its own interval."""
    means = {name: mean_interval(list(seeds.values())) for name, seeds in attacks.items()}
    names = lowest({name: mean.value for name, mean in means.items()})
    return enumerated(names), means[names[0]] if names else NOTHING


def _why(failed: MeasuredCell, cells: Sequence[MeasuredCell]) -> str:
    more = sum(each.accuracy is None for each in cells) - 1
    others = f" ({more} more cells failed)" if more > 0 else ""
    return f"{failed.attack}, seed {failed.seed}: {failed.failed}{others}"
