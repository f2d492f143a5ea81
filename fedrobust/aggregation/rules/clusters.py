"""Rules that cluster the updates by the angles between them, and average the largest cluster."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.base import Context, Rule, honest_majority
from fedrobust.aggregation.numerics import cosine_distances, ranking, shrink
from fedrobust.updates.gram import Combination, Floats, Gram


def majority_cluster(distances: Floats) -> NDArray[np.intp]:
    """The rows of the one cluster that HDBSCAN finds where a cluster must hold more than half of all rows.

    distances: (n, n).

    Such a cluster cannot split into two, so the root of the hierarchy is the only one: it loses rows until it would
    lose the majority. The result is the first set of more than half of the rows that single linkage joins; of equal
    distances it takes all. With `min_samples` 1, the reachability distance is the distance itself, whether or not a row
    counts as its own neighbour.
    """
    from sklearn.cluster import HDBSCAN

    n = len(distances)
    if n == 1:
        return np.arange(1)
    hdbscan = HDBSCAN(
        min_cluster_size=n // 2 + 1, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True
    )
    return np.flatnonzero(hdbscan.fit(distances).labels_ >= 0)


def single_linkage(distances: Floats) -> tuple[NDArray[np.int64], float]:
    """The two clusters, as labels (n,), before the last merge by the least distance across, and that distance.

    distances: (n, n), n ≥ 2.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(distances, checks=False), "single")
    apart = float(tree[-1, 2])
    return np.asarray(fcluster(tree, apart * (1.0 - 1e-12), "distance"), dtype=np.int64), apart


def average_linkage(distances: Floats) -> tuple[NDArray[np.int64], float]:
    """The clusters, as labels (n,), before the last merge by the mean distance across, and that distance.

    distances: (n, n), n ≥ 2.

    Clusters that are equally near merge at once: a zero row has the same distance to all others, and the order of the
    rows must not decide which of them it joins.
    """
    labels, sums, sizes = np.arange(len(distances)), distances.copy(), np.ones(len(distances))
    while True:
        means = sums / np.outer(sizes, sizes)
        np.fill_diagonal(means, np.inf)
        nearest = float(means.min())
        near = means <= nearest * (1.0 + 1e-12)
        joined = near[near.any(axis=1).argmax()]
        while (more := joined | near[joined].any(axis=0)).sum() > joined.sum():
            joined = more
        first, *others = np.flatnonzero(joined).tolist()
        if len(others) + 1 == len(np.unique(labels)):
            return labels, nearest
        sums[first] = sums[joined].sum(axis=0)
        sums[:, first] = sums[:, joined].sum(axis=1)
        sums[others] = sums[:, others] = np.inf
        sizes[first] = sizes[joined].sum()
        labels[np.isin(labels, others)] = first


def larger_cluster(distances: Floats, labels: NDArray[np.int64], apart: float) -> NDArray[np.intp]:
    """The rows of the larger of two clusters.

    distances: (n, n).
    labels: (n,) the clusters.
    apart: the distance of the clusters.

    Of two halves the result is the tighter one: the half with the smaller mean distance within, then the half with the
    first row. It is all rows where the distances do not define two clusters: where all are parallel, or where the last
    merge is of so many clusters, equally far from each other, that none holds half of the rows.
    """
    clusters = [np.flatnonzero(labels == label) for label in dict.fromkeys(labels.tolist())]
    size = max(map(len, clusters))
    if apart == 0.0 or 2 * size < len(labels):
        return np.arange(len(labels))
    largest = [rows for rows in clusters if len(rows) == size]
    within = np.array([distances[np.ix_(rows, rows)].mean() for rows in largest])
    return np.asarray(largest[ranking(within)[0]], dtype=np.intp)


class ClusterRule(Rule):
    """What the rules of this module have in common: the (clipped) mean of a cluster."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    @abstractmethod
    def kept(self, distances: Floats) -> NDArray[np.intp]:
        """The indices of the rows that are averaged, from their cosine distances (n, n), `distances`."""

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The cosine distance to the nearest other row among the averaged ones: single linkage uses no more."""
        distances = cosine_distances(gram)
        kept = self.kept(distances)
        np.fill_diagonal(distances, np.inf if len(kept) > 1 else 0.0)
        return np.asarray(distances[:, kept].min(axis=1), dtype=np.float64)

    def average(self, gram: Gram, radius: float) -> Floats:
        """The weights (n,) of the mean of the kept rows of `gram`, each clipped to norm `radius`."""
        kept = self.kept(cosine_distances(gram))
        weights = np.zeros(gram.n)
        weights[kept] = gram.prior[kept] / gram.prior[kept].sum()
        return weights if np.isinf(radius) else weights * shrink(gram.norms(), radius)


