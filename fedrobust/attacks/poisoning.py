"""Attacks on the labels of the training data. They have no trigger, and so no success rate: they cost accuracy.

With the local loss `logit_adjusted`, a poisoned hospital adjusts by its true labels. That is the stronger attack:
adjusting by the poisoned labels would undo part of the flips.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fedrobust.attacks.attack import DataAttack
from fedrobust.attacks.local import drawn
from fedrobust.errors import ExperimentError, Problem
from fedrobust.options import Many, refusal

_Label = Annotated[int, Field(ge=0)]


class LabelFlip(DataAttack):
    """Label flip: every label y becomes L − 1 − y, or chosen labels become others (Tolpegin et al., ESORICS 2020).

    With an odd number of labels L, the middle one stays as it is.
    """

    name: Literal["label_flip"] = "label_flip"
    pairs: Many[Annotated[tuple[_Label, _Label], Field(strict=False)]] | None = None
    """Pairs [source, target]; other labels stay. null: every y becomes L − 1 − y."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.pairs is not None:
            sources = [source for source, _ in self.pairs]
            if not sources or len(set(sources)) < len(sources) or any(a == b for a, b in self.pairs):
                found = [list(pair) for pair in self.pairs]
                raise refusal(Problem("must be [source, target] of two labels, each source once", "pairs", str(found)))
        return self

    def check(self, classes: int, size: int) -> None:
        for pair in self.pairs or ():
            if max(pair) >= classes:
                raise no_label("pairs", max(pair), classes)

    def poison(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        self.check(classes, images.shape[1])
        flipped = np.arange(classes, dtype=labels.dtype)
        if self.pairs is None:
            flipped = flipped[::-1]
        for source, target in self.pairs or ():
            flipped[source] = target
        return images, flipped[labels]


class TargetedFlip(DataAttack):
    """Targeted flip: patches of one label get another label (Tolpegin et al., ESORICS 2020).

    By default carcinoma is labelled benign, the mistake that costs most. The images stay as they are.
    """

    name: Literal["targeted_flip"] = "targeted_flip"
    source: int = Field(default=1, ge=0)
    """The label that is changed."""
    target: int = Field(default=0, ge=0)
    """The label that it becomes."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the source label's patches in each batch that change; a fraction of a patch is rounded at random."""

    @model_validator(mode="after")
    def _two_labels(self) -> Self:
        if self.source == self.target:
            raise refusal(Problem("must be another label than source", "target", str(self.target)))
        return self

    def check(self, classes: int, size: int) -> None:
        for option, label in (("source", self.source), ("target", self.target)):
            if label >= classes:
                raise no_label(option, label, classes)

    def poison(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        self.check(classes, images.shape[1])
        labels = labels.copy()
        labels[drawn(np.flatnonzero(labels == self.source), self.share, generator)] = self.target
        return images, labels


def no_label(option: str, label: int, classes: int) -> ExperimentError:
    """The error where an option names a label that the data does not have.

    option: its name.
    label: its value.
    classes: number of labels in the data.
    """
    return ExperimentError(Problem("no such label", option, str(label), (f"0 to {classes - 1}",)))
