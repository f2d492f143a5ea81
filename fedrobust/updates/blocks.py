"""Blocks of rows as they arrive: arrays or tensors, in any number, in any order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def detached(block: Any) -> Any:
    """A block without its gradient history, as an array that shares its memory if NumPy has the type and can reach it.

    Raises `ValueError` unless it is a floating (k, d) array or tensor.
    """
    if isinstance(block, np.ndarray):
        floating = np.issubdtype(block.dtype, np.floating)
    else:
        torch = sys.modules.get("torch")  # if there is a tensor, torch has been imported
        if torch is None or not isinstance(block, torch.Tensor):
            raise ValueError(f"updates must be an array or a tensor (n, d), found {type(block).__name__}")
        block, floating = block.detach(), block.is_floating_point()
        if floating and on_cpu(block) and block.dtype != torch.bfloat16:
            block = block.numpy()
    if block.ndim != 2 or not floating:
        raise ValueError(f"updates must be floating (n, d), found {block.dtype} {tuple(block.shape)}")
    return block


def runs_of(block: NDArray[np.intp], row: NDArray[np.int64]) -> Iterator[tuple[int, int, int, int, int]]:
    """Runs of neighbouring rows of a block that are wanted at even distances.

    block: (m,) the block of each wanted row.
    row: (m,) its index there.

    Yields the block, its first row, the number of rows, the first position and the distance of positions.
    """
    for number in np.unique(block):
        places = np.flatnonzero(block == number)
        steps, rows = np.diff(places), row[places]
        first = 0
        while first < len(places):
            last = first + 1
            while last < len(places) and rows[last] == rows[last - 1] + 1 and steps[last - 1] == steps[first]:
                last += 1
            step = int(steps[first]) if last > first + 1 else 1
            yield int(number), int(rows[first]), last - first, int(places[first]), step
            first = last


def on_cpu(block: Any) -> bool:
    """Whether a block, an array or a tensor, is in the main memory."""
    return str(getattr(block, "device", "cpu")) == "cpu"
