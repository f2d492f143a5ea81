"""The metrics that every run has. Each is finite for all models and labels."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.metrics.metric import Metric, Predictions

BINS = 15
"""Bins of the expected calibration error."""


class Accuracy(Metric):
    """The share of patches that are classified correctly."""

    title = "accuracy"
    headline = False

    name: Literal["accuracy"] = "accuracy"

    def of(self, predictions: Predictions) -> float:
        """See the class."""
        return float(predictions.confusion.trace() / predictions.confusion.sum())


class BalancedAccuracy(Metric):
    """The mean recall of the labels that occur: chance is 1 / labels, whatever their frequencies."""

    title = "balanced accuracy"

    name: Literal["balanced_accuracy"] = "balanced_accuracy"

    def of(self, predictions: Predictions) -> float:
        """See the class."""
        matrix, occurring = predictions.confusion, predictions.occurring
        recall = matrix.diagonal()[occurring] / matrix.sum(axis=1)[occurring]
        return float(recall.mean())

    def chance(self, labels: int) -> float:
        """See `Metric.chance`."""
        return 1 / labels


class Auroc(Metric):
    """The area under the ROC curve, one label against the rest, mean over the labels that occur.

    0.5 where only one label does.
    """

    title = "AUROC"

    name: Literal["auroc"] = "auroc"

    def of(self, predictions: Predictions) -> float:
        """See the class."""
        occurring = predictions.occurring
        if len(occurring) < 2:
            return 0.5
        areas = [_area(predictions.probabilities[:, label], predictions.labels == label) for label in occurring]
        return float(np.mean(areas))

    def chance(self, labels: int) -> float:
        """See `Metric.chance`."""
        return 0.5


class MacroF1(Metric):
    """The mean F1 score of the labels that occur or are predicted."""

    title = "macro F1"
    headline = False

    name: Literal["macro_f1"] = "macro_f1"

    def of(self, predictions: Predictions) -> float:
        """See the class."""
        matrix = predictions.confusion
        either = matrix.sum(axis=0) + matrix.sum(axis=1)
        return float((2 * matrix.diagonal()[either > 0] / either[either > 0]).mean())


class CalibrationError(Metric):
    """The expected calibration error in 15 bins (Guo et al., ICML 2017): how far confidence is from accuracy."""

    title = "calibration error"
    headline = False

    name: Literal["ece"] = "ece"

    def of(self, predictions: Predictions) -> float:
        """See the class."""
        confidence = predictions.probabilities.max(axis=1)
        right = (predictions.predicted == predictions.labels).astype(np.float64)
        bins = np.searchsorted(np.linspace(0, 1, BINS + 1, dtype=np.float32), confidence, side="right")
        return float(np.abs(np.bincount(bins, right - confidence)).sum() / len(confidence))


class Loss(Metric):
    """The mean negative log probability of the true label; probabilities below 1e-12 count as 1e-12."""

    title = "loss"
    headline = False

    name: Literal["loss"] = "loss"

    def of(self, predictions: Predictions) -> float:
        """See the class."""
        of_label = predictions.probabilities[np.arange(len(predictions.labels)), predictions.labels]
        return float(-np.log(np.maximum(of_label.astype(np.float64), 1e-12)).mean())


class WorstHospitalAccuracy(Metric):
    """The accuracy at the hospital where it is lowest.

    Only hospitals with at least `minimum` test patches count; if there is none, all do.
    """

    title = "worst hospital"

    name: Literal["worst_hospital_accuracy"] = "worst_hospital_accuracy"
    minimum: int = Field(default=10, ge=1)
    """The least number of test patches: with fewer, a hospital's accuracy is too uncertain to be the worst."""

    def of(self, predictions: Predictions) -> float:
        """See the class."""
        patches = {each: int((predictions.hospitals == each).sum()) for each in predictions.by_hospital}
        large = [value for each, value in predictions.by_hospital.items() if patches[each] >= self.minimum]
        return min(large or predictions.by_hospital.values())


def _area(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """The area under the ROC curve: how often a positive score is above a negative one, with ties as halves.

    scores: (n,).
    positive: (n,) which of them should be high; neither all nor none.
    """
    _, level, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[level]  # equal scores share the mean of their ranks
    above = int(positive.sum())
    return float((ranks[positive].sum() - above * (above + 1) / 2) / (above * (len(scores) - above)))
