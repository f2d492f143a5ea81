"""Statistics of many runs of a defence: robustness, its minimum over attacks, and their uncertainty. Pure numbers.

The headline of a defence is the minimum over attacks of its mean robustness over seeds. Bootstrapping that minimum
would be biased low: among many equal attacks, the minimum is the one that looks worst by chance. So every attack gets a
t interval over the seeds at the level of Bonferroni (1936): all of them hold at once, and therefore the true minimum
lies between the least of the lower ends and the least of the upper ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fedrobust.intervals import LEVEL, Estimate, mean_interval

HARMLESS = 0.02
"""An attack is harmless if it takes less balanced accuracy than this from the undefended federation."""
HARMLESS_GAIN = 0.05
"""A backdoor is harmless only if planting it raises its success there by less than this, too."""
LEARNT = 0.02
"""An oracle that is not better than chance by this margin has learnt nothing."""
BySeed = Mapping[int, float]
"""Seed → figure; seeds of failed cells are absent."""


def robustness(balanced_accuracy: float, oracle: float, classes: int) -> float:
    """Return (balanced accuracy − chance) / (oracle − chance), chance = 1 / classes; NaN if the oracle learnt nothing.

    balanced_accuracy, oracle: in [0, 1].
    classes: number of labels that occur in the test; balanced accuracy is a mean over these.
    """
    chance = 1.0 / classes
    return (balanced_accuracy - chance) / (oracle - chance) if oracle - chance >= LEARNT else math.nan


def least(attacks: Mapping[str, BySeed], level: float = LEVEL) -> tuple[str, Estimate]:
    """Return the attack with the lowest mean, and the minimum over all of them with its simultaneous interval.

    attacks: attack → seed → figure.
    level: probability that all intervals hold.
    """
    found = {name: mean_interval(list(seeds.values()), len(attacks), level) for name, seeds in attacks.items()}
    known = {name: estimate for name, estimate in found.items() if math.isfinite(estimate.value)}
    if not known:
        return "", Estimate(math.nan)
    worst = min(known, key=lambda name: known[name].value)
    low, high = (_least([getattr(estimate, end) for estimate in known.values()]) for end in ("low", "high"))
    return worst, Estimate(known[worst].value, low, high)


def greatest(attacks: Mapping[str, BySeed], level: float = LEVEL) -> tuple[str, Estimate]:
    """Return the attack with the highest mean, and the maximum with its simultaneous interval.

    attacks: attack → seed → figure.
    level: probability that all intervals hold.
    """
    negated = {name: {seed: -value for seed, value in seeds.items()} for name, seeds in attacks.items()}
    name, found = least(negated, level)
    return name, Estimate(-found.value, -found.high, -found.low)


def difference(ours: Mapping[str, BySeed], theirs: Mapping[str, BySeed], level: float = LEVEL) -> Estimate:
    """Return the minimum of one defence minus the minimum of another, paired by seed.

    ours, theirs: attack → seed → figure.
    level: probability that the interval holds.

    min_a x_a − min_b y_b = min_a max_b (x_a − y_b), so the interval comes from the paired differences of all pairs of
    attacks, simultaneously; min and max keep the order of their ends.
    """
    pairs = {
        first: {
            second: mean_interval([x[seed] - y[seed] for seed in x if seed in y], len(ours) * len(theirs), level)
            for second, y in theirs.items()
        }
        for first, x in ours.items()
    }
    ends = [
        [_most([getattr(each, end) for each in row.values()]) for row in pairs.values()]
        for end in ("value", "low", "high")
    ]
    return Estimate(*(_least(values) for values in ends))


def worst_attacks(robustness: Mapping[str, float], gains: Mapping[str, float], worst: int, backdoors: int) -> list[str]:
    """Return the attacks of a defence to measure again: the `worst` least robust, and the `backdoors` with the highest
    gains.

    robustness, gains: attack → figure. A missing figure (a failed cell) counts as the worst of all, because it must be
    reported.
    """
    order = sorted(robustness, key=lambda name: (_or(robustness[name], -math.inf), name))
    chosen = order[:worst]
    rest = [name for name in gains if name not in chosen]
    return chosen + sorted(rest, key=lambda name: (-_or(gains[name], math.inf), name))[:backdoors]


def harmless(nobody: float, attacked: float, gain: float = math.nan) -> bool:
    """Return whether an attack leaves the undefended federation as it was, in accuracy and, for a backdoor, in `gain`.

    nobody, attacked: balanced accuracy without and with the attack.
    """
    return nobody - attacked < HARMLESS and not gain >= HARMLESS_GAIN


def _least(values: Sequence[float]) -> float:
    return min((value for value in values if math.isfinite(value)), default=math.nan)


def _most(values: Sequence[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=math.nan)


def _or(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise
