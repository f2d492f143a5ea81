"""The rows of a heat map hospital × round: one for each hospital, or, of many hospitals, some rows and two bands."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from fedrobust.figures.style import Band

MOST_ROWS = 60
"""With more hospitals than this, only some of them have rows of their own."""
TENTHS = 10
"""Rows of a band: each is the mean of a tenth of its hospitals, sorted by their value, in each round anew."""


@dataclass(frozen=True, eq=False)
class HeatMapRows:
    """The rows of a heat map, from top to bottom: attackers, other hospitals, bands."""

    values: np.ndarray
    """(rows, rounds) float, NaN for no figure."""
    clients: list[int]
    """The hospitals of the first rows."""
    bands: tuple[Band, ...] = ()
    """What is in the other rows."""
    gaps: tuple[int, ...] = ()
    """Rows above which a gap is drawn."""


def rows_of(values: np.ndarray, attackers: Collection[int], chosen: Collection[int] = ()) -> HeatMapRows:
    """Return the rows for so many hospitals.

    values: (clients, rounds) float, NaN if a hospital took no part.
    attackers: the malicious hospitals.
    chosen: those with rows of their own if there are more than `MOST_ROWS` hospitals.
    """
    crowd = len(values) > MOST_ROWS
    shown = set(chosen) if crowd else set(range(len(values)))
    bad = sorted(client for client in shown if client in attackers)
    clients = [*bad, *sorted(shown.difference(bad))]
    gaps = [len(bad)] if 0 < len(bad) < len(clients) else []
    parts, bands, first = [values[np.array(clients, dtype=int)]], list[Band](), len(clients)
    malicious = np.isin(np.arange(len(values)), sorted(attackers))
    for word, whose in (("attackers", malicious), ("honest", ~malicious)) if crowd else ():
        if whose.any():
            parts.append(tenths(values[whose]))
            bands.append(Band(f"all {whose.sum():,} {word}", first, len(parts[-1]), word == "attackers"))
            gaps += [first] if first else []
            first += len(parts[-1])
    return HeatMapRows(np.concatenate(parts), clients, tuple(bands), tuple(gaps))


def tenths(values: np.ndarray) -> np.ndarray:
    """Return the mean of each tenth of the figures of a round, the lowest first: (rows, rounds), at most `TENTHS` rows.

    values: (n, rounds) float, NaN for no figure; NaN for a round without any.
    """
    rows = min(TENTHS, len(values))
    counts = np.isfinite(values).sum(axis=0)
    sums = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(np.nan_to_num(np.sort(values, axis=0)), axis=0, out=sums[1:])  # NaN comes last, and counts nothing
    edges = np.arange(rows + 1)[:, None] * counts // rows
    first, last = edges[:-1], np.minimum(np.maximum(edges[1:], edges[:-1] + 1), counts)  # with few, some appear twice
    first = np.minimum(first, np.maximum(last - 1, 0))
    found: np.ndarray = np.take_along_axis(sums, last, axis=0) - np.take_along_axis(sums, first, axis=0)
    return np.where(last > first, found / np.maximum(last - first, 1), np.nan)
