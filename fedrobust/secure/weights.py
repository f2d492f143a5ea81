"""The weights of a sum that servers open: short whole numbers, on enough updates.

In the bits of one sum long weights would show more than one combination of the updates: from u_1 + 2^40 u_2 both can be
read. With whole weights of 12 bits no update follows from a sum: u_i + w_l z and u_l − w_i z, for any vector z of
integers, give the same one, and one unit of z moves an update by 2^-16 of the clip at most.
"""

from __future__ import annotations

import numpy as np

from fedrobust.secure.ring import Words
from fedrobust.updates import NotOpened
from fedrobust.updates.gram import Floats

LARGEST_WEIGHT = (1 << 12) - 1
MIN_SUPPORT = 3.0


class OpeningError(NotOpened):
    """A request to open what must stay closed: a second sum, a weight on too few updates, too many functionals."""


def shortened(weights: Floats) -> tuple[Words, float]:
    """Round weights to whole numbers, the largest of them 4095.

    weights: (n,).

    Returns the whole numbers, each off by half a unit at most, and the factor that gives them the old sum.

    Raises `OpeningError` where a weight is negative or not finite.
    """
    largest = float(np.max(weights, initial=0.0))
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise OpeningError("secret shares open no sum with weights that are negative or not finite")
    if largest == 0.0:
        return np.zeros(len(weights), dtype=np.int64), 0.0
    whole = np.rint(weights / largest * LARGEST_WEIGHT).astype(np.int64)
    return whole, float(weights.sum() / whole.sum())


def require_short(weights: object, n: int) -> Words:
    """Return the weights if they are words from 0 to 4095.

    weights: (n,).
    n: how many there must be.

    Raises `OpeningError` otherwise.
    """
    if type(weights) is not np.ndarray or weights.dtype != np.int64 or weights.shape != (n,):
        raise OpeningError(f"{n} weights are needed, as words")
    if len(weights) and not (weights.min() >= 0 and weights.max() <= LARGEST_WEIGHT):
        raise OpeningError(f"weights must be from 0 to {LARGEST_WEIGHT}: longer ones would show single updates")
    return weights


def support(weights: Words | Floats) -> float:
    """On how many updates the weights lie: Σw² / max w², between 1 and n; 0 if all are zero.

    weights: (n,).
    """
    largest = float(np.abs(weights.astype(np.float64)).max(initial=0.0))
    return float(np.sum(np.square(weights / largest))) if largest else 0.0


def least_support(weights: Words | Floats) -> float:
    """The least support of any combination of several sums of the same updates; 0 if a sum has no weights.

    weights: (k, n), those of k sums.

    It is one divided by the largest leverage of an update: with W the weights and w_j their j-th column, the square of
    the j-th weight of a combination c is (c · w_j)² ≤ (c W Wᵀ cᵀ) (w_jᵀ (W Wᵀ)⁻¹ w_j).
    """
    sums = weights.astype(np.float64)
    if not sums.any(axis=1).all():
        return 0.0
    _, values, span = np.linalg.svd(sums / np.abs(sums).max(axis=1, keepdims=True), full_matrices=False)
    span = span[values > 1e-9 * values[0]]
    return float(1.0 / np.square(span).sum(axis=0).max())


def require_support(weights: Words, least: float) -> None:
    """Check that a weighted sum does not show one update, or nearly; rounding errors do not count.

    weights: (n,).
    least: smallest Σw²/max w² that is allowed.

    Raises `OpeningError` otherwise.
    """
    if support(weights) < 0.999 * least:
        raise OpeningError(
            f"the weights lie on {support(weights):.2f} updates (Σw²/max w²), at least {least:g} are needed "
            "(privacy.min_support and colluders): opening their sum would show single updates"
        )
