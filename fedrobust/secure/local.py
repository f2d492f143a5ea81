"""All parties of `shares` or `replicated` in one process. Rounds follow each other; every message is bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from numpy.typing import NDArray

from fedrobust.secure import replicated, shares
from fedrobust.secure.messages import MessageError
from fedrobust.secure.replicated import ReplicatedServer
from fedrobust.secure.ring import Entropy, Words, encode
from fedrobust.secure.senders import commitments
from fedrobust.secure.server import Server
from fedrobust.secure.shared_updates import Parties, SharedUpdates
from fedrobust.secure.shares import Dealer, ShareServer
from fedrobust.updates.gram import Floats

Wire = Callable[[bytes], bytes]
"""Sees every message on its way, and may change it."""


def unchanged(data: bytes) -> bytes:
    """An honest wire."""
    return data


def introduce(servers: Sequence[Server], dealer: Dealer | None = None, wire: Wire = unchanged) -> None:
    """Let servers agree on their keys and on the secret of the sketches; a dealer takes their public keys.

    wire: every message passes through it.
    """
    public = [wire(server.introduce()) for server in servers]
    if dealer is not None:
        dealer.meet(servers[0].run, public)
    for number, server in enumerate(servers):
        server.meet(public[:number] + public[number + 1 :])
    for server, data in zip(servers[1:], servers[0].secrets(), strict=True):
        server.learn(wire(data))


class LocalParties(Parties):
    """The servers, and for `shares` the dealer, as plain objects.

    name: the protocol.
    run: a `run_id`.
    d: coordinates of an update.
    entropy: where the secrets come from.
    wire: every message passes through it.
    histories: names as in `Updates.remembered`.
    sketch: columns of the sketch that the Gram matrix is of; None: it is of the updates themselves.
    options: the other options of `Server`.

    `refused`: client → why its share was refused in this round.
    """

    def __init__(
        self,
        name: Literal["shares", "replicated"],
        run: str,
        d: int,
        entropy: Entropy = os.urandom,
        wire: Wire = unchanged,
        histories: Sequence[str] = (),
        sketch: int | None = None,
        **options: Any,
    ) -> None:
        self.run, self.d, self.round, self.wire, self.entropy = run, d, -1, wire, entropy
        self.histories, self.clients, self.sketch = tuple(histories), (), sketch
        self.opens = options.get("opens", "gram")
        self.refused: dict[int, str] = {}
        self.servers: Sequence[ShareServer] | Sequence[ReplicatedServer]
        options |= {"entropy": entropy, "histories": histories, "sketch": sketch}
        if name == "shares":
            self.servers = [ShareServer(k, run, d, **options) for k in range(2)]
            self.dealer: Dealer | None = Dealer(entropy, self.opens)
        else:
            self.servers, self.dealer = [ReplicatedServer(k, run, d, **options) for k in range(3)], None
        self.count = len(self.servers)
        introduce(self.servers, self.dealer, self.wire)

    def sent(self, encoded: Words, round: int, client: int) -> list[bytes]:
        """A client's messages, one for each server.

        encoded: (d,) its update, as `ring.encode` returns it.
        """
        split = shares.share if isinstance(self.servers[0], ShareServer) else replicated.share
        return [message.pack() for message in split(encoded, self.entropy, self.run, round, client)]

    def receive(self, round: int, messages: Mapping[int, Sequence[bytes | None]]) -> None:
        """Start a round with the clients' messages.

        messages: client → one message for each server; None is one that never arrives.

        Raises `MessageError` if the servers do not agree on the clients.
        """
        self.round, self.refused = round, {}
        for each in self.servers:
            each.begin(round, sorted(messages))
        for client, sent in messages.items():
            for server, data in zip(self.servers, sent, strict=True):
                if data is None:
                    continue
                try:
                    server.receive(self.wire(data))
                except MessageError as error:
                    self.refused[client] = str(error)
        lists = [self.wire(server.senders()) for server in self.servers]
        agreed = {server.agree(lists[:k] + lists[k + 1 :]) for k, server in enumerate(self.servers)}
        if len(agreed) > 1:
            raise MessageError("the servers do not agree on whose shares are there")
        (self.clients,) = agreed
        found = commitments(lists)
        self.commitments = {client: found[client] for client in self.clients}
        for client in sorted(set(messages) - set(self.clients)):
            self.refused.setdefault(client, "its shares did not reach every server, or did not fit")

    def play(
        self, updates: NDArray[Any], round: int, clip: float, prior: Sequence[float] | Floats | None = None
    ) -> SharedUpdates:
        """Play a round up to the point where the coordinator may ask for what it needs.

        updates: (n, d), row i from client i.
        round: higher than the last one.
        clip: the norm to which updates are clipped.
        prior: (n,) prior weights; all equal by default.
        """
        sent = {client: self.sent(encode(update, clip), round, client) for client, update in enumerate(updates)}
        self.receive(round, sent)
        return SharedUpdates(self, self.d, clip, prior, self.servers[0].min_support)

    def gram(self) -> list[bytes]:
        if isinstance(self.servers[0], ShareServer):
            first, second = self.servers
            assert isinstance(first, ShareServer) and isinstance(second, ShareServer) and self.dealer is not None
            triples = self.dealer.triple(self.run, self.round, first.stack.rows, first.stack.width)
            for server, triple in zip((first, second), triples, strict=True):
                server.receive_triple(self.wire(triple.pack()))
            for chunk in range(len(first.chunks)):
                to_second, to_first = self.wire(first.difference(chunk)), self.wire(second.difference(chunk))
                first.add_difference(to_first)
                second.add_difference(to_second)
        return self.ask("gram_share")

    def ask(self, method: str, *arguments: Any) -> list[bytes]:
        return [self.wire(getattr(server, method)(*arguments)) for server in self.servers]

    def drop(self, clients: Sequence[int]) -> None:
        for server in self.servers:
            server.drop(clients)
        self.clients = tuple(client for client in self.clients if client not in clients)

    def remember(self, rows: Sequence[int], coefficients: Words) -> None:
        reshared = [server.remember(rows, coefficients) for server in self.servers]
        for data in reshared[0] or ():
            receiver = self.servers[1]
            assert isinstance(receiver, ReplicatedServer)
            receiver.receive_reshared(self.wire(data))

    def forget(self, name: str, client: int) -> None:
        for server in self.servers:
            server.forget(name, client)
