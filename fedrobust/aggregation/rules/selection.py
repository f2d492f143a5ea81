"""Rules that choose rows by their distances, and average the chosen rows."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.base import Context, Rule, honest_majority
from fedrobust.aggregation.numerics import Indices, ranking
from fedrobust.updates.gram import Combination, Floats, Gram


def krum_scores(distances: Floats, f: int) -> Floats:
    """Σ of D²_ij over the n − f − 2 nearest other rows j, for each row i: (n,).

    distances: D² (n, n).
    f: number of Byzantine rows.
    """
    others = np.sort(distances, axis=1)[:, 1:]
    return np.asarray(others[:, : max(0, len(distances) - f - 2)].sum(axis=1))


class Krum(Rule):
    """The update closest to its n − f − 2 nearest others (Blanchard et al., NeurIPS 2017).

    F(u) = u_k, k = argmin_i Σ_{j ∈ N_i} D²_ij, N_i the n − f − 2 rows j ≠ i nearest to u_i; of equal scores the lowest
    index. Needs G, n ≥ 2f + 3. Prior: none, a single row is returned. The aggregate is one hospital's update: everyone
    who sees the aggregate sees that update.
    """

    name: Literal["krum"] = "krum"
    selects_one: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling", "breakdown"})
    weighs: ClassVar[bool] = False

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 3."""
        return None if n >= 2 * f + 3 else f"krum needs n ≥ 2f + 3: n = {n}, f = {f}"

    def scores(self, gram: Gram, context: Context) -> Floats:
        """Krum scores."""
        return krum_scores(gram.distances_squared(), context.f)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """Weight 1 for the chosen row, 0 for the others."""
        weights = np.zeros(gram.n)
        weights[ranking(self.scores(gram, context))[0]] = 1.0
        return Combination(weights)


class MultiKrum(Rule):
    """The mean of the m updates of the best Krum scores (Blanchard et al., NeurIPS 2017).

    F(u) = Σ_{i ∈ S} p_i u_i / Σ_{i ∈ S} p_i, S the m rows of the lowest scores Σ_{j ∈ N_i} D²_ij. Needs G, n ≥ 2f + 3.
    Prior: the choice of S counts rows, the mean over S weighs them.
    """

    name: Literal["multi_krum"] = "multi_krum"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling", "breakdown"})
    m: Annotated[int, Field(ge=1)] | None = None
    """How many rows are averaged; n − f by default."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 3 and m ≤ n − f."""
        if n < 2 * f + 3:
            return f"multi_krum needs n ≥ 2f + 3: n = {n}, f = {f}"
        if self.m is not None and self.m > n - f:
            return f"multi_krum needs m ≤ n − f: m = {self.m}, n = {n}, f = {f}"
        return None

    def scores(self, gram: Gram, context: Context) -> Floats:
        """Krum scores."""
        return krum_scores(gram.distances_squared(), context.f)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The prior on the chosen rows."""
        chosen = ranking(self.scores(gram, context))[: self.m or gram.n - context.f]
        weights = np.zeros(gram.n)
        weights[chosen] = gram.prior[chosen]
        return Combination(weights / weights.sum())


def mean_of(chosen: Indices, gram: Gram, notes: tuple[str, ...] = ()) -> Combination:
    """The mean of the `chosen` rows of `gram`, weighted by their priors, with `notes` for the run's record."""
    weights = np.zeros(gram.n)
    weights[chosen] = gram.prior[chosen]
    return Combination(weights / weights.sum(), notes=notes)


