"""What client actors read, once for many runs and once for every node: patches, and the features that a frozen encoder
makes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import ray

from fedrobust.data.cache import ArrayFile, digest_of, file_of
from fedrobust.data.hospitals import Hospitals
from fedrobust.federation.encoding import Encode

MOMENT = 1.0
"""Seconds of one wait: a run that is no longer wanted ends between two."""

Say = Callable[[str], None]


class SharedArray:
    """An array for client actors: those that can open the file that it is mapped from read it there; the others get it
    from Ray's object store, where it is put once, when the first of them needs it."""

    def __init__(self, array: np.ndarray) -> None:
        self.file: ArrayFile | None = file_of(array)
        self._lock = threading.Lock()
        self._array = None if self.file is None else array  # a map, which needs no memory of its own
        self._reference: Any = ray.put(array) if self.file is None else None

    def read(self) -> np.ndarray:
        """The array, read-only."""
        return self._array if self._array is not None else np.asarray(ray.get(self._reference))

    def argument(self, opened: bool) -> Any:
        """What stands for the array among the arguments of an actor's `setup`: the file, or a reference.

        opened: whether the actor has opened the file.
        """
        if opened:
            return self.file
        with self._lock:
            if self._reference is None:
                self._reference = ray.put(self._array)
            return self._reference


@dataclass(eq=False)
class _Making:
    """Features that a run is making, or has made."""

    actors: list[Encode]
    found: Future[tuple[tuple[SharedArray, ...], str]] = field(default_factory=Future)
    said: str = "encoding patches"


class SharedData:
    """Patches and features: once for all runs that have the same `Hospitals`, and for as long as somebody has these."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: WeakKeyDictionary[Hospitals, tuple[SharedArray, Any]] = WeakKeyDictionary()
        self._features: WeakKeyDictionary[Hospitals, dict[str, _Making]] = WeakKeyDictionary()

    def of(self, hospitals: Hospitals) -> tuple[SharedArray, Any]:
        """The images (N, S, S, 3) uint8, and a reference to the labels (N,)."""
        with self._lock:
            if hospitals not in self._held:
                self._held[hospitals] = SharedArray(hospitals.images), ray.put(hospitals.labels)
            return self._held[hospitals]

    def features(
        self,
        hospitals: Hospitals,
        what: str,
        actors: Sequence[Encode],
        make: Callable[[Sequence[Encode], Say], list[np.ndarray]],
        say: Say,
    ) -> tuple[tuple[SharedArray, ...], str]:
        """The features (n, F) of some sets of images, and their digest.

        hospitals: have the patches that these are made of.
        what: says which images these are, and which encoder.
        actors: of the caller. If another run is making these features, it gets them as well until all is encoded.
        make: makes the features with these actors, whose list may grow meanwhile; called if nobody else does.
        say: is told how far it is, at least every second or with every answer of an actor; what it raises ends the
            wait.

        If the run that makes them fails, one of those that wait makes them.
        """
        while True:
            with self._lock:
                held = self._features.setdefault(hospitals, {})
                making, first = held.get(what), what not in held
                if making is None:
                    making = held[what] = _Making(list(actors))
                elif not making.found.done():
                    making.actors.extend(actors)
            if first:
                return self._made(hospitals, what, making, make, say)
            while wait([making.found], MOMENT).not_done:
                say(making.said)
            if making.found.exception() is None:
                return making.found.result()

    def _made(
        self,
        hospitals: Hospitals,
        what: str,
        making: _Making,
        make: Callable[[Sequence[Encode], Say], list[np.ndarray]],
        say: Say,
    ) -> tuple[tuple[SharedArray, ...], str]:
        def tell(text: str) -> None:
            making.said = text
            say(text)

        try:
            made = make(making.actors, tell)
            digests = [digest_of(view) for view in made]
            digest = digests[0] if len(digests) == 1 else sha256(" ".join(digests).encode()).hexdigest()
            found = tuple(SharedArray(view) for view in made), digest
        except BaseException as error:
            with self._lock:
                self._features.get(hospitals, {}).pop(what, None)
            making.found.set_exception(error)
            raise
        making.found.set_result(found)
        making.actors = []  # they hold what belongs to the runs that have them
        return found
