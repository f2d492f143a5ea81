"""Updates in the clear: all rows are available, in one piece or in blocks, as NumPy arrays or torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedrobust.updates import chunks
from fedrobust.updates.blocks import detached, on_cpu, runs_of
from fedrobust.updates.gram import Combination, Floats, Gram, assembled
from fedrobust.updates.interface import FORGETTING, Measure, Updates, chunks_of, clip_factors, sections
from fedrobust.updates.sketch import sketched
from fedrobust.updates.threads import default_threads, each

if TYPE_CHECKING:
    from fedrobust.updates.interface import Reduction

R = TypeVar("R")

LITTLE = 1 << 20
"""Fewer values than this are read faster than threads are started."""
MUCH = 1 << 26
"""For so many values the system has time to find a core for each thread."""
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
    threads: how many threads share out the columns; by default OMP_NUM_THREADS, or the cores that may be used.
    in_place: whether `remembered` may overwrite `histories`, so that they need no more memory than before.
    columns: (first, whole) if these are the columns from `first` on of updates with `whole` coordinates; they must be
        whole `sections`. By default the updates are complete.

    Raises `ValueError` where blocks, priors or columns do not fit, and where there is no row or no column.
    """

    reveals = frozenset({"sum", "gram", "rows"})

    def __init__(
        self,
        blocks: Sequence[Any],
        order: Sequence[int] | NDArray[np.int64] | None = None,
        prior: Sequence[float] | Floats | None = None,
        histories: Mapping[str, NDArray[Any]] | None = None,
        clients: NDArray[np.int64] | None = None,
        columns: tuple[int, int] | None = None,
        threads: int | None = None,
        in_place: bool = False,
    ) -> None:
        self.blocks = [detached(block) for block in blocks]
        widths = {block.shape[1] for block in self.blocks}
        if len(widths) != 1:
            raise ValueError(f"blocks must have the same number of columns, found {sorted(widths)}")
        if len({str(getattr(block, "device", "cpu")) for block in self.blocks}) > 1:
            raise ValueError("blocks must lie on one device")
        self.d: int = widths.pop()
        self.device: Any = next((block.device for block in self.blocks if not on_cpu(block)), "cpu")
        """The device of the rows: "cpu", or a GPU's."""
        self.double = any("float64" in str(block.dtype) for block in self.blocks)
        """Whether any block is float64; the aggregate is float32 otherwise."""
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
        self._sketch: tuple[int, int] | None = None
        self._threads, self._in_place = threads or default_threads(), in_place

    def subset(self, keep: NDArray[Any]) -> ClearUpdates:
        """The rows in `keep`, a mask (n,) or indices; priors are rescaled."""
        order, prior, clients = self.order[keep], self.prior[keep], self.clients[keep]
        return ClearUpdates(
            self.blocks, order, prior, self.histories, clients, self.columns, self._threads, self._in_place
        )

    def sketched(self, columns: int, seed: int) -> ClearUpdates:
        """The same rows, whose Gram is that of their sketches; see `updates.sketch`. On a GPU it stays exact.

        columns: of the sketch. If the rows have no more, the Gram stays exact.
        seed: of the sketch.
        """
        found = self.subset(np.arange(self.n))
        if self.device == "cpu" and columns < self.d:
            found._sketch = columns, seed
        return found

    def finite_rows(self) -> NDArray[np.bool_]:
        """(n,) bool: whether a row can be aggregated: no NaN, no Inf, and a squared norm that float64 can hold."""
        return self.squares() <= LARGEST_SQUARE  # false for NaN, too

    def digests(self) -> list[str]:
        """(n,) a digest of each row: the SHA-256 of the digests of its sections."""
        return joined_digests(self.section_digests())

    def section_digests(self) -> list[list[bytes]]:
        """For each section of these columns, the SHA-256 of the bytes of each row (n,)."""

        def digests(section: slice) -> list[bytes]:
            columns, found = self._local(section), []
            for block, row in zip(self._block, self._row, strict=True):
                own = self.blocks[block][row, columns]
                array = own if isinstance(own, np.ndarray) else own.cpu().numpy()
                found.append(sha256(np.ascontiguousarray(array).data).digest())
            return found

        return self._each(digests)

    def squares(self) -> Floats:
        """(n,) ‖u_i‖² of these columns; NaN or Inf for a row that is not finite."""
        return np.asarray(np.sum(self.section_squares(), axis=0))

    def section_squares(self) -> list[Floats]:
        """(n,) ‖u_i‖² of each section of these columns."""

        runs = list(runs_of(self._block, self._row))  # whose order does not matter here

        def squares(section: slice) -> Floats:
            found = np.empty(self.n)
            for block, first, count, start, step in runs:
                rows = self.blocks[block][first : first + count, self._local(section)]
                found[start : start + (count - 1) * step + 1 : step] = chunks.row_squares(rows)
            return found

        return self._each(squares)

    def norms(self, anchors: Mapping[str, np.ndarray] | None = None) -> Gram:
        """Norms and products with anchors in one pass; see `Updates.norms`. In float32 to 1e-6."""
        return Gram.of_norms(np.sum(self.section_norms(anchors), axis=0), self.prior, list(anchors or {}))

    def section_norms(self, anchors: Mapping[str, np.ndarray] | None = None) -> list[Floats]:
        """`norm_figures` of each section of these columns; `anchors` hold only these columns."""
        self._hold(anchors)
        rows_of = self._rows(np.arange(self.n))

        def measured(section: slice) -> Floats:
            found = [
                chunks.norm_figures(rows, [vector[self._local(columns)] for vector in self._anchors.values()])
                for columns, rows in rows_of(section)
            ]
            return np.asarray(sum(found))

        return self._each(measured)

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
        self._hold(anchors)
        if self._sketch is not None:
            return self._sketched_products(histories)
        public, past = list(self._anchors.values()), [self.histories.get(name, NOTHING) for name in histories]
        everybody = np.arange(self.n)

        def multiplied(section: slice) -> Floats:
            lines = self._chunks(section, everybody, public, past, spare=chunks.SPARE)
            return chunks.centred_products((chunk for _, chunk in lines), self.n)

        return self._each(multiplied)

    def _sketched_products(self, histories: Sequence[str]) -> list[Floats]:
        """The `centred_products` of the columns of the lines' sketches, some at a time."""
        assert self._sketch is not None
        lines = [self.blocks[block][row] for block, row in zip(self._block, self._row, strict=True)]
        lines += self._anchors.values()
        for name in histories:
            lines += list(self._past(self.histories.get(name, NOTHING), slice(0, self.d)))
        short = sketched(lines, *self._sketch, self._threads)

        def multiplied(start: int) -> Floats:
            part = short[:, start : start + chunks.BLOCK]
            return chunks.centred_products([np.pad(part, ((0, chunks.SPARE), (0, 0)))], self.n)

        return each(multiplied, range(0, short.shape[1], chunks.BLOCK), self._threads)

    def combine(self, combination: Combination) -> NDArray[np.float32]:
        """The aggregate (d,) float32 of a `combination`; its anchors are those of the last call of `gram` or
        `norms`."""
        return chunks.single(self.weighted_sum(combination))

    def weighted_sum(self, combination: Combination) -> Any:
        """The aggregate (d,) of a `combination`, in the rows' own float32 or float64, on their device. Rows of weight 0
        are not read.
        """
        used = np.flatnonzero(combination.weights)
        rows_of = self._rows(used)
        weights = chunks.Coefficients.of(combination.weights[used])
        anchors = [(value, self._anchors[name]) for name, value in combination.anchors.items() if value != 0.0]
        result = chunks.empty(self.d, self.double, self.device)

        def add(section: slice) -> None:
            for columns, rows in rows_of(section):
                local = self._local(columns)
                if not anchors:
                    chunks.add_up(rows, weights, result[local])
                    continue
                total = chunks.add_up(rows, weights)
                for value, vector in anchors:
                    total = chunks.double(total) + chunks.like(chunks.double(total), value * vector[local])
                result[local] = total

        self._each(add)
        return result

    def total(self, measure: Measure, mixing: Floats | None = None) -> NDArray[Any]:
        """The sum of `measure` over all chunks of the rows, or of `mixing` (m, n) @ rows; section by section, so that
        shards change no bit.
        """
        return np.asarray(np.sum(self.totals(measure, mixing), axis=0))

    def totals(self, measure: Measure, mixing: Floats | None = None) -> list[NDArray[Any]]:
        """The sum of `measure` over the chunks of each section of the rows, or of `mixing` (m, n) @ rows."""

        def measured(section: slice) -> list[NDArray[Any]]:
            return _summed(measure(chunk, columns) for columns, chunk in self._mixed_rows(section, mixing))

        return [figure for figures in self._each(measured) for figure in figures]

    def reduce(self, reduction: Reduction, mixing: Floats | None = None) -> NDArray[np.float32]:
        """The aggregate (d,) float32: `reduction` of each chunk of the rows, or of `mixing` (m, n) @ rows."""
        return chunks.single(self.reduced(reduction, mixing))

    def reduced(self, reduction: Reduction, mixing: Floats | None = None) -> Any:
        """The same as `reduce` for the same `reduction` and `mixing`, but in the rows' own float32 or float64, on their
        device.
        """
        result = chunks.empty(self.d, self.double, self.device)

        def reduce(section: slice) -> None:
            for columns, chunk in self._mixed_rows(section, mixing):
                result[self._local(columns)] = reduction(chunk, columns)

        self._each(reduce)
        return result

    def remembered(self, names: Sequence[str], factors: Floats | None = None) -> dict[str, NDArray[np.float32]]:
        """The histories (clients, d) after this round, as new arrays, unless `in_place`; clients without a row keep
        theirs.

        names: the histories, see `Updates.remembered`.
        factors: (n,) the `clip_factors` of the whole rows, where this object holds only some of their columns.
        """
        if "average" in names and factors is None:
            factors = clip_factors(self.squares())
        grown = {name: self._grown(self.histories.get(name, np.zeros((0, self.d), dtype=np.float32))) for name in names}

        def renew(section: slice) -> None:
            for columns, chunk in self._chunks(section, np.arange(self.n)):
                local, rows = self._local(columns), chunks.host(chunk)
                for name, history in grown.items():
                    new = _renewed(name, history[self.clients, local], rows, factors)
                    history[self.clients, local] = np.clip(new, -LARGEST_FLOAT, LARGEST_FLOAT)

        if names:
            self._each(renew)
        return grown

    def _grown(self, history: NDArray[Any]) -> NDArray[np.float32]:
        """A history with a row for every client of this round."""
        count = max(int(self.clients.max()) + 1, len(history))
        if self._in_place and len(history) == count and history.flags.writeable and history.dtype == np.float32:
            return history
        grown = np.zeros((count, self.d), dtype=np.float32)
        grown[: len(history)] = history
        return grown

    def _local(self, columns: slice) -> slice:
        return slice(columns.start - self.columns[0], columns.stop - self.columns[0])

    def _hold(self, anchors: Mapping[str, np.ndarray] | None) -> None:
        """Keep the anchors for `combine`. Raises `ValueError` for one of another length."""
        self._anchors = {name: np.array(vector) for name, vector in (anchors or {}).items()}
        for name, vector in self._anchors.items():
            if vector.shape != (self.d,):
                raise ValueError(f"anchor '{name}' has the shape {vector.shape}, the updates have d = {self.d}")

    def _each(self, work: Callable[[slice], R]) -> list[R]:
        """The results of `work` for each section: shared out among threads, unless it is little, or a GPU's."""
        little = self.n * self.d < LITTLE or self.device != "cpu"
        return each(work, self._sections, 1 if little else self._threads, short=self.n * self.d < MUCH)

    def _rows(self, used: NDArray[np.int64]) -> Callable[[slice], Iterable[tuple[slice, Any]]]:
        """Section → chunks of the rows `used`, to be read only: the block's own columns where they lie there one by
        one.
        """
        block, row = self._block[used], self._row[used]
        wanted = np.dtype(np.float64 if self.double else np.float32)
        if len(used) and (block == block[0]).all() and (np.diff(row) == 1).all():
            own = self.blocks[block[0]][row[0] : row[0] + len(used)]
            if own.dtype == wanted and own.strides[1] == wanted.itemsize:
                return lambda section: [(section, own[:, self._local(section)])]
        return partial(self._chunks, used=used, double=self.double)

    def _mixed_rows(self, section: slice, mixing: Floats | None) -> Iterator[tuple[slice, Any]]:
        """Chunks of the rows in float32 or float64, or of `mixing @ rows` in float64. Each chunk overwrites the last
        one.
        """
        double = self.double or mixing is not None
        for columns, chunk in self._chunks(section, np.arange(self.n), double=double):
            yield columns, chunk if mixing is None else chunks.mixed(chunk, mixing)

    def _chunks(
        self,
        section: slice,
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
        runs = list(runs_of(self._block[used], self._row[used]))
        buffer: Any = None
        for columns in chunks_of(section, count, "cpu" if self.device == "cpu" else "cuda"):
            width, local = columns.stop - columns.start, self._local(columns)
            if buffer is None or buffer.shape[1] != width:
                buffer = chunks.empty((count, width), double, self.device)
            lines = buffer
            for block, first, rows, start, step in runs:
                source = self.blocks[block][first : first + rows, local]
                chunks.copy(lines[start : start + (rows - 1) * step + 1 : step], source)
            for line, vector in enumerate(anchors, start=n):
                chunks.copy(lines[line], vector[local])
            for place, history in enumerate(histories):
                first = n + len(anchors) + place * self.n
                chunks.copy(lines[first : first + self.n], self._past(history, local))
            yield columns, lines

    def _past(self, history: NDArray[Any], columns: slice) -> NDArray[np.float32]:
        """Columns of the history (n, w) of the rows' clients; zeros for new clients."""
        rows = np.zeros((self.n, columns.stop - columns.start), dtype=np.float32)
        known = self.clients < len(history)
        rows[known] = history[self.clients[known], columns] if known.any() else 0.0
        return rows


def _renewed(name: str, history: NDArray[Any], rows: Floats, factors: Floats | None) -> NDArray[Any]:
    """Columns of the history `name` (n, w) after a round with these rows."""
    if name == "average":
        assert factors is not None
        return np.asarray(FORGETTING * history + (1.0 - FORGETTING) * factors[:, None] * rows)
    return rows if name == "last" else np.asarray(history + rows)


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
