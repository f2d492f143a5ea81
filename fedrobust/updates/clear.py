"""Updates in the clear: all rows are available, in one piece or in blocks, as NumPy arrays or torch tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrobust.updates import chunks
from fedrobust.updates.gram import Combination, Floats, Gram, assembled
from fedrobust.updates.interface import FORGETTING, Measure, Updates, chunks_of, clip_factors, sections

if TYPE_CHECKING:
    from fedrobust.updates.interface import Reduction

NOTHING = np.zeros((0, 0), dtype=np.float32)
LARGEST_FLOAT = float(np.finfo(np.float32).max)
LARGEST_SQUARE = 1e300
"""A row whose squared norm is above this would overflow in the products."""


class ClearUpdates(Updates):
    """Updates that are not hidden. Blocks of rows are not copied, only chunks of columns.

    blocks: arrays or tensors (k, d) of any floating type; read-only NumPy views and GPU tensors are allowed.
    order: row i of the federation is row order[i] of the concatenated blocks; by default all rows, in their order.
    prior: (n,) positive, scaled to sum to 1; uniform by default.
    histories: name → (clients, d), a row for each client id.
    clients: (n,) int64 the rows' client ids, 0 … n − 1 by default.
    columns: (first, whole) if these are the columns from `first` on of updates with `whole` coordinates; they must be
        whole `sections`. By default the updates are complete.

    Raises `ValueError` where blocks, priors or columns do not fit, and where there is no row or no column.
    """

    reveals: ClassVar[frozenset[str]] = frozenset({"sum", "gram", "rows"})

    def __init__(
        self,
        blocks: Sequence[Any],
        order: Sequence[int] | NDArray[np.int64] | None = None,
        prior: Sequence[float] | Floats | None = None,
        histories: Mapping[str, NDArray[Any]] | None = None,
        clients: NDArray[np.int64] | None = None,
        columns: tuple[int, int] | None = None,
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
        self.histories = dict(histories or {})
        self.clients = np.arange(self.n) if clients is None else np.asarray(clients)
        self.columns = (0, self.d) if columns is None else columns
        first, whole = self.columns
        self._sections = [cut for cut in sections(whole) if first <= cut.start < first + self.d]
        if not self._sections or (self._sections[0].start, self._sections[-1].stop) != (first, first + self.d):
            raise ValueError(f"columns {first} … {first + self.d} of {whole} are no whole sections")
        starts = np.cumsum([0, *sizes])
        self._block = np.searchsorted(starts, self.order, side="right") - 1
        self._row = self.order - starts[self._block]
        self._anchors: dict[str, NDArray[Any]] = {}

    def subset(self, keep: NDArray[Any]) -> ClearUpdates:
        """The rows in `keep`, a mask (n,) or indices; priors are rescaled."""
        order, prior, clients = self.order[keep], self.prior[keep], self.clients[keep]
        return ClearUpdates(self.blocks, order, prior, self.histories, clients, self.columns)

    def finite_rows(self) -> NDArray[np.bool_]:
        """(n,) bool: whether a row can be aggregated: no NaN, no Inf, and a squared norm that float64 can hold."""
        return self.squares() <= LARGEST_SQUARE  # false for NaN, too

    def digests(self) -> list[str]:
        """(n,) a digest of each row: the SHA-256 of the digests of its sections."""
        return joined_digests(self.section_digests())

    def section_digests(self) -> list[list[bytes]]:
        """For each section of these columns, the SHA-256 of the bytes of each row (n,)."""
        first, found = self.columns[0], []
        for section in self._sections:
            columns, digests = slice(section.start - first, section.stop - first), []
            for block, row in zip(self._block, self._row, strict=True):
                own = self.blocks[block][row, columns]
                array = own if isinstance(own, np.ndarray) else own.cpu().numpy()
                digests.append(sha256(np.ascontiguousarray(array).data).digest())
            found.append(digests)
        return found

    def squares(self) -> Floats:
        """(n,) ‖u_i‖² of these columns; NaN or Inf for a row that is not finite."""
        return np.asarray(np.sum(self.section_squares(), axis=0))

    def section_squares(self) -> list[Floats]:
        """(n,) ‖u_i‖² of each section of these columns."""
        found = []
        for section in self._sections:
            squares = [chunks.row_squares(chunk) for _, chunk in self._chunks([section], np.arange(self.n))]
            found.append(np.sum(squares, axis=0))
        return found

    def gram(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> Gram:
        """The Gram of the rows, from `centred_products`; the bits do not depend on how the rows are split into blocks.

        anchors: name → (d,), public vectors.
        histories: names of histories; see `Updates.remembered`.

        Raises `ValueError` for an anchor of another length.
        """
        return assembled(self.products(anchors, histories), self.prior, list(anchors or {}), histories)

    def products(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> list[Floats]:
        """`centred_products` of each section of these columns; arguments and errors as for `gram`. `anchors` hold only
        these columns, `histories` are names.
        """
        self._anchors = {name: np.array(vector) for name, vector in (anchors or {}).items()}
        for name, vector in self._anchors.items():
            if vector.shape != (self.d,):
                raise ValueError(f"anchor '{name}' has the shape {vector.shape}, the updates have d = {self.d}")
        public, past = list(self._anchors.values()), [self.histories.get(name, NOTHING) for name in histories]
        everybody = np.arange(self.n)
        found = []
        for section in self._sections:
            lines = self._chunks([section], everybody, public, past, spare=1)
            found.append(chunks.centred_products((chunk for _, chunk in lines), self.n))
        return found

    def combine(self, combination: Combination) -> NDArray[np.float32]:
        """The aggregate (d,) float32 of a `combination`; its anchors are those of the last call of `gram`."""
        return chunks.single(self.weighted_sum(combination))

    def weighted_sum(self, combination: Combination) -> Any:
        """The aggregate (d,) of a `combination`, in the rows' own float32 or float64, on their device. Rows of weight 0
        are not read.
        """
        used = np.flatnonzero(combination.weights)
        anchors = {name: value for name, value in combination.anchors.items() if value != 0.0}
        result = chunks.empty(self.d, self.double, self.device)
        result[:] = 0.0
        if len(used) + len(anchors) == 0:
            return result
        weights = np.array([*combination.weights[used], *anchors.values()], dtype=np.float64)
        for columns, chunk in self._chunks(self._sections, used, [self._anchors[name] for name in anchors]):
            result[self._local(columns)] = chunks.combined(chunk, weights)
        return result

    def total(self, measure: Measure, mixing: Floats | None = None) -> NDArray[Any]:
        """The sum of `measure` over all chunks of the rows, or of `mixing` (m, n) @ rows; section by section, so that
        shards change no bit.
        """
        return np.asarray(np.sum(self.totals(measure, mixing), axis=0))

    def totals(self, measure: Measure, mixing: Floats | None = None) -> list[NDArray[Any]]:
        """The sum of `measure` over the chunks of each section of the rows, or of `mixing` (m, n) @ rows."""
        found = []
        for section in self._sections:
            figures = (measure(chunk, columns) for columns, chunk in self._mixed_rows(section, mixing))
            found += _summed(figures)
        return found

    def reduce(self, reduction: Reduction, mixing: Floats | None = None) -> NDArray[np.float32]:
        """The aggregate (d,) float32: `reduction` of each chunk of the rows, or of `mixing` (m, n) @ rows."""
        return chunks.single(self.reduced(reduction, mixing))

    def reduced(self, reduction: Reduction, mixing: Floats | None = None) -> Any:
        """The same as `reduce` for the same `reduction` and `mixing`, but in the rows' own float32 or float64, on their
        device.
        """
        result = chunks.empty(self.d, self.double, self.device)
        for section in self._sections:
            for columns, chunk in self._mixed_rows(section, mixing):
                result[self._local(columns)] = reduction(chunk, columns)
        return result

    def remembered(self, names: Sequence[str], factors: Floats | None = None) -> dict[str, NDArray[np.float32]]:
        """The histories (clients, d) after this round, as new arrays; clients without a row keep theirs.

        names: the histories, see `Updates.remembered`.
        factors: (n,) the `clip_factors` of the whole rows, where this object holds only some of their columns.
        """
        if "average" in names and factors is None:
            factors = clip_factors(self.squares())
        count = int(self.clients.max()) + 1
        grown = {}
        for name in names:
            old = self.histories.get(name, np.zeros((0, self.d), dtype=np.float32))
            grown[name] = np.zeros((max(count, len(old)), self.d), dtype=np.float32)
            grown[name][: len(old)] = old
        for columns, chunk in self._chunks(self._sections if names else [], np.arange(self.n)):
            local, rows = self._local(columns), chunks.host(chunk)
            for name, history in grown.items():
                new = _grown(name, history[self.clients, local], rows, factors)
                history[self.clients, local] = np.clip(new, -LARGEST_FLOAT, LARGEST_FLOAT)
        return grown

    @property
    def device(self) -> Any:
        """The device of the rows."""
        return getattr(self.blocks[0], "device", "cpu")

    @property
    def double(self) -> bool:
        """Whether any block is float64; the aggregate is float32 otherwise."""
        return any("float64" in str(block.dtype) for block in self.blocks)

    def _local(self, columns: slice) -> slice:
        return slice(columns.start - self.columns[0], columns.stop - self.columns[0])

    def _mixed_rows(self, section: slice, mixing: Floats | None) -> Iterator[tuple[slice, Any]]:
        """Chunks of the rows in float32 or float64, or of `mixing @ rows` in float64. Each chunk overwrites the last
        one.
        """
        double = self.double or mixing is not None
        for columns, chunk in self._chunks([section], np.arange(self.n), double=double):
            yield columns, chunk if mixing is None else chunks.mixed(chunk, mixing)

    def _chunks(
        self,
        cuts: Iterable[slice],
        used: NDArray[np.int64],
        anchors: Sequence[NDArray[Any]] = (),
        histories: Sequence[NDArray[Any]] = (),
        spare: int = 0,
        double: bool = True,
    ) -> Iterator[tuple[slice, Any]]:
        """Column chunks of the rows `used`, of anchors, histories and `spare` free lines, in one buffer that is used
        again.
        """
        count, n = len(used) + len(anchors) + len(histories) * self.n + spare, len(used)
        buffer = chunks.empty(0, double, self.device)
        for section in cuts:
            for columns in chunks_of(section, count, getattr(self.device, "type", self.device)):
                width, local = columns.stop - columns.start, self._local(columns)
                if len(buffer) < count * width:
                    buffer = chunks.empty(count * width, double, self.device)
                lines = buffer[: count * width].reshape(count, width)
                self._fill(lines[:n], used, local)
                for line, vector in enumerate(anchors, start=n):
                    chunks.copy(lines[line], vector[local])
                for place, rows in enumerate(histories):
                    first = n + len(anchors) + place * self.n
                    chunks.copy(lines[first : first + self.n], self._past(rows, local))
                yield columns, lines

    def _past(self, history: NDArray[Any], columns: slice) -> NDArray[np.float32]:
        """Columns of the history (n, w) of the rows' clients; zeros for new clients."""
        rows = np.zeros((self.n, columns.stop - columns.start), dtype=np.float32)
        known = self.clients < len(history)
        rows[known] = history[self.clients[known], columns] if known.any() else 0.0
        return rows

    def _fill(self, buffer: Any, used: NDArray[np.int64], columns: slice) -> None:
        """Copy the rows `used` into `buffer`, run by run of neighbouring rows."""
        block, row = self._block[used], self._row[used]
        breaks = np.flatnonzero((np.diff(block) != 0) | (np.diff(row) != 1)) + 1
        for first, last in zip([0, *breaks], [*breaks, len(used)], strict=True):
            source = self.blocks[block[first]][row[first] : row[first] + last - first, columns]
            chunks.copy(buffer[first:last], source)


