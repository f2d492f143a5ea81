"""The features of all patches: from the cache, or computed by the client actors, a few hundred patches at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ray.actor import ActorHandle

from fedrobust.data.cache import Add, kept
from fedrobust.data.hospitals import Hospitals
from fedrobust.federation.actors import answer

FEATURES = Path("mlruns/cache")
"""Folder of features, below the working folder."""
SHARE = 256
"""Patches of one message: a multiple of the blocks in which they are encoded."""


def features_of(
    hospitals: Hospitals,
    encoder: str,
    workers: Sequence[ActorHandle],
    patience: float,
    say: Callable[[str], None],
    cache: Path = FEATURES,
) -> np.ndarray:
    """The features (N, F) float32 of all patches, from a file in the cache if they were computed before.

    hospitals: have the patches.
    encoder: its digest.
    workers: client actors that are set up with encoder and patches.
    patience: seconds to wait for `SHARE` patches.
    say: is told how far it is.
    cache: the folder.
    """
    count = len(hospitals.images)
    return kept_features(cache, f"{encoder} {hospitals.digest}", count, partial(_encode, count, workers, patience, say))


def kept_features(cache: Path, what: str, count: int, make: Callable[[Add], None]) -> np.ndarray:
    """Features (count, F) float32 from the cache (see `fedrobust.data.cache`), or else made and kept there.

    cache: the folder.
    what: says of which patches, by which encoder.
    make: makes them, block by block.
    """
    computed = " ".join(metadata.version(name) for name in ("torch", "timm"))  # the last bits differ
    name = f"features-{sha256(f'{what} {computed}'.encode()).hexdigest()[:32]}"

    def made(add: Add) -> dict[str, Any]:
        make(add)
        return {}

    return kept(cache, name, count, made).array


def _encode(count: int, workers: Sequence[ActorHandle], patience: float, say: Callable[[str], None], add: Add) -> None:
    asked, done = deque[Any](), 0

    def take() -> None:
        nonlocal done
        part = answer(asked.popleft(), "a client actor to encode patches", patience)
        add(part)
        done += len(part)
        say(f"encoding patches: {done:,} of {count:,}")

    for number, first in enumerate(range(0, count, SHARE)):
        if len(asked) == 2 * len(workers):  # each actor has its next share before it has finished one
            take()
        asked.append(workers[number % len(workers)].encode.remote(first, first + SHARE))
    while asked:
        take()
