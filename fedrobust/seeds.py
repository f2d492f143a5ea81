"""One seed, many independent streams: every random draw of a run names the place it is for."""

from __future__ import annotations

import hashlib

import numpy as np


def derived_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for the stream at `path`, e.g. `derived_seed(1, "batches", round, client)`.

    Streams of different paths are independent; the same path gives the same seed on every machine.
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """A NumPy generator for the stream at `path` (see `derived_seed`)."""
    return np.random.default_rng(derived_seed(seed, *path))
