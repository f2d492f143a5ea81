"""Intervals of means over seeds. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

FEWEST = 3
"""Seeds that an interval needs: with two it would be wider than the range of possible values."""
LEVEL = 0.95
"""Probability that all intervals hold that are computed for one table."""


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
    quantile = float(stats.t.ppf(1 - (1 - level) / (2 * intervals), len(known) - 1))
    half = quantile * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Estimate(float(known.mean()), float(known.mean()) - half, float(known.mean()) + half)
