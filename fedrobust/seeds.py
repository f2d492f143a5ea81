"""One seed, many independent streams: every random draw of a run names its purpose."""

from __future__ import annotations

import hashlib

import numpy as np


def derived_seed(seed: int, *path: int | str) -> int:
    """Return a 63-bit seed for the stream named by `path`, e.g. `derived_seed(1, "batches", round, client)`.

    Streams of different paths are independent; the same path gives the same seed on every machine.
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """Return a NumPy generator for the stream named by `path` (see `derived_seed`).

    seed: the seed of the run.
    """
    return np.random.default_rng(derived_seed(seed, *path))
