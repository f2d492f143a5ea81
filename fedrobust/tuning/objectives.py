"""Objectives: the numbers of a trial, from the metrics of its runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Literal

from pydantic import Field

from fedrobust.errors import ExperimentError, Problem
from fedrobust.metrics import Metric, own
from fedrobust.options import Options, nearest
from fedrobust.studies.finished import Curves

Direction = Literal["maximize", "minimize"]
Summary = Literal["mean", "min", "max", "median", "worst"]
Results = Mapping[tuple[str, int], Curves]
"""The curves of each run of a trial, by attack and seed."""

NOT_FINITE = "an objective is not a finite number"
"""Why a trial failed although none of its runs did."""
SCORE = "score"
"""The metric computed by a caller's own function."""
_OTHERS = ("attack/success_rate", "attack/raw_rate", "defense/precision", "defense/recall", "defense/auroc")
"""Metrics that a run can have besides those of its model; the ones in `attack/` need a backdoor."""

_REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": fmean,
    "min": min,
    "max": max,
    "median": median,
}


class Objective(Options):
    """A number that a sweep maximizes or minimizes: a metric, reduced over rounds, seeds and attacks."""

    metric: str
    """Name of the metric, as MLflow shows it, e.g. `test/balanced_accuracy`."""
    direction: Direction = "maximize"
    rounds: int = Field(default=1, ge=1)
    """The value of a run is the mean over its last so many evaluated rounds."""
    seeds: Summary = "mean"
    """How the values of one attack are combined; `worst` is the smallest if it is maximized, the largest if not."""
    attacks: Summary = "worst"
    """How the values of all attacks are combined."""

    def reduced(self, results: Results, until: int | None = None) -> float:
        """Return the number for a trial; NaN if that of any of its runs is not finite.

        results: the curves of its runs.
        until: the last round that counts.

        Raises `ExperimentError` if a run has no such metric.
        """
        by_attack: dict[str, list[float]] = {}
        for (attack, seed), curves in results.items():
            known = {name for metrics in curves.values() for name in metrics}
            if self.metric not in known:
                reason, hint = f"no such metric in the run of attack {attack}, seed {seed}", nearest(self.metric, known)
                raise ExperimentError(Problem(reason, "metric", f"'{self.metric}'", tuple(sorted(known)), hint))
            counted = sorted(round for round in curves if until is None or round <= until)
            values = [float(curves[round].get(self.metric, math.nan)) for round in counted[-self.rounds :]]
            by_attack.setdefault(attack, []).append(fmean(values) if values else math.nan)
        return self._over([self._over(values, self.seeds) for values in by_attack.values()], self.attacks)

    def _over(self, values: Sequence[float], reduction: Summary) -> float:
        if not values or not all(map(math.isfinite, values)):
            return math.nan
        if reduction == "worst":
            reduction = "min" if self.direction == "maximize" else "max"
        return _REDUCTIONS[reduction](values)


def unknown(metric: str, more: Iterable[Metric] = ()) -> Problem | None:
    """Return why no run can have this metric; None if a run may have it.

    metric: its name.
    more: the experiment's own metrics.

    Metrics in `validation/` need a split with validation patches.
    """
    keys = [each.key for each in (*own(), *more)]
    there = (*(f"{part}/{key}" for part in ("test", "validation") for key in keys), *_OTHERS)
    if metric in there or metric == SCORE:
        return None
    hint = nearest(metric, there)
    return Problem(f"no metric '{metric}'", hint=hint, allowed=() if hint else there)


def reduced(objectives: Iterable[Objective], results: Results) -> tuple[float, ...] | None:
    """Return the numbers of a trial, one for each objective; None if one is NaN, so that the trial has failed.

    Raises `ExperimentError` if a run has no such metric.
    """
    values = tuple(objective.reduced(results) for objective in objectives)
    return values if not any(map(math.isnan, values)) else None