class MDA(Rule):
    """Minimum diameter averaging (El Mhamdi et al., ICML 2018 and PODC 2020).

    F(u) = Σ_{i ∈ S} p_i u_i / Σ_{i ∈ S} p_i, S the n − f rows of least diameter max_{i,j ∈ S} D_ij; of equal diameters
    (a relative gap of 1e-12 in D²) the first in lexicographic order. Needs G, n ≥ 2f + 1. Prior: the choice of S counts
    rows, the mean over S weighs them. A row's score is its distance to the farthest row of S. Two rows alone determine
    the diameter, so several sets of other rows may be possible: then the order of the rows matters.

    The search is exact: bisection over the sorted distances, where n − f rows of diameter t exist if and only if f rows
    cover all pairs that are farther apart than t. That is exponential in f at worst, and quick on updates: at most
    0.03 s for n = 100, f = 49. A search that is cut short takes the best subset found by then, says so in the notes,
    and has at most twice the least diameter: it starts from the best of the n sets "a row and its nearest others".
    """

    name: Literal["mda"] = "mda"
    claims: ClassVar[frozenset[str]] = frozenset({"translation", "scaling", "breakdown"})
    nodes: Annotated[int, Field(ge=0)] = 2000
    """The search is cut short after so many branchings; each takes up to 0.1 ms at n = 100."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The prior on the chosen rows."""
        chosen, exact = self._choose(gram, context)
        note = f"mda: n = {gram.n}, f = {context.f}: search cut short, best subset found"
        return mean_of(chosen, gram, () if exact else (note,))

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The distance to the farthest of the chosen rows."""
        chosen, _ = self._choose(gram, context)
        return np.asarray(np.sqrt(gram.distances_squared()[:, chosen].max(axis=1)), dtype=np.float64)

    def _choose(self, gram: Gram, context: Context) -> tuple[Indices, bool]:
        chosen, exact = _least_diameter(gram.distances_squared().tobytes(), gram.n, context.f, self.nodes)
        return np.array(chosen, dtype=np.intp), exact


class MoNNA(Rule):
    """The mean of the n − f rows nearest to a pivot (nearest-neighbour averaging: Farhadkhani et al., ICML 2023).

    F(u) = Σ_{i ∈ S} p_i u_i / Σ_{i ∈ S} p_i, S the n − f rows of least D_iq to the pivot q, itself included; of equal
    distances the lower index. Needs G, n ≥ 2f + 1. Prior: the choice of S counts rows, the mean over S weighs them. A
    row's score is its distance to the pivot.

    In the paper there is no server: every node averages around its own update, which it can trust. A server has none,
    so the pivot is the medoid, argmin_q Σ_j D_jq, which f < n / 2 rows cannot move away from the others. A fixed row as
    the pivot, as in the paper, gives no robustness at all if that row is Byzantine.
    """

    name: Literal["monna"] = "monna"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling", "breakdown"})
    pivot: Annotated[int, Field(ge=0)] | Literal["medoid"] = "medoid"
    """The row of least summed distance to the others, or the index of a row that is known to be honest. Indices count
    the updates of a round, so they name a client only where all take part in every round."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1 and that the pivot exists."""
        if isinstance(self.pivot, int) and self.pivot >= n:
            return f"monna needs pivot < n: pivot = {self.pivot}, n = {n}"
        return honest_majority(self.name, n, f)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The prior on the chosen rows."""
        return mean_of(ranking(self.scores(gram, context))[: gram.n - context.f], gram)

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The distances to the pivot."""
        distances = np.sqrt(gram.distances_squared())
        pivot = self.pivot if isinstance(self.pivot, int) else int(ranking(distances.sum(axis=1))[0])
        return np.asarray(distances[pivot], dtype=np.float64)


class FABA(Rule):
    """Drop the row farthest from the mean of the rest, f times (Xia et al., IJCAI 2019).

    S ← S without argmax_{i ∈ S} ‖u_i − μ_S‖, μ_S = mean of S, f times, starting with all rows; of equal distances the
    higher index goes. F(u) = Σ_{i ∈ S} p_i u_i / Σ_{i ∈ S} p_i. Needs G, n ≥ 2f + 1. Prior: the choice of S counts
    rows, the mean over S weighs them. A row's score is its distance to the last μ_S. Malicious rows within the spread
    of the honest ones pull the mean, and honest rows on the other side are dropped instead of them.
    """

    name: Literal["faba"] = "faba"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling", "breakdown"})

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The prior on the rows that are left."""
        return mean_of(_without_farthest(gram, context.f), gram)

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The distances to the mean of the rows that are left, each counted once."""
        left = _without_farthest(gram, context.f)
        weights = np.zeros(gram.n)
        weights[left] = 1.0 / len(left)
        return np.sqrt(gram.distances_squared_to(Combination(weights)))


def _without_farthest(gram: Gram, f: int) -> Indices:
    """The rows that FABA keeps."""
    distances, left = gram.distances_squared(), np.arange(gram.n)
    for _ in range(f):
        near = distances[np.ix_(left, left)].mean(axis=1)  # ‖u_i − μ‖² + half the mean of all D², the same for all i
        left = np.delete(left, ranking(near - near.mean() / 2.0)[-1])
    return left


class _CutShort(Exception):  # noqa: N818
    """The search has used up its nodes."""


