"""How the coordinator comes by the updates: the interface of all protocols, and the one without secrets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation.gram import Combination, Floats, Gram, gram_matrix
from fedrobust.errors import ExperimentError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Size of the float64 buffer for one chunk of columns: it stays in a core's cache, or fills a GPU."""
LARGEST_SQUARE = 1e300
"""A row whose squared norm is above this would overflow in the products."""


def chunks_of(d: int, rows: int, device: str = "cpu") -> Iterator[slice]:
    """Chunks of the columns 0 … d − 1, as wide as a buffer for so many rows holds."""
    budget = CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"])
    width = 1 << max(256, budget // (8 * rows)).bit_length() - 1  # a power of two
    for start in range(0, d, width):
        yield slice(start, min(start + width, d))


class NotRevealed(ExperimentError):  # noqa: N818
    """The protocol keeps from the coordinator what was asked for."""


class Protocol(ABC):
    """n updates of d coordinates, of which the coordinator learns what `reveals` says and no more."""

    reveals: ClassVar[frozenset[str]]
    n: int
    d: int

    @abstractmethod
    def gram(self, anchors: Mapping[str, np.ndarray] | None = None) -> Gram:
        """The Gram of the updates, with the products with public vectors `anchors`: name → (d,)."""

    @abstractmethod
    def combine(self, combination: Combination) -> NDArray[np.float32]:
        """The aggregate (d,) float32; anchors are those of the last call of `gram`."""

    @abstractmethod
    def finite_rows(self) -> NDArray[np.bool_]:
        """(n,) which rows can be aggregated, as far as the protocol can tell."""

    @abstractmethod
    def subset(self, keep: NDArray[Any]) -> Protocol:
        """The same without the rows that are not in `keep`, a mask (n,) or indices."""

    def rows(self, columns: slice) -> Tensor:
        """Columns of the updates themselves, (n, w); NotRevealed unless the protocol is in the clear."""
        raise NotRevealed(f"{type(self).__name__.lower()} reveals {', '.join(sorted(self.reveals))}, not the rows")

    def columns(self) -> Iterator[slice]:
        """The chunks of columns to ask `rows` for, in order; they depend on n and d alone."""
        return chunks_of(self.d, self.n)


class Clear(Protocol):
    """Every update in the clear. Blocks of rows stay where they are: only chunks of columns are copied.

    blocks: arrays or tensors (k, d) of any floating type; read-only NumPy views and GPU tensors are welcome.
    order: row i of the federation is row order[i] of the concatenated blocks; all of them, in place, by default.
    prior: (n,) positive, scaled to sum to 1; uniform by default.
    """

    reveals: ClassVar[frozenset[str]] = frozenset({"sum", "gram", "rows"})

    def __init__(
        self,
        blocks: Sequence[Any],
        order: Sequence[int] | NDArray[np.int64] | None = None,
        prior: Sequence[float] | Floats | None = None,
    ) -> None:
        self.blocks = [_detached(block) for block in blocks]
        widths = {block.shape[1] for block in self.blocks}
        if len(widths) != 1:
            raise ValueError(f"blocks must have the same number of columns, found {sorted(widths)}")
        if len({str(getattr(block, "device", "cpu")) for block in self.blocks}) > 1:
            raise ValueError("blocks must lie on one device")
        self.d: int = widths.pop()
        sizes = [len(block) for block in self.blocks]
        self.order = np.arange(sum(sizes)) if order is None else np.asarray(order, dtype=np.int64)
        self.n: int = len(self.order)
        if self.n == 0 or self.d == 0:
            raise ValueError(f"no updates to aggregate: n = {self.n}, d = {self.d}")
        self.prior: Floats = np.full(self.n, 1.0) if prior is None else np.asarray(prior, dtype=np.float64)
        if self.prior.shape != (self.n,) or not np.isfinite(self.prior).all() or (self.prior <= 0).any():
            raise ValueError(f"priors must be {self.n} positive numbers, found {self.prior}")
        self.prior = self.prior / self.prior.sum()
        starts = np.cumsum([0, *sizes])
        self._block = np.searchsorted(starts, self.order, side="right") - 1
        self._row = self.order - starts[self._block]
        self._anchors: dict[str, Tensor] = {}

    def subset(self, keep: NDArray[Any]) -> Clear:
        """The same without the rows that are not in `keep`, a mask (n,) or indices; priors are rescaled."""
        return Clear(self.blocks, self.order[keep], self.prior[keep])

    def finite_rows(self) -> NDArray[np.bool_]:
        """(n,) whether a row can be aggregated: no NaN, no Inf, and a square that float64 can hold."""
        import torch

        squares = np.zeros(self.n)
        for _, chunk in self._chunks(np.arange(self.n)):
            squares += torch.linalg.vector_norm(chunk, dim=1).square_().cpu().numpy()
        return squares <= LARGEST_SQUARE  # NaN is not

    def gram(self, anchors: Mapping[str, np.ndarray] | None = None) -> Gram:
        """See `gram_matrix`; the same bits however the rows are split into blocks."""
        import torch

        self._anchors = {name: torch.as_tensor(np.array(vector)) for name, vector in (anchors or {}).items()}
        for name, vector in self._anchors.items():
            if vector.shape != (self.d,):
                raise ValueError(f"anchor '{name}' has the shape {tuple(vector.shape)}, the updates have d = {self.d}")
        chunks = self._chunks(np.arange(self.n), list(self._anchors.values()), spare=1)
        return gram_matrix((chunk for _, chunk in chunks), self.prior, list(self._anchors))

    def combine(self, combination: Combination) -> NDArray[np.float32]:
        """The aggregate (d,) float32."""
        return self.weighted_sum(combination).float().cpu().numpy()

    def weighted_sum(self, combination: Combination) -> Tensor:
        """The combination (d,) in the rows' own float32 or float64, on their device. Rows of weight 0 are not read."""
        import torch

        used = np.flatnonzero(combination.weights)
        anchors = {name: value for name, value in combination.anchors.items() if value != 0.0}
        result = torch.zeros(self.d, dtype=self.dtype, device=self.device)
        if len(used) + len(anchors) == 0:
            return result
        weights = torch.tensor([*combination.weights[used], *anchors.values()], dtype=torch.float64)
        weights = weights.to(self.device)
        for columns, chunk in self._chunks(used, [self._anchors[name] for name in anchors]):
            result[columns] = torch.mv(chunk.T, weights)
        return result

    def rows(self, columns: slice) -> Tensor:
        """A copy (n, w) of some columns, float32 or float64, on the rows' device."""
        import torch

        width = len(range(*columns.indices(self.d)))
        buffer = torch.empty((self.n, width), dtype=self.dtype, device=self.device)
        self._fill(buffer, np.arange(self.n), columns)
        return buffer

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        import torch

        return torch.device(getattr(self.blocks[0], "device", "cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """float64 if any block is, else float32."""
        import torch

        return torch.float64 if any("float64" in str(block.dtype) for block in self.blocks) else torch.float32

    def _chunks(
        self, used: NDArray[np.int64], anchors: Sequence[Tensor] = (), spare: int = 0
    ) -> Iterator[tuple[slice, Tensor]]:
        """Column chunks of the rows `used`, of anchors, and unset lines, in one float64 buffer that is used again."""
        import torch

        count = len(used) + len(anchors) + spare
        buffer = torch.empty(0, dtype=torch.float64, device=self.device)
        for columns in chunks_of(self.d, count, self.device.type):
            width = columns.stop - columns.start
            if buffer.shape != (count, width):
                buffer = torch.empty((count, width), dtype=torch.float64, device=self.device)
            self._fill(buffer[: len(used)], used, columns)
            for position, vector in enumerate(anchors, start=len(used)):
                buffer[position] = vector[columns]
            yield columns, buffer

    def _fill(self, buffer: Tensor, used: NDArray[np.int64], columns: slice) -> None:
        """Copy the rows `used` into `buffer`, run by run of neighbouring rows."""
        block, row = self._block[used], self._row[used]
        breaks = np.flatnonzero((np.diff(block) != 0) | (np.diff(row) != 1)) + 1
        for first, last in zip([0, *breaks], [*breaks, len(used)], strict=True):
            source = self.blocks[block[first]][row[first] : row[first] + last - first, columns]
            if isinstance(source, np.ndarray):  # by NumPy: torch warns of read-only arrays
                np.copyto(buffer[first:last].numpy(), source)
            else:
                buffer[first:last].copy_(source)


def _detached(block: Any) -> Any:
    """A block without its gradient history; ValueError unless it is a floating (k, d) array or tensor."""
    if isinstance(block, np.ndarray):
        floating = np.issubdtype(block.dtype, np.floating)
    else:
        import torch

        if not isinstance(block, torch.Tensor):
            raise ValueError(f"updates must be an array or a tensor (n, d), found {type(block).__name__}")
        block, floating = block.detach(), block.is_floating_point()
    if block.ndim != 2 or not floating:
        raise ValueError(f"updates must be floating (n, d), found {block.dtype} {tuple(block.shape)}")
    return block
