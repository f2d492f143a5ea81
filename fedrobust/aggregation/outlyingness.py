"""How far each row is from the others, by several measures, computed from the Gram matrix alone.

Each function takes the Gram of n rows and returns (n,) float64, one figure for each row: the higher, the more unusual
the row. The figures are finite for every Gram of finite rows, n ≥ 1. No function uses prior weights: a sample count is
the client's own claim. `robust_z` makes figures of different units comparable. The products of a history are a Gram,
too: `of_history` returns that of the clients' averages.

The norm is `Gram.norms`. Measures of distance keep their digits however large the common part of the rows is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedrobust.aggregation.base import Context
from fedrobust.aggregation.numerics import ROUNDING, ZERO, cosines
from fedrobust.aggregation.rules.averages import GeometricMedian
from fedrobust.updates.gram import Floats, Gram, History

NEGLIGIBLE = 1e-6
"""Distances below this part of the typical norm are rounding: float32 makes equal rows differ by 1e-7."""
EQUAL = 1e-9
"""Top eigenvalues with a smaller relative gap count as equal: no single direction is the main one."""


def robust_z(values: Floats, floor: float, centre: float | None = None) -> Floats:
    """z = (x − c) / max(1.4826 · median |x − c|, floor) (n,), c = `centre` or else the median of the values.

    1.4826 makes the spread that of a normal sample (Iglewicz and Hoaglin, 1993). `floor` > 0, in the unit of the
    values, is the least spread: values that agree have small z.
    """
    deviations = values - (np.median(values) if centre is None else centre)
    spread = 1.4826 * float(np.median(np.abs(deviations)))
    return np.asarray(deviations / max(spread, floor))


def typical_norm(gram: Gram) -> float:
    """The median norm; where that is 0 the largest, and 1 where all rows are zero."""
    norms = gram.norms()
    return float(np.median(norms)) or float(norms.max()) or 1.0


def centre(gram: Gram) -> Floats:
    """The weights (n,) of the robust centre c = Σ w_i u_i: the geometric median of the rows, each counted once."""
    if "centre" in gram.found:
        return gram.found["centre"]
    # A score needs no more digits; the unit makes the result independent of the scale of the updates.
    rule = GeometricMedian(nu=1e-6 * typical_norm(gram), tolerance=1e-6, iterations=200)
    uniform = replace(gram, prior=np.full(gram.n, 1.0 / gram.n))
    gram.found["centre"] = rule.combine(uniform, Context(f=0)).weights
    return gram.found["centre"]


def cosine_distances_to_centre(gram: Gram) -> Floats:
    """1 − cos(u_i, c) in [0, 2] for the robust centre c; 1 where u_i or c is zero. Independent of the rows' lengths."""
    weights = centre(gram)
    products = gram.matrix @ weights
    beside = gram.norms() * np.sqrt(max(float(weights @ products), 0.0))
    return 1.0 - cosines(products, np.where(beside > 1e-12 * typical_norm(gram) ** 2, beside, 0.0))


def disagreements(gram: Gram) -> Floats:
    """1 − the median cosine between u_i and the other rows, in [0, 2]; 1 for a zero row, 0 if there is no other row.

    A minority of copies cannot agree with itself here. It can agree with a centre that it has pulled to itself: 8 equal
    rows among 20 may determine the geometric median. Independent of the rows' lengths.
    """
    if gram.n < 2:
        return np.zeros(gram.n)
    norms = gram.norms()
    norms[norms <= ZERO * typical_norm(gram)] = 0.0
    others = ~np.eye(gram.n, dtype=bool)
    return np.asarray(1.0 - np.median(cosines(gram.matrix, np.outer(norms, norms))[others].reshape(gram.n, -1), axis=1))


