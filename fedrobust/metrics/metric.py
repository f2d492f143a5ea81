"""What a metric is, and what it sees: a model's probabilities on held-out patches."""

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
    """Probabilities (n, classes) in which a row that is not finite is uniform: a ruined model knows nothing.

    Its predicted label is then the first one, so its balanced accuracy is chance where that label occurs, as is its
    AUROC.
    """
    finite = np.isfinite(probabilities).all(axis=1, keepdims=True)
    return np.where(finite, probabilities, np.float32(1 / probabilities.shape[1]))


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of n ≥ 1 patches. Raises `ValueError` where there are none."""

    probabilities: Probabilities
    """(n, classes) float32, each row with the sum 1; rows that are given and are not finite become uniform."""
    labels: Labels
    """(n,) int64, the true ones."""
    hospitals: Labels
    """(n,) int64, whose patch each is."""

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
        import torch
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        scores, truth = torch.from_numpy(self.probabilities), torch.from_numpy(np.ascontiguousarray(self.labels))
        # Without its checks, it takes models of one class, too.
        counts: NDArray[np.int64] = multiclass_confusion_matrix(
            scores, truth, scores.shape[1], validate_args=False
        ).numpy()
        return counts

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
    """A figure of a model: a subclass with a `name` is one."""

    title: ClassVar[str]
    """What tables and pages call it."""
    headline: ClassVar[bool] = True
    """Whether it stands in reports, comparisons and matrices; MLflow and the objectives of sweeps have all."""

    name: str

    @property
    def key(self) -> str:
        """Its name in MLflow, behind `test/` and `validation/`: of a user's own class, that of the class."""
        return self.name.rpartition(":")[2]

    @abstractmethod
    def of(self, predictions: Predictions) -> float:
        """The figure; NaN where it is undefined."""


def own() -> list[Metric]:
    """The metrics of this room, those of one file in the order of their definition."""
    return [kind.model_validate({"name": name}) for name, kind in members(Metric).items()]  # type: ignore[misc]


def measured(predictions: Predictions, more: Iterable[Metric] = ()) -> dict[str, float]:
    """All metrics of this room, and `more`, by their name in MLflow.

    Raises what a user's own metric raises.
    """
    return {metric.key: float(metric.of(predictions)) for metric in [*own(), *more]}


def in_tables(keys: Iterable[str]) -> dict[str, str]:
    """Name in MLflow → title of those of the metrics that stand in tables; a user's own do, under their names."""
    there, known = set(keys), {metric.key: metric for metric in own()}
    found = {key: metric.title for key, metric in known.items() if key in there and metric.headline}
    return found | {key: key.replace("_", " ") for key in sorted(there - set(known))}


def attack_success(clean: Labels, triggered: Labels, labels: Labels, target: int) -> dict[str, float]:
    """How often a trigger turns an image into the `target` label.

    Args:
        clean: (n,) predicted labels of the images as they are.
        triggered: (n,) predicted labels of the same images with the trigger.
        labels: (n,) true labels.
        target: the label that the attacker wants.

    Returns:
        `success_rate`: of the images of other labels that are classified correctly without the trigger, the share
        that the trigger turns into the target. `raw_rate`: of all images of other labels, the share read as the
        target with the trigger, which counts what the model misreads anyway. Both 0 where there are no such images.
    """
    other = labels != target
    sound = other & (clean == labels)
    hit = triggered == target
    return {
        "success_rate": float(hit[sound].mean()) if sound.any() else 0.0,
        "raw_rate": float(hit[other].mean()) if other.any() else 0.0,
    }
