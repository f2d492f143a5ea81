"""Rules that look at the signs of the updates; they need the rows, so they run in the clear only."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.base import Context, RowRule, honest_majority
from fedrobust.aggregation.numerics import cosine_distances, shrink
from fedrobust.updates import chunks
from fedrobust.updates.chunks import Chunk
from fedrobust.updates.gram import Combination, Floats, Gram

if TYPE_CHECKING:
    from fedrobust.aggregation.base import Rows

FEWEST = 1000
"""The least number of coordinates whose signs are counted, if there are as many."""


def drawn(columns: slice, probability: float, seed: int) -> NDArray[np.bool_]:
    """Which of the columns are drawn, each independently: bool (w,). Other chunks of columns do not change the result.

    columns: a slice of the d columns.
    probability: of each column.
    seed: of the draws.

    Column k gets the k-th number of one stream; a step of the stream's counter makes four.
    """
    steps, ahead = divmod(columns.start, 4)
    source = np.random.Philox(key=seed)
    source.advance(steps)
    numbers = np.random.Generator(source).random(ahead + columns.stop - columns.start)[ahead:]
    return np.asarray(numbers < probability)


def _signs(rows: Chunk, columns: slice, probability: float, seed: int) -> NDArray[np.int64]:
    """How many of the drawn coordinates are positive, zero, negative: (3, m)."""
    among = np.flatnonzero(drawn(columns, probability, seed))
    signs = chunks.sign(rows[:, among])
    surplus = chunks.host(chunks.total(signs, 1))  # many times faster than counting
    others = chunks.host(chunks.total(abs(signs), 1))
    counts = np.stack([others + surplus, 2 * (len(among) - others), others - surplus]) / 2
    return counts.astype(np.int64)


def largest_cluster(points: Floats) -> NDArray[np.bool_]:
    """Which of the `points` (n, k) are in the largest cluster of a mean shift: bool (n,).

    The kernel is flat. Its bandwidth is the mean distance at which a point sees half of the points, itself included,
    and one other at least. Of clusters of one size the denser one counts.
    """
    from sklearn.cluster import MeanShift

    n = len(points)
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)
    bandwidth = float(distances[:, max(n // 2, min(2, n)) - 1].mean())
    shift = MeanShift(bandwidth=max(bandwidth * (1.0 + 1e-9), 1e-12), cluster_all=False)  # the edge is inside
    labels = shift.fit(points).labels_
    return np.asarray(labels == np.argmax(np.bincount(labels[labels >= 0])))


class SignGuard(RowRule):
    """The mean of the updates that are similar in norm and in signs (Xu et al., ICDCS 2022).

    F(u) = Σ_{i ∈ S} p_i u_i min(1, M / ‖u_i‖) / Σ_{i ∈ S} p_i, M the median norm, S = A ∩ B: A are the rows with
    L M ≤ ‖u_i‖ ≤ R M, B is the largest cluster of (share of positive, of zero, of negative coordinates), a mean shift
    with a flat kernel whose bandwidth is estimated as in the authors' implementation. The shares are those of a random
    tenth of the coordinates, of about 1000 at least. Where A and B have no row in common, S = A. Needs G and the rows,
    n ≥ 2f + 1. Prior: A, B and M count rows, the mean weighs them.

    It does not see an attack that keeps norm and signs. Honest updates of very different data may form several
    clusters, of which one is kept.
    """

    name: Literal["signguard"] = "signguard"
    needs: ClassVar[frozenset[str]] = frozenset({"rows", "gram"})
    weighs: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "breakdown"})
    lower: Annotated[float, Field(ge=0, le=1)] = 0.1
    """L: the smallest norm, as a multiple of the median norm."""
    upper: Annotated[float, Field(ge=2)] = 3.0
    """R: the largest norm, as a multiple of the median norm; at least 2, so that a middle row is always inside."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The share of the coordinates whose signs are counted."""
    similarity: bool = False
    """Whether the median cosine to the other rows is a fourth feature of the clusters (SignGuard-Sim)."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def decide(self, rows: Rows, context: Context) -> Combination:
        """The clipped priors of the rows that are left."""
        norms = rows.gram.norms()
        median = float(np.median(norms))
        band = (norms >= self.lower * median) & (norms <= self.upper * median)
        chosen = band & largest_cluster(self._features(rows, context))
        if not chosen.any():
            chosen = band
        weights = np.where(chosen, rows.gram.prior, 0.0)
        return Combination(weights / weights.sum() * shrink(norms, median))

    def _features(self, rows: Rows, context: Context) -> Floats:
        seed = int(context.generator.integers(2**63))
        probability = min(1.0, max(self.share, FEWEST / rows.d))
        counts = rows.total(partial(_signs, probability=probability, seed=seed))
        features = (counts / counts.sum(axis=0)).T
        if self.similarity:
            features = np.column_stack([features, _median_cosines(rows.gram)])
        return np.asarray(features, dtype=np.float64)


def _median_cosines(gram: Gram) -> Floats:
    """The median of each row's cosines to the other rows; 0 for a single row."""
    n = gram.n
    others = cosine_distances(gram)[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    return np.asarray(1.0 - np.median(others, axis=1)) if n > 1 else np.zeros(1)
