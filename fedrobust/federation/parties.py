"""The servers and the dealer of a protocol of secret shares: each an actor that holds only its own secrets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import randbits
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from ray.actor import ActorHandle

from fedrobust.aggregation.gram import Floats
from fedrobust.federation.actors import answer
from fedrobust.federation.journal import below
from fedrobust.secure import SharedPrivacy
from fedrobust.secure.messages import HEADER, MessageError, run_id
from fedrobust.secure.opened import Opened, Parties
from fedrobust.secure.randomness import entropy
from fedrobust.secure.replicated import ReplicatedServer
from fedrobust.secure.ring import FRACTION, Words, column_chunks, decode, expand
from fedrobust.secure.sending import Packet
from fedrobust.secure.server import HISTORY_FRACTION, Line, OpeningError, Server, commitments
from fedrobust.secure.shares import Dealer, ShareServer

Arrays = dict[str, np.ndarray]
REFUSALS = (MessageError, OpeningError)
"""What a party answers where it does not do what it is asked for: the round is skipped, the run goes on."""


class PartyHost:
    """One server, or the dealer. Runs as a Ray actor; knows nothing of Ray."""

    def setup(
        self,
        privacy: SharedPrivacy,
        seed: int,
        number: int | None,
        run: str,
        d: int,
        histories: Sequence[str],
        last: int,
        arrays: Arrays,
    ) -> None:
        """Be server `number`, or the dealer, in the run with the `run_id` given, whose updates have d coordinates.

        `last` is the number of the last round, `arrays` what `memory` was then (empty at the start).
        """
        self._party: ShareServer | ReplicatedServer | Dealer
        self.received = self.sent = 0
        if number is None:
            self._party = Dealer()  # what it draws changes no result
            return
        kind = ShareServer if privacy.name == "shares" else ReplicatedServer
        self._party = kind(
            number,
            run,
            d,
            entropy=entropy(privacy.randomness, seed, "server", number),
            histories=histories,
            min_support=privacy.support,
            max_functionals=privacy.max_functionals,
            colluders=privacy.colluders,
        )
        memory: dict[str, dict[int, dict[int, Line]]] = {
            name: {component: {} for component, _ in self._party.holds} for name in histories
        }
        for key, line in arrays.items():
            if key != "functionals":
                name, component, client = key.split("/")
                memory[name][int(component)][int(client)] = line.tobytes() if line.dtype == np.uint8 else line
        functionals = int(arrays.get("functionals", 0))
        self._party.restore(memory, last, functionals)

    def ask(self, number: int | None, method: str, *arguments: Any) -> Any:
        """What a method of the party answers; OpeningError for one that is meant for another round than its own."""
        if number is not None and isinstance(self._party, Server) and number != self._party.round:
            raise OpeningError(f"round {number} is over, or has not begun")
        found = getattr(self._party, method)(*arguments)
        messages = found if isinstance(found, (list, tuple)) else [found]
        self.sent += sum(len(each) for each in messages if isinstance(each, bytes))
        return found

    def receive(self, number: int, clients: Sequence[int], *packets: Sequence[Packet]) -> tuple[bytes, dict[int, str]]:
        """Take in the shares of a round: the list of senders for the other servers, and why others were refused."""
        assert not isinstance(self._party, Dealer)
        self._party.begin(number, clients)
        refused = {}
        for client, packet in (each for part in packets for each in part):
            self.received += len(packet)
            try:
                _require_own(client, packet)
                self._party.receive(cast(bytes, packet.data))
            except MessageError as error:
                refused[client] = str(error)
        senders = self._party.senders()
        self.sent += len(senders)
        return senders, refused

    def reshared(self, messages: Sequence[bytes]) -> None:
        """Fresh shares of histories, from server 0 to server 1."""
        assert isinstance(self._party, ReplicatedServer)
        for data in messages:
            self._party.receive_reshared(data)

    def agree(self, *others: bytes) -> tuple[int, ...]:
        """Whose shares have reached every server, by the other servers' lists of senders."""
        assert not isinstance(self._party, Dealer)
        return self._party.agree(others)

    def triple(self, run: str, number: int, rows: int, columns: int) -> tuple[bytes, bytes]:
        """The dealer's messages to both servers."""
        assert isinstance(self._party, Dealer)
        first, second = (message.pack() for message in self._party.triple(run, number, rows, columns))
        self.sent += len(first) + len(second)
        return first, second

    def traffic(self) -> tuple[int, int]:
        """Bytes of clients' messages that came in, and of its own messages, since the last time."""
        found, self.received, self.sent = (self.received, self.sent), 0, 0
        return found

    def memory(self) -> Arrays:
        """What it needs to go on after this round, for its checkpoint."""
        if isinstance(self._party, Dealer):
            return {}
        arrays: Arrays = {"functionals": np.array(self._party.functionals)}
        for name, parts in self._party.memory().items():
            for component, lines in parts.items():
                for client, line in sorted(lines.items()):
                    if line is not None:
                        array = np.frombuffer(line, dtype=np.uint8) if isinstance(line, bytes) else line
                        arrays[f"{name}/{component}/{client}"] = array
        return arrays


