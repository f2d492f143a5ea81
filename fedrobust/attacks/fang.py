"""Local model poisoning: the attacks of Fang et al. against Krum, the trimmed mean and the median.

They are written for updates, where the paper has models: s = sign(μ), the direction in which the global model would
move, and μ the mean of the others' rows u_i.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.aggregation.rules.selection import krum_scores
from fedrobust.attacks.attack import CraftedAttack, View
from fedrobust.attacks.crafting import CollusiveAttack
from fedrobust.attacks.rows import by_columns, chunks, gram_of

_STEPS = 128
"""Values of λ that are tried before the interval between two of them is halved."""
_MARGIN = 1e-5
"""A crafted row's score is smaller by this fraction at least: after rounding to float32, a closer one could lose."""


class FangKrum(CollusiveAttack):
    """Fang's attack on Krum: −λ·s with the largest λ for which Krum picks it (Fang et al., USENIX Security 2020).

    Krum gets the true number f of attackers. They send copies, or near copies with `noise`, so they are each other's
    neighbours. λ is searched on a grid from above, then by halving, below a bound like the paper's:
    (√(S / (n − 2f − 1)) + max ‖u_i‖) / ‖s‖, S the largest score among the others. If Krum picks no such row, they send
    their trained updates.
    """

    name: Literal["fang_krum"] = "fang_krum"
    knowledge: Literal["all"] = "all"

    def wanted(self, view: View) -> np.ndarray:
        factor = self.reach(view)
        if factor == 0:
            return np.array(view.own, dtype=np.float32)
        return by_columns(view.reference, lambda rows: -factor * np.sign(rows.mean(axis=0)))

    def reach(self, view: View) -> float:
        """λ for the round in `view`; 0 where there is none."""
        direction = by_columns(view.reference, lambda rows: np.sign(rows.mean(axis=0)))
        gram = gram_of(view.reference, {"direction": direction})
        squares, s = np.diag(gram.matrix), gram.anchors["direction"]
        m, f = gram.n, view.f
        distances = np.zeros((m + f, m + f))
        distances[:m, :m] = gram.distances_squared()

        def picked(factor: float) -> bool:
            away = np.maximum(squares + 2 * factor * s.products + factor**2 * s.squared_norm, 0.0)
            distances[:m, m:] = away[:, np.newaxis]
            distances[m:, :m] = away
            scores = krum_scores(distances, f)
            return bool(scores[m] < (1 - _MARGIN) * scores[:m].min())

        if s.squared_norm == 0:
            return 0.0
        neighbours = m - f - 1  # honest ones that count for a crafted row
        # Without the crafted rows, each honest score is at least what it is with them.
        worst = np.sort(distances[:m, :m], axis=1)[:, : m - 1].sum(axis=1).max()
        far = np.sqrt(worst / neighbours) if neighbours > 0 else 0.0
        top = (far + np.sqrt(squares.max())) / np.sqrt(s.squared_norm)
        grid = np.geomspace(top, 1e-3 * top, _STEPS)
        found = next((i for i, factor in enumerate(grid) if picked(factor)), None)
        if found is None:
            return 0.0
        low, high = grid[found], grid[max(found - 1, 0)]
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if picked(middle) else (low, middle)
        return float(low)


class FangTrim(CraftedAttack):
    """Fang's attack on trimmed mean and median: beyond the extremes per coordinate (Fang et al., USENIX Security 2020).

    It sends values against the direction s_j of each coordinate. If s_j > 0, they are uniform between the least honest
    value w and w/b (w > 0) or b·w (w ≤ 0). If s_j < 0, they are uniform between the largest honest value w and b·w
    (w > 0) or w/b (w ≤ 0). Each attacker draws its own; where s_j = 0 it sends 0. The paper's attack on the median is
    the same.
    """

    name: Literal["fang_trim"] = "fang_trim"
    knowledge: Literal["all"] = "all"
    b: float = Field(default=2.0, gt=1)
    """How far beyond the extremes, as a factor."""

    def craft(self, view: View) -> np.ndarray:
        crafted = np.empty((view.f, len(view.own[0])), dtype=np.float32)
        for columns, rows in chunks(view.reference):
            sign = np.sign(rows.mean(axis=0))
            extreme = np.where(sign > 0, rows.min(axis=0), rows.max(axis=0))
            beyond = extreme * np.where(extreme * sign > 0, 1 / self.b, self.b)
            drawn = view.generator.random((view.f, len(sign)))
            crafted[:, columns] = np.where(sign == 0, 0.0, extreme + drawn * (beyond - extreme))
        return crafted
