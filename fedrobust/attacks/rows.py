"""Arithmetic of crafted attacks on rows: statistics per coordinate, noise, and the Gram matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from fedrobust.aggregation import Gram
from fedrobust.updates import ClearUpdates

Vectors = Sequence[np.ndarray] | np.ndarray
"""m rows (d,) float32: an (m, d) array, or any sequence of rows, so that no rows must be copied into one array."""

_CHUNK = 1 << 16
"""Columns that are held in float64 at a time."""


def chunks(rows: Vectors) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of columns, each with the columns of the `rows` there, (m, w) float64."""
    for start in range(0, len(rows[0]), _CHUNK):
        columns = slice(start, start + _CHUNK)
        yield columns, np.array([row[columns] for row in rows], dtype=np.float64)


def by_columns(rows: Vectors, reduce: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`reduce` over chunks of the columns of `rows`, as one row (d,) float32.

    rows: m rows (d,).
    reduce: (m, w) float64 → (w,).
    """
    result = np.empty(len(rows[0]), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for columns, chunk in chunks(rows):
            result[columns] = reduce(chunk)
    return result


def mean_of(rows: Vectors) -> np.ndarray:
    """The mean of the rows, (d,) float32."""
    return by_columns(rows, lambda chunk: chunk.mean(axis=0))


def gram_of(rows: Vectors, anchors: Mapping[str, np.ndarray] | None = None) -> Gram:
    """The Gram matrix of the `rows`, with their products with the vectors in `anchors`, name → (d,)."""
    return ClearUpdates([row[np.newaxis] for row in rows]).gram(anchors)


def norm(row: np.ndarray) -> float:
    """‖row‖, summed in float64."""
    return float(np.sqrt(np.einsum("i,i->", row, row, dtype=np.float64)))


def noisy(rows: np.ndarray, part: float, generator: np.random.Generator) -> np.ndarray:
    """The rows, each with Gaussian noise of its own.

    rows: (k, d) float32.
    part: the norm of the noise, about this fraction of the row's norm.
    generator: draws the noise.
    """
    return rows if part == 0 else with_noise(rows, part, generator.standard_normal(rows.shape, dtype=np.float32))


def with_noise(rows: np.ndarray, part: float, noise: np.ndarray) -> np.ndarray:
    """As `noisy`, with given noise.

    rows: (k, d) float32.
    part: the norm of the noise, about this fraction of the row's norm.
    noise: standard normal (k, d) float32, which the result overwrites.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        for own, row in zip(noise, rows, strict=True):
            own *= np.float32(part * norm(row) / np.sqrt(len(row)))
            own += row
    return noise
