"""A round's updates on their way to the coordinator: one class for each way that a protocol takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrobust.machine import usable_cores
from fedrobust.updates import ClearUpdates, Floats, Updates


class Received(NamedTuple):
    """What the coordinator works on."""

    updates: Updates
    clients: NDArray[np.int64]
    """The ids of the clients of the rows, ascending; all clients, where a row is the mean of several."""
    malformed: int = 0
    """How many rows arrived that are not updates."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrival(ABC):
    """A round's updates on their way to the coordinator; call `receive` once."""

    refused: dict[int, str] = field(default_factory=dict)
    """Client → why it has no row, or what it did wrong even if it has one. Filled by `receive`, also if that fails."""
    commitments: dict[int, str] = field(default_factory=dict)
    """Client → digest of what it sent. Filled by `receive`, also if that fails."""
    notes: list[str] = field(default_factory=list)
    """Notes for the round's record. Filled by `receive`, also if that fails."""

    @abstractmethod
    def receive(
        self,
        ids: Sequence[Sequence[int]],
        weigh: Callable[[NDArray[np.int64]], Floats],
        too_few: Callable[[int], str | None],
        histories: Mapping[str, np.ndarray],
    ) -> Received:
        """Wait for the updates.

        ids: the clients of each block of updates, in the order of its rows.
        weigh: clients → their prior weights.
        too_few: number of updates → why nothing is opened for so few; None if they suffice.
        histories: those of the last round by name, (clients, d), where the coordinator keeps them.

        Raises `NotOpened` if the protocol opens nothing.
        """

    def traffic(self, updates: int, d: int) -> dict[str, int]:
        """The bytes of the round's messages, for its record.

        updates: how many updates were asked for.
        d: coordinates of an update.
        """
        return {"upload_bytes": 4 * updates * d}


def in_order(ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The clients of all blocks, ascending, and the positions of their rows in all blocks, one after the other.

    ids: the clients of each block.
    """
    clients = np.array([client for block in ids for client in block], dtype=np.int64)
    order = np.argsort(clients, kind="stable")
    return clients[order], order


@dataclass(frozen=True, eq=False)
class WholeArrival(Arrival):
    """In the clear and whole: `blocks` of updates (k, d) float32."""

    blocks: Sequence[np.ndarray]

    def receive(
        self,
        ids: Sequence[Sequence[int]],
        weigh: Callable[[NDArray[np.int64]], Floats],
        too_few: Callable[[int], str | None],
        histories: Mapping[str, np.ndarray],
    ) -> Received:
        clients, order = in_order(ids)
        # The client actors wait for the aggregate: their cores are free.
        updates = ClearUpdates(
            self.blocks, order, weigh(clients), histories, clients, threads=usable_cores(), in_place=True
        )
        self.commitments.update(zip(clients.tolist(), updates.digests(), strict=True))
        return Received(updates, clients)