def _grown(name: str, history: NDArray[Any], rows: Floats, factors: Floats | None) -> NDArray[Any]:
    """Columns of the history `name` (n, w) after a round with these rows."""
    if name == "average":
        assert factors is not None
        return np.asarray(FORGETTING * history + (1.0 - FORGETTING) * factors[:, None] * rows)
    return rows if name == "last" else np.asarray(history + rows)


def _detached(block: Any) -> Any:
    """A block without its gradient history; ValueError unless it is a floating (k, d) array or tensor."""
    if isinstance(block, np.ndarray):
        floating = np.issubdtype(block.dtype, np.floating)
    else:
        torch = sys.modules.get("torch")  # if there is a tensor, torch has been imported
        if torch is None or not isinstance(block, torch.Tensor):
            raise ValueError(f"updates must be an array or a tensor (n, d), found {type(block).__name__}")
        block, floating = block.detach(), block.is_floating_point()
    if block.ndim != 2 or not floating:
        raise ValueError(f"updates must be floating (n, d), found {block.dtype} {tuple(block.shape)}")
    return block


def _summed(figures: Iterable[NDArray[Any] | None]) -> list[NDArray[Any]]:
    """The sum as a list of one, or nothing where there are no figures."""
    found: list[NDArray[Any]] = []
    for figure in figures:
        if figure is not None:
            found = [figure if not found else found[0] + figure]
    return found


def joined_digests(sections: Sequence[Sequence[bytes]]) -> list[str]:
    """(n,) the digests of rows, from the digests of all their sections, whichever shards hold these.

    sections: for each section, the SHA-256 of the bytes of each row (n,).
    """
    return [sha256(b"".join(row)).hexdigest() for row in zip(*sections, strict=True)]