class Flame(ClusterRule):
    """The clipped mean of the majority cluster, plus noise (FLAME: Nguyen et al., USENIX Security 2022).

    F(u) = Σ_{i ∈ S} p_i u_i min(1, c / ‖u_i‖) / Σ_{i ∈ S} p_i + N(0, (λ c)² I), c the median of all n norms, S the
    cluster that HDBSCAN finds on the cosine distances with a minimum size of ⌊n/2⌋ + 1: the first set of more than half
    of the rows that single linkage joins. The paper takes the angles between local models, which are small because of
    their common start; here they are between updates. Needs G, n ≥ 2f + 1. Prior: S and c count rows, the mean over S
    weighs them.

    It may average little more than half of the rows even if all are honest. A zero row is at distance 1 from all.
    """

    name: Literal["flame"] = "flame"
    noise_factor: Annotated[float, Field(ge=0)] = 0.001
    """λ: standard deviation of the noise in each coordinate, in units of the median norm; the paper's λ for images."""
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "breakdown"})

    def kept(self, distances: Floats) -> NDArray[np.intp]:
        """The majority cluster of HDBSCAN."""
        return majority_cluster(distances)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The clipped prior on the majority cluster."""
        radius = float(np.median(gram.norms()))
        return Combination(self.average(gram, radius), noise=self.noise_factor * radius)


class CosineMajority(ClusterRule):
    """The mean of the larger of two clusters by angle (Sattler et al., ICASSP 2020).

    F(u) = Σ_{i ∈ S} p_i u_i / Σ_{i ∈ S} p_i, S the larger part of the bipartition S, T that minimises the largest
    cosine across, max_{i ∈ S, j ∈ T} cos(u_i, u_j): single linkage finds it. Needs G, n ≥ 2f + 1. Prior: S counts rows,
    the mean over S weighs them.

    In the paper, clients that are split off stay away for good; here each round decides anew. There is no bound on the
    norm of a row: a huge row at a small angle moves the mean anywhere, so put `clip` before it. It always drops a row,
    unless all rows are parallel; with n ≤ 2 there is no majority, and all rows stay. Of two halves it keeps the one
    with the smaller mean distance within. A zero row is at distance 1 from all.
    """

    name: Literal["cosine_majority"] = "cosine_majority"
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Split the rows only if the largest cosine across is below it. Then split the larger cluster again, until that
    cosine is not below it, or until no more than half of all rows would be left. None: split once, in any case."""
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling"})

    def kept(self, distances: Floats) -> NDArray[np.intp]:
        """The larger part, or what the threshold leaves of it."""
        rows = np.arange(len(distances))
        while len(rows) > 2:
            among = distances[np.ix_(rows, rows)]
            labels, apart = single_linkage(among)
            part = larger_cluster(among, labels, apart)
            if self.threshold is None:
                return part
            if len(part) == len(rows) or 2 * len(part) <= len(distances) or 1.0 - apart >= self.threshold:
                break
            rows = rows[part]
        return rows

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The prior on the larger part."""
        return Combination(self.average(gram, np.inf))


class ClippedClustering(ClusterRule):
    """The clipped mean of the larger of two clusters by angle (Li, Ngai and Voigt, IEEE Trans. Big Data 2023).

    F(u) = Σ_{i ∈ S} p_i u_i min(1, τ / ‖u_i‖) / Σ_{i ∈ S} p_i, τ the median of all norms of this round and all rounds
    before, S the larger of two clusters by average linkage on the cosine distances. Needs G, n ≥ 2f + 1. Prior: S and
    τ count rows, the mean over S weighs them.

    τ follows the norms of training slowly: when they shrink, it stays above them, and an attacker may use norms up to
    it. It always drops a row, unless all rows are parallel; with n ≤ 2 there is no majority, and all rows stay. Of two
    halves it keeps the one with the smaller mean distance within. A zero row is at distance 1 from all; clusters that
    are equally near merge at once. The history is of norms, not of clients: it grows by n numbers a round.
    """

    name: Literal["clipped_clustering"] = "clipped_clustering"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "breakdown"})

    def kept(self, distances: Floats) -> NDArray[np.intp]:
        """The larger cluster of average linkage."""
        n = len(distances)
        return larger_cluster(distances, *average_linkage(distances)) if n > 2 else np.arange(n)

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The mean cosine distance to the other averaged rows."""
        distances = cosine_distances(gram)
        kept = self.kept(distances)
        others = len(kept) - np.isin(np.arange(gram.n), kept)
        return np.asarray(distances[:, kept].sum(axis=1) / np.maximum(others, 1), dtype=np.float64)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The clipped prior on the larger cluster."""
        norms = np.append(context.state.get("norms", np.zeros(0)), gram.norms())
        return Combination(self.average(gram, float(np.median(norms))), state={"norms": norms})
