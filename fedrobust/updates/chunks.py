"""Arithmetic on chunks of columns: by NumPy, or by torch for updates on a GPU. Both agree up to rounding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.updates.gram import Floats

Chunk = Any
"""(m, w), or one row (w,), float32 or float64: a NumPy array, or a torch tensor on a GPU."""
BLOCK = 1000
"""Columns of one product. Not a power of two: rows at such distances would push each other out of a core's cache."""
GPU_BLOCK = 128
"""The same on a GPU, where all blocks of a chunk are multiplied at once."""
FEW = 128
"""Up to so many lines, products are made of `TILE` lines at a time: BLAS is faster on small matrices than on narrow
ones."""
TILE = 24
TOGETHER = 12
"""Rows of float32 that are added up at a time."""
GROUPS = 4
"""So many of these sums are added up in float32 as well, more of them in float64. So a weighted sum is exact to
(`TOGETHER` + `GROUPS`) 2⁻²⁴ Σ |w_i u_ik|, less than a millionth."""
SAFE = 1e-25, 1e25
"""Sizes of numbers that can be multiplied in float32 without being lost. Others are multiplied in float64."""


def empty(count: int, double: bool, device: Any = "cpu") -> Chunk:
    """An uninitialised array (count,), float64 if `double`, else float32; a tensor if `device` is a GPU."""
    if str(device) == "cpu":
        return np.empty(count, dtype=np.float64 if double else np.float32)
    import torch

    return torch.empty(count, dtype=torch.float64 if double else torch.float32, device=device)


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
    whole = chunk.shape[1] // BLOCK * BLOCK
    blocks, rest = chunk[:, :whole].reshape(len(chunk), -1, BLOCK), chunk[:, whole:]
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.column_stack([np.vecdot(blocks, blocks), np.vecdot(rest, rest)])
        squares: Floats = sums.sum(axis=1, dtype=np.float64)
        if chunk.dtype == np.float32:
            unsafe = ~((squares >= SAFE[0]) & (squares <= SAFE[1]))
            if unsafe.any():  # zeros, too
                squares[unsafe] = np.square(chunk[unsafe], dtype=np.float64).sum(axis=1)
    return squares


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


def combined(chunk: Chunk, weights: Floats) -> Chunk:
    """Σ w_i u_i (w,) of the rows of `chunk` (m, w) with `weights` (m,), float32 or float64; see `GROUPS`."""
    if not isinstance(chunk, np.ndarray):
        import torch

        return torch.mv(chunk.double().T, torch.tensor(weights, dtype=torch.float64).to(chunk.device))
    if chunk.dtype == np.float32 and _safe(weights):
        with np.errstate(over="ignore", invalid="ignore"):
            total = _added(chunk, weights.astype(np.float32))
        if finite(total):
            return total
    with np.errstate(over="ignore", invalid="ignore"):
        return _added(chunk.astype(np.float64, copy=False), weights)


def _safe(values: Floats) -> bool:
    sizes = np.abs(values[values != 0.0])
    return not len(sizes) or bool(SAFE[0] <= sizes.min() and sizes.max() <= SAFE[1])


def _added(chunk: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    groups = _groups(len(chunk), TOGETHER)
    parts = np.empty((len(groups), chunk.shape[1]), dtype=chunk.dtype)
    for (first, last), part in zip(groups, parts, strict=True):
        np.dot(weights[first:last], chunk[first:last], out=part)
    if len(groups) <= GROUPS:
        return np.asarray(np.ones(len(groups), dtype=chunk.dtype) @ parts)
    return np.asarray(parts.sum(axis=0, dtype=np.float64))


@lru_cache(maxsize=256)
def _groups(count: int, most: int) -> list[tuple[int, int]]:
    """(first, last + 1) of groups of at most `most`, as even as possible."""
    edges = np.linspace(0, count, -(-count // most) + 1).astype(int).tolist()
    return list(pairwise(edges))


def mixed(chunk: Chunk, mixing: Floats) -> Chunk:
    """The rows `mixing` (k, m) @ `chunk` (m, w): (k, w)."""
    if isinstance(chunk, np.ndarray):
        return mixing @ chunk
    import torch

    return torch.mm(torch.tensor(mixing, device=chunk.device), chunk)


def centred_products(chunks: Iterable[Chunk], n: int) -> Floats:
    """The products (N + 1, N + 1) of N centred lines and their reference, summed over chunks of columns.

    chunks: chunks (N + 2, w) float64, which are overwritten. The lines are the n updates, then anchors and histories;
        the last but one is free, and gets the chunk's reference; the last one only makes room.
    n: number of updates.

    The reference of a chunk is the update of (lower) median norm. At least half of the updates are no smaller, so a few
    huge updates cannot cost the others their digits. Products are made and added up in float64, block by block and
    chunk by chunk, so the bits depend only on the values and on how the columns are cut.
    """
    sums: Any = 0.0
    for chunk in chunks:
        if isinstance(chunk, np.ndarray):
            with np.errstate(over="ignore", invalid="ignore"):  # not finite: the caller looks at the diagonal
                norms = np.vecdot(chunk[:n], chunk[:n])
                chunk[-2] = chunk[np.argsort(norms, kind="stable")[(n - 1) // 2]]
                chunk[:-2] -= chunk[-2]
                sums = _products(chunk) + sums
        else:
            sums = _gpu_products(chunk, n) + sums
    return host(sums)


def _products(chunk: NDArray[np.float64]) -> Floats:
    """The products of all lines of `chunk` but the last one: few calls for many blocks, as each call waits for Python's
    lock."""
    lines, width = len(chunk) - 1, chunk.shape[1]
    whole = width // BLOCK * BLOCK
    blocks = chunk[:, :whole].reshape(len(chunk), -1, BLOCK).transpose(1, 0, 2)
    rest = chunk[None, :, whole:]
    tiles = _groups(lines, TILE) if lines <= FEW else [(0, lines)]
    sums = np.zeros((lines, lines))
    for place, (first, last) in enumerate(tiles):
        for left, right in tiles[place:]:
            # Few lines by themselves with a line too many: NumPy has another routine for a matrix with itself, which is
            # slower for few lines.
            more = right + (left == first and lines <= FEW)
            for part in (blocks, rest):
                tile = part[:, first:last] @ part[:, left:more].transpose(0, 2, 1)
                sums[first:last, left:right] += tile.sum(axis=0)[:, : right - left]
            sums[left:right, first:last] = sums[first:last, left:right].T
    return sums


def _gpu_products(chunk: Any, n: int) -> Any:
    import torch

    lines = chunk[:-1]
    whole = torch.nn.functional.pad(lines, (0, -lines.shape[1] % GPU_BLOCK)) if lines.shape[1] % GPU_BLOCK else lines
    blocks = whole.view(len(whole), -1, GPU_BLOCK)
    norms = torch.linalg.vector_norm(torch.linalg.vector_norm(blocks[:n], dim=2), dim=1)
    middle = torch.argsort(norms, stable=True)[(n - 1) // 2]
    whole[-1] = whole.index_select(0, middle.reshape(1))[0]
    whole[:-1] -= whole[-1]
    blocks = blocks.transpose(0, 1)
    return torch.bmm(blocks, blocks.transpose(1, 2)).sum(dim=0)
