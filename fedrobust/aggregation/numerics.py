"""Small numerical tools of the rules: rankings with ties, lengths and angles that rounding does not make up."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.updates.gram import Floats, Gram

Indices = NDArray[np.intp]
"""Positions of rows."""

ROUNDING = 1e-14
"""A squared norm below this part of the squares it was computed beside is rounding: such a vector counts as zero."""
TIE = 1e-12
"""Cosines that are no further apart are equal."""
PARALLEL = 1e-12
"""Cosine distances below it are rounding: the rows count as parallel."""
ZERO = 1e-7
"""Rows shorter than this part of the median norm count as zero: what the Gram says of their angles is rounding."""


@lru_cache(maxsize=1)
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[Any]:
    """NumPy's linear algebra on one thread for a while.

    Matrices (n, n) are too small for more; the other threads would go on spinning, beside those that then sum the rows.
    """
    limited: AbstractContextManager[Any] = _thread_pools().limit(limits=1, user_api="blas")
    return limited


def ranking(scores: Floats) -> NDArray[np.intp]:
    """The indices along the last axis from the lowest score to the highest.

    Scores that only rounding tells apart (a relative gap of 1e-12) are ties, which the lower index wins: exact ties are
    common, e.g. after clipping to one norm, and must not depend on the order of summation.
    """
    order = np.argsort(scores, axis=-1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=-1)
    apart = ordered[..., 1:] - ordered[..., :-1] > 1e-12 * np.abs(ordered[..., 1:])
    ranks = np.zeros(scores.shape, dtype=np.intp)
    np.put_along_axis(ranks, order[..., 1:], np.cumsum(apart, axis=-1), axis=-1)
    return np.argsort(ranks, axis=-1, kind="stable")


def shrink(norms: Floats, radius: float) -> Floats:
    """min(1, radius / norm) for each norm; 1 for a zero vector."""
    return np.minimum(1.0, np.divide(radius, norms, out=np.ones_like(norms), where=norms > 0))


def lengths(squares: Floats, beside: Floats | float = 0.0) -> Floats:
    """Norms (n,) from `squares`; 0 where a square is below the rounding error of `beside` (default: the median)."""
    square = np.maximum(squares, 0.0)
    return np.sqrt(np.where(square > ROUNDING * (beside + np.median(square)), square, 0.0))


def cosines(products: Floats, norms: Floats) -> Floats:
    """⟨a, b⟩ / (‖a‖ ‖b‖) of vectors whose products of norms are `norms`; 0 where one of the two is zero."""
    return np.clip(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0), -1.0, 1.0)


def cosine_distances(gram: Gram) -> Floats:
    """1 − ⟨u_i, u_j⟩ / (‖u_i‖ ‖u_j‖) (n, n); 1 from a zero row to all others, zero or not, and 0 to itself.

    Distances that only rounding tells apart (a relative gap of 1e-12) are made equal, so that ties are ties.
    """
    norms = gram.norms()
    zero = norms <= ZERO * np.median(norms)
    lengths = np.where(zero, 1.0, norms)
    distances = np.clip(1.0 - gram.matrix / np.outer(lengths, lengths), 0.0, 2.0)
    distances[distances < PARALLEL] = 0.0
    distances[zero] = distances[:, zero] = 1.0
    np.fill_diagonal(distances, 0.0)
    ordered = np.sort(distances, axis=None)
    distinct = ordered[np.diff(ordered, prepend=-1.0) > 1e-12 * ordered]
    return np.asarray(distinct[np.searchsorted(distinct, distances, side="right") - 1], dtype=np.float64)
