"""Anomaly scores: how far each update lies from the majority, told from the Gram matrix alone."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.aggregation import Context, GeometricMedian, Gram
from fedrobust.options import Options


@dataclass(frozen=True, eq=False)
class Scores:
    """`score` (n,) float64 in [0, 1], one for each row, and the `parts` (n,) it is made of, on the same scale."""

    score: np.ndarray
    parts: dict[str, np.ndarray]


class Detector(Options):
    """Scores the updates of a round: 0 is ordinary, 1 as strange as can be."""

    name: str

    @abstractmethod
    def score(self, gram: Gram, context: Context) -> Scores:
        """The scores of the rows of `gram`, which are finite."""


class RobustZ(Detector):
    """Outlyingness by robust z-scores of the norm, the direction and the distance to the nearest half of the rows.

    z = (x − median) / (1.4826 · MAD) (Iglewicz and Hoaglin, 1993) of
    - `norm`: ‖u_i‖, both sides;
    - `cosine`: the cosine between u_i and the geometric median of all rows, low ones;
    - `neighbours`: the distance to the ⌊n/2⌋-th nearest other row, large ones. A minority of equal rows has too few
      of its own to look near.
    A part is z² / (z² + cutoff²); the score is the largest part, so that the reason is in sight. Priors play no role:
    a sample count is the client's own claim.

    It measures strangeness, not malice: an honest hospital with rare data is strange too, and a lie within the spread
    of the honest updates (ALIE, a small IPM among heterogeneous hospitals) need not be.
    """

    name: Literal["robust_z"] = "robust_z"
    cutoff: float = Field(default=3.5, gt=0)
    """The z that scores one half."""
    floor: float = Field(default=0.05, gt=0)
    """The least spread, as a share of the median norm or distance, and as a cosine: rows that agree raise no alarm."""

    def score(self, gram: Gram, context: Context) -> Scores:
        """The scores. With fewer than three rows there is no majority to differ from, and all are 0."""
        norms = gram.norms()
        if gram.n < 3 or not norms.any():
            zeros = np.zeros(gram.n)
            return Scores(zeros, {"norm": zeros, "cosine": zeros, "neighbours": zeros})
        unit = float(np.median(norms)) or float(norms.max())
        distances = np.sort(np.sqrt(gram.distances_squared()), axis=1)[:, gram.n // 2]
        cosines = _cosines_to_the_centre(gram, context, unit)
        # Rounding alone makes equal float32 rows differ by 1e-7 of their norm.
        least = max(self.floor * float(np.median(distances)), 1e-6 * unit)
        z = {
            "norm": np.abs(_robust_z(norms, self.floor * unit)),
            "cosine": np.maximum(-_robust_z(cosines, self.floor), 0.0),
            "neighbours": np.maximum(_robust_z(distances, least), 0.0),
        }
        parts = {part: 1.0 - 1.0 / (1.0 + (values / self.cutoff) ** 2) for part, values in z.items()}
        return Scores(np.max(list(parts.values()), axis=0), parts)


def _robust_z(values: np.ndarray, floor: float) -> np.ndarray:
    deviations = values - np.median(values)
    spread = 1.4826 * float(np.median(np.abs(deviations)))
    return np.asarray(deviations / max(spread, floor))


def _cosines_to_the_centre(gram: Gram, context: Context, unit: float) -> np.ndarray:
    """cos(u_i, c), c the unweighted geometric median; 0 where either has no direction."""
    uniform = replace(gram, prior=np.full(gram.n, 1.0 / gram.n))
    # A score needs no more digits; `unit` makes the result independent of the scale of the updates.
    rule = GeometricMedian(nu=1e-6 * unit, tolerance=1e-6, iterations=200)
    weights = rule.combine(uniform, context).weights
    products = gram.matrix @ weights
    lengths = gram.norms() * np.sqrt(max(float(weights @ products), 0.0))
    cosines: np.ndarray = np.divide(products, lengths, out=np.zeros(gram.n), where=lengths > 1e-12 * unit**2)
    return cosines


def detection(scores: np.ndarray, suspected: np.ndarray, malicious: np.ndarray) -> dict[str, float]:
    """How well scores and suspicions fit the truth: `precision`, `recall` and `auroc`.

    scores: (n,) anomaly scores; `auroc` is the chance that a malicious client has a higher one than an honest client,
        ties counting one half. suspected, malicious: (n,) bool.

    A measure that has no value is left out: `precision` where nobody is suspected, `recall` where nobody is malicious,
    `auroc` where either kind is missing. So with nobody malicious, all that can be found is a `precision` of 0.
    """
    hits = float(np.sum(suspected & malicious))
    found: dict[str, float] = {}
    if suspected.any():
        found["precision"] = hits / float(suspected.sum())
    if malicious.any():
        found["recall"] = hits / float(malicious.sum())
    if malicious.any() and not malicious.all():
        bad, good = scores[malicious][:, None], scores[~malicious]
        found["auroc"] = float(np.mean((bad > good) + 0.5 * (bad == good)))
    return found