def neighbour_distances(gram: Gram) -> Floats:
    """‖u_i − u_j‖ to the ⌊n/2⌋-th nearest other row j. Translation changes nothing.

    In a minority of similar rows, each has too few similar rows to be near its ⌊n/2⌋-th neighbour.
    """
    return np.asarray(np.sort(np.sqrt(gram.distances_squared()), axis=1)[:, gram.n // 2])


def spectral_deviations(gram: Gram) -> Floats:
    """|p_i − median p|, p_i = ⟨u_i − c, v₁⟩: how far out the row is along the direction in which most rows vary.

    v₁ is the first eigenvector of Σ s_i s_iᵀ, s_i = (u_i − c) / ‖u_i − c‖ (spherical principal components, Locantore et
    al., 1999), c the robust centre. Every row counts the same, so a few huge rows cannot determine v₁. Rows that share
    a direction, as colluding rows do, add up in it; honest noise in many dimensions does not. All are 0 where no
    direction is the main one. Use `robust_z` with the centre 0. Translation changes nothing.
    """
    around = gram.around(centre(gram))
    lengths = around.norms()
    inverse = np.divide(1.0, lengths, out=np.zeros(gram.n), where=lengths > NEGLIGIBLE * typical_norm(gram))
    values, vectors = np.linalg.eigh(around.matrix * np.outer(inverse, inverse))
    if values[-1] <= 0 or (gram.n > 1 and values[-1] - values[-2] <= EQUAL * values[-1]):
        return np.zeros(gram.n)
    projections = around.matrix @ (inverse * vectors[:, -1]) / np.sqrt(values[-1])
    return np.asarray(np.abs(projections - np.median(projections)))


def closeness(gram: Gram) -> Floats:
    """ln(median_j e_j / e_i), e_i the distance to the nearest other row, of rows scaled to length 1.

    Copies of one row score high (equal ones 14). Noise on them lowers the score; the length of a copy changes nothing.
    Honest rows differ by their own noise at least, so a majority of them scores near 0, and a row that is far from all
    others scores below 0. A zero row has no direction, and is no row's copy. With fewer than three rows all are 0.
    """
    if gram.n < 3:
        return np.zeros(gram.n)
    norms, squares = gram.norms(), np.diag(gram.matrix)
    known = norms > NEGLIGIBLE * typical_norm(gram)
    # ‖a/|a| − b/|b|‖² from the exact distance; the difference of norms from the difference of their squares.
    sums = np.add.outer(norms, norms)
    gaps = np.divide(np.subtract.outer(squares, squares), sums, out=np.zeros_like(sums), where=sums > 0)
    apart = np.full(gram.matrix.shape, 2.0)
    both = np.outer(known, known)
    np.divide(gram.distances_squared() - gaps**2, np.outer(norms, norms), out=apart, where=both)
    np.fill_diagonal(apart, np.inf)
    nearest = np.sqrt(np.maximum(apart.min(axis=1), NEGLIGIBLE**2))
    return np.asarray(np.where(known, np.log(np.median(nearest) / nearest), 0.0))


def turns_from_past(gram: Gram, history: History) -> Floats:
    """1 − cos(u_i, h_i) in [0, 2], where h_i is the client's past.

    gram: the Gram of this round's rows.
    history: the clients' moving averages, `gram.histories["average"]`.

    A client without a past, or without an update, gets the median of the others: no evidence. All are 0 if no client
    has a past.
    """
    norms = np.sqrt(np.maximum(np.diag(history.matrix), 0.0)) * gram.norms()
    known = norms > NEGLIGIBLE**2 * typical_norm(gram) ** 2
    turned = 1.0 - cosines(np.diag(history.cross), np.where(known, norms, 0.0))
    return np.where(known, turned, np.median(turned[known]) if known.any() else 0.0)


def of_history(gram: Gram, history: History) -> tuple[Gram, np.ndarray]:
    """The Gram of the k histories h_i that are not zero, and a mask (n,) bool of the rows that they belong to. k may be
    0.

    gram: the Gram of this round's n rows.
    history: one of `gram.histories`.
    """
    known = np.diag(history.matrix) > ROUNDING * typical_norm(gram) ** 2
    count = int(known.sum())
    return Gram(history.matrix[np.ix_(known, known)], np.full(count, 1.0 / max(count, 1))), known
