"""Order statistics of each column of a chunk of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from fedrobust.updates import chunks
from fedrobust.updates.chunks import Chunk

SHORT = 24
"""Columns of at most so many values go through a network of comparators; longer ones are faster to sort."""


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
    """The comparators that move the order statistics of the `wanted` ranks to their indices, and no others.

    n: number of values.
    wanted: ranks from 0 to n − 1.

    A comparator (i, j, low, high) puts the smaller value at i and the greater one at j; `low` and `high` say which of
    the two a later comparator or a wanted rank uses.
    """
    needed, network = set(wanted), []
    for i, j in reversed(list(_odd_even_merge_sort(n))):
        if i in needed or j in needed:
            network.append((i, j, i in needed, j in needed))
            needed |= {i, j}
    return tuple(reversed(network))


def select(rows: Chunk, ranks: Iterable[int]) -> Chunk:
    """The order statistics of each column: (len(ranks), w).

    rows: (m, w), which is overwritten.
    ranks: from 0, the smallest value, to m − 1.
    """
    ranks = list(ranks)
    if isinstance(rows, np.ndarray):
        return np.sort(rows, axis=0)[ranks]
    import torch

    if len(rows) <= SHORT:
        return _through_network(rows, ranks)
    if rows.device.type != "cpu":
        return torch.sort(rows, dim=0).values[ranks]
    columns = np.array(rows.numpy().T, order="C")
    columns.sort(axis=1)  # NumPy sorts short lines in vector registers, many times faster than torch
    return torch.from_numpy(columns.T[ranks])


def in_order(rows: Chunk) -> Chunk:
    """Each column of `rows` (m, w) sorted from its smallest value to its greatest; overwrites `rows`."""
    return select(rows, range(len(rows)))


def _through_network(rows: Chunk, ranks: list[int]) -> Chunk:
    import torch

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


def median(rows: Chunk) -> Chunk:
    """The median of each column of `rows` (m, w): (w,) float64; for an even m, the mean of the two middle values."""
    m = len(rows)
    return chunks.double(select(rows, sorted({(m - 1) // 2, m // 2}))).mean(0)


def trimmed_mean(rows: Chunk, cut: int) -> Chunk:
    """The mean of each column of `rows` (m, w) without its `cut` smallest and `cut` greatest values: (w,) float64."""
    middle = select(rows, range(cut, len(rows) - cut)) if cut else rows
    return chunks.double(middle).mean(0)


def mean_around_median(rows: Chunk, keep: int) -> Chunk:
    """The mean of the `keep` values nearest to the median in each column of `rows` (m, w): (w,) float64.

    Of two values at the same distance, to 12 digits, the lower counts as nearer.
    """
    m = len(rows)
    if keep == m:
        return chunks.double(rows).mean(0)
    ordered, half = in_order(rows), m // 2
    centre = (chunks.double(ordered[(m - 1) // 2]) + chunks.double(ordered[half])) / 2
    # The kept values are a window of the sorted values. Distances grow on both sides of the middle, so the value at i
    # is in the window if and only if the one at i + keep is not, and each such pair is decided separately.
    first, last = max(0, half - keep), min(half, m - keep)
    total = chunks.total(ordered[last : first + keep], 0)
    for i in range(first, last):
        low, high = chunks.double(ordered[i]), chunks.double(ordered[i + keep])
        total += chunks.where(high - centre < (centre - low) * (1.0 - 1e-12), high, low)
    return total / keep
