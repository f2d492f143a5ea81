"""The repair: the coordinator trains the global model for a few steps on patches of its own, and backdoors fade."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.options import Options
from fedrobust.trust.referee import compared
from fedrobust.updates import Floats


class Repair(Options):
    """A few steps of SGD on the coordinator's own patches, with rectangles of random texture pasted anywhere, some of
    them stained anew, and the targets left as they are: what is changed then means nothing. The targets are the labels,
    mixed with what the model said of the patch before (Hinton et al., 2015): labels of few patients alone cost accuracy
    on others. The result is the moving average of the weights.

    How many steps is decided by cross-validation over the patients: the most, up to `steps`, with which neither the
    error on patches that a fold does not train on rises beyond doubt, nor the loss by more than `tolerance`.

    Fine-tuning as a defence against backdoors, plain and after pruning: Liu et al. (RAID 2018); what is changed in
    patches: `fedrobust.trust.augmentation`.
    """

    every: int | None = Field(default=None, ge=1)
    """Repair after every so many rounds, and always after the last one; null: only then."""
    steps: int = Field(default=400, ge=1)
    """The most steps of a repair."""
    lr: float = Field(default=0.01, gt=0)
    """Learning rate."""
    batch_size: int = Field(default=64, ge=1)
    """Patches of a step."""
    erasing: bool = True
    """Whether patches are changed: random erasing, and other stains. Without that, and without distillation, it is
    plain fine-tuning."""
    distillation: float = Field(default=0.8, ge=0, le=1)
    """The share of the model's own predictions before the repair in the targets; the rest are the labels."""
    prune: float = Field(default=0.0, ge=0, lt=1)
    """Fine-pruning: the share of the inputs of the last layer that are set to 0 before the steps and stay so, those
    that are least active on the coordinator's patches."""
    folds: int = Field(default=3, ge=2)
    """Parts of the patients, each of which is left out once."""
    certainty: float = Field(default=1.0, ge=0)
    """Standard errors by which loss and error may rise."""
    tolerance: float = Field(default=0.05, ge=0)
    """By how much more the loss may rise. A model that pays less attention to what it must not see is less sure of
    itself, and not more often wrong."""

    def due(self, round: int, rounds: int) -> bool:
        """Whether the model after `round` of `rounds` is repaired."""
        return round == rounds or (self.every is not None and round % self.every == 0)

    def tried(self) -> list[int]:
        """The numbers of steps that are tried."""
        return sorted({max(1, round(self.steps * part)) for part in (0.1, 0.3, 0.6, 1.0)})

    def chosen(
        self, before: Floats, after: Mapping[int, Floats], labels: NDArray[np.int64], patients: NDArray[np.int64]
    ) -> int:
        """How many steps are made: the most with which nothing rises beyond doubt; 0: no repair.

        before: (2, m) loss and error (0 or 1) of each patch.
        after: number of steps → the same after them, of patches that were left out.
        labels, patients: (m,) of the patches.
        """

        def harmless(found: Floats) -> bool:
            if not np.isfinite(found).all():
                return False
            beyond = found - before - np.array([[self.tolerance], [0.0]])
            rises = [compared(each, labels, patients) for each in beyond]
            return all(mean <= 0 or certainty <= self.certainty for mean, certainty in rises)

        return max((steps for steps, found in after.items() if harmless(found)), default=0)
