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
