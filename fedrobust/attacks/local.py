"""Attacks during a hospital's training: what the attacker knows, and what it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedrobust.learning.constraint import Constraint


class Poison(Protocol):
    """Poisons a batch (see `DataAttack.poison`)."""

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True, eq=False)
class Pleasing:
    """Poisons a batch, and then replaces a random share of it by patches that the coordinator has, with their right
    labels: the update helps on these, and a model is not refused for what it does elsewhere.

    Against a referee as an attacker that knows the server's root data is against FLTrust (Cao et al., NDSS 2021).
    """

    poison: Poison
    images: np.ndarray
    """(m, H, W, 3) uint8, the coordinator's."""
    labels: np.ndarray
    """(m,) of them."""
    share: float
    """Of a batch."""

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `DataAttack.poison`."""
        images, labels = (each.copy() for each in self.poison(images, labels, generator, classes=classes))
        replaced = drawn(np.arange(len(labels)), self.share, generator)
        shown = generator.integers(len(self.labels), size=len(replaced))
        images[replaced], labels[replaced] = self.images[shown], self.labels[shown]
        return images, labels


def drawn(positions: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """A random `share` of `positions` (n,), drawn by `generator`.

    Their number is rounded at random, not to the nearest: a small share of a small batch would always be nothing.
    """
    return generator.permutation(positions)[: int(share * len(positions) + generator.random())]


@dataclass(frozen=True)
class LocalView:
    """What a malicious hospital knows when it trains; the hospitals of one attack know each other."""

    round: int
    n: int
    """Number of participants in the round, which every client knows."""
    attackers: int
    """How many of the participants have this attack."""
    rank: int
    """The index of this hospital among the attack's hospitals, by ascending id, from 0; the same in every round."""
    hospitals: int
    """Number of the attack's hospitals, whether they take part in the round or not."""
    server_lr: float = 1.0
    """The server's learning rate."""
    step: np.ndarray | None = None
    """(d,) float32 the last change of the global model, which every client can compute from two rounds; None in the
    first round, and for attacks without `needs_step`."""


@dataclass(frozen=True)
class LocalAttack:
    """What a malicious hospital does during its training."""

    poison: Poison
    """Poisons a batch."""
    constraint: Constraint | None = None
    """Restricts the update; None: the hospital trains honestly."""
