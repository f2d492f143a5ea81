"""What a server holds of a row (an update, or a client's history): a seed, words, or nothing. How histories grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fedrobust.secure.ring import FRACTION, Words, column_chunks, expand, truncated, weighted
from fedrobust.updates.interface import FORGETTING

Line = bytes | Words | None
"""A component of a row: a seed, words (d,), or nothing for a row of zeros."""

HISTORY_FRACTION = 20
"""Fraction bits of the histories "sum" and "average"; "last" keeps all."""
COEFFICIENT_FRACTION = 12
KEPT = round(FORGETTING * (1 << COEFFICIENT_FRACTION))
ADDED = (1 << COEFFICIENT_FRACTION) - KEPT
"""The coefficients of the history "average" in fixed point; together 1, so that its norm stays ≤ 1."""


SUMMED = 8
"""A weighted sum needs one row at a time, so its pieces are as wide as chunks of this many rows."""


def grown(name: str, history: Words, update: Words, coefficient: int, second: bool) -> Words:
    """One party's share (w,) of a history after a round.

    name: of the history. "sum": h + u; "average": (KEPT h + coefficient u) / 2^12, both at 20 fraction bits.
    history: (w,) the party's share of h.
    update: (w,) the party's share of u, at 28 fraction bits.
    coefficient: at 12 fraction bits.
    second: which of two parties this is; see `truncated`.
    """
    update = truncated(update, FRACTION - HISTORY_FRACTION, second)
    if name == "sum":
        return np.asarray(history + update, dtype=np.int64)
    return truncated(KEPT * history + coefficient * update, COEFFICIENT_FRACTION, second)


def pieces(lines: Sequence[Line], columns: slice) -> Iterator[Words]:
    """Yield the same columns (w,) of one line after the other. Only read them, and use each before the next is asked
    for.

    lines: as a server holds them.
    columns: w of them.
    """
    width = columns.stop - columns.start
    stream = np.empty(width, dtype=np.int64)
    for line in lines:
        if isinstance(line, bytes):
            yield expand(line, width, columns.start, out=stream)
        else:
            yield np.zeros(width, dtype=np.int64) if line is None else line[columns]


def filled(lines: Sequence[Line], columns: slice) -> Words:
    """The same columns of all lines, as a new array (n, w).

    lines: n of them, as a server holds them.
    columns: w of them.
    """
    chunk = np.empty((len(lines), columns.stop - columns.start), dtype=np.int64)
    for row, line in zip(chunk, lines, strict=True):
        if isinstance(line, bytes):
            expand(line, len(row), columns.start, out=row)
        else:
            row[:] = 0 if line is None else line[columns]
    return chunk


def combined(weights: Words, lines: Sequence[Line], d: int) -> Words:
    """Σ weights_i lines_i (d,) mod 2^64.

    weights: (n,).
    lines: n of them, with d columns.
    """
    total = np.zeros(d, dtype=np.int64)
    for columns in column_chunks(SUMMED, d):
        total[columns] = weighted(weights, pieces(lines, columns), columns.stop - columns.start)
    return total


def whole(line: Line, d: int) -> Words:
    """A line as words (d,).

    d: coordinates of the line.
    """
    return filled([line], slice(0, d)).reshape(d)
