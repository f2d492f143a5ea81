"""Rounds of pairwise masks over actors: the coordinator is the server, the hospitals answer from their actors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.actor import ActorHandle

from fedrobust.federation.actors import ActorDied, answer
from fedrobust.federation.arrival import Arrival, Received
from fedrobust.secure import PairwiseMasking
from fedrobust.secure.masked_updates import GroupedUpdates, MaskedSum
from fedrobust.secure.masking_server import MaskingServer, OpenedSum
from fedrobust.secure.masking_terms import MaskingError
from fedrobust.secure.messages import Kind, MessageError, unpack
from fedrobust.secure.sending import terms
from fedrobust.updates.gram import Floats

Messages = dict[int, bytes]
"""Client → message."""


@dataclass(frozen=True, eq=False)
class MasksArrival(Arrival):
    """A round of masks that has begun: the actors of the hospitals, and references to the first messages."""

    privacy: PairwiseMasking
    run: str
    round: int
    groups: Sequence[Sequence[int]]
    holders: list[tuple[list[int], ActorHandle, Any]]
    """For each actor: its clients, the actor, and a reference to their first messages."""
    d: int
    patience: float
    _bytes: dict[str, int] = field(default_factory=lambda: {"upload_bytes": 0, "server_bytes": 0})

    def receive(
        self,
        ids: Sequence[Sequence[int]],
        weigh: Callable[[NDArray[np.int64]], Floats],
        too_few: Callable[[int], str | None],
        histories: Mapping[str, np.ndarray],
    ) -> Received:
        """Play the round to its end; arguments as for `Arrival.receive`.

        `refused` names the clients that are in no sum, except those that did their part in a group that failed. `notes`
        say which groups opened nothing, and what was wrong and may be the fault of either of two hospitals.

        Raises `MaskingError` if no group could open its sum.
        """
        clients = sorted(client for block in ids for client in block)
        place = {client: index for index, group in enumerate(self.groups) for client in group}
        servers = {
            index: MaskingServer(terms(self.privacy, self.run, self.round, index, self.d), group)
            for index, group in enumerate(self.groups)
        }
        sent: dict[int, OpenedSum] = {}
        blameless: set[int] = set()
        arrived = self._first()
        for step in ("directory", "deliveries", "survivors", "open"):
            came = self._taken(arrived, place, servers)
            if step == "survivors" and (reason := too_few(sum(map(len, came.values())))):
                raise self._failed(clients, blameless.union(self.commitments), reason)
            outgoing: Messages = {}
            for index, server in list(servers.items()):
                try:
                    if step == "open":
                        sent[index] = server.open()
                    elif step == "deliveries":
                        outgoing |= {client: message.pack() for client, message in server.deliveries().items()}
                    else:
                        outgoing |= dict.fromkeys(came[index], getattr(server, step)().pack())
                except MaskingError as error:
                    del servers[index]
                    blameless.update(came[index])
                    if len(self.groups) > 1:
                        self.notes.append(f"group of {', '.join(map(str, self.groups[index]))}: {error}")
                    if not servers:
                        raise self._failed(clients, blameless, str(error)) from error
                finally:
                    if step == "open":
                        self._told(server)
            arrived = self._replies(outgoing)
        here = sorted(client for opened in sent.values() for client in opened.survivors)
        self._refuse(set(clients) - set(here) - blameless)
        if len(self.groups) == 1 and self.privacy.name == "masked":
            return Received(MaskedSum(sent[0]), np.array(here, dtype=np.int64))
        return Received(GroupedUpdates.of(list(sent.values())), np.array(here, dtype=np.int64))

    def _taken(
        self, arrived: Messages, place: Mapping[int, int], servers: Mapping[int, MaskingServer]
    ) -> dict[int, list[int]]:
        """Give each group's server its clients' messages. Returns the clients whose messages were accepted, by group
        that goes on."""
        came: dict[int, list[int]] = {index: [] for index in servers}
        for client, data in sorted(arrived.items()):
            try:
                message = unpack(data)
                if message.sender != client:
                    raise MessageError(f"it is in the name of client {message.sender}")
                servers[place[client]].receive(message)
            except MessageError as error:
                self.refused[client] = str(error)
                continue
            came[place[client]].append(client)
            if message.kind is Kind.MASKED:
                self.commitments[client] = hashlib.sha256(data).hexdigest()
        return came

    def _told(self, server: MaskingServer) -> None:
        """Record what a group's server has found out about its clients."""
        for client, why in server.culprits.items():
            self.refused[client] = "; ".join(filter(None, (self.refused.get(client), why)))
        self.notes.extend(server.notes)

    def _refuse(self, clients: Iterable[int]) -> None:
        for client in sorted(clients):
            self.refused.setdefault(client, "dropped out while the masks were made")

    def _failed(self, clients: Sequence[int], blameless: set[int], reason: str) -> MaskingError:
        self._refuse(set(clients) - blameless)
        return MaskingError(reason)

    def traffic(self, updates: int, d: int) -> dict[str, int]:
        """Bytes of the messages in this round: those of all hospitals, and those of the coordinator."""
        return dict(self._bytes)

    def _first(self) -> Messages:
        return self._collected([(clients, reference) for clients, _, reference in self.holders])

    def _replies(self, outgoing: Mapping[int, bytes]) -> Messages:
        """The hospitals' answers to these messages."""
        self._bytes["server_bytes"] += sum(map(len, outgoing.values()))
        asked = []
        for clients, holder, _ in self.holders:
            own = {client: outgoing[client] for client in clients if client in outgoing}
            if own:
                asked.append((list(own), holder.send.remote("reply", own)))
        return self._collected(asked)

    def _collected(self, asked: Sequence[tuple[Sequence[int], Any]]) -> Messages:
        """The messages behind the references. Only those in the name of clients that were asked count.

        If an actor has died, its hospitals have dropped out.
        """
        found: Messages = {}
        for clients, reference in asked:
            try:
                came = answer(reference, f"round {self.round}: hospitals to answer", self.patience)
            except ActorDied:
                continue
            if isinstance(came, Mapping):
                found |= {client: came[client] for client in clients if isinstance(came.get(client), bytes)}
        self._bytes["upload_bytes"] += sum(map(len, found.values()))
        return found
