"""Statistics of many runs of a defence: robustness, its minimum over attacks, and their uncertainty. Pure numbers.

The headline of a defence is the minimum over attacks of its mean robustness over seeds. Bootstrapping that minimum
would be biased low: among many equal attacks, the minimum is the one that looks worst by chance. So every attack gets a
t interval over the seeds at the level of Bonferroni (1936): all of them hold at once, and therefore the true minimum
lies between the least of the lower ends and the least of the upper ends.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from fedrobust.intervals import LEVEL, Estimate, mean_interval
from fedrobust.metrics.chance import LEARNT
from fedrobust.texts import enumerated

HARMLESS = 0.02
"""An attack is harmless if it takes less balanced accuracy than this from the undefended federation."""
HARMLESS_GAIN = 0.05
"""A backdoor is harmless only if planting it raises its success there by less than this, too."""
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

    attacks: attack → seed → figure; attacks without a figure are passed over.
    level: probability that all intervals hold.

    Attacks that are equally bad are all named. There is an interval only if every attack has one.
    """
    found = {name: mean_interval(list(seeds.values()), len(attacks), level) for name, seeds in attacks.items()}
    known = {name: estimate for name, estimate in found.items() if math.isfinite(estimate.value)}
    if not known:
        return "", Estimate(math.nan)
    names = lowest({name: estimate.value for name, estimate in known.items()})
    low, high = (_minimum([getattr(estimate, end) for estimate in known.values()]) for end in ("low", "high"))
    return enumerated(names), Estimate(known[names[0]].value, low, high)


def greatest(attacks: Mapping[str, BySeed], level: float = LEVEL) -> tuple[str, Estimate]:
    """Return the attack with the highest mean, and the maximum with its simultaneous interval; see `least`.

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
    attacks, simultaneously; min and max keep the order of their ends. NaN if a pair of attacks has no seed in common.
    """
    pairs = {
        first: {
            second: mean_interval([x[seed] - y[seed] for seed in x if seed in y], len(ours) * len(theirs), level)
            for second, y in theirs.items()
        }
        for first, x in ours.items()
    }
    ends = [
        [_maximum([getattr(each, end) for each in row.values()]) for row in pairs.values()]
        for end in ("value", "low", "high")
    ]
    return Estimate(*(_minimum(values) for values in ends))


def worst_attacks(robustness: Mapping[str, float], gains: Mapping[str, float], worst: int, backdoors: int) -> list[str]:
    """Return the attacks of a defence to measure again: the `worst` least robust, and the `backdoors` with the highest
    gains.

    robustness, gains: attack → figure on the screening seeds. Of equal figures, the first by name is chosen.

    Attacks without a figure are chosen in addition, all of them: any of them may be the worst. For gains this holds if
    any backdoors are to be measured.
    """
    order = sorted(_known(robustness), key=lambda name: (robustness[name], name))
    chosen = order[:worst] + [name for name in robustness if not math.isfinite(robustness[name])]
    rest = {name: gain for name, gain in gains.items() if name not in chosen}
    chosen += sorted(_known(rest), key=lambda name: (-rest[name], name))[:backdoors]
    return chosen + [name for name in rest if backdoors and not math.isfinite(rest[name])]


def as_low(robustness: Mapping[str, float], measured: Collection[str], worst: int) -> list[str]:
    """Return the attacks that were not `measured` again, although they are as low on the screening seeds as the last of
    the `worst`.

    robustness: attack → figure on the screening seeds.
    """
    order = sorted(robustness[name] for name in _known(robustness))
    limit = order[min(worst, len(order)) - 1] if order else math.nan
    return [name for name, value in robustness.items() if value <= limit and name not in measured]


def lowest(figures: Mapping[str, float]) -> list[str]:
    """Return the names with the lowest figure: several if they are equal, none if no figure is finite."""
    known = {name: figures[name] for name in _known(figures)}
    return [name for name, value in known.items() if value == min(known.values())]


def harmless(nobody: float, attacked: float, gain: float | None = None) -> bool:
    """Return whether an attack leaves the undefended federation as it was, in accuracy and, for a backdoor, in `gain`.

    nobody, attacked: balanced accuracy without and with the attack.
    gain: None unless it is a backdoor.

    False where a figure is NaN: what was not measured is not harmless.
    """
    return nobody - attacked < HARMLESS and (gain is None or gain < HARMLESS_GAIN)


def _known(figures: Mapping[str, float]) -> list[str]:
    return [name for name, value in figures.items() if math.isfinite(value)]


def _minimum(values: Sequence[float]) -> float:
    """Return the minimum; NaN if there is no value, or if one is NaN."""
    return math.nan if any(map(math.isnan, values)) else min(values, default=math.nan)


def _maximum(values: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values, default=math.nan)
