"""The features of all patches: from the cache, or computed by client actors, block after block."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from fedrobust.data.cache import Add, kept
from fedrobust.data.hospitals import Hospitals
from fedrobust.federation.actors import ActorDied
from fedrobust.progress import STEP

FEATURES = Path("mlruns/cache")
"""Folder of features, below the working folder."""
AHEAD = 2
"""Blocks of each actor: it has its next one before it has finished one."""

Encode = Callable[[int, int, int], Callable[[], np.ndarray]]
"""Asks an actor for the features (n, F) of a view of the patches from a position to another one; what it returns waits
for them, and raises `ActorDied` if the actor, and those that replace it, die again and again."""


def features_of(
    hospitals: Hospitals,
    encoder: str,
    block: int,
    views: int,
    actors: Sequence[Encode],
    say: Callable[[str], None],
    cache: Path = FEATURES,
) -> list[np.ndarray]:
    """The features (N, F) of all patches, for each of their views; those that were computed before are from the cache.

    hospitals: have the patches.
    encoder: its digest.
    block: patches that are encoded at once.
    views: how many; see `features.view_of`.
    actors: encode them; more of them may be added meanwhile.
    say: is told how far it is, at each answer; what it raises ends the work.
    cache: the folder.
    """
    count = len(hospitals.images)

    def made(view: int) -> np.ndarray:
        def tell(done: int) -> None:
            share = 100 * (view * count + done) // (views * count)
            say(f"encoding patches: {share - share % STEP} % of {views * count:,}")  # each text may become a line

        what = f"{encoder} {hospitals.digest}{f' view {view}' if view else ''}"
        return kept_features(cache, what, count, partial(_encode, view, count, block, actors, tell))

    return [made(view) for view in range(views)]


def kept_features(cache: Path, what: str, count: int, make: Callable[[Add], None]) -> np.ndarray:
    """Features (count, F) from the cache (see `fedrobust.data.cache`), or else made and kept there.

    cache: the folder.
    what: says of which patches, by which encoder.
    make: makes those that are not there yet, block by block.
    """
    computed = " ".join(metadata.version(name) for name in ("torch", "timm"))  # the last bits differ
    name = f"features-{sha256(f'{what} {computed}'.encode()).hexdigest()[:32]}"

    def made(add: Add) -> dict[str, Any]:
        make(add)
        return {}

    return kept(cache, name, count, made, goes_on=True).array


def _encode(view: int, count: int, block: int, actors: Sequence[Encode], tell: Callable[[int], None], add: Add) -> None:
    """Encode a view of `count` patches. What an actor leaves, as it dies again and again, is encoded by the others."""
    left, asked = deque(range(add.count, count, block)), deque[tuple[int, int, Callable[[], np.ndarray]]]()
    busy, lost, found, done = Counter[int](), set[int](), dict[int, np.ndarray](), add.count
    while left or asked:
        for most in range(1, AHEAD + 1):
            for actor, encode in enumerate(actors):
                if left and busy[actor] < most and actor not in lost:
                    first = left.popleft()
                    asked.append((first, actor, encode(view, first, min(count, first + block))))
                    busy[actor] += 1
        first, actor, features = asked.popleft()
        busy[actor] -= 1
        try:
            found[first] = features()
        except ActorDied:
            lost.add(actor)
            left.appendleft(first)
            if len(lost) == len(actors):
                raise
        while (part := found.pop(done, None)) is not None:
            add(part)
            done += len(part)
            tell(done)
