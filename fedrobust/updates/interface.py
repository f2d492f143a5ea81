"""The updates of one round, wherever they are stored: what can be asked of them, and how their columns are cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrobust.errors import ExperimentError, FedRobustError
from fedrobust.updates.chunks import BLOCK, Chunk
from fedrobust.updates.gram import Combination, Floats, Gram

CHUNK_BYTES = {"cpu": 6 << 20, "cuda": 64 << 20}
"""Size of the float64 buffer for one chunk of columns: few calls for each section, or
a full GPU."""
SECTIONS = 32
"""The largest number of sections that the columns are cut into. Sums over sections are added last, and shards hold
whole sections, so the number of shards changes no bit."""
NARROWEST = 4096
"""The least width of a section; the width of every section is a multiple of it."""

FORGETTING = 0.9
"""The factor on the old history "average" in each round."""

Measure = Callable[[Chunk, slice], "NDArray[Any] | None"]
"""Rows (m, w), a chunk that may be overwritten, and its columns in the whole update → figures to add up, or None."""
Reduction = Callable[[Chunk, slice], Chunk]
"""Rows (m, w), a chunk that may be overwritten, and its columns in the whole update → the aggregate there (w,).

It is sent to the processes that hold the columns, so it must pickle (`functools.partial` of a function or a method). It
must not draw random numbers."""


def not_revealed(needs: frozenset[str], reveals: frozenset[str]) -> frozenset[str]:
    """What a part `needs` and updates do not reveal. Norms can be read off a Gram matrix."""
    return needs - reveals - ({"norms"} if "gram" in reveals else set())


def clip_factors(squares: Floats) -> Floats:
    """Factors (n,) in [0, 1] that clip each row to the median norm, from the rows' squared norms (n,)."""
    norms = np.sqrt(squares)
    longer = norms > np.median(norms)
    return np.asarray(np.where(longer, np.median(norms) / np.where(longer, norms, 1.0), 1.0))


def sections(d: int) -> list[slice]:
    """The sections of d columns. All but the last one have the same width."""
    width = -(-d // (SECTIONS * NARROWEST)) * NARROWEST
    return [slice(start, min(start + width, d)) for start in range(0, d, width)]


def chunks_of(section: slice, rows: int, device: str = "cpu") -> Iterator[slice]:
    """The chunks of a section's columns, as wide as the buffer allows.

    section: columns of the updates.
    rows: how many rows the buffer must hold.
    device: "cpu" or "cuda".
    """
    most = max(CHUNK_BYTES[device] // (8 * BLOCK * max(rows, 1)), 1)
    blocks = -(-(section.stop - section.start) // BLOCK)
    width = -(-blocks // -(-blocks // most)) * BLOCK  # as even as possible
    for start in range(section.start, section.stop, width):
        yield slice(start, min(start + width, section.stop))


class NotRevealed(ExperimentError):  # noqa: N818
    """These updates do not reveal to the coordinator what was asked for."""


class NotOpened(FedRobustError):  # noqa: N818
    """Nothing more is opened of a round's updates: a message is wrong, or there are too few. The round is skipped."""


class Updates(ABC):
    """n updates of d coordinates: their Gram matrix, and a weighted sum of them. Other operations need updates in the
    clear.

    `reveals` says what the coordinator may learn: "sum", "norms", "gram", "rows"; "gram" includes "norms". The caller
    does not see where the updates are stored.
    """

    reveals: frozenset[str]
    unusable: ClassVar[str] = "not finite"
    """What is wrong with the rows that `finite_rows` excludes."""
    n: int
    d: int
    prior: Floats
    """(n,) prior weights of the updates, before any is judged; they sum to 1."""
    groups: Sequence[Sequence[int]] | None = None
    """The clients of each row, where each row is a mean over several clients."""

    @abstractmethod
    def gram(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> Gram:
        """The Gram of the updates.

        anchors: name → (d,), public vectors whose products are added.
        histories: names of histories whose products are added; see `remembered`.
        """

    def norms(self, anchors: Mapping[str, np.ndarray] | None = None) -> Gram:
        """The Gram for rules that look at norms and at products with anchors only: products of two rows may be NaN.

        anchors: as for `gram`.

        Here it is the whole Gram: classes that can do with less work, or open less, say how.
        """
        return self.gram(anchors)

    @abstractmethod
    def combine(self, combination: Combination) -> NDArray[np.float32]:
        """The aggregate (d,) float32 that `combination` describes, without its noise. Its anchors are those of the last
        call of `gram` or `norms`.
        """

    @abstractmethod
    def finite_rows(self) -> NDArray[np.bool_]:
        """(n,) bool: which rows can be aggregated, as far as this can be seen."""

    def sketched(self, columns: int, seed: int) -> Updates:
        """The same rows, whose Gram is that of random sketches with so many `columns`, drawn by `seed`.

        Raises `NotRevealed` where the coordinator does not have the rows.
        """
        raise self._not_revealed()

    @abstractmethod
    def subset(self, keep: NDArray[Any]) -> Updates:
        """The rows in `keep`, a mask (n,) or indices, and no others."""

    def total(self, measure: Measure, mixing: Floats | None = None) -> NDArray[Any]:
        """The sum of the arrays that `measure` returns for each chunk of the rows.

        measure: see `Measure`.
        mixing: (m, n), to measure the rows `mixing @ rows` instead.

        Raises `NotRevealed` unless the updates are in the clear.
        """
        raise self._not_revealed()

    def reduce(self, reduction: Reduction, mixing: Floats | None = None) -> NDArray[np.float32]:
        """The results of `reduction` for each chunk of the rows, side by side: (d,) float32.

        reduction: see `Reduction`.
        mixing: (m, n), to reduce the rows `mixing @ rows` instead.

        Raises `NotRevealed` unless the updates are in the clear.
        """
        raise self._not_revealed()

    def remembered(self, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The histories (clients, d) after this round, for the updates of the next one.

        names: "last", the last update of each client; "sum", the sum of all its updates; "average", h ← 0.9 h + 0.1 c
            u, where c = min(1, median norm of the round / ‖u‖), so that no single update can dominate the average.

        Raises `NotRevealed` where the rows cannot be seen.
        """
        raise self._not_revealed()

    def _not_revealed(self) -> NotRevealed:
        return NotRevealed(f"of these updates only {', '.join(sorted(self.reveals))} may be seen")
