"""Order statistics of each column of a chunk of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedrobust.updates import chunks
from fedrobust.updates.chunks import Chunk


def select(rows: Chunk, ranks: slice | Sequence[int]) -> Chunk:
    """The order statistics of each column: (len(ranks), w).

    rows: (m, w).
    ranks: from 0, the smallest value, to m − 1.
    """
    if not isinstance(rows, np.ndarray):
        import torch

        return torch.sort(rows, dim=0).values[ranks]
    lines = np.ascontiguousarray(rows.T)
    lines.sort(axis=1)  # short lines that lie one after the other are sorted in vector registers
    return lines.T[ranks]


def in_order(rows: Chunk) -> Chunk:
    """Each column of `rows` (m, w) sorted from its smallest value to its greatest."""
    ordered = select(rows, slice(None))
    return np.ascontiguousarray(ordered) if isinstance(ordered, np.ndarray) else ordered


def median(rows: Chunk) -> Chunk:
    """The median of each column of `rows` (m, w): (w,) float64; for an even m, the mean of the two middle values."""
    m = len(rows)
    return chunks.double(select(rows, sorted({(m - 1) // 2, m // 2}))).mean(0)


def trimmed_mean(rows: Chunk, cut: int) -> Chunk:
    """The mean of each column of `rows` (m, w) without its `cut` smallest and `cut` greatest values: (w,) float64."""
    middle = select(rows, slice(cut, len(rows) - cut)) if cut else rows
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
