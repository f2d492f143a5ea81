"""The features of all patches: from the cache, or computed by the client actors, a few hundred patches at a time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ray.actor import ActorHandle

from fedrobust.data.hospitals import Hospitals
from fedrobust.federation.actors import answer
from fedrobust.locks import alone
from fedrobust.private import private_folder, whole

FEATURES = Path("mlruns/cache")
"""Folder of features, below the working folder."""
SHARE = 256
"""Patches of one message: a multiple of the blocks in which they are encoded."""

logger = logging.getLogger(__name__)


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
    return kept(cache, f"{encoder} {hospitals.digest}", count, partial(_made, count, workers, patience, say))


def kept(cache: Path, what: str, count: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Features (count, F) float32 from a file in the cache, or else made and kept there.

    cache: the folder.
    what: says of which patches, by which encoder.
    make: makes them. If several processes ask for them at once, one of them makes them.

    A cache that cannot be written costs time, and nothing else.
    """
    computed = " ".join(metadata.version(name) for name in ("torch", "timm"))  # the last bits differ
    file = cache / f"features-{sha256(f'{what} {computed}'.encode()).hexdigest()[:32]}.npy"
    if (found := _read(file, count)) is not None:
        return found
    made = None
    try:
        private_folder(file.parent)
        with alone(file):
            if (found := _read(file, count)) is not None:
                return found
            made = make()
            file.unlink(missing_ok=True)  # a damaged one
            with whole(file) as partly, partly.open("wb") as out:
                np.save(out, made)
    except OSError as error:  # also for a wait that was too long
        logger.warning("features of the patches are not kept: %s", error.strerror or error)
    return make() if made is None else made


def _made(count: int, workers: Sequence[ActorHandle], patience: float, say: Callable[[str], None]) -> np.ndarray:
    asked, parts = deque[Any](), list[np.ndarray]()

    def take() -> None:
        parts.append(answer(asked.popleft(), "a client actor to encode patches", patience))
        say(f"encoding patches: {min(count, len(parts) * SHARE):,} of {count:,}")

    for number, first in enumerate(range(0, count, SHARE)):
        if len(asked) == 2 * len(workers):  # each actor has its next share before it has finished one
            take()
        asked.append(workers[number % len(workers)].encode.remote(first, first + SHARE))
    while asked:
        take()
    return np.concatenate(parts)


def _read(file: Path, count: int) -> np.ndarray | None:
    try:
        kept: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return kept if kept.ndim == 2 and len(kept) == count and kept.dtype == np.float32 else None
