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
    left_out: tuple[int, ...] = ()
    """Seeds on which the oracle has learnt nothing."""


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
    """Balanced accuracy that the entry costs with nobody attacking, paired by setting and seed with the plain mean; NaN
    if one of these cells has failed."""
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

    Seeds on which the oracle has learnt nothing are left out. A success that is missing counts as 1, and what a trigger
    does to the oracle, if it is missing, as 0: nothing gets better because it is not there. (A model that reads no
    patch of the other labels correctly has no success.)
    """
    every = [each for each in (*row.controls, *row.cells) if each.setting == setting]
    if failed := [each for each in every if each.accuracy is None]:
        return WorstCase(NOTHING, "", NOTHING, "", _why(failed))
    oracles = {each.seed: each for each in row.controls if (each.setting, each.attack) == (setting, ORACLE)}
    robust, gains = dict[str, dict[int, float]](), dict[str, dict[int, float]]()
    left_out = set[int]()
    for cell in row.cells:
        if cell.setting != setting or cell.attack == NOBODY:
            continue
        oracle = oracles[cell.seed]
        assert cell.accuracy is not None and oracle.accuracy is not None and oracle.classes is not None
        value = robustness(cell.accuracy, oracle.accuracy, oracle.classes)
        if not math.isfinite(value):
            left_out.add(cell.seed)
            continue
        robust.setdefault(cell.attack, {})[cell.seed] = value
        if cell.attack in backdoors:
            success = 1.0 if cell.success is None else cell.success
            gains.setdefault(cell.attack, {})[cell.seed] = success - oracle.base_rates.get(cell.attack, 0.0)
    if not robust:
        return WorstCase(NOTHING, "", NOTHING, "", "the oracle has learnt nothing on any seed")
    attack, least = _lowest(robust)
    backdoor, negative = _lowest({name: {seed: -gain for seed, gain in many.items()} for name, many in gains.items()})
    gain = Estimate(-negative.value, -negative.high, -negative.low)
    return WorstCase(least, attack, gain, backdoor, left_out=tuple(sorted(left_out)))


def cost(row: BenchmarkRow) -> Estimate:
    """Return the balanced accuracy that an entry costs with nobody attacking; its interval is over the seeds. NaN if
    one of these cells has failed."""
    found: dict[int, list[float]] = {}
    for own, plain in _unattacked(row):
        if own.accuracy is None or plain.accuracy is None:
            return NOTHING
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


def _why(failed: Sequence[MeasuredCell]) -> str:
    others = f" ({len(failed) - 1} more cells failed)" if len(failed) > 1 else ""
    return f"{failed[0].attack}, seed {failed[0].seed}: {failed[0].failed}{others}"