class _Covers:
    """Vertex covers of conflict graphs on n rows, given as one bit mask of neighbours for each row."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes

    def find(self, neighbours: list[int], rows: int, size: int) -> int | None:
        """The mask of at most `size` of the `rows` that touch every conflict among them; None if there is no such mask.

        A bounded search tree: rows with more conflicts than `size` are in, and so is the only opponent of a row with
        one conflict. If no row has more than two, circles are left, from which any row can be taken. Otherwise the row
        with the most conflicts is in, or all its opponents are.
        """
        todo = [(rows, size, 0)]
        while todo:
            rows, size, cover = todo.pop()
            while True:
                degrees, busiest, most, loose = [], -1, 0, -1
                rest = rows
                while rest:
                    row = (rest & -rest).bit_length() - 1
                    rest &= rest - 1
                    degree = (neighbours[row] & rows).bit_count()
                    if degree == 0:
                        rows &= ~(1 << row)
                        continue
                    degrees.append(degree)
                    if degree > most:
                        busiest, most = row, degree
                    if degree == 1:
                        loose = row
                if most == 0:
                    return cover
                if 2 * sum(sorted(degrees, reverse=True)[: max(size, 0)]) < sum(degrees):
                    break  # no `size` rows have so many conflicts
                if most <= size and loose >= 0:
                    busiest = (neighbours[loose] & rows).bit_length() - 1
                elif 2 < most <= size:
                    if self.nodes <= 0:
                        raise _CutShort
                    self.nodes -= 1
                    opponents = neighbours[busiest] & rows
                    todo.append((rows & ~opponents & ~(1 << busiest), size - most, cover | opponents))
                rows, size, cover = rows & ~(1 << busiest), size - 1, cover | 1 << busiest
        return None


@lru_cache(maxsize=8)  # a round asks for the weights, then for the scores
def _least_diameter(distances: bytes, n: int, f: int, nodes: int) -> tuple[tuple[int, ...], bool]:
    """The n − f rows of least diameter, and whether the search was completed; `distances`: D² (n, n)."""
    kept, everybody = n - f, (1 << n) - 1
    levels = _levels(np.frombuffer(distances).reshape(n, n))
    covers = _Covers(nodes)
    nearest = ranking(levels.astype(np.float64))[:, :kept]
    diameters = levels[nearest[:, :, None], nearest[:, None, :]].max(axis=(1, 2))
    best, high = np.sort(nearest[diameters.argmin()]), int(diameters.min())
    low = int(np.sort(np.sort(levels, axis=1)[:, kept - 1])[kept - 1])  # each kept row has `kept` rows that near
    try:
        while low < high:
            middle = (low + high) // 2
            cover = covers.find(_conflicts(levels, middle), everybody, f)
            if cover is None:
                low = middle + 1
            else:
                best = _rows(everybody & ~cover)[:kept]
                high = int(levels[np.ix_(best, best)].max())
        return _first_subset(_conflicts(levels, high), best, n, covers), True
    except _CutShort:
        return tuple(best.tolist()), False


def _first_subset(neighbours: list[int], known: Indices, n: int, covers: _Covers) -> tuple[int, ...]:
    """The lexicographically first subset without conflicts that is as large as `known`, which is one of them."""
    kept, everybody = len(known), (1 << n) - 1
    witness = sum(1 << row for row in known.tolist())
    chosen: list[int] = []
    barred = 0
    for row in range(n):
        if len(chosen) == kept:
            break
        if barred >> row & 1:
            continue
        if not witness >> row & 1:
            out = barred | neighbours[row]
            size = n - kept - out.bit_count()
            cover = covers.find(neighbours, everybody & ~out, size) if size >= 0 else None
            if cover is None:
                barred |= 1 << row
                continue
            witness = everybody & ~out & ~cover
        chosen.append(row)
        barred |= neighbours[row]
    return tuple(chosen)


def _levels(distances: Floats) -> NDArray[np.int64]:
    """The rank (n, n) of each distance among all, from 1 on, 0 on the diagonal; equal for ties."""
    n = len(distances)
    above = np.triu_indices(n, 1)
    values = np.sort(distances[above])
    ranks = 1 + np.cumsum(np.diff(values, prepend=values[:1]) > 1e-12 * values)
    levels = np.zeros((n, n), dtype=np.int64)
    levels[above] = ranks[np.searchsorted(values, distances[above])]
    return levels + levels.T


def _conflicts(levels: NDArray[np.int64], level: int) -> list[int]:
    """For each row the mask of the rows that are farther away than `level`."""
    packed = np.packbits(levels > level, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def _rows(mask: int) -> Indices:
    """The rows of a mask."""
    return np.array([row for row in range(mask.bit_length()) if mask >> row & 1], dtype=np.intp)
