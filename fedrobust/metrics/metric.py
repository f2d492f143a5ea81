"""Metrics, and their input: a model's probabilities on held-out patches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrobust.options import Options, members

Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]


def decided(probabilities: Probabilities) -> Probabilities:
    """The `probabilities` (n, classes), with uniform rows instead of those that are not finite.

    The predicted label of such a row is the first one. So the balanced accuracy of a ruined model is chance where that
    label occurs, and so is its AUROC.
    """
    finite = np.isfinite(probabilities).all(axis=1, keepdims=True)
    return np.where(finite, probabilities, np.float32(1 / probabilities.shape[1]))


@dataclass(frozen=True, eq=False)
class Predictions:
    """A model's predictions for n ≥ 1 patches. Raises `ValueError` if there are none."""

    probabilities: Probabilities
    """(n, classes) float32, each row with the sum 1; rows that are not finite become uniform."""
    labels: Labels
    """(n,) int64, the true labels."""
    hospitals: Labels
    """(n,) int64, the hospital of each patch."""

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise ValueError("metrics need at least one patch")
        object.__setattr__(self, "probabilities", decided(self.probabilities))

    @cached_property
    def predicted(self) -> NDArray[np.intp]:
        """(n,) the label with the largest probability; of equal ones, the first."""
        found: NDArray[np.intp] = self.probabilities.argmax(axis=1)
        return found

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes) counts: row = true label, column = predicted label."""
        classes = self.probabilities.shape[1]
        counts: NDArray[np.int64] = np.bincount(self.labels * classes + self.predicted, minlength=classes * classes)
        return counts.reshape(classes, classes)

    @property
    def occurring(self) -> NDArray[np.intp]:
        """The labels that occur, ascending."""
        return np.flatnonzero(self.confusion.sum(axis=1))

    @cached_property
    def by_hospital(self) -> dict[int, float]:
        """The accuracy at each hospital that has patches, by its number."""
        right = self.predicted == self.labels
        return {int(each): float(right[self.hospitals == each].mean()) for each in np.unique(self.hospitals)}


class Metric(Options, ABC):
    """A figure of a model's quality: every subclass with a `name` is a metric."""

    title: ClassVar[str]
    """Its name in tables and pages."""
    headline: ClassVar[bool] = True
    """Whether it is shown in reports, comparisons and matrices; MLflow and the objectives of sweeps have all
    metrics."""

    name: str

    @property
    def key(self) -> str:
        """Its name in MLflow, after `test/` or `validation/`: for a user's own class, the name of the class."""
        return self.name.rpartition(":")[2]

    def chance(self, labels: int) -> float | None:
        """Return the figure of a model that has learnt nothing, if it is known and more is better; by default None.

        labels: number of labels that occur.
        """
        return None

    @abstractmethod
    def of(self, predictions: Predictions) -> float:
        """The figure for these `predictions`; NaN where it is undefined."""


def own() -> list[Metric]:
    """The metrics of this room; those of one file in the order of their definition."""
    return [kind.model_validate({"name": name}) for name, kind in members(Metric).items()]  # type: ignore[misc]


def measured(predictions: Predictions, more: Iterable[Metric] = ()) -> dict[str, float]:
    """The metrics of this room and `more` on these `predictions`: name in MLflow → figure.

    Errors of a user's own metric are not caught.
    """
    return {metric.key: float(metric.of(predictions)) for metric in [*own(), *more]}


def in_tables(keys: Iterable[str]) -> dict[str, str]:
    """The metrics among `keys`, names in MLflow, that tables show: name → title. A user's own are shown under their
    names.
    """
    there, known = set(keys), {metric.key: metric for metric in own()}
    found = {key: metric.title for key, metric in known.items() if key in there and metric.headline}
    return found | {key: key.replace("_", " ") for key in sorted(there - set(known))}


def attack_success(clean: Labels, triggered: Labels, labels: Labels, target: int) -> dict[str, float]:
    """How often a trigger makes the model give an image the `target` label: `success_rate` and `raw_rate`.

    clean: (n,) int64, predicted labels of the images without the trigger.
    triggered: (n,) int64, predicted labels of the same images with the trigger.
    labels: (n,) int64, true labels.
    target: the label that the attacker wants.

    `success_rate`: of the images of other labels that are classified correctly without the trigger, the share that gets
    the target label with it. `raw_rate`: of all images of other labels, the share that gets the target label with the
    trigger; this includes images that the model misclassifies without it. Both are 0 where there are no such images.
    """
    other = labels != target
    sound = other & (clean == labels)
    hit = triggered == target
    return {
        "success_rate": float(hit[sound].mean()) if sound.any() else 0.0,
        "raw_rate": float(hit[other].mean()) if other.any() else 0.0,
    }
