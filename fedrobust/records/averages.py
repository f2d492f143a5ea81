"""Figures of a run that do not hang on one round: means over several evaluations. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedrobust.records.kinds import EvaluationRecord


def averages(evaluations: Iterable[EvaluationRecord]) -> dict[str, float]:
    """Return the mean of each metric over the evaluations that have it, by its name in MLflow.

    evaluations: e.g. all of a cell of a matrix (`evaluation.last` sets how many there are), or the last five of a run.
    """
    found: dict[str, list[float]] = {}
    for evaluation in evaluations:
        for name, value in evaluation.metrics.items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}
