"""Arithmetic on chunks of columns: by torch, or by NumPy where torch is not installed. Both agree up to rounding.

If torch is installed, a chunk is a torch tensor (m, w), whatever type the updates have; otherwise it is a NumPy array.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.updates.gram import Floats

Chunk = Any
"""(m, w), or one row (w,): a torch tensor or a NumPy array, float32 or float64."""
BLOCK = 128
"""Columns of one product within a chunk: few enough that BLAS does not split a sum among its threads."""
WITH_TORCH = find_spec("torch") is not None
"""Whether chunks are torch tensors."""


def empty(count: int, double: bool, device: Any) -> Chunk:
    """An uninitialised array (count,), float64 if `double`, else float32; with torch on `device`."""
    if not WITH_TORCH:
        return np.empty(count, dtype=np.float64 if double else np.float32)
    import torch

    return torch.empty(count, dtype=torch.float64 if double else torch.float32, device=device)


def of(array: NDArray[Any]) -> Chunk:
    """A chunk that shares the memory of `array`."""
    if not WITH_TORCH:
        return array
    import torch

    return torch.from_numpy(array)


def copy(chunk: Chunk, source: Any) -> None:
    """Copy `source`, an array or a tensor of the same shape, into `chunk`."""
    if isinstance(chunk, np.ndarray):
        np.copyto(chunk, source)
    elif isinstance(source, np.ndarray) and chunk.device.type == "cpu":  # by NumPy: torch warns of read-only arrays
        np.copyto(chunk.numpy(), source)
    else:
        import torch

        chunk.copy_(torch.as_tensor(source))


def host(chunk: Chunk) -> NDArray[Any]:
    """`chunk` as a NumPy array."""
    found: NDArray[Any] = chunk if isinstance(chunk, np.ndarray) else chunk.cpu().numpy()
    return found


def single(chunk: Chunk) -> NDArray[np.float32]:
    """`chunk` as a NumPy array of float32."""
    if not isinstance(chunk, np.ndarray):
        return host(chunk.float())
    with np.errstate(over="ignore"):
        return chunk.astype(np.float32, copy=False)


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
        return np.abs(chunk.astype(np.float32)).view(np.int32)
    import torch

    return chunk.float().abs().view(torch.int32)


def row_squares(chunk: Chunk) -> Floats:
    """‖u_i‖² (m,) in float64 of each row of `chunk` (m, w)."""
    if isinstance(chunk, np.ndarray):
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(np.linalg.norm(double(chunk), axis=1) ** 2)
    import torch

    return host(torch.linalg.vector_norm(chunk, dim=1, dtype=torch.float64).square_())


def combined(chunk: Chunk, weights: Floats) -> Chunk:
    """Σ w_i u_i (w,) of the rows of `chunk` (m, w), float64, with `weights` (m,)."""
    if isinstance(chunk, np.ndarray):
        return weights @ chunk
    import torch

    return torch.mv(chunk.T, torch.tensor(weights, dtype=torch.float64).to(chunk.device))


def mixed(chunk: Chunk, mixing: Floats) -> Chunk:
    """The rows `mixing` (k, m) @ `chunk` (m, w): (k, w)."""
    if isinstance(chunk, np.ndarray):
        return mixing @ chunk
    import torch

    return torch.mm(torch.tensor(mixing, device=chunk.device), chunk)


def centred_products(chunks: Iterable[Chunk], n: int) -> Floats:
    """The products (N + 1, N + 1) of N centred lines and their reference, summed over chunks of columns.

    chunks: chunks (N + 1, w) float64, which are overwritten. The lines are the n updates, then anchors and histories;
        the last line is free, and gets the chunk's reference.
    n: number of updates.

    The reference of a chunk is the update of (lower) median norm. At least half of the updates are no smaller, so a few
    huge updates cannot cost the others their digits. Products accumulate in float64, block by block and chunk by chunk,
    so the bits depend only on the values and on how the columns are cut.
    """
    if not WITH_TORCH:
        return _products_by_numpy(chunks, n)
    import torch

    sums = torch.zeros(())
    for chunk in chunks:
        whole = torch.nn.functional.pad(chunk, (0, -chunk.shape[1] % BLOCK)) if chunk.shape[1] % BLOCK else chunk
        blocks = whole.view(len(chunk), -1, BLOCK)
        norms = torch.linalg.vector_norm(torch.linalg.vector_norm(blocks[:n], dim=2), dim=1)
        middle = torch.argsort(norms, stable=True)[(n - 1) // 2]
        whole[-1] = whole.index_select(0, middle.reshape(1))[0]
        whole[:-1] -= whole[-1]
        blocks = blocks.transpose(0, 1)
        sums = torch.bmm(blocks, blocks.transpose(1, 2)).sum(dim=0) + sums.to(blocks.device)
    return host(sums)


def _products_by_numpy(chunks: Iterable[NDArray[np.float64]], n: int) -> Floats:
    sums: Floats = np.zeros(())
    with np.errstate(over="ignore", invalid="ignore"):  # rows that are not finite: the caller looks at the diagonal
        for chunk in chunks:
            middle = np.argsort(np.linalg.norm(chunk[:n], axis=1), kind="stable")[(n - 1) // 2]
            chunk[-1] = chunk[middle]
            chunk[:-1] -= chunk[-1]
            whole = np.pad(chunk, ((0, 0), (0, -chunk.shape[1] % BLOCK)))
            blocks = whole.reshape(len(chunk), -1, BLOCK).transpose(1, 0, 2)
            sums = (blocks @ blocks.transpose(0, 2, 1)).sum(axis=0) + sums
    return sums
