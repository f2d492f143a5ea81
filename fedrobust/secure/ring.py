"""Fixed-point numbers in the ring Z_2^64, held as int64 in two's complement, where sums and products wrap around.

A number x stands for x / 2^FRACTION. Updates are scaled to norm ≤ 1, so that a row's products with other rows are at
most 2^56 and can be read off mod 2^63 as signed integers, also where a sketch has made rows a few times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.secure.messages import MessageError

if TYPE_CHECKING:
    from torch import Tensor

Words = NDArray[np.int64]
Integers = NDArray[np.object_]
"""Exact Python integers."""
Entropy = Callable[[int], bytes]
"""Returns so many random bytes: `os.urandom`, or a stream that is derived from an experiment's seed."""

FRACTION = 28
"""Fraction bits of updates and public vectors."""
LARGEST = 1 << 62
"""What is opened mod 2^63 is in [−LARGEST, LARGEST)."""
SEED_BYTES = 32
INNER = 1024
"""Columns of one integer product: few enough that both operands stay in a core's cache."""
TILE = 64
"""torch's integer product takes this many columns of a row-major right side at once; others cost it a sixth more."""
CHUNK_BYTES = 3 << 20
"""Size of a buffer for one chunk of columns of all rows: larger ones go back to the system each time."""
ALIGNED = 1024
"""The width of a chunk is a multiple of it."""

ZEROS = bytes(1 << 18)
PIECE = 1 << 15
"""Coordinates that are encoded at once: they stay in a core's cache."""

LIMB = 22
"""Bits of a limb in `square_sum`: three of them hold 64 bits."""
LIMB_COLUMNS = 1 << 18
"""The sum of this many products of two limbs fits an int64."""


def encode(update: NDArray[Any], clip: float) -> Words:
    """A vector as fixed-point words (d,): clipped to the norm `clip`, divided by it, times 2^28, rounded.

    update: (d,) numbers.
    clip: C > 0.

    The norm of the words is at most 2^28 + √d / 2.

    Raises `ValueError` for an update that is not finite, and for a clip that is not a positive number.
    """
    if not (np.isfinite(clip) and clip > 0):
        raise ValueError(f"clip must be a positive number, found {clip}")
    values = np.array(update, dtype=np.float64)
    norm = float(np.sqrt(values @ values))
    if not np.isfinite(norm):
        raise ValueError("an update that is not finite cannot be shared")
    words: Words = values.view(np.int64)  # in place: fresh memory for a large array costs more than the arithmetic
    for part in _slices(len(values), PIECE):
        scaled = values[part]
        scaled *= 2.0**FRACTION / max(norm, clip)
        words[part] = np.rint(scaled, out=scaled).astype(np.int64)
    return words


def largest_square(d: int) -> int:
    """The largest squared norm of an honest update of d words: rounding adds up to √d / 2."""
    return ((1 << FRACTION) + isqrt(d) + 1) ** 2


def decode(words: Words, clip: float, bits: int = FRACTION) -> NDArray[np.float64]:
    """The numbers (d,) that words stand for: the inverse of `encode`.

    clip: C.
    bits: their fraction bits.
    """
    return np.asarray(words * (clip * 2.0**-bits), dtype=np.float64)


def expand(seed: bytes, count: int, offset: int = 0, out: Words | None = None) -> Words:
    """Uniform words (count,): the key stream of AES-256 in counter mode.

    seed: 32 bytes.
    offset: the first word's position in the stream.
    out: (count,) where to write the words.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, found {len(seed)}")
    odd = offset % 2  # a block of AES holds two words
    words = np.empty(count, dtype=np.int64) if out is None or odd else out
    block = (offset // 2).to_bytes(16, "big")
    encryptor = Cipher(algorithms.AES256(seed), modes.CTR(block)).encryptor()
    if odd:
        encryptor.update(bytes(8))
    stream_bytes = words.data.cast("B")
    for part in _slices(8 * count, len(ZEROS)):
        encryptor.update_into(ZEROS[: part.stop - part.start], stream_bytes[part])
    if out is None:
        return words
    if words is not out:
        out[:] = words
    return out


def derived(seed: bytes, label: str) -> bytes:
    """An independent seed (32 bytes) for the use that `label` names (HKDF-SHA256)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=None, info=b"fedrobust " + label.encode()).derive(seed)


