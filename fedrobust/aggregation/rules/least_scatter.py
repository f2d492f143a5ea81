"""The k of n rows whose scatter has the least top eigenvalue.

B = −½ J D² J are the products of all rows about their mean. A subset S, all rows but the f rows R, has a scatter with
top eigenvalue below c exactly if c I − B is positive definite on the vectors that sum to 0 and vanish on R. By the
inertia of Schur complements this is so exactly if K_RR has as many negative eigenvalues as B has eigenvalues above c,
where K inverts c I − B on the vectors that sum to 0. So f × f matrices are enough to compare subsets, and each dropped
row is one pivot of Gaussian elimination: its sign says whether dropping the row removed an eigenvalue above c.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation.numerics import Indices, ranking
from fedrobust.updates.gram import Floats

Masks = NDArray[np.bool_]

TIE = 1e-12
MARGIN = 1e-7
"""How far c is from the least eigenvalue found so far, relative to it: K of that eigenvalue itself would be
singular."""
FINALISTS = 16
"""How many of the likeliest exchanges are computed in full."""
LARGEST = 250
"""More rows are not searched: the children of one node would need n³ numbers of memory."""


def about_mean(distances: Floats, weights: Floats | None = None) -> Floats:
    """⟨u_i − μ, u_j − μ⟩ (…, k, k) from D², μ the mean of the rows.

    distances: D² (…, k, k).
    weights: (k,) of the rows in the mean; None: all equal.
    """
    means = distances.mean(axis=-1) if weights is None else distances @ (weights / weights.sum())
    whole = means.mean(axis=-1) if weights is None else means @ (weights / weights.sum())
    products = means[..., :, None] + means[..., None, :] - distances - np.asarray(whole)[..., None, None]
    return np.asarray(products / 2.0)


def top_eigenvalues(distances: Floats, subsets: Indices) -> Floats:
    """The top eigenvalue (m,) of the scatter of each subset.

    distances: D² (n, n).
    subsets: (m, k) indices of rows.
    """
    products = about_mean(distances[subsets[:, :, None], subsets[:, None, :]])
    return np.asarray(np.linalg.eigvalsh(products)[:, -1].clip(min=0.0))


@lru_cache(maxsize=8)  # a round asks for the weights, then for the scores
def least_scatter(distances: bytes, n: int, f: int, nodes: int) -> tuple[tuple[int, ...], bool]:
    """The n − f rows of least scatter, ascending, and whether the search was completed.

    distances: D² (n, n) float64, as bytes.
    n: number of rows.
    f: how many rows are dropped.
    nodes: the search is cut short after so many nodes.
    """
    search = _Search(np.frombuffer(distances).reshape(n, n), f)
    exact = search.run(nodes)
    return tuple(search.best.tolist()), exact


class _Nodes(NamedTuple):
    """Nodes of the search tree at the same depth, where `left` rows are still to be dropped."""

    left: int
    inverse: Floats
    """(b, n, n) K, with the dropped rows eliminated."""
    open: Masks
    """(b, n) which rows may still be dropped."""
    wanted: NDArray[np.int64]
    """(b,) how many negative eigenvalues the rows to be dropped must bring."""
    dropped: Masks
    """(b, n) the rows dropped so far."""

    def take(self, which: slice | Masks) -> _Nodes:
        """The nodes in `which`."""
        return _Nodes(self.left, self.inverse[which], self.open[which], self.wanted[which], self.dropped[which])


class _Search:
    """The best subset found so far, `best`, with the top eigenvalue `value`."""

    def __init__(self, distances: Floats, f: int) -> None:
        self.distances, self.kept = distances, len(distances) - f
        self.best = _greedy(distances, f)
        self.value = float(top_eigenvalues(distances, self.best[None])[0])
        self.ties = False
        """Whether other subsets have the same value."""
        self.blurred = False
        """Whether a pivot was so small that the signs of later ones are in doubt."""
        self._restrict()

    def run(self, nodes: int) -> bool:
        """Improve `best` by exchanges of one or two rows, then search the tree. Returns whether the search was
        completed.

        The first search is for better and for equal subsets, and takes the first of equal ones. Where there are too
        many to list, a second search is for better ones alone.
        """
        self._exchange()
        for margin in (MARGIN, -MARGIN):
            self.ties = self.blurred = False
            if self._tree(margin, nodes) and not self.blurred:
                return True
            if not (self.ties or self.blurred):
                break
        return False

    def _restrict(self) -> None:
        """Leave out rows that are in no subset as good as `best`, and decompose B of the other rows.

        The scatter of a subset with row i is at least half the squared distance of i to its farthest member. This also
        removes huge rows, which would cost B its digits.
        """
        farthest = np.sort(self.distances, axis=1)[:, self.kept - 1]
        self.rows = np.flatnonzero(farthest <= 2.0 * self.value * (1.0 + 2.0 * MARGIN))
        self.f = len(self.rows) - self.kept
        among = self.distances[np.ix_(self.rows, self.rows)]
        self.eigenvalues, self.vectors = np.linalg.eigh(about_mean(among))
        # Of rows that are equal in the Gram, only the last ones are dropped.
        self.twins = np.triu(among <= 1e-14 * self.value, 1)

    def _inverse(self, c: float) -> tuple[Floats, int]:
        """K, in the unit 1 / c, and how many eigenvalues of B are above c."""
        gaps = 1.0 - self.eigenvalues / c
        inverse = (self.vectors / np.where(gaps == 0.0, TIE, gaps)) @ self.vectors.T
        return inverse - 1.0 / len(self.rows), int((self.eigenvalues > c).sum())

    def _offer(self, kept: Indices) -> bool:
        """Take the best of the subsets `kept` (m, k) of `rows`; returns whether it is better than `best`."""
        values = top_eigenvalues(self.distances, self.rows[kept])
        lowest = int(ranking(values)[0])
        better = bool(values[lowest] < self.value * (1.0 - TIE))
        if better:
            self.best, self.value = self.rows[kept[lowest]], float(values[lowest])
        equal = self.rows[kept[values <= self.value * (1.0 + TIE)]].tolist()
        first = min([self.best.tolist(), *equal])
        self.ties = self.ties or any(subset != first for subset in [self.best.tolist(), *equal])
        self.best = np.array(first, dtype=np.intp)
        return better

    def _exchange(self) -> None:
        """Swap single rows, else pairs of rows, as long as that improves `best`."""
        while self.f > 0 and self.value > 0.0:
            inside = np.flatnonzero(np.isin(self.rows, self.best))
            outside = np.flatnonzero(~np.isin(self.rows, self.best))
            inverse, above = self._inverse(self.value * (1.0 - MARGIN))
            values, vectors = np.linalg.eigh(inverse[np.ix_(outside, outside)])
            with np.errstate(all="ignore"):  # the candidates are then computed in full
                back = (vectors / values) @ vectors.T
                effect = inverse[np.ix_(inside, outside)] @ back
                rest = inverse[np.ix_(inside, inside)] - effect @ inverse[np.ix_(outside, inside)]
                negative = int((values < 0).sum())
                found = _swaps(back, effect, rest, above - negative)
                if not len(found):
                    found = _double_swaps(back, effect, rest, above - negative)
            if not len(found):
                break
            kept = np.repeat(inside[None], len(found), axis=0)
            for out, into in zip(found.T[0::2], found.T[1::2], strict=True):
                kept[np.arange(len(found)), out] = outside[into]
            if not self._offer(np.sort(kept, axis=1)):
                break
        self._restrict()

    def _tree(self, margin: float, nodes: int) -> bool:
        """Search for subsets below c = (1 + margin) · `value`. Returns whether the search was completed."""
        while True:
            if self.value == 0.0:  # equal rows: all that are left
                self.best = self.rows[: self.kept]
                return True
            inverse, above = self._inverse(self.value * (1.0 + margin))
            if self.f == 0 or above > self.f:
                return True
            n = len(self.rows)
            if self.f > 2 and n > LARGEST:
                return False
            width = max(1, min(64, 2_000_000 // n**3))  # chunks that stay in the cache
            free = (np.diag(inverse) < 0) | (above < self.f)
            root = _Nodes(self.f, inverse[None], free[None], np.array([above]), np.zeros((1, n), bool))
            todo, better = [root], False
            while todo and not better:
                level = todo.pop()
                if len(level.wanted) > width:
                    todo.append(level.take(slice(None, -width)))
                    level = level.take(slice(-width, None))
                nodes -= len(level.wanted)
                if nodes < 0:
                    return False
                if level.left > 2:
                    children = self._children(level)
                    if len(children.wanted):
                        todo.append(children)
                    continue
                dropped = self._last(level)
                if len(dropped):
                    kept = np.nonzero(~dropped)[1].reshape(len(dropped), self.kept)
                    better = self._offer(kept)
            if not better:
                return True
            self._exchange()

    def _locked(self, dropped: Masks) -> Masks:
        """(b, n) the rows that have an equal row after them which has not been dropped."""
        return np.asarray((~dropped).astype(np.float32) @ self.twins.T.astype(np.float32) > 0)

    def _children(self, level: _Nodes) -> _Nodes:
        """One node for each row that is dropped next; rows that come before it stay for good."""
        pivots = np.einsum("bii->bi", level.inverse)
        locked = self._locked(level.dropped)
        # Positive pivots first: they use up the drops that may remove no eigenvalue.
        keys = np.where(locked, np.finfo(float).max, -pivots)
        order = np.argsort(np.where(level.open, keys, np.inf), axis=1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(order.shape[1])[None], axis=1)
        room = level.left - level.wanted
        last = level.open.sum(axis=1) - level.left
        fits = level.open & ~locked & (ranks <= last[:, None]) & ((pivots < 0) | (room > 0)[:, None])
        node, row = np.nonzero(fits)
        pivot, column = pivots[node, row], level.inverse[node, :, row]
        small = np.abs(pivot) < 1e-9 * np.abs(column).max(axis=1)
        self.blurred = self.blurred or bool(small.any())
        scaled = column / np.where(small, 1.0, pivot)[:, None]
        wanted = level.wanted[node] - (pivot < 0)
        later = level.open[node] & (ranks[node] > ranks[node, row][:, None])
        later &= (pivots[node] < column * scaled) | (wanted < level.left - 1)[:, None]
        enough = later.sum(axis=1) >= level.left - 1
        node, row, column, scaled = node[enough], row[enough], column[enough], scaled[enough]
        inverse = level.inverse[node]
        inverse -= column[:, :, None] * scaled[:, None, :]
        dropped = level.dropped[node]
        dropped[np.arange(len(row)), row] = True
        return _Nodes(level.left - 1, inverse, later[enough], wanted[enough], dropped)

    def _last(self, level: _Nodes) -> Masks:
        """The masks (m, n) of all dropped rows, where one or two are left to be dropped."""
        pivots = np.where(level.open, np.einsum("bii->bi", level.inverse), np.nan)
        if level.left == 1:
            node, row = np.nonzero(np.where(level.wanted[:, None] == 1, pivots < 0, level.open))
            dropped = level.dropped[node]
            dropped[np.arange(len(node)), row] = True
        else:
            node, row, other = _pairs(level.inverse, pivots, level.wanted)
            dropped = level.dropped[node]
            dropped[np.arange(len(node)), row] = dropped[np.arange(len(node)), other] = True
        return dropped[~(dropped & self._locked(dropped)).any(axis=1)]


def _pairs(inverse: Floats, pivots: Floats, wanted: NDArray[np.int64]) -> tuple[Indices, Indices, Indices]:
    """Node, row and other row of all pairs that bring the wanted number of negative eigenvalues; NaN pivots are out.

    A pair cannot bring more than are wanted, so the sign of the determinant decides; where two are wanted, the pivots
    are negative.
    """
    determinants = pivots[:, :, None] * pivots[:, None, :]
    determinants -= inverse * inverse
    determinants *= np.where(wanted == 1, -1.0, 1.0)[:, None, None]
    node, row, other = np.nonzero(determinants > 0)
    once = row < other
    return node[once], row[once], other[once]


def _swaps(back: Floats, effect: Floats, rest: Floats, missing: int) -> Indices:
    """(m, 2) the most likely swaps of a row inside for one outside that leave no eigenvalue above c."""
    gains = np.diag(rest)[:, None] + effect**2 / np.diag(back)
    gains = np.where((np.diag(back) > 0) & (gains < 0) & (missing == 1), gains, 0.0)
    best = np.argsort(gains, axis=None, kind="stable")[:FINALISTS]
    out, into = np.unravel_index(best, gains.shape)
    return np.stack([out, into], axis=1)[gains[out, into] < 0]


def _double_swaps(back: Floats, effect: Floats, rest: Floats, missing: int) -> Indices:
    """(m, 4) the same for pairs: a row inside, one outside, another inside, another outside."""
    first, second = np.triu_indices(len(back), 1)
    step = max(1, 200_000 // len(rest) ** 2)
    if len(first) * len(rest) ** 2 > 20_000_000:  # a second or so
        first = first[:0]
    for start in range(0, len(first), step):
        both = np.stack([first, second], axis=1)[start : start + step]
        values, vectors = np.linalg.eigh(back[both[:, :, None], both[:, None, :]])
        sides = effect[:, both].transpose(1, 0, 2) @ vectors
        inverse = rest + (sides / values[:, None, :]) @ sides.transpose(0, 2, 1)
        wanted = missing + (values < 0).sum(axis=1)
        pivots = np.einsum("bii->bi", inverse)
        pivots = np.where((wanted[:, None] < 2) | ((wanted[:, None] == 2) & (pivots < 0)), pivots, np.nan)
        node, out, other = _pairs(inverse, pivots, wanted)
        if len(node):
            sizes = np.abs(pivots[node, out] * pivots[node, other] - inverse[node, out, other] ** 2)
            best = np.argsort(-sizes, kind="stable")[: 2 * FINALISTS]
            return np.stack([out[best], both[node[best], 0], other[best], both[node[best], 1]], axis=1)
    return np.zeros((0, 4), dtype=np.intp)


def _greedy(distances: Floats, f: int) -> Indices:
    """Drop the row without which the scatter has the least top eigenvalue, f times; of equals the last."""
    left = np.arange(len(distances))
    for _ in range(f):
        values = _top_without_each(about_mean(distances[np.ix_(left, left)]))
        left = np.delete(left, len(left) - 1 - ranking(values[::-1])[0])
    return left


def _top_without_each(products: Floats) -> Floats:
    """The top eigenvalue (k,) of the scatter without row i, from the products (k, k) of the rows about their mean.

    It is the root of Σ_j V_ij² / (x − λ_j) between the two top eigenvalues, where the sum is over the eigenvectors that
    sum to 0; found by bisection, for all i at once.
    """
    k = len(products)
    eigenvalues, vectors = np.linalg.eigh(products)
    squares = vectors**2
    low, high = np.full(k, max(eigenvalues[-2], 0.0)), np.full(k, max(eigenvalues[-1], 0.0))
    for _ in range(30):
        x = (low + high) / 2.0
        with np.errstate(all="ignore"):  # equal eigenvalues: the comparison is false
            rising = (squares / (x[:, None] - eigenvalues)).sum(axis=1) - 1.0 / (k * x) > 0
        low, high = np.where(rising, x, low), np.where(rising, high, x)
    return high
