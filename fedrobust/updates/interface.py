"""The updates of one round, wherever they lie: what can be asked of them, and how their columns are cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrobust.errors import ExperimentError, FedRobustError
from fedrobust.updates.chunks import Chunk
from fedrobust.updates.gram import Combination, Floats, Gram

CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Size of the float64 buffer for one chunk of columns: it stays in a core's cache, or fills a GPU."""
SECTIONS = 32
"""The columns are cut into so many sections at most, whose sums are added last: shards hold whole sections, so their
number changes no bit."""
NARROWEST = 4096
"""Columns of a section at least; the width of every section is a multiple of it."""

FORGETTING = 0.9
"""What is left of the history "average" after a round of new updates."""

Measure = Callable[[Chunk, slice], "NDArray[Any] | None"]
"""Rows (m, w), a chunk that may be overwritten, and its columns in the whole update → figures to add up, or nothing."""
Reduction = Callable[[Chunk, slice], Chunk]
"""Rows (m, w), a chunk that may be overwritten, and its columns in the whole update → the aggregate there (w,).

It is sent to whoever holds the columns, so it must pickle (`functools.partial` of a function or a method), and draw no
random numbers."""


def clip_factors(squares: Floats) -> Floats:
    """Factors (n,) in [0, 1] that clip each row to the median norm, from the rows' squared norms (n,)."""
    norms = np.sqrt(squares)
    longer = norms > np.median(norms)
    return np.asarray(np.where(longer, np.median(norms) / np.where(longer, norms, 1.0), 1.0))


def sections(d: int) -> list[slice]:
    """The sections of d columns: of equal width, but for the last one."""
    width = -(-d // (SECTIONS * NARROWEST)) * NARROWEST
    return [slice(start, min(start + width, d)) for start in range(0, d, width)]


def chunks_of(section: slice, rows: int, device: str = "cpu") -> Iterator[slice]:
    """Chunks of a section's columns, as wide as a buffer for so many rows holds."""
    budget = CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"])
    width = 1 << max(256, budget // (8 * rows)).bit_length() - 1  # a power of two
    for start in range(section.start, section.stop, width):
        yield slice(start, min(start + width, section.stop))


class NotRevealed(ExperimentError):  # noqa: N818
    """These updates keep from the coordinator what was asked for."""


class NotOpened(FedRobustError):  # noqa: N818
    """Nothing is opened of a round's updates, or no more: a message is wrong, or there are too few. It is skipped."""


class Updates(ABC):
    """n updates of d coordinates: their Gram matrix, and a weighted sum of them. The rest only in the clear.

    `reveals` says what the coordinator may learn: "sum", "gram", "rows". Who asks cannot tell where the updates lie.
    """

    reveals: ClassVar[frozenset[str]]
    unusable: ClassVar[str] = "not finite"
    """What is wrong with rows that are not `finite_rows`."""
    n: int
    d: int
    prior: Floats
    """(n,) weights of the updates before anything is known of them; they sum to 1."""
    groups: Sequence[Sequence[int]] | None = None
    """Where each row is a mean over several clients: which ones."""

    @abstractmethod
    def gram(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> Gram:
        """The Gram of the updates, with the products with public vectors `anchors`: name → (d,), and with histories."""

    @abstractmethod
    def combine(self, combination: Combination) -> NDArray[np.float32]:
        """The aggregate (d,) float32, without its noise; anchors are those of the last call of `gram`."""

    @abstractmethod
    def finite_rows(self) -> NDArray[np.bool_]:
        """(n,) which rows can be aggregated, as far as can be told."""

    @abstractmethod
    def subset(self, keep: NDArray[Any]) -> Updates:
        """The same without the rows that are not in `keep`, a mask (n,) or indices."""

    def total(self, measure: Measure, mixing: Floats | None = None) -> NDArray[Any]:
        """The sum of what `measure` says of each chunk of the rows, or of the rows `mixing @ rows`.

        NotRevealed unless the updates are in the clear.
        """
        raise self._not_revealed()

    def reduce(self, reduction: Reduction, mixing: Floats | None = None) -> NDArray[np.float32]:
        """What `reduction` makes of each chunk of the rows, or of the rows `mixing @ rows`, side by side (d,).

        NotRevealed unless the updates are in the clear.
        """
        raise self._not_revealed()

    def remembered(self, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The histories (clients, d) after this round, to be handed to the updates of the next one.

        "last": the last update of each client; "sum": the sum of all its updates; "average": h ← 0.9 h + 0.1 c u, where
        c = min(1, median norm of the round / ‖u‖), so that no single update can fill the memory.
        """
        raise self._not_revealed()

    def _not_revealed(self) -> NotRevealed:
        return NotRevealed(f"of these updates only {', '.join(sorted(self.reveals))} may be seen")
