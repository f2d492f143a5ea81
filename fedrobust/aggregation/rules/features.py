"""Rules that find the outlying rows of each coordinate; they need the rows, so they run in the clear only."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.base import Context, RowRule, honest_majority
from fedrobust.aggregation.rules.order_statistics import in_order
from fedrobust.updates import chunks
from fedrobust.updates.chunks import Chunk
from fedrobust.updates.gram import Combination

if TYPE_CHECKING:
    from fedrobust.aggregation.base import Rows


class TwoMeans(NamedTuple):
    """The best two clusters of each column (w,): the number of values in the lower cluster and the largest of them, the
    distance of the two means, and the root mean squared distance of the values to the mean of their cluster.
    """

    size: Chunk
    edge: Chunk
    distance: Chunk
    spread: Chunk


def two_means(rows: Chunk) -> TwoMeans:
    """Exact 2-means of each column of `rows` (m, w), in float64.

    The clusters are a cut of the sorted values, and all m − 1 cuts are tried; of equally good ones (to 12 digits) the
    lowest counts. A single value has an empty lower cluster; for equal values the distance is 0.
    """
    ordered = in_order(rows + 0)  # of a copy
    m, middle = len(ordered), chunks.double(ordered[len(ordered) // 2])
    total, squares, below = (chunks.filled(middle, 0.0) for _ in range(3))
    for line in ordered:
        total += line - middle
        squares += (line - middle) ** 2
    best, size = chunks.filled(middle, -1.0), chunks.filled(middle, 0.0)
    edge, distance = chunks.filled(ordered[0], 0.0), chunks.filled(middle, 0.0)
    for k, line in enumerate(ordered[:-1], start=1):
        below += line - middle
        low, high = below / k, (total - below) / (m - k)
        between = k * low**2 + (m - k) * high**2
        better = between > best + 1e-12 * abs(best)
        best = chunks.where(better, between, best)
        size = chunks.where(better, float(k), size)
        edge = chunks.where(better, line, edge)
        distance = chunks.where(better, high - low, distance)
    return TwoMeans(size, edge, distance, chunks.sqrt((squares - best).clip(min=0.0) / m))


def _suspicions(rows: Chunk, columns: slice, alpha: float, relative: bool) -> NDArray[np.int64]:
    """In how many indicative coordinates each row is in the smaller cluster, then the number of these coordinates: (m +
    1,).
    """
    found, m = two_means(rows), len(rows)
    indicative = found.distance > (alpha * found.spread if relative else alpha)
    smaller = (rows <= found.edge) == (2 * found.size < m)  # the row's cluster is the lower one, and so is the smaller
    smaller &= indicative & (2 * found.size != m)
    return np.append(chunks.host(smaller.sum(1)), int(indicative.sum())).astype(np.int64)


class Auror(RowRule):
    """The mean without the rows that are outliers in most indicative coordinates (Shen et al., ACSAC 2016).

    The n values of each coordinate are cut into two clusters by 2-means. A coordinate is indicative if the two means
    are farther apart than α; a row is suspected in it if it is in the cluster of fewer than n/2 rows. F(u) =
    Σ_{i ∈ S} p_i u_i / Σ_{i ∈ S} p_i, S the rows that are suspected in at most τ of the indicative coordinates; all
    rows if no coordinate is indicative, or no row is below τ. Needs the rows, n ≥ 2f + 1. Prior: the clusters count
    rows, the mean weighs them.

    The paper fixes α for each task, after a look at its first rounds. Here α is by default a multiple of the spread
    within the clusters, which is equally strict for large and small layers, and the indicative coordinates are found
    anew in each round. It finds a deviation that several rows share. Rows that deviate differently, e.g. by noise, take
    turns as the smaller cluster, and then no row is suspected in most coordinates.
    """

    name: Literal["auror"] = "auror"
    weighs: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling"})
    alpha: Annotated[float, Field(gt=0)] = 3.0
    """α: the least distance of the two means in an indicative coordinate. For two halves of normal values it is 2.6
    spreads."""
    unit: Literal["spread", "update"] = "spread"
    """The unit of α: the root mean squared distance of the values to their cluster's mean, or that of the updates."""
    tau: Annotated[float, Field(ge=0, le=1)] = 0.5
    """τ: the largest share of the indicative coordinates in which a row that is kept is suspected."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def decide(self, rows: Rows, context: Context) -> Combination:
        """The prior on the rows that are kept."""
        *counts, indicative = rows.total(partial(_suspicions, alpha=self.alpha, relative=self.unit == "spread"))
        kept = np.array(counts) <= self.tau * indicative
        weights = np.where(kept, rows.prior, 0.0) if kept.any() else rows.prior
        return Combination(weights / weights.sum())
