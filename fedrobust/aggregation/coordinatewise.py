"""Rules on each coordinate by itself; they need the rows, so they run in the clear only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from fedrobust.aggregation.base import Context, CoordinateRule
from fedrobust.aggregation.rules import honest_majority

if TYPE_CHECKING:
    from torch import Tensor


def _odd_even_merge_sort(n: int) -> Iterator[tuple[int, int]]:
    """Batcher's network for any n (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M)."""
    top = 1 << max(n - 1, 1).bit_length() - 1
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            yield from ((i, i + d) for i in range(n - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1


@lru_cache(maxsize=64)
def selection_network(n: int, wanted: frozenset[int]) -> tuple[tuple[int, int, bool, bool], ...]:
    """The comparators that bring the order statistics of the `wanted` ranks to their places, and no others.

    A comparator (i, j, low, high) puts the smaller value at i and the greater at j; `low` and `high` say which of the
    two anything later depends on.
    """
    needed, network = set(wanted), []
    for i, j in reversed(list(_odd_even_merge_sort(n))):
        if i in needed or j in needed:
            network.append((i, j, i in needed, j in needed))
            needed |= {i, j}
    return tuple(reversed(network))


def select(rows: Tensor, ranks: Iterable[int]) -> Tensor:
    """The order statistics of `ranks` of each column (m, w) → (len(ranks), w); overwrites `rows`."""
    import torch

    ranks = list(ranks)
    lines, spare = list(rows.unbind()), torch.empty_like(rows[0])
    for i, j, low, high in selection_network(len(lines), frozenset(ranks)):
        a, b = lines[i], lines[j]
        if low and high:
            torch.minimum(a, b, out=spare)
            torch.maximum(a, b, out=b)
            lines[i], spare = spare, a
        elif low:
            torch.minimum(a, b, out=a)
        else:
            torch.maximum(a, b, out=b)
    return torch.stack([lines[rank] for rank in ranks])


class Median(CoordinateRule):
    """The median of each coordinate (Yin et al., ICML 2018).

    F(u)_k = median of u_1k … u_nk; of an even number the mean of the two in the middle. Needs the rows, n ≥ 2f + 1.
    Prior: none, it counts rows.
    """

    name: Literal["median"] = "median"

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def reduce(self, rows: Tensor, context: Context) -> Tensor:
        """The middle of each column."""
        m = len(rows)
        return select(rows, sorted({(m - 1) // 2, m // 2})).double().mean(dim=0)


class TrimmedMean(CoordinateRule):
    """The mean of each coordinate without its f smallest and f greatest values (Yin et al., ICML 2018).

    F(u)_k = mean of the n − 2f values of u_1k … u_nk in the middle. Needs the rows, n ≥ 2f + 1. Prior: none, it counts
    rows.
    """

    name: Literal["trimmed_mean"] = "trimmed_mean"

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def reduce(self, rows: Tensor, context: Context) -> Tensor:
        """The mean of the middle of each column."""
        f = context.f
        if f == 0:
            return rows.double().mean(dim=0)
        return select(rows, range(f, len(rows) - f)).double().mean(dim=0)
