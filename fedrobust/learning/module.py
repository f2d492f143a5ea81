"""The Lightning module that both engines of local training drive."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from fedrobust.learning.constraint import Constraint
from fedrobust.learning.local import LocalTraining
from fedrobust.learning.vector import split, trainable


class TissueClassifier(LightningModule):
    """A tissue classifier that trains at one hospital after another; `begin` starts the training at each."""

    def __init__(self, model: nn.Module, options: LocalTraining) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.counts = torch.empty(0)
        self.reference: list[Tensor] = []
        self.constraint: Constraint | None = None
        self.movable: list[Tensor] = []

    def begin(self, class_counts: NDArray[np.integer], constraint: Constraint | None = None) -> None:
        """Start the training at a hospital. The current weights are the global ones.

        class_counts: (classes,) the hospital's training patches of each label.
        constraint: of an attacker's training; None for honest hospitals.
        """
        parameters = trainable(self.model)
        device = parameters[0].device
        self.counts = torch.tensor(np.ascontiguousarray(class_counts), dtype=torch.float32, device=device)
        self.constraint = constraint
        if self.options.proximal or constraint is not None:
            self.reference = [parameter.detach().clone() for parameter in parameters]
        if constraint is not None and constraint.mask is not None:
            self.movable = [piece.to(device) for piece in split(constraint.mask, parameters)]

    def forward(self, images: Tensor) -> Tensor:
        """(B, classes) logits for `images` (B, 3, H, W) float32."""
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch, with FedProx's term and an attacker's anomaly term where these are set.

        batch: (B, 3, H, W) float32 images and (B,) int64 labels.
        batch_idx: for Lightning; not used.
        """
        images, labels = batch
        loss = self.options.loss.loss(self.model(images), labels, self.counts)
        if self.constraint is not None and self.constraint.alpha < 1:
            loss = self.constraint.alpha * loss + (1 - self.constraint.alpha) * self._anomaly(self.constraint)
        if self.options.proximal:
            pairs = zip(trainable(self.model), self.reference, strict=True)
            distance = sum((parameter - start).square().sum() for parameter, start in pairs)
            loss = loss + self.options.proximal / 2 * distance
        return loss

    def _anomaly(self, constraint: Constraint) -> Tensor:
        """How far the model is from the global one, as `constraint.distance` measures it."""
        start = torch.cat([tensor.reshape(-1) for tensor in self.reference])
        update = torch.cat([parameter.reshape(-1) for parameter in trainable(self.model)]) - start
        if constraint.distance == "squared_norm":
            return update.square().sum()
        if constraint.distance == "cosine":
            return 1 - torch.cosine_similarity(start + constraint.scale * update, start, dim=0)
        norm: Tensor = torch.linalg.vector_norm(update)
        return norm

    def project(self) -> None:
        """After a step: project the weights onto the constraint, if there is one."""
        if self.constraint is not None:
            with torch.no_grad():
                self._project(self.constraint)

    def _project(self, constraint: Constraint) -> None:
        parameters = trainable(self.model)
        if constraint.mask is not None:
            for parameter, start, movable in zip(parameters, self.reference, self.movable, strict=True):
                parameter.copy_(torch.where(movable, parameter, start))
        if constraint.radius is not None:
            update = [parameter - start for parameter, start in zip(parameters, self.reference, strict=True)]
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in update]))
            if norm > constraint.radius:
                for parameter, start, part in zip(parameters, self.reference, update, strict=True):
                    parameter.copy_(start + part * (constraint.radius / norm))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A fresh optimiser of the trainable parameters."""
        return self.options.optimizer.build(trainable(self.model))
