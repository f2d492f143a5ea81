"""The features of all patches: from the cache, or computed by client actors, block after block."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from fedrobust.attacks import Attack, Backdoor
from fedrobust.data.cache import Add, kept
from fedrobust.data.hospitals import Hospitals
from fedrobust.federation.actors import ActorDied
from fedrobust.federation.layout import triggered
from fedrobust.progress import STEP

FEATURES = Path("mlruns/cache")
"""Folder of features, below the working folder."""
HASHED = 512
"""Images of which a digest is taken at once."""
AHEAD = 2
"""Blocks of each actor: it has its next one before it has finished one."""

Encode = Callable[[int | str, int, int], Callable[[], np.ndarray]]
"""Asks an actor for the features (n, F) of a set of images, by its key, from a position to another one. What it returns
waits for them, and raises `ActorDied` if the actor, and those that replace it, die again and again."""


@dataclass(frozen=True)
class ImageSet:
    """Images that are encoded before the first round."""

    key: int | str
    """A view of all patches (see `features.view_of`), or `trigger/<i>`: the patches of `clients.triggered` with the
    trigger of attack i."""
    what: str
    """Says which images these are, and which encoder."""
    count: int


def views_of(hospitals: Hospitals, encoder: str, views: int) -> list[ImageSet]:
    """The views of all patches.

    hospitals: have the patches.
    encoder: its digest.
    views: how many.
    """
    what = f"{encoder} {hospitals.digest}"
    return [ImageSet(view, f"{what} view {view}" if view else what, len(hospitals.images)) for view in range(views)]


def trigger_sets(attacks: Sequence[Attack], hospitals: Hospitals, encoder: str) -> Iterator[ImageSet]:
    """The patches on which the success of each backdoor is measured, with its trigger.

    attacks: of the experiment.
    hospitals: have the patches.
    encoder: its digest.
    """
    for index, attack in enumerate(attacks):
        if isinstance(attack, Backdoor):
            positions = triggered(attack, hospitals.labels, hospitals.indices["test"])
            digest = sha256()
            for first in range(0, len(positions), HASHED):
                digest.update(attack.trigger(hospitals.images[positions[first : first + HASHED]]).tobytes())
            if len(positions):
                yield ImageSet(f"trigger/{index}", f"{encoder} {digest.hexdigest()}", len(positions))


def features_of(
    sets: Sequence[ImageSet],
    block: int,
    actors: Sequence[Encode],
    say: Callable[[str], None],
    cache: Path = FEATURES,
) -> list[np.ndarray]:
    """The features (n, F) of each set of images; those that were computed before are from the cache.

    sets: of images.
    block: images that are encoded at once.
    actors: encode them; more of them may be added meanwhile.
    say: is told how far it is, at each answer; what it raises ends the work.
    cache: the folder.
    """
    total, before, found = sum(each.count for each in sets), 0, list[np.ndarray]()

    def tell(done: int) -> None:
        share = 100 * (before + done) // total
        say(f"encoding patches: {share - share % STEP} % of {total:,}")  # each text may become a line

    for each in sets:
        make = partial(_encode, each.key, each.count, block, actors, tell)
        found.append(kept_features(cache, each.what, each.count, make))
        before += each.count
    return found


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


def _encode(
    key: int | str, count: int, block: int, actors: Sequence[Encode], tell: Callable[[int], None], add: Add
) -> None:
    """Encode a set of `count` images. What an actor leaves, as it dies again and again, is encoded by the others."""
    left, asked = deque(range(add.count, count, block)), deque[tuple[int, int, Callable[[], np.ndarray]]]()
    busy, lost, found, done = Counter[int](), set[int](), dict[int, np.ndarray](), add.count
    while left or asked:
        for most in range(1, AHEAD + 1):
            for actor, encode in enumerate(actors):
                if left and busy[actor] < most and actor not in lost:
                    first = left.popleft()
                    asked.append((first, actor, encode(key, first, min(count, first + block))))
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
