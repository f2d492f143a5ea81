"""A round's updates on their way to the coordinator: one class for each way that a protocol takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrobust.updates import ClearUpdates, Floats, Updates


class Received(NamedTuple):
    """What the coordinator can work on."""

    updates: Updates
    clients: NDArray[np.int64]
    """The ids of those behind the rows, ascending; of a row that is a mean of several, all of them."""
    malformed: int = 0
    """How many rows arrived that are no update."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrival(ABC):
    """A round's updates on their way; `receive` is called once."""

    refused: dict[int, str] = field(default_factory=dict)
    """Client → why it has no row, or what it did wrong in spite of it; filled by `receive`, also if that fails."""
    commitments: dict[int, str] = field(default_factory=dict)
    """Client → digest of what it sent; filled by `receive`, also if that fails."""
    notes: list[str] = field(default_factory=list)
    """What the round's record should say; filled by `receive`, also if that fails."""

    @abstractmethod
    def receive(
        self,
        ids: Sequence[Sequence[int]],
        weigh: Callable[[NDArray[np.int64]], Floats],
        too_few: Callable[[int], str | None],
        histories: Mapping[str, np.ndarray],
    ) -> Received:
        """Wait until they are there.

        ids: the clients of each block of updates, in the order of its rows. weigh: clients → their priors. too_few: why
        nothing is opened where there are so many updates; None if it is. histories: those of the last round, (clients,
        d) by name, where the coordinator keeps them. Raises `NotOpened`.
        """

    def traffic(self, updates: int, d: int) -> dict[str, int]:
        """The bytes of a round's messages for its record, so many updates of d coordinates being asked for."""
        return {"upload_bytes": 4 * updates * d}


def in_order(ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The clients of all blocks, ascending, and where in the blocks, one after the other, their rows are."""
    clients = np.array([client for block in ids for client in block], dtype=np.int64)
    order = np.argsort(clients, kind="stable")
    return clients[order], order


@dataclass(frozen=True, eq=False)
class WholeArrival(Arrival):
    """In the clear and whole: `blocks` (k, d) float32."""

    blocks: Sequence[np.ndarray]

    def receive(
        self,
        ids: Sequence[Sequence[int]],
        weigh: Callable[[NDArray[np.int64]], Floats],
        too_few: Callable[[int], str | None],
        histories: Mapping[str, np.ndarray],
    ) -> Received:
        clients, order = in_order(ids)
        updates = ClearUpdates(self.blocks, order, weigh(clients), histories, clients)
        self.commitments.update(zip(clients.tolist(), updates.digests(), strict=True))
        return Received(updates, clients)