def _require_own(client: int, packet: NDArray[np.uint8]) -> None:
    """MessageError for a message in the name of another client than the one that it came from."""
    if len(packet) >= HEADER.size and (sender := HEADER.unpack_from(packet.data)[4]) != client:
        raise MessageError(f"it is in the name of client {sender}")


class RemoteParties(Parties):
    """The party actors as the coordinator reaches them, in a round whose shares have arrived.

    What goes from one party to another is passed on by reference: the coordinator's process never holds it.
    """

    def __init__(self, sent: Sent, clients: Sequence[int], commitments: Mapping[int, str]) -> None:
        self.run, self.round, self.histories = sent.run, sent.number, tuple(sent.histories)
        self.clients, self.commitments = tuple(clients), commitments
        self._sent = sent

    def gram(self) -> list[bytes]:
        sent, messages = self._sent, []
        if sent.dealer is not None:
            rows = len(self.clients) * (1 + len(self.histories))
            triple = sent.dealer.triple.options(num_returns=2).remote(self.run, self.round, rows, sent.d)
            messages = [self._ask(k, "receive_triple", triple[k]) for k in range(2)]
            for chunk in range(len(column_chunks(rows, sent.d))):
                parts = [self._ask(k, "difference", chunk) for k in range(2)]
                messages += [self._ask(k, "add_difference", parts[1 - k]) for k in range(2)]
        asked = self._ask_all("gram_share")
        # First, as they tell why there is no share.
        self._answers(messages, "exchange differences")
        return self._answers(asked, "gram_share")

    def ask(self, method: str, *arguments: Any) -> list[bytes]:
        return self._answers(self._ask_all(method, *arguments), method)

    def remember(self, rows: Sequence[int], coefficients: Words) -> None:
        asked = self._ask_all("remember", rows, coefficients)
        if self._sent.dealer is None:
            asked[0] = self._sent.servers[1].reshared.remote(asked[0])
        self._answers(asked, "remember")

    def forget(self, name: str, client: int) -> None:
        self.ask("forget", name, client)

    def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        return [self._ask(k, method, *arguments) for k in range(len(self._sent.servers))]

    def _ask(self, server: int, method: str, *arguments: Any) -> Any:
        return self._sent.servers[server].ask.remote(self.round, method, *arguments)

    def _answers(self, asked: Sequence[Any], what: str) -> list[Any]:
        return [answer(each, f"the servers to {what}", self._sent.patience, REFUSALS) for each in asked]


@dataclass(frozen=True, eq=False)
class Sent:
    """A round's shares on their way: references to the packets for each server, which the coordinator never opens."""

    privacy: SharedPrivacy
    seed: int
    """What the coordinator draws comes from it. A round that is repeated draws the same, so that its sum is the same:
    two with other last bits of the weights would be two openings."""
    servers: list[ActorHandle]
    dealer: ActorHandle | None
    run: str
    """A `run_id`."""
    round: int
    number: int
    """Of the round in messages: one that is repeated has another."""
    d: int
    histories: Sequence[str]
    packets: list[list[Any]]
    """For each server, a reference for each block of updates."""
    patience: float
    refused: dict[int, str] = field(default_factory=dict)
    """Client → why it has no row, when that is known."""
    commitments: dict[int, str] = field(default_factory=dict)
    """Client → digest of its shares, when they are there."""

    def receive(
        self,
        clients: Sequence[int],
        weigh: Callable[[np.ndarray], Floats],
        too_few: Callable[[int], str | None],
    ) -> tuple[Opened, np.ndarray]:
        """Have the servers take them in, and open the Gram matrix. Returns the protocol, and whose rows it has.

        clients: who was asked for an update, ascending. weigh: clients → priors. too_few: why the Gram matrix of so
        many is not opened; None if it is. MessageError, OpeningError.
        """
        taken = [
            server.receive.options(num_returns=2).remote(self.number, list(clients), *packets)
            for server, packets in zip(self.servers, self.packets, strict=True)
        ]
        lists = [senders for senders, _ in taken]
        agreed = [server.agree.remote(*lists[:k], *lists[k + 1 :]) for k, server in enumerate(self.servers)]
        agreements = {self._answer(each) for each in agreed}
        if len(agreements) > 1:
            raise MessageError("the servers do not agree on whose shares are there")
        here = np.array(agreements.pop(), dtype=np.int64)
        missing = sorted(set(clients) - set(here.tolist()))
        self.refused.update(dict.fromkeys(missing, "its shares did not reach every server"))
        for _, reasons in taken:
            self.refused.update({c: why for c, why in self._answer(reasons).items() if c in self.refused})
        self.commitments.update(commitments([self._answer(each) for each in lists]))
        if reason := too_few(len(here)):
            raise OpeningError(reason)
        parties = RemoteParties(self, here.tolist(), self.commitments)
        drawn = entropy("seed", self.seed, "coordinator", self.round)
        return Opened(parties, self.d, self.privacy.clip, weigh(here), drawn, self.privacy.support), here

    def traffic(self) -> dict[str, int]:
        """Bytes of messages in this round: of all hospitals, and of servers and dealer."""
        parties = [*self.servers, *([] if self.dealer is None else [self.dealer])]
        found = np.array([self._answer(party.traffic.remote()) for party in parties])
        return {"upload_bytes": int(found[:, 0].sum()), "server_bytes": int(found[:, 1].sum())}

    def _answer(self, reference: Any) -> Any:
        return answer(reference, f"round {self.round}: the servers to take in shares", self.patience, REFUSALS)


