"""A random sketch of the updates, which the servers draw and keep: short rows with nearly the same products.

S (d, k) has one random sign in each row: of each block of k coordinates the j-th goes to column (j + r) mod k, with a
rotation r of the block's own. So u → uS is linear, which is all that shares need, costs one addition a coordinate, and
keeps products in expectation: E⟨uS, vS⟩ = ⟨u, v⟩ with variance ≤ (‖u‖² ‖v‖² + ⟨u, v⟩²) / k (M. Charikar, K. Chen, M.
Farach-Colton, Finding frequent items in data streams, ICALP 2002; as a Johnson–Lindenstrauss transform: D. Kane, J.
Nelson, Sparser Johnson-Lindenstrauss transforms, JACM 2014). That robust rules may work on such sketches is shown by
Fed-DPRoC (2025) and PDR (2026): an error bound of theirs grows by (1 + ε) / (1 − ε). Where k ≥ d it changes no product.

Clients, coordinator and dealer do not know the seed, so a client cannot choose an update for the sketch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fedrobust.secure.ring import CHUNK_BYTES, Words, derived, expand, products

PROJECTIONS = 64
"""Random numbers by which the length of a row is checked."""
SPREAD = 8.0
"""Standard deviations by which a sketch may change a squared norm before a client is blamed for it."""
MASK_BITS = 27
"""Each server adds uniform noise from −2^27 to 2^27 to its part of each of these numbers."""


def sketched(lines: Callable[[slice], Words], rows: int, d: int, k: int, seed: bytes, twice: bool = False) -> Words:
    """U S (rows, k) mod 2^64.

    lines: these columns of U (rows, w), which may be overwritten.
    rows: of U.
    d: columns of U.
    k: columns of the sketch.
    seed: 32 bytes.
    twice: append a second sketch, which makes (rows, 2k), with other rotations and another sign for each block.
        Coordinates that meet in one sketch do not meet in the other, except with probability 1/k.
    """
    blocks = -(-d // k)
    turns = expand(derived(seed, "rotations"), 2 * blocks).view(np.uint64).reshape(2, blocks) % np.uint64(k)
    bits = expand(derived(seed, "signs"), -(-(d + blocks) // 64)).view(np.uint8)
    negative = np.unpackbits(bits, count=d + blocks)
    total = np.zeros((1 + twice, rows, k), dtype=np.int64)
    step = max(1, CHUNK_BYTES // (8 * max(rows, 1) * k)) * k
    for start in range(0, d, step):
        columns = slice(start, min(start + step, d))
        chunk = lines(columns)
        chunk *= 1 - 2 * negative[columns].astype(np.int64)
        for first in range(0, columns.stop - start, k):
            block, number = chunk[:, first : first + k], (start + first) // k
            width = block.shape[1]
            for copy, part in enumerate(total):
                turn = int(turns[copy, number])
                before, add = min(width, k - turn), np.subtract if copy and negative[d + number] else np.add
                right, left = part[:, turn : turn + before], part[:, : width - before]
                add(right, block[:, :before], out=right)
                add(left, block[:, before:], out=left)
    return np.hstack(list(total))


def stretch(k: int) -> float:
    """The factor by which a sketch of k columns may lengthen the squared norm of a row: 1 + 8 √(2 / k)."""
    return 1.0 + SPREAD * math.sqrt(2.0 / k)


def projected(rows: Words, seed: bytes) -> Words:
    """Σ_j rows_j r_j (n, PROJECTIONS) mod 2^64, for random r with the entries −1, 0, 0, 1.

    rows: (n, k).
    seed: 32 bytes.

    An entry is the difference of two fair bits: so the parity of a sum of them is fair, and an even number of words
    that differ by 2^63 cannot hide.
    """
    k = rows.shape[1]
    bits = np.unpackbits(expand(seed, 2 * k * PROJECTIONS // 64).view(np.uint8)).reshape(2, PROJECTIONS, k)
    return products(rows, np.ascontiguousarray(bits[0].astype(np.int64) - bits[1]))


def too_long(projections: Words, limit: int, servers: int, k: int) -> bool:
    """Whether a row with these projections is longer than one whose squared norm is at most `limit`.

    projections: (PROJECTIONS,) of the row's two sketches.
    limit: largest squared norm that is allowed.
    servers: how many added noise.
    k: columns of one sketch.

    The projections are of y, two sketches (2k,) of the row side by side, so that ‖y‖² is 2 ‖u‖² in the mean. An entry
    of the r above is sub-Gaussian with variance 1/2, so by Chernoff the m = 64 projections have ‖p‖² > 3 m/2 ‖y‖² with
    probability ≤ exp(−m/2 (3 − 1 − ln 3)) < 10^-12, and ‖y‖² is more than `stretch` times its mean with a probability
    below 10^-8, if the row does not rest on two or three coordinates. The servers' noise adds √m · servers · 2^27 at
    most. A row whose square is 2^63 or more, which the Gram matrix mod 2^63 does not show, has m/2 2^64 in the mean: it
    stays below the bound with probability < 10^-6 for updates, or if its words cancel in both sketches, which two words
    do with probability 1/k² at most. The check of the sum is there for rows that pass so.
    """
    longest = math.sqrt(3.0 * PROJECTIONS * stretch(2 * k) * limit) + math.sqrt(PROJECTIONS) * servers * 2.0**MASK_BITS
    return float(np.linalg.norm(projections.astype(np.float64))) > longest
