"""Arithmetic on chunks of columns: by NumPy, or by torch for updates on a GPU. Both agree up to rounding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.updates.gram import Floats

Chunk = Any
"""(m, w), or one row (w,), float32 or float64: a NumPy array, or a torch tensor on a GPU."""
BLOCK = 1024
"""Columns of one product."""
LINE = 64
"""Bytes of a line of a core's cache. A row of a chunk starts with a line, and at least one is between two rows: rows at
a power of two from each other would push each other out of the cache."""
GPU_BLOCK = 128
"""The same on a GPU, where all blocks of a chunk are multiplied at once."""
FEW = 128
"""Up to so many lines, products are made of `TILE` lines at a time: BLAS is fastest on small matrices, and half of the
products are known by symmetry."""
TILE = 12
SPARE = 2
"""Lines of a chunk behind the last one that counts."""
ROUNDINGS = 15
"""A sum in float32 is made of groups of rows, so that no value is rounded more often: once with its weight, once for
each row of its group, and once for each other group. With the last rounding it is exact to 16 · 2⁻²⁴ Σ |w_i u_ik|, less
than a millionth."""
TOGETHER = 56
"""The most rows that can be added up like this. Sums of so many are added up in float64."""
SAFE = 1e-25, 1e25
"""Sizes of numbers that can be multiplied in float32 without being lost. Others are multiplied in float64."""


def empty(shape: int | tuple[int, int], double: bool, device: Any = "cpu") -> Chunk:
    """An uninitialised array, float64 if `double`, else float32; a tensor if `device` is a GPU. Rows start
    with a `LINE`."""
    if str(device) == "cpu":
        kind = np.dtype(np.float64 if double else np.float32)
        if isinstance(shape, int):
            return np.empty(shape, dtype=kind)
        line = (shape[1] * kind.itemsize // LINE + 2) * LINE
        memory = np.empty(shape[0] * line + LINE, dtype=np.uint8)
        start = -memory.ctypes.data % LINE
        rows = memory[start : start + shape[0] * line].view(kind).reshape(shape[0], line // kind.itemsize)
        return rows[:, : shape[1]]
    import torch

    return torch.empty(shape, dtype=torch.float64 if double else torch.float32, device=device)


def copy(chunk: Chunk, source: Any) -> None:
    """Copy `source`, an array or a tensor of the same shape, into `chunk`."""
    if isinstance(chunk, np.ndarray):
        np.copyto(chunk, source if isinstance(source, np.ndarray) else source.float().numpy())
        return
    import torch

    chunk.copy_(torch.as_tensor(source))


def host(chunk: Chunk) -> NDArray[Any]:
    """`chunk` as a NumPy array."""
    found: NDArray[Any] = chunk if isinstance(chunk, np.ndarray) else chunk.cpu().numpy()
    return found


def single(chunk: Chunk) -> NDArray[np.float32]:
    """`chunk` as a NumPy array of float32."""
    with np.errstate(over="ignore"):
        return host(chunk if isinstance(chunk, np.ndarray) else chunk.float()).astype(np.float32, copy=False)


def finite(chunk: Chunk) -> bool:
    """Whether no value of `chunk` is NaN or Inf."""
    if not isinstance(chunk, np.ndarray):
        return bool(chunk.isfinite().all())
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(chunk @ chunk) or np.isfinite(chunk).all())


def like(chunk: Chunk, values: NDArray[Any]) -> Chunk:
    """`values` as a chunk of the type and on the device of `chunk`."""
    return values.astype(chunk.dtype) if isinstance(chunk, np.ndarray) else chunk.new_tensor(values)


def double(chunk: Chunk) -> Chunk:
    """`chunk` in float64."""
    return chunk.astype(np.float64, copy=False) if isinstance(chunk, np.ndarray) else chunk.double()


def sign(chunk: Chunk) -> Chunk:
    """−1, 0 or 1 for each value of `chunk`."""
    return np.sign(chunk) if isinstance(chunk, np.ndarray) else chunk.sign()


def sqrt(chunk: Chunk) -> Chunk:
    """The square root of each value of `chunk`."""
    return np.sqrt(chunk) if isinstance(chunk, np.ndarray) else chunk.sqrt()


def where(condition: Chunk, yes: Chunk | float, no: Chunk | float) -> Chunk:
    """`yes` where the condition holds, else `no`."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    import torch

    return torch.where(condition, yes, no)


def filled(chunk: Chunk, value: float) -> Chunk:
    """A chunk of the shape and type of `chunk`, in which every element is `value`."""
    if isinstance(chunk, np.ndarray):
        return np.full_like(chunk, value)
    import torch

    return torch.full_like(chunk, value)


def total(chunk: Chunk, axis: int) -> Chunk:
    """The sum of `chunk` along an axis, in float64."""
    if isinstance(chunk, np.ndarray):
        return chunk.sum(axis, dtype=np.float64)
    import torch

    return chunk.sum(axis, dtype=torch.float64)


