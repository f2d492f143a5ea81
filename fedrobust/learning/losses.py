"""The loss that a hospital minimises. It may depend on the hospital's own label distribution."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fedrobust.options import Options

if TYPE_CHECKING:
    from torch import Tensor


class LocalLoss(Options):
    """The training loss at a hospital."""

    name: str

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        """The mean loss of a batch.

        logits: (B, classes) float32.
        labels: (B,) int64.
        counts: (classes,) float32, the hospital's training patches of each label.
        """


class CrossEntropy(LocalLoss):
    """Plain cross entropy."""

    name: Literal["cross_entropy"] = "cross_entropy"

    def loss(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, labels)


class ClassWeighted(LocalLoss):
    """Cross entropy in which each label weighs the inverse of its frequency at the hospital.

    The mean of a batch is a weighted mean. One patch of every label is added to the counts, so that a label which the
    hospital does not have (but gets by a label flip) has a finite weight.
    """

    name: Literal["class_weighted"] = "class_weighted"

    def loss(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        smoothed = counts + 1
        return cross_entropy(logits, labels, weight=smoothed.sum() / (smoothed * len(smoothed)))


class LogitAdjusted(LocalLoss):
    """Cross entropy of logits plus the log prior of the hospital's own labels (Menon et al., ICLR 2021).

    Removes the label skew between hospitals from their updates (compare FedLC: Zhang et al., ICML 2022). The prior is
    smoothed by one patch of every label, so that it is finite for labels which the hospital does not have.
    """

    name: Literal["logit_adjusted"] = "logit_adjusted"
    tau: float = Field(default=1.0, gt=0)
    """Strength of the adjustment; 1 makes the balanced error consistent."""

    def loss(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        smoothed = counts + 1
        return cross_entropy(logits + self.tau * (smoothed / smoothed.sum()).log(), labels)
