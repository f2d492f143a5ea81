"""Protocols in which each hospital sends the coordinator one message: how the messages arrive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.federation.actors import ActorDied, answer
from fedrobust.federation.arrival import Arrival, Received
from fedrobust.secure import OneMessage
from fedrobust.secure.messages import MessageError
from fedrobust.updates import ClearUpdates, Floats, NotOpened


@dataclass(frozen=True, eq=False)
class MessageArrival(Arrival):
    """The messages of a round on their way: for each actor its clients, and a reference to their messages."""

    privacy: OneMessage
    d: int
    asked: list[tuple[list[int], Any]]
    patience: float
    _sizes: list[int] = field(default_factory=list)

    def receive(
        self,
        ids: Sequence[Sequence[int]],
        weigh: Callable[[NDArray[np.int64]], Floats],
        too_few: Callable[[int], str | None],
        histories: Mapping[str, np.ndarray],
    ) -> Received:
        """Wait for the messages; arguments as for `Arrival.receive`. A hospital whose message is wrong or missing has
        no row."""
        rows: dict[int, NDArray[np.float32]] = {}
        malformed = 0
        for clients, reference in self.asked:
            try:
                came = answer(reference, "hospitals to send their message", self.patience)
            except ActorDied:
                came = {}
            for client in clients:
                if client not in came:
                    self.refused[client] = "it sent no message"
                    continue
                self._sizes.append(len(came[client]))
                self.commitments[client] = sha256(came[client]).hexdigest()
                try:
                    rows[client] = self.privacy.read(came[client], self.d)
                except MessageError as error:
                    self.refused[client], malformed = str(error), malformed + 1
        if reason := too_few(len(rows)):
            raise NotOpened(reason)
        here = np.array(sorted(rows), dtype=np.int64)
        block = np.stack([rows[client] for client in here.tolist()])
        return Received(ClearUpdates([block], None, weigh(here), histories, here), here, malformed)

    def traffic(self, updates: int, d: int) -> dict[str, int]:
        return {"upload_bytes": sum(self._sizes)}
