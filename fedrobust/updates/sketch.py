"""A random sketch of rows: short rows with nearly the same products.

S (d, k) has one random sign in each row: of each block of k coordinates the j-th goes to column (j + r) mod k, with a
rotation r of the block's own. So u → uS is linear and costs one addition a coordinate, and E⟨uS, vS⟩ = ⟨u, v⟩ with
variance ≤ (‖u‖² ‖v‖² + ⟨u, v⟩²) / k (M. Charikar, K. Chen, M. Farach-Colton, Finding frequent items in data streams,
ICALP 2002). A squared distance is off by √(2 / k) of itself, one standard deviation: 2.2 % for k = 4096, however large
the common part of all rows is. `secure.sketch` does the same with secret shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.updates.gram import Floats
from fedrobust.updates.threads import each

LINES = 32
"""Lines that one thread works on at a time."""


def sketched(lines: Sequence[NDArray[Any]], k: int, seed: int, threads: int = 1) -> Floats:
    """The lines times S: (len(lines), k) float64.

    lines: arrays (d,), each float32 or float64.
    k: columns of the sketch.
    seed: of the signs and rotations. Whoever knows it can choose a row for the sketch.
    threads: how many share out the lines; changes no bit.
    """
    d, draw = len(lines[0]), np.random.default_rng(seed)
    turns = draw.integers(0, k, -(-d // k)).tolist()
    signs = (1 - 2 * draw.integers(0, 2, d, dtype=np.int8)).astype(np.float32)

    def work(group: Sequence[NDArray[Any]]) -> Floats:
        sums = np.zeros((len(group), k))
        for turn, start in zip(turns, range(0, d, k), strict=True):
            columns = slice(start, min(start + k, d))
            block = np.stack([line[columns] for line in group]) * signs[columns]
            before = min(block.shape[1], k - turn)
            sums[:, turn : turn + before] += block[:, :before]
            sums[:, : block.shape[1] - before] += block[:, before:]
        return sums

    groups = [lines[start : start + LINES] for start in range(0, len(lines), LINES)]
    return np.concatenate(each(work, groups, threads))
