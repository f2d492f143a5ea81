"""The servers and the dealer of a protocol of secret shares: each an actor that holds only its own secrets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.actor import ActorHandle

from fedrobust.arrays import Arrays
from fedrobust.federation.actors import answer
from fedrobust.federation.arrival import Arrival, Received
from fedrobust.records import below
from fedrobust.secure import SecretSharing
from fedrobust.secure.lines import HISTORY_FRACTION
from fedrobust.secure.messages import MessageError, run_id
from fedrobust.secure.ring import FRACTION, Words, column_chunks, decode, expand
from fedrobust.secure.senders import commitments
from fedrobust.secure.shared_updates import Parties, SharedUpdates
from fedrobust.secure.weights import OpeningError
from fedrobust.updates import Demand, Floats, NotOpened


class RemoteParties(Parties):
    """The party actors, as the coordinator reaches them in a round whose shares have arrived.

    Messages from one party to another are passed on by reference: the coordinator's process never holds them.
    """

    def __init__(self, sent: SharesArrival, clients: Sequence[int], commitments: Mapping[int, str]) -> None:
        self.run, self.round, self.histories = sent.run, sent.number, sent.demand.histories
        self.count, self.sketch, self.opens = len(sent.servers), sent.privacy.sketch, sent.demand.opens
        self.clients, self.commitments = tuple(clients), commitments
        self._sent = sent

    def gram(self) -> list[bytes]:
        sent, messages = self._sent, []
        if sent.dealer is not None:
            rows = len(self.clients) * (1 + len(self.histories))
            width = self.sketch or sent.d
            triple = sent.dealer.triple.options(num_returns=2).remote(self.run, self.round, rows, width)
            messages = [self._ask(k, "receive_triple", triple[k]) for k in range(2)]
            for chunk in range(len(column_chunks(rows, width))):
                parts = [self._ask(k, "difference", chunk) for k in range(2)]
                messages += [self._ask(k, "add_difference", parts[1 - k]) for k in range(2)]
        asked = self._ask_all("gram_share")
        # First, as these answers say why there is no share.
        self._answers(messages, "exchange differences")
        return self._answers(asked, "gram_share")

    def ask(self, method: str, *arguments: Any) -> list[bytes]:
        return self._answers(self._ask_all(method, *arguments), method)

    def drop(self, clients: Sequence[int]) -> None:
        self.ask("drop", list(clients))
        self.clients = tuple(client for client in self.clients if client not in clients)

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
        return [answer(each, f"the servers to {what}", self._sent.patience, (NotOpened,)) for each in asked]


@dataclass(frozen=True, eq=False)
class SharesArrival(Arrival):
    """A round whose shares the driver has passed to the servers: the coordinator gets only what they open."""

    privacy: SecretSharing
    servers: list[ActorHandle]
    dealer: ActorHandle | None
    run: str
    """A `run_id`."""
    round: int
    number: int
    """Of the round in messages; a round that is repeated has another one."""
    d: int
    demand: Demand
    """What the defence asks of the updates."""
    lists: list[Any]
    """For each server, a reference to its list of senders."""
    reasons: list[Any]
    """For each server, a reference to its reasons for refusing shares, by client."""
    agreed: list[Any]
    """For each server, a reference to the clients with whose shares it goes on."""
    patience: float

    def receive(
        self,
        ids: Sequence[Sequence[int]],
        weigh: Callable[[NDArray[np.int64]], Floats],
        too_few: Callable[[int], str | None],
        histories: Mapping[str, np.ndarray],
    ) -> Received:
        """Wait until the servers have the shares, and open what is needed of the Gram matrix; arguments as for
        `Arrival.receive`.

        Raises `MessageError` if the servers do not agree on the clients, `OpeningError` if they are too few.
        """
        agreements = {self._answer(each) for each in self.agreed}
        if len(agreements) > 1:
            raise MessageError("the servers do not agree on whose shares are there")
        here = np.array(agreements.pop(), dtype=np.int64)
        missing = sorted({client for block in ids for client in block} - set(here.tolist()))
        self.refused.update(dict.fromkeys(missing, "its shares did not reach every server"))
        for reasons in self.reasons:
            self.refused.update({c: why for c, why in self._answer(reasons).items() if c in self.refused})
        self.commitments.update(commitments([self._answer(each) for each in self.lists]))
        if reason := too_few(len(here)):
            raise OpeningError(reason)
        parties = RemoteParties(self, here.tolist(), self.commitments)
        opened = SharedUpdates(parties, self.d, self.privacy.clip, weigh(here), self.privacy.support)
        self.refused.update(dict.fromkeys(opened.dropped, "its update wraps around"))
        self.notes.extend(opened.notes)
        return Received(opened, np.array(opened.clients, dtype=np.int64), len(opened.dropped))

    def traffic(self, updates: int, d: int) -> dict[str, int]:
        """Bytes of the messages in this round: those of all hospitals, and those of servers and dealer. Functionals and
        products of updates that were opened, as servers count them."""
        parties = [*self.servers, *([] if self.dealer is None else [self.dealer])]
        found = np.array([self._answer(party.traffic.remote()) for party in parties])
        sums, most = found[:, :2].sum(axis=0).tolist(), found[:, 2:].max(axis=0).tolist()
        return dict(zip(("upload_bytes", "server_bytes", "functionals", "products"), sums + most, strict=True))

    def _answer(self, reference: Any) -> Any:
        return answer(reference, f"round {self.round}: the servers to take in shares", self.patience, (NotOpened,))


class PartyTeam:
    """The parties of one run, as the driver reaches them: it sets them up, passes shares on, and replaces dead ones.

    privacy: the protocol.
    seed: the experiment's.
    run: the run's id.
    d: coordinates of an update.
    demand: what the defence asks of the updates.
    actors: returns the actors of servers and dealer, and replaces dead ones.
    patience: seconds to wait for an answer.
    owner: 16 bytes; see `PartyHost`.
    limit: functionals that a server opens at most; None: any number.
    place: folder for the servers' ledgers; None: they keep none.
    """

    ATTEMPTS = 3
    """How often a round is tried if a party dies in it."""

    def __init__(
        self,
        privacy: SecretSharing,
        seed: int,
        run: str,
        d: int,
        demand: Demand,
        actors: Callable[[], list[ActorHandle]],
        patience: float,
        owner: bytes,
        limit: int | None = None,
        place: str | None = None,
    ) -> None:
        self.privacy, self._seed, self._run, self._d = privacy, seed, run_id(run), d
        self._demand, self._find, self._patience = demand, actors, patience
        self._owner, self._limit, self._place = owner, limit, place
        self._secrets: Arrays = {}

    def setup(self, round: int, arrays: Arrays) -> None:
        """Prepare to go on after `round`.

        arrays: the parties' parts of its checkpoint.

        Parties that are dead are started again.
        """
        actors, arrays = self._find(), self._secrets | arrays
        self._servers = actors[: self.privacy.servers]
        self._dealer = actors[-1] if self.privacy.dealer else None
        awaited = "the servers to get ready"
        asked = [
            actor.setup.remote(
                self.privacy.model_copy(update={"max_functionals": self._limit}),
                self._seed,
                None if actor is self._dealer else number,
                self._run,
                self._d,
                self._demand,
                round * self.ATTEMPTS - 1,
                below(arrays, str(number)),
                self._owner,
                self._place,
            )
            for number, actor in enumerate(actors)
        ]
        asked += self._meeting()
        for each in asked:
            answer(each, awaited, self._patience)
        # A server that dies in the first round must come back with its first secret.
        self._secrets = {name: array for name, array in self.arrays().items() if name.endswith("/secret")}

    def _meeting(self) -> list[Any]:
        """Let the servers agree on keys; returns references to wait for."""
        servers, owner = self._servers, self._owner
        public = [server.introduce.remote(owner) for server in servers]
        asked = [
            server.meet.remote(owner, *public[:number], *public[number + 1 :]) for number, server in enumerate(servers)
        ]
        if self._dealer is not None:
            asked.append(self._dealer.meet.remote(owner, *public))
        others = len(servers) - 1
        sealed = servers[0].secrets.options(num_returns=others).remote(owner)
        for server, data in zip(servers[1:], sealed if others > 1 else [sealed], strict=True):
            asked.append(server.learn.remote(owner, data))
        return asked

    def send(self, round: int, attempt: int, blocks: Sequence[tuple[Sequence[int], Any, ActorHandle]]) -> SharesArrival:
        """Let the actors that hold updates share them.

        attempt: 0 at first; more if the round is repeated.
        blocks: client ids, a reference to their updates, and the actor that holds them.
        """
        number = (round - 1) * self.ATTEMPTS + attempt
        count = self.privacy.servers
        parts = []
        for clients, updates, holder in blocks:
            share = holder.send.options(num_returns=count)
            parts.append(share.remote("share", self._run, number, round, list(clients), updates))
        clients = sorted(client for own, _, _ in blocks for client in own)
        taken = [
            server.receive.options(num_returns=2).remote(
                self._owner, number, round, clients, *[part[place] for part in parts]
            )
            for place, server in enumerate(self._servers)
        ]
        lists, reasons = [senders for senders, _ in taken], [why for _, why in taken]
        agreed = [
            server.agree.remote(self._owner, *lists[:place], *lists[place + 1 :])
            for place, server in enumerate(self._servers)
        ]
        return SharesArrival(
            self.privacy,
            self._servers,
            self._dealer,
            self._run,
            round,
            number,
            self._d,
            self._demand,
            lists,
            reasons,
            agreed,
            self._patience,
        )

    def histories(self, arrays: Arrays) -> Arrays:
        """The histories (clients, d) float32, put together from the parties' `arrays`."""
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
        asked = [server.memory.remote(self._owner) for server in self._servers]
        parts = [answer(each, "a server's memory", self._patience) for each in asked]
        return {f"{number}/{name}": array for number, part in enumerate(parts) for name, array in part.items()}
