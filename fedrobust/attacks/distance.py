"""Attacks that move as far as the distances among honest updates allow, whatever the defence is.

μ and σ are the mean and the standard deviation per coordinate of the m rows u_i of `View.reference`, as in `crafting`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import numpy as np

from fedrobust.aggregation import Combination, Gram
from fedrobust.attacks.attack import View
from fedrobust.attacks.crafting import CollusiveAttack, lone
from fedrobust.attacks.rows import by_columns, gram_of


class DistanceAttack(CollusiveAttack):
    """Sends μ + γ·p, with the largest γ that the distances among the reference rows allow."""

    knowledge: Literal["own", "all"] = "all"
    direction: Literal["unit", "std", "sign"] = "std"
    """p: `unit` −μ/‖μ‖, `std` −σ, `sign` −sign(μ)."""

    def bound(self, attackers: int) -> str | None:
        return lone(self, attackers)

    def wanted(self, view: View) -> np.ndarray:
        p = by_columns(view.reference, self._direction)
        gram = gram_of(view.reference, {"direction": p})
        gamma = self.reach(gram) if gram.anchors["direction"].squared_norm > 0 else 0.0
        return by_columns(view.reference, lambda rows: rows.mean(axis=0) + gamma * self._direction(rows))

    @abstractmethod
    def reach(self, gram: Gram) -> float:
        """γ for the reference rows.

        gram: of the reference rows, with the anchor "direction", which is p; ‖p‖ > 0.
        """

    def _direction(self, rows: np.ndarray) -> np.ndarray:
        """p up to a factor, for which γ compensates: (m, w) → (w,)."""
        if self.direction == "std":
            return np.asarray(-rows.std(axis=0))
        mean = rows.mean(axis=0)
        return np.asarray(-mean if self.direction == "unit" else -np.sign(mean))


class MinMax(DistanceAttack):
    """Min-Max: as far from every honest update as two honest ones are at most (Shejwalkar, Houmansadr, NDSS 2021).

    μ + γ·p with the largest γ for which max_i ‖μ + γp − u_i‖ ≤ max_ij ‖u_i − u_j‖. γ is exact: the least of the m
    solutions of a quadratic equation, where the paper halves an interval.
    """

    name: Literal["min_max"] = "min_max"

    def reach(self, gram: Gram) -> float:
        """The least positive root of ‖μ − u_i‖² + 2γ⟨μ − u_i, p⟩ + γ²‖p‖² = max D² over all i."""
        p = gram.anchors["direction"]
        near, inner = _from_mean(gram), p.products.mean() - p.products
        room = np.maximum(gram.distances_squared().max() - near, 0.0)
        return float(((np.sqrt(inner**2 + p.squared_norm * room) - inner) / p.squared_norm).min())


class MinSum(DistanceAttack):
    """Min-Sum: as far from all honest updates together as an honest one is at most (Shejwalkar, Houmansadr, NDSS 2021).

    μ + γ·p with the largest γ for which Σ_i ‖μ + γp − u_i‖² ≤ max_i Σ_j ‖u_i − u_j‖². Exact: both sides contain
    Σ_i ‖μ − u_i‖², and the rest gives γ‖p‖ = max_i ‖u_i − μ‖. (The authors' code takes the least of the sums.)
    """

    name: Literal["min_sum"] = "min_sum"

    def reach(self, gram: Gram) -> float:
        """max_i ‖u_i − μ‖ / ‖p‖."""
        return float(np.sqrt(_from_mean(gram).max() / gram.anchors["direction"].squared_norm))


def _from_mean(gram: Gram) -> np.ndarray:
    """‖u_i − μ‖² (m,)."""
    return gram.distances_squared_to(Combination(np.full(gram.n, 1.0 / gram.n)))