def column_chunks(rows: int, columns: int) -> list[slice]:
    """Cut `columns` into slices so that a chunk of so many rows fits a buffer."""
    width = max(ALIGNED, CHUNK_BYTES // (8 * max(rows, 1)) // ALIGNED * ALIGNED)
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


def products(left: Words, right: Words) -> Words:
    """`left @ right.T` (n, m) mod 2^64; exact.

    left: (n, w).
    right: (m, w).
    """
    import torch

    a, b = torch.from_numpy(left), torch.from_numpy(right)
    count, padded = len(right), -(-len(right) // TILE) * TILE
    turned = torch.zeros(INNER, padded, dtype=torch.int64)
    total = torch.zeros(len(left), padded, dtype=torch.int64)
    for columns in _slices(left.shape[1], INNER):
        width = columns.stop - columns.start
        turned[:width, :count] = b[:, columns].T
        total += torch.mm(a[:, columns], turned[:width])
    return np.ascontiguousarray(_array(total)[:, :count])


def weighted(weights: Words, rows: Iterable[Words], columns: int) -> Words:
    """Σ weights_i rows_i (columns,) mod 2^64; exact.

    weights: (n,).
    rows: n rows (columns,), one after the other.
    """
    total = np.zeros(columns, dtype=np.int64)
    scaled = np.empty_like(total)
    for weight, row in zip(weights, rows, strict=True):
        if weight:
            total += np.multiply(row, weight, out=scaled)
    return total


def square_sum(words: Words) -> int:
    """Σ words², an exact integer, not reduced."""
    total = 0
    for part in _slices(len(words), LIMB_COLUMNS):
        rest, limbs = words[part], []
        for _ in range(2):
            limbs.append(rest & ((1 << LIMB) - 1))
            rest = rest >> LIMB
        limbs.append(rest)  # the highest one is signed
        for i, one in enumerate(limbs):
            for j in range(i, 3):
                total += (int(one @ limbs[j]) << LIMB * (i + j)) * (1 if i == j else 2)
    return total


def own_products(left: Words, right: Words) -> Words:
    """The diagonal (n,) of `products`, in n w steps.

    left, right: (n, w).
    """
    found: Words = np.einsum("ij,ij->i", left, right)
    return found


def halved(doubled: Words) -> Integers:
    """The integers in [−2^62, 2^62) whose doubles were opened mod 2^64.

    Raises `MessageError` for an odd number.
    """
    if (doubled & 1).any():
        raise MessageError("a doubled number is odd: the shares do not belong together")
    return (doubled >> 1).astype(object)


def truncated(words: Words, bits: int, second: bool) -> Words:
    """One party's share of x / 2^bits from its share of x, up to ±1; this needs no message.

    words: the share of x.
    second: which of the two parties this is.

    P. Mohassel, Y. Zhang, SecureML, IEEE S&P 2017: two shares add up to x. The first is shifted; of the second, its
    negative is. This fails, by a multiple of 2^(64 − bits), with probability |x| / 2^64: for a row of norm 2^k with d
    coordinates at most √d 2^k / 2^64 in all, e.g. 2^-22 for d = 10^6 and k = 32.
    """
    return -(-words >> bits) if second else words >> bits


def quadratic_form(weights: Words, matrix: Integers) -> int:
    """`weights @ matrix @ weights`, an exact integer.

    weights: (n,).
    matrix: (n, n) Python integers.
    """
    exact = weights.astype(object)
    return int(exact @ matrix @ exact)


def _slices(length: int, width: int) -> Iterator[slice]:
    for start in range(0, length, width):
        yield slice(start, min(start + width, length))


def _array(tensor: Tensor) -> Words:
    array: Words = tensor.numpy()
    return array