def magnitudes(chunk: Chunk) -> Chunk:
    """The bits of |x| in float32 as int32, for each value x of `chunk`. They have the order of |x|."""
    if isinstance(chunk, np.ndarray):
        return np.abs(single(chunk)).view(np.int32)
    import torch

    return chunk.float().abs().view(torch.int32)


def row_squares(chunk: Chunk) -> Floats:
    """‖u_i‖² (m,) in float64 of each row of `chunk` (m, w), to 1e-6 in float32. Blocks are added up in float64."""
    if not isinstance(chunk, np.ndarray):
        import torch

        return host(torch.linalg.vector_norm(chunk, dim=1, dtype=torch.float64).square_())
    if chunk.dtype == np.float16:
        chunk = chunk.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        squares: Floats = sum(np.vecdot(part, part).sum(axis=1, dtype=np.float64) for part in _blocks(chunk))
        if chunk.dtype == np.float32 and not (SAFE[0] <= squares.min() and squares.max() <= SAFE[1]):
            unsafe = ~((squares >= SAFE[0]) & (squares <= SAFE[1]))  # zeros, too
            squares[unsafe] = np.square(chunk[unsafe], dtype=np.float64).sum(axis=1)
    return squares


def _blocks(chunk: NDArray[Any]) -> list[NDArray[Any]]:
    """`chunk` (m, w) as blocks (m, k, `BLOCK`), and its last columns (m, 1, w mod `BLOCK`), if there are any."""
    whole = chunk.shape[1] // BLOCK * BLOCK
    parts = [chunk[:, :whole].reshape(len(chunk), -1, BLOCK), chunk[:, None, whole:]]
    return [part for part in parts if part.size]


def norm_figures(chunk: Chunk, anchors: Sequence[NDArray[Any]]) -> Floats:
    """Squares and products of the rows of `chunk` (m, w) with `anchors` (w,): (m + 1, 1 + 2A) float64.

    Row i holds ‖u_i‖², then ⟨u_i, v⟩ and ‖u_i − v‖² for each anchor v; the last row 0, then ‖v‖² and 0.
    """
    found = np.zeros((len(chunk) + 1, 1 + 2 * len(anchors)))
    found[:-1, 0] = row_squares(chunk)
    for place, vector in enumerate(anchors):
        line = like(chunk, vector)
        found[:-1, 1 + 2 * place] = _products_with(chunk, line)
        found[:-1, 2 + 2 * place] = row_squares(chunk - line)
        found[-1, 1 + 2 * place] = _products_with(line[None], line)[0]
    return found


def _products_with(chunk: Chunk, line: Chunk) -> Floats:
    """⟨u_i, v⟩ (m,) of the rows of `chunk` (m, w) and `line` v (w,). In float64: rules look at its sign."""
    return np.asarray(host(double(chunk) @ double(line)))


@dataclass(frozen=True, eq=False)
class Coefficients:
    """What a sum of rows multiplies them with.

    exact: (m,) float64.
    single: the same in float32; None if one of them is too small or too large for it.
    """

    exact: Floats
    single: NDArray[np.float32] | None

    @classmethod
    def of(cls, weights: Floats) -> Coefficients:
        """`weights` (m,), ready for many chunks."""
        sizes = np.abs(weights[weights != 0.0])
        safe = not len(sizes) or (SAFE[0] <= sizes.min() and sizes.max() <= SAFE[1])
        return cls(weights, weights.astype(np.float32) if safe else None)


def combined(chunk: Chunk, weights: Floats) -> Chunk:
    """Σ w_i u_i (w,) float64 of the rows of `chunk` (m, w) with `weights` (m,)."""
    if isinstance(chunk, np.ndarray):
        return weights @ chunk.astype(np.float64, copy=False)
    import torch

    return torch.mv(chunk.double().T, torch.tensor(weights, dtype=torch.float64).to(chunk.device))


