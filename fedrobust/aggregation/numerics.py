"""Small numerical tools of the rules: rankings with ties, lengths and angles, safe from rounding errors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrobust.updates.gram import Floats, Gram

Indices = NDArray[np.intp]
"""Indices of rows."""

ROUNDING = 1e-14
"""A squared norm below this fraction of the squares it was computed with is a rounding error: the vector counts as
zero."""
TIE = 1e-12
"""Cosines that differ by no more than this are equal."""
PARALLEL = 1e-12
"""Cosine distances below this are rounding errors: the rows count as parallel."""
ZERO = 1e-7
"""Rows shorter than this fraction of the median norm count as zero: their angles in the Gram are rounding errors."""


def ranking(scores: Floats) -> NDArray[np.intp]:
    """The indices along the last axis of `scores`, from the lowest score to the highest.

    Scores that differ only by rounding (a relative gap of 1e-12) are ties; the lower index comes first. Exact ties are
    common, e.g. after clipping to one norm, and must not depend on the order of summation.
    """
    order = np.argsort(scores, axis=-1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=-1)
    apart = ordered[..., 1:] - ordered[..., :-1] > 1e-12 * np.abs(ordered[..., 1:])
    if apart.all():
        return order
    ranks = np.zeros(scores.shape, dtype=np.intp)
    np.put_along_axis(ranks, order[..., 1:], np.cumsum(apart, axis=-1), axis=-1)
    return np.argsort(ranks, axis=-1, kind="stable")


def shrink(norms: Floats, radius: float) -> Floats:
    """min(1, radius / norm) for each of the `norms`; 1 for a zero vector."""
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

    Distances that differ only by rounding (a relative gap of 1e-12) are made equal, so that ties are ties.
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
