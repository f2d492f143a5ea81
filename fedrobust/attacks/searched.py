"""Attacks that know the defence: they try it on crafted rows, and send the row that moves the aggregate furthest.

μ and σ are the mean and the standard deviation per coordinate of the others' rows. The row is searched on a line
a·μ + x·p, so that a `Search` evaluates each candidate by algebra on one Gram matrix.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrobust.attacks.attack import View
from fedrobust.attacks.crafting import CollusiveAttack
from fedrobust.attacks.rows import Vectors, by_columns, gram_of, mean_of, with_noise


class SearchedAttack(CollusiveAttack):
    """Sends a·μ + x·p with the x that moves the aggregate of the real defence furthest from μ.

    The search is deterministic: a geometric grid from a hundredth of `largest` up, then Brent's method between the
    neighbours of its best point; of equal points the first wins. The rows that are tried have the noise of those that
    are sent. If no other hospital takes part, they send their trained updates.
    """

    knowledge: Literal["aware"] = "aware"
    """It tries the real defence on all updates of the round."""
    largest: float = Field(default=10.0, gt=0)
    """The upper end of the range in which the factor x is searched."""
    evaluations: int = Field(default=24, ge=6)
    """How often the defence is tried in a round; two thirds of these are the grid."""

    start: ClassVar[float]
    """a: the factor on μ in every row of the line."""

    @abstractmethod
    def line(self, others: Vectors) -> np.ndarray:
        """p, (d,) float32.

        others: the rows of the other participants.
        """

    def wanted(self, view: View) -> np.ndarray:
        return np.array(view.own, dtype=np.float32)

    def craft(self, view: View) -> np.ndarray:
        others, preview, k, d = view.others, view.preview, view.f, len(view.own[0])
        if others is None or len(others) == 0 or preview is None:
            return super().craft(view)
        p = self.line(others)
        noise = view.generator.standard_normal((k, d), dtype=np.float32) if self.noise else np.empty((0, d), np.float32)
        search = preview.lines([p, *noise])
        honest = slice(k, k + len(others))
        at = honest.stop
        products = gram_of([mean_of(others), p]).matrix

        def damage(x: float) -> float:
            crafted = np.zeros((k, at + 1 + len(noise)))
            crafted[:, honest], crafted[:, at] = self.start / len(others), x
            if self.noise:
                norm = np.sqrt(max(np.array([self.start, x]) @ products @ np.array([self.start, x]), 0.0))
                crafted[:, at + 1 :] = self.noise * norm / np.sqrt(d) * np.eye(k)
            found = search.damage(crafted)
            return found if np.isfinite(found) else 0.0

        x = worst(damage, self.largest, self.evaluations)
        row = by_columns([*others, p], lambda rows: self.start * rows[:-1].mean(axis=0) + x * rows[-1])
        rows = np.broadcast_to(row, (k, d))
        return with_noise(rows, self.noise, noise) if self.noise else rows


class OptimalIpm(SearchedAttack):
    """Optimal IPM: −ε·μ with the ε that moves the real defence furthest (Allouah et al., AISTATS 2023).

    ε maximises ‖Agg − μ‖ over (0, largest]; as in ByzFL, which searches upwards from 0.
    """

    name: Literal["optimal_ipm"] = "optimal_ipm"
    start: ClassVar[float] = 0.0

    def line(self, others: Vectors) -> np.ndarray:
        return -mean_of(others)


class OptimalAlie(SearchedAttack):
    """Optimal ALIE: μ ± z·σ with the z that moves the real defence furthest (Allouah et al., AISTATS 2023).

    z maximises ‖Agg − μ‖ over (0, largest]. σ has the divisor m of ALIE's paper, not ByzFL's m − 1.
    """

    name: Literal["optimal_alie"] = "optimal_alie"
    start: ClassVar[float] = 1.0
    direction: Literal["plus", "minus"] = "plus"
    """The side to which every coordinate is shifted."""

    def line(self, others: Vectors) -> np.ndarray:
        sign = 1.0 if self.direction == "plus" else -1.0
        return by_columns(others, lambda rows: sign * rows.std(axis=0))


def worst(damage: Callable[[float], float], largest: float, evaluations: int) -> float:
    """The x in (0, largest] of the greatest damage found; of equal ones the first one tried.

    damage: the function to maximise.
    largest: the upper end of the range.
    evaluations: how often `damage` is called at most.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    tried: dict[float, float] = {}

    def loss(x: float) -> float:
        tried[float(x)] = damage(float(x))
        return -tried[float(x)]

    grid = np.geomspace(largest / 100, largest, 2 * evaluations // 3)
    best = int(np.argmin([loss(x) for x in grid]))
    bounds = (grid[best - 1] if best else 0.0, grid[min(best + 1, len(grid) - 1)])
    minimize_scalar(loss, bounds=bounds, method="bounded", options={"maxiter": evaluations - len(grid)})
    return max(tried, key=lambda x: tried[x])
