"""One server of secret shares, or the dealer, as an actor: it has its own secrets, and answers only a few calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from hmac import compare_digest
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from fedrobust.arrays import Arrays
from fedrobust.secure import SecretSharing
from fedrobust.secure.arguments import is_number
from fedrobust.secure.ledger import read_ledger, write_ledger
from fedrobust.secure.lines import Line
from fedrobust.secure.messages import HEADER, MessageError, viewed
from fedrobust.secure.randomness import entropy
from fedrobust.secure.replicated import ReplicatedServer
from fedrobust.secure.sending import Packet
from fedrobust.secure.server import Server
from fedrobust.secure.shares import Dealer, ShareServer
from fedrobust.secure.weights import OpeningError
from fedrobust.updates import Demand

STEPS = frozenset(
    {
        *("check_share", "drop", "receive_triple", "difference", "add_difference", "gram_share"),
        *("anchor_share", "combine_share", "remember", "forget"),
    }
)
"""What a server may be asked for by name in a round; nothing else of it can be reached."""


class PartyHost:
    """One server, or the dealer. It runs as a Ray actor, but uses nothing of Ray.

    The first caller of `setup` is its owner. Only with the owner's key (16 bytes) can it be set up again, receive the
    hospitals' messages, and return what it remembers. The coordinator has the handle without the key, and can ask for
    the steps of the protocol. That restricts the coordinator's code, not its operator: with a Ray handle any code can
    be run on the actor.
    """

    _party: ShareServer | ReplicatedServer | Dealer | None = None
    _run, _owner = "", b""
    received = sent = 0

    def setup(
        self,
        privacy: SecretSharing,
        seed: int,
        number: int | None,
        run: str,
        d: int,
        demand: Demand,
        last: int,
        arrays: Arrays,
        owner: bytes,
        place: str | None = None,
    ) -> None:
        """Be server `number`, or the dealer, in a run.

        privacy: the protocol.
        seed: the experiment's.
        number: of the server; None for the dealer.
        run: a `run_id`.
        d: coordinates of an update.
        demand: what the defence asks of the updates: the server opens that, and no more.
        last: number of the last round.
        arrays: what `memory` returned after that round; empty at the start.
        owner: 16 bytes, the owner's key.
        place: folder for the server's ledger.

        A server that has been one of this run all along knows what it has opened since, and goes on counting. One that
        is started again reads it from its ledger in `place`, if that is still there.
        """
        if self._party is not None:
            self._require(owner)
        known = self._party is not None and self._run == run
        self._run, self._owner, self._width = run, owner, privacy.sketch or d
        self.received = self.sent = 0
        if number is None:
            self._party = Dealer(opens=demand.opens)  # its random numbers change no result
            return
        secret = arrays.get("secret")
        if not known:
            kind = ShareServer if privacy.name == "shares" else ReplicatedServer
            self._party = kind(
                number,
                run,
                d,
                entropy=entropy(privacy.randomness, seed, "server", number),
                histories=demand.histories,
                sketch=privacy.sketch,
                min_support=privacy.support,
                max_functionals=privacy.max_functionals,
                colluders=privacy.colluders,
                secret=None if secret is None else secret.tobytes(),
                opens=demand.opens,
                vectors=demand.vectors,
            )
            if place is not None:
                path = Path(place) / run / f"server{number}.json"
                self._party.recall(read_ledger(path) or self._party.ledger())
                self._party.keep = partial(write_ledger, path)
        party = self._server()
        memory: dict[str, dict[int, dict[int, Line]]] = {
            name: {component: {} for component, _ in party.holds} for name in demand.histories
        }
        for key, line in arrays.items():
            if key not in ("functionals", "secret"):
                name, component, client = key.split("/")
                memory[name][int(component)][int(client)] = line.tobytes() if line.dtype == np.uint8 else line
        party.restore(memory, last, int(arrays.get("functionals", 0)))
        self._counted = party.functionals, party.products

    def introduce(self, owner: bytes) -> bytes:
        """A server's public key, for the other servers."""
        return self._introduced(owner).introduce()

    def meet(self, owner: bytes, *others: bytes) -> None:
        """Take the public keys of the other servers; the dealer takes those of all.

        owner: the owner's key.
        others: what they returned from `introduce`.
        """
        if isinstance(self._party, Dealer):
            self._require(owner)
            self._party.meet(self._run, others)
        else:
            self._introduced(owner).meet(others)

    def secrets(self, owner: bytes) -> Any:
        """The secret of the sketches, sealed for each other server, from server 0.

        owner: the owner's key.
        """
        found = self._introduced(owner).secrets()
        return found if len(found) != 1 else found[0]

    def learn(self, owner: bytes, data: bytes) -> None:
        """Take the secret of the sketches from server 0.

        owner: the owner's key.
        data: one of the `secrets` of server 0.
        """
        self._introduced(owner).learn(data)

    def ask(self, number: int, method: str, *arguments: Any) -> Any:
        """The answer to a step of the protocol.

        number: of the round in messages.
        method: one of `STEPS`.

        Raises `OpeningError` for any other method, and for another round than the current one.
        """
        party = self._server()
        if not isinstance(method, str) or method not in STEPS or not hasattr(party, method):
            raise OpeningError(f"{method!r} is no step that a server takes when it is asked")
        if not is_number(number) or number != party.round:
            raise OpeningError(f"round {number!r} is over, or has not begun")
        step = getattr(party, method)
        taken = len(signature(step).parameters)
        if len(arguments) != taken:
            raise OpeningError(f"{method} takes {taken} arguments, found {len(arguments)}")
        found = step(*arguments)
        messages = found if isinstance(found, (list, tuple)) else [found]
        self.sent += sum(len(each) for each in messages if isinstance(each, bytes))
        return found

    def receive(
        self, owner: bytes, number: int, round: int, clients: Sequence[int], *packets: Sequence[Packet]
    ) -> tuple[bytes, dict[int, str]]:
        """Take the shares of a round. Returns the list of senders for the other servers, and why shares were refused,
        by client.

        Only the owner may call it: anybody who could make up senders could get a sum that rests on one update and on
        his own.

        number: of the round in messages.
        round: of the training; one that is repeated has the same number.
        clients: those whose shares are expected.
        packets: messages with their senders.
        """
        party = self._introduced(owner)
        party.begin(number, clients, round)
        refused = {}
        for client, packet in _pairs(packets):
            try:
                data = viewed(packet)
                self.received += len(data)
                _require_own(client, data)
                party.receive(data)
            except MessageError as error:
                refused[client] = str(error)
        senders = party.senders()
        self.sent += len(senders)
        return senders, refused

    def reshared(self, messages: Sequence[bytes]) -> None:
        """Take fresh shares of histories, from server 0 to server 1."""
        party = self._server()
        if not isinstance(party, ReplicatedServer) or not isinstance(messages, (list, tuple)):
            raise OpeningError("only servers of `replicated` take shares of histories, in a list")
        for data in messages:
            party.receive_reshared(data)

    def agree(self, owner: bytes, *others: bytes) -> tuple[int, ...]:
        """The clients whose shares have reached every server.

        owner: the owner's key.
        others: the lists of senders of the other servers.
        """
        return self._introduced(owner).agree(others)

    def triple(self, run: str, number: int, rows: int, columns: int) -> tuple[bytes, bytes]:
        """The dealer's messages to both servers.

        run: the `run_id` that it was set up for.
        number: of the round in messages.
        rows: of the matrix.
        columns: of the matrix.
        """
        if not isinstance(self._party, Dealer):
            raise OpeningError("this party is no dealer")
        if not isinstance(run, str) or run != self._run or not is_number(columns) or columns != self._width:
            raise OpeningError(f"the dealer gives triples of {self._width} columns, in the run {self._run[:8]}…")
        first, second = (message.pack() for message in self._party.triple(run, number, rows, columns))
        self.sent += len(first) + len(second)
        return first, second

    def traffic(self) -> tuple[int, int, int, int]:
        """Since the last call: bytes of clients' messages received, bytes of its own messages, functionals opened,
        products of updates opened."""
        functionals = products = 0
        if isinstance(self._party, Server):
            before, self._counted = self._counted, (self._party.functionals, self._party.products)
            functionals, products = self._counted[0] - before[0], self._counted[1] - before[1]
        found, self.received, self.sent = (self.received, self.sent, functionals, products), 0, 0
        return found

    def memory(self, owner: bytes) -> Arrays:
        """What it needs to go on after this round, for its checkpoint.

        owner: the owner's key.

        Raises `OpeningError` for anybody else.
        """
        self._require(owner)
        if isinstance(self._party, Dealer):
            return {}
        party = self._server()
        arrays: Arrays = {
            "functionals": np.array(party.functionals),
            "secret": np.frombuffer(party.links.own, dtype=np.uint8),
        }
        for name, parts in party.memory().items():
            for component, lines in parts.items():
                for client, line in sorted(lines.items()):
                    if line is not None:
                        array = np.frombuffer(line, dtype=np.uint8) if isinstance(line, bytes) else line
                        arrays[f"{name}/{component}/{client}"] = array
        return arrays

    def _server(self) -> ShareServer | ReplicatedServer:
        if self._party is None or isinstance(self._party, Dealer):
            raise OpeningError("this party is no server")
        return self._party

    def _introduced(self, owner: bytes) -> ShareServer | ReplicatedServer:
        """The server, for its owner: anybody else could stand between two servers."""
        self._require(owner)
        return self._server()

    def _require(self, owner: bytes) -> None:
        if not isinstance(owner, bytes) or not compare_digest(owner, self._owner):
            raise OpeningError("only who has set a party up may do this")


def _pairs(packets: Sequence[object]) -> Iterator[tuple[int, object]]:
    """Sender and message of each packet from the hospitals' actors; packets that are no such pair are left out."""
    for part in packets:
        for each in part if isinstance(part, (list, tuple)) else ():
            if isinstance(each, tuple) and len(each) == 2 and is_number(each[0]):
                yield each


def _require_own(client: int, data: memoryview) -> None:
    """Raises `MessageError` for a message in the name of another client than the one that it came from."""
    if len(data) >= HEADER.size and (sender := HEADER.unpack_from(data)[4]) != client:
        raise MessageError(f"it is in the name of client {sender}")
