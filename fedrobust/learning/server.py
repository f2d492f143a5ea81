"""How the coordinator changes the global model by the aggregate: federated optimisers, in NumPy.

The aggregate Δ is a mean of updates (local − global weights), so a step adds it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedrobust.arrays import Vector
from fedrobust.options import Options

OptimizerState = dict[str, Vector]
Decay = Annotated[float, Field(ge=0, lt=1)]


class ServerOptimizer(Options):
    """How the global model moves along the aggregate."""

    name: str

    @abstractmethod
    def step(self, weights: Vector, aggregate: Vector, state: Mapping[str, Vector]) -> tuple[Vector, OptimizerState]:
        """The new weights (d,) float32 and the new state; the arguments are not changed.

        weights: (d,) float32, the global weights.
        aggregate: (d,) float32.
        state: {} in the first round, afterwards the state that the last step returned.
        """


class FedAvg(ServerOptimizer):
    """w ← w + lr · Δ; with lr 1 the weighted mean of the local models (McMahan et al., AISTATS 2017)."""

    name: Literal["fedavg"] = "fedavg"
    lr: float = Field(default=1.0, gt=0)
    """Server learning rate."""

    def step(self, weights: Vector, aggregate: Vector, state: Mapping[str, Vector]) -> tuple[Vector, OptimizerState]:
        return weights + np.float32(self.lr) * aggregate, {}


class FedAvgM(ServerOptimizer):
    """FedAvg with server momentum: m ← momentum · m + Δ; w ← w + lr · m (Hsu et al., 2019)."""

    name: Literal["fedavgm"] = "fedavgm"
    lr: float = Field(default=1.0, gt=0)
    """Server learning rate."""
    momentum: Decay = 0.9
    """Share of the last direction that is kept; a constant Δ moves the model by lr/(1 − momentum) · Δ."""

    def step(self, weights: Vector, aggregate: Vector, state: Mapping[str, Vector]) -> tuple[Vector, OptimizerState]:
        momentum = state.get("momentum")
        direction = aggregate if momentum is None else np.float32(self.momentum) * momentum + aggregate
        return weights + np.float32(self.lr) * direction, {"momentum": direction.copy()}


class _Adaptive(ServerOptimizer):
    """m ← β₁m + (1 − β₁)Δ; v depends on the subclass; w ← w + lr · m/(√v + τ), without bias correction."""

    lr: float = Field(default=0.01, gt=0)
    """Server learning rate."""
    beta1: Decay = 0.9
    """Decay of the mean of aggregates."""
    beta2: Decay = 0.99
    """Decay of the mean of squared aggregates."""
    tau: float = Field(default=1e-3, gt=0)
    """Degree of adaptivity; v starts at its square."""

    @abstractmethod
    def second(self, moment: Vector, square: Vector) -> Vector:
        """The next v from v and Δ²."""

    def step(self, weights: Vector, aggregate: Vector, state: Mapping[str, Vector]) -> tuple[Vector, OptimizerState]:
        first = np.float32(1 - self.beta1) * aggregate
        if state:
            first += np.float32(self.beta1) * state["first"]
        square = aggregate * aggregate
        second = self.second(state["second"] if state else np.full_like(aggregate, self.tau**2), square)
        direction: Vector = np.divide(first, np.sqrt(second) + np.float32(self.tau))
        return weights + np.float32(self.lr) * direction, {"first": first, "second": second}


class FedAdam(_Adaptive):
    """Adam on the server: v ← β₂v + (1 − β₂)Δ² (Reddi et al., ICLR 2021)."""

    name: Literal["fedadam"] = "fedadam"

    def second(self, moment: Vector, square: Vector) -> Vector:
        return np.float32(self.beta2) * moment + np.float32(1 - self.beta2) * square


class FedYogi(_Adaptive):
    """Yogi on the server: v ← v − (1 − β₂)Δ² sign(v − Δ²) (Reddi et al., ICLR 2021)."""

    name: Literal["fedyogi"] = "fedyogi"

    def second(self, moment: Vector, square: Vector) -> Vector:
        toward: Vector = np.sign(moment - square)
        return moment - np.float32(1 - self.beta2) * square * toward