class PartyTeam:
    """The parties of one run, as the driver reaches them: it sets them up, hands shares on, replaces who dies."""

    ATTEMPTS = 3
    """How often a round is tried when a party dies in it."""

    def __init__(
        self,
        privacy: SharedPrivacy,
        seed: int,
        run: str,
        d: int,
        histories: Sequence[str],
        actors: Callable[[], list[ActorHandle]],
        patience: float,
    ) -> None:
        self.privacy, self._seed, self._run, self._d = privacy, seed, run_id(run), d
        self._histories, self._find, self._patience = tuple(histories), actors, patience
        self._drawn = seed if privacy.randomness == "seed" else randbits(256)

    def setup(self, round: int, arrays: Arrays) -> None:
        """Get ready to go on after `round`; `arrays` are the parties' parts of its checkpoint.

        Parties that are dead are started again.
        """
        actors = self._find()
        self._servers = actors[: self.privacy.servers]
        self._dealer = actors[-1] if self.privacy.dealer else None
        awaited = "the servers to get ready"
        asked = [
            actor.setup.remote(
                self.privacy,
                self._seed,
                None if actor is self._dealer else number,
                self._run,
                self._d,
                self._histories,
                round * self.ATTEMPTS - 1,
                below(arrays, str(number)),
            )
            for number, actor in enumerate(actors)
        ]
        for number, server in enumerate(self._servers):
            seed = server.ask.remote(None, "common_seed")
            asked.append(self._servers[number - 1].ask.remote(None, "receive_common", seed))
        for each in asked:
            answer(each, awaited, self._patience)

    def send(self, round: int, attempt: int, blocks: Sequence[tuple[Sequence[int], Any, ActorHandle]]) -> Sent:
        """Have updates shared where they are; `blocks`: client ids, a reference to their updates, who holds them."""
        number = (round - 1) * self.ATTEMPTS + attempt
        count = self.privacy.servers
        parts = []
        for clients, updates, holder in blocks:
            share = holder.send.options(num_returns=count)
            parts.append(share.remote("share", self._run, number, round, list(clients), updates))
        packets = [[part[server] for part in parts] for server in range(count)]
        return Sent(
            self.privacy,
            self._drawn,
            self._servers,
            self._dealer,
            self._run,
            round,
            number,
            self._d,
            self._histories,
            packets,
            self._patience,
        )

    def histories(self, arrays: Arrays) -> Arrays:
        """The histories (clients, d) float32 that the parties' `arrays` hold together."""
        found: dict[str, dict[int, Words]] = {}
        for key, line in arrays.items():
            number, name, *place = key.split("/")
            # Each server's first component is the one of its own number.
            if place and place[0] == number:
                words = expand(line.tobytes(), self._d) if line.dtype == np.uint8 else line
                lines = found.setdefault(name, {})
                lines[int(place[1])] = lines.get(int(place[1]), 0) + words
        return {name: self._decoded(name, lines) for name, lines in found.items()}

    def _decoded(self, name: str, lines: Mapping[int, Words]) -> np.ndarray:
        rows = np.zeros((max(lines) + 1, self._d), dtype=np.float32)
        for client, words in lines.items():
            rows[client] = decode(words, self.privacy.clip, FRACTION if name == "last" else HISTORY_FRACTION)
        return rows

    def arrays(self) -> Arrays:
        """What the parties need to go on after this round."""
        asked = [server.memory.remote() for server in self._servers]
        parts = [answer(each, "a server's memory", self._patience) for each in asked]
        return {f"{number}/{name}": array for number, part in enumerate(parts) for name, array in part.items()}
