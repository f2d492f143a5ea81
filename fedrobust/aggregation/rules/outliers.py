"""Rules that need no Byzantine f: how far a row is from all others decides what it weighs."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation.base import Context, Rule
from fedrobust.aggregation.numerics import cosine_distances
from fedrobust.updates.gram import Combination, Floats, Gram


class ASMR(Rule):
    """The mean of the rows above the largest gap of angular support (Konstantin, Fuchs and Mukhopadhyay, MIDL 2024).

    F(u) = Σ_{i ∈ S} p_i u_i / Σ_{i ∈ S} p_i, with the support s_i = 1 / mean_{j ≠ i} (1 − cos(u_i, u_j)), and S the
    rows above the largest gap between successive supports; of equal gaps the lowest. Needs G, any f, n ≥ 2. Prior: S
    counts rows, the mean over S weighs them.

    There is no bound on the norm of a row: a huge row at a small angle moves the mean anywhere, so put `clip` before
    it. It always leaves a row out, unless all supports are equal. S may be a few rows: colluders who send nearly the
    same are a dense minority, and have the most support. Where some rows are parallel to all others, their support has
    no bound, and they are S. A zero row is at distance 1 from all.
    """

    name: Literal["asmr"] = "asmr"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling"})

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The mean cosine distance to the other rows."""
        return np.asarray(cosine_distances(gram).sum(axis=1) / max(1, gram.n - 1))

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The prior on the rows of much support."""
        weights = np.where(_supported(self.scores(gram, context)), gram.prior, 0.0)
        return Combination(weights / weights.sum())


class DOS(Rule):
    """Weights that fall exponentially with an outlier score of the distances (Alkhunaizi et al., MICCAI 2022).

    F(u) = Σ w_i u_i, w = softmax(log p − r), r_i the mean of the COPOD scores of row i of the n × n matrices of cosine
    distances and of Euclidean distances; see `copod`. Needs G, any f. Prior: p.

    Every row keeps some weight, so a huge row moves the mean: put `clip` before it. r is a sum over n columns, so that
    with many clients few of them hold nearly all of the weight. A zero row is at cosine distance 1 from all.
    """

    name: Literal["dos"] = "dos"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling"})

    def scores(self, gram: Gram, context: Context) -> Floats:
        """r."""
        distances = np.sqrt(gram.distances_squared())
        return (copod(cosine_distances(gram)) + copod(distances)) / 2.0

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The softmax, times the prior."""
        scores = self.scores(gram, context)
        weights = gram.prior * np.exp(scores.min() - scores)
        return Combination(weights / weights.sum())


def copod(table: Floats) -> Floats:
    """Outlier scores (n,) of the rows of a `table` (n, m), by the tails of the columns (COPOD: Li et al., ICDM 2020).

    l_i and r_i are the sums over columns of −log of the shares of rows that are at most, at least as large as row i's
    entry; s_i takes for each column the left tail where its skewness is negative, else the right one. The score is the
    largest of the three. Entries that differ by less than 1e-7 of the column's largest count as equal.
    """
    from scipy.stats import rankdata, skew  # slow to import

    n, largest = len(table), np.abs(table).max(axis=0)
    even = np.round(np.divide(table, largest, out=np.zeros_like(table), where=largest > 0), 7)
    left = -np.log(rankdata(even, method="max", axis=0) / n)
    right = -np.log(rankdata(-even, method="max", axis=0) / n)
    constant = np.ptp(even, axis=0) == 0
    leaning = skew(np.where(constant, np.arange(n)[:, None], even), axis=0)
    tails = [left, right, np.where((leaning < 0) & ~constant, left, right)]
    return np.asarray(np.max([tail.sum(axis=1) for tail in tails], axis=0))


def _supported(distances: Floats) -> NDArray[np.bool_]:
    """(n,) the rows above the largest gap of 1 / `distances` (n,); all where there is none."""
    tiny = float(np.finfo(float).tiny)
    support = 1.0 / np.maximum(distances, tiny)
    ordered = np.sort(support)
    gaps = np.diff(ordered)
    if len(gaps) == 0 or gaps.max() <= 1e-9 * ordered[-1]:
        return np.ones(len(distances), dtype=bool)
    return np.asarray(support > ordered[int(gaps.argmax())])