def add_up(chunk: Chunk, weights: Coefficients, out: Chunk | None = None) -> Chunk:
    """The same in float32 where that is exact to a millionth, see `ROUNDINGS`; in float64 for rows of float64.

    out: an array (w,) float32 or float64 to write it to.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if weights.single is not None and isinstance(chunk, np.ndarray) and chunk.dtype == np.float32:
            total = _added(chunk, weights.single, out)
            if np.isfinite(total @ total) or np.isfinite(total).all():
                return total
        total = combined(chunk, weights.exact)
        if out is None:
            return total
        out[...] = total
        return out


def _added(chunk: NDArray[np.float32], weights: NDArray[np.float32], out: Chunk | None = None) -> NDArray[Any]:
    """Σ w_i u_i (w,) in float32; of more than `TOGETHER` rows in float64."""
    if len(chunk) > TOGETHER:
        total = np.zeros(chunk.shape[1])
        for first, last in _groups(len(chunk), -(-len(chunk) // TOGETHER)):
            total += _added(chunk[first:last], weights[first:last])
        if out is None:
            return np.asarray(total)
        out[...] = total
        return np.asarray(out)
    if chunk.shape[1] == 1:  # NumPy has several routines for it; with which one may depend on where the rows lie
        chunk = np.ascontiguousarray(chunk)
    groups = _groups(len(chunk), _fewest(len(chunk)))
    if len(groups) == 1:
        return np.asarray(np.matmul(weights, chunk, out=out))
    parts = np.empty((len(groups), chunk.shape[1]), dtype=np.float32)
    for (first, last), part in zip(groups, parts, strict=True):
        np.matmul(weights[first:last], chunk[first:last], out=part)
    return np.asarray(np.matmul(np.ones(len(groups), dtype=np.float32), parts, out=out))


@lru_cache(maxsize=256)
def _fewest(count: int) -> int:
    """The least number of groups of `count` rows, see `ROUNDINGS`."""
    return next(groups for groups in range(1, 9) if -(-count // groups) + groups <= ROUNDINGS)


@lru_cache(maxsize=256)
def _groups(count: int, groups: int) -> list[tuple[int, int]]:
    """(first, last + 1) of so many groups, as even as possible."""
    edges = np.linspace(0, count, groups + 1).astype(int).tolist()
    return list(pairwise(edges))


def mixed(chunk: Chunk, mixing: Floats) -> Chunk:
    """The rows `mixing` (k, m) @ `chunk` (m, w): (k, w)."""
    if isinstance(chunk, np.ndarray):
        return mixing @ chunk
    import torch

    return torch.mm(torch.tensor(mixing, device=chunk.device), chunk)


def centred_products(chunks: Iterable[Chunk], n: int) -> Floats:
    """The products (N + 1, N + 1) of N centred lines and their reference, summed over chunks of columns.

    chunks: chunks (N + `SPARE`, w) float64, which are overwritten. The lines are the n updates, then anchors and
        histories; the others only make room.
    n: number of updates.

    The reference of a chunk is the update of (lower) median norm. At least half of the updates are no smaller, so a few
    huge updates cannot cost the others their digits. Products are made and added up in float64, block by block and
    chunk by chunk, so the bits depend only on the values and on how the columns are cut.
    """
    sums: Any = 0.0
    for chunk in chunks:
        if isinstance(chunk, np.ndarray):
            with np.errstate(over="ignore", invalid="ignore"):  # not finite: the caller looks at the diagonal
                norms, lines = np.vecdot(chunk[:n], chunk[:n]), len(chunk) - SPARE
                middle = int(np.argsort(norms, kind="stable")[(n - 1) // 2])
                chunk[:middle] -= chunk[middle]
                chunk[middle + 1 : lines] -= chunk[middle]
                sums = _with_reference(_products(chunk, lines), middle) + sums
        else:
            sums = _gpu_products(chunk, n) + sums
    return host(sums)


def _with_reference(products: Floats, middle: int) -> Floats:
    """The products (N + 1, N + 1) of lines of which one is the reference itself, centred and as the last line."""
    lines = len(products)
    found = np.zeros((lines + 1, lines + 1))
    found[:lines, :lines] = products
    found[lines, :lines] = found[:lines, lines] = products[middle]
    found[lines, lines] = products[middle, middle]
    found[middle] = found[:, middle] = 0.0
    return found


def _products(chunk: NDArray[np.float64], lines: int) -> Floats:
    """The products (lines, lines) of the first lines of `chunk`: few calls for many blocks, as each call waits for
    Python's lock.
    """
    if lines > FEW:
        parts = [part[:lines].transpose(1, 0, 2) for part in _blocks(chunk)]
        return np.asarray(sum((part @ part.transpose(0, 2, 1)).sum(axis=0) for part in parts))
    edges = [*range(0, TILE * max(1, round(lines / TILE)), TILE), lines]
    cuts, sums = [slice(*ends) for ends in pairwise(edges)], np.zeros((lines, lines + 1))
    for part in _blocks(chunk):
        blocks = part.transpose(1, 0, 2)
        found = np.zeros((len(blocks), lines, lines + 1))
        for place, own in enumerate(cuts):
            # From one line further on: NumPy has another routine for a matrix with itself, slower for so few lines.
            for other in (slice(own.start + 1, own.stop + 1), *cuts[place + 1 :]):
                np.matmul(blocks[:, own], blocks[:, other].transpose(0, 2, 1), out=found[:, own, other])
        sums += found.sum(axis=0)
    products, first = np.triu(sums[:, :-1]), edges[:-1]
    products[first, first] = np.vecdot(chunk[first], chunk[first])
    return np.asarray(products + np.triu(products, 1).T)


def _gpu_products(chunk: Any, n: int) -> Any:
    import torch

    lines = chunk[: 1 - SPARE]
    whole = torch.nn.functional.pad(lines, (0, -lines.shape[1] % GPU_BLOCK)) if lines.shape[1] % GPU_BLOCK else lines
    blocks = whole.view(len(whole), -1, GPU_BLOCK)
    norms = torch.linalg.vector_norm(torch.linalg.vector_norm(blocks[:n], dim=2), dim=1)
    middle = torch.argsort(norms, stable=True)[(n - 1) // 2]
    whole[-1] = whole.index_select(0, middle.reshape(1))[0]
    whole[:-1] -= whole[-1]
    blocks = blocks.transpose(0, 1)
    return torch.bmm(blocks, blocks.transpose(1, 2)).sum(dim=0)
