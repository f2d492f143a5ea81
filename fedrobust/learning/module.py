"""The Lightning module that both engines of local training drive."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from fedrobust.learning.local import LocalTraining
from fedrobust.learning.vector import trainable


class TissueClassifier(LightningModule):
    """A tissue classifier that trains at one hospital after another; `begin` says at which."""

    def __init__(self, model: nn.Module, options: LocalTraining) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.counts = torch.empty(0)
        self.reference: list[Tensor] = []

    def begin(self, class_counts: NDArray[np.integer]) -> None:
        """Starts at a hospital: the present weights are the global ones, `class_counts` (classes,) its labels."""
        parameters = trainable(self.model)
        self.counts = torch.tensor(np.ascontiguousarray(class_counts), dtype=torch.float32, device=parameters[0].device)
        if self.options.proximal:
            self.reference = [parameter.detach().clone() for parameter in parameters]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 images to (B, classes) logits."""
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch, with FedProx's term where it is asked for."""
        images, labels = batch
        loss = self.options.loss.loss(self.model(images), labels, self.counts)
        if self.options.proximal:
            pairs = zip(trainable(self.model), self.reference, strict=True)
            distance = sum((parameter - start).square().sum() for parameter, start in pairs)
            loss = loss + self.options.proximal / 2 * distance
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A fresh optimiser of the trainable parameters."""
        return self.options.optimizer.build(trainable(self.model))
