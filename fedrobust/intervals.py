"""Intervals of means over seeds, and of shares of patches. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

FEWEST = 3
"""Seeds that an interval needs: with two it would be wider than the range of possible values."""
LEVEL = 0.95
"""Probability that all intervals hold that are computed for one table."""
POWER = 0.8
"""Probability with which `further_seeds` would show a difference."""
MOST = 1000
"""Seeds beyond which nobody would go to show a difference."""


class Estimate(NamedTuple):
    """A figure with an interval; the ends are NaN where there is none, e.g. with fewer than three seeds."""

    value: float
    low: float = math.nan
    high: float = math.nan


def mean_interval(values: Sequence[float], intervals: int = 1, level: float = LEVEL) -> Estimate:
    """Return the mean and its t interval, one of `intervals` intervals that hold at once with probability `level`.

    values: one for each seed; without an interval if there are fewer than `FEWEST`.
    """
    known = np.array([value for value in values if math.isfinite(value)])
    if len(known) < FEWEST:
        return Estimate(float(known.mean()) if len(known) else math.nan)
    quantile = float(_t(1 - (1 - level) / (2 * intervals), len(known) - 1))
    half = quantile * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Estimate(float(known.mean()), float(known.mean()) - half, float(known.mean()) + half)


def further_seeds(differences: Sequence[float], intervals: int = 1, level: float = LEVEL) -> int | None:
    """Return how many more seeds would probably (`POWER`) show that the mean of paired differences is not 0.

    differences: one for each seed, at least two. Their mean and their standard deviation are taken for the true ones,
        so with few seeds this is a rough figure.
    intervals, level: as in `mean_interval`.

    Returns None if not even `MOST` seeds would.
    """
    known = np.array(differences)
    mean, deviation = abs(float(known.mean())), float(known.std(ddof=1))
    seeds = np.arange(FEWEST, MOST + 1)
    quantiles = _t(1 - (1 - level) / (2 * intervals), seeds - 1) + _t(POWER, seeds - 1)
    enough = quantiles * deviation / np.sqrt(seeds) < mean
    return max(0, int(seeds[enough][0]) - len(known)) if enough.any() else None


def paired_patches(
    better: np.ndarray, worse: np.ndarray, patches: np.ndarray, intervals: int = 1, level: float = LEVEL
) -> Estimate:
    """Return the difference between two models' balanced accuracies on the same patches, with an interval over them.

    better, worse: (labels,) patches of each label that only the first model reads correctly, and only the second.
    patches: (labels,) patches of each label, at least one.
    intervals, level: as in `mean_interval`.

    The interval is that of Agresti and Min (2005) for matched pairs, which adds half a patch to each of the four cells.
    It treats patches as independent: patches of one patient are not, so it is rather too narrow.
    """
    sizes, gained, lost = patches + 2.0, better + 0.5, worse + 0.5
    centre = float(np.mean((better - worse) / sizes))
    variance = np.mean((gained + lost - (gained - lost) ** 2 / sizes) / sizes**2) / len(patches)
    half = float(_normal(1 - (1 - level) / (2 * intervals)) * math.sqrt(variance))
    return Estimate(float(np.mean((better - worse) / patches)), max(-1.0, centre - half), min(1.0, centre + half))


def share_uncertainty(patches: np.ndarray, level: float = LEVEL) -> float:
    """Return half the width of the interval of a balanced accuracy near one half, from the number of patches alone.

    patches: (labels,) test patches of each label, at least one.
    """
    return float(_normal((1 + level) / 2) * 0.5 * math.sqrt(np.sum(1 / patches)) / len(patches))


def _t(probability: float, freedom: Any) -> Any:
    """Return the quantile of Student's t distribution with so many degrees of freedom, one or an array."""
    from scipy.special import stdtrit  # what scipy.stats calls, which takes a second to import

    return stdtrit(freedom, probability)


def _normal(probability: float) -> float:
    """Return the quantile of the standard normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(probability))
