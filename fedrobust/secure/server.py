"""What a server that holds shares of updates does under every protocol: which messages it accepts, and what it opens.

A server holds additive components of each update, as 32-byte seeds or as words. Everything but the Gram matrix is
linear, so each server opens its part by itself, blinded by shares of zero: adding up the parts gives the sum, and each
part alone gives nothing. Each server also adds noise to its part of the sum, and of the numbers that check the rows'
lengths. Of the Gram matrix a server opens no more than the defence needs: its diagonal, or nothing.

Once: `introduce`, `meet` the others, and the `secrets` of server 0, which the others `learn`. The order of a round is
fixed: `begin`, `receive` from each client, `agree` on the clients, the check and the clients that are dropped for it,
the Gram matrix, products with public vectors, one weighted sum. Every method refuses to be called out of turn. If a
training round is repeated, its sum must be the one that was opened before.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from fedrobust.secure.arguments import are_numbers, are_words, is_number
from fedrobust.secure.ledger import Ledger, nowhere
from fedrobust.secure.lines import Line
from fedrobust.secure.links import INTRODUCTION_BYTES, SEALED_BYTES, Links
from fedrobust.secure.messages import (
    Kind,
    Message,
    MessageError,
    digest,
    expect,
    number_of,
    server_id,
    server_name,
    unpack,
    viewed,
)
from fedrobust.secure.ring import (
    SEED_BYTES,
    Entropy,
    Words,
    column_chunks,
    derived,
    largest_square,
    own_products,
    products,
    square_sum,
)
from fedrobust.secure.senders import listed, senders_of
from fedrobust.secure.sketch import MASK_BITS, PROJECTIONS, projected, sketched
from fedrobust.secure.stack import Stack
from fedrobust.secure.weights import MIN_SUPPORT, OpeningError, require_short, require_support
from fedrobust.updates.demand import Opens

NOISE_BITS = 16
"""Each server adds uniform noise from −2^16 to 2^16 to its part of each coordinate of the sum."""


class Server(ABC):
    """One server; it keeps no update longer than its round, and only its own components of the histories.

    number: 0, 1, …
    run: a `run_id`.
    d: coordinates of an update.
    entropy: where its own secret comes from. One that can be made again is for reproducible experiments only.
    histories: names as in `Updates.remembered`.
    sketch: columns of the sketch that the Gram matrix is of; None: it is of the updates themselves.
    min_support: least Σw²/max w² of a sum that is opened.
    max_functionals: linear functionals of every update, over all rounds, that may be opened; None: any number.
    colluders: clients that may show the coordinator their update. Each of them counts as a known vector, and so does
        each of its histories.
    secret: its own secret (32 bytes), if it is started again.
    opens: what it opens of the Gram matrix: "gram", all; "norms", its diagonal; "sum", nothing.
    vectors: public vectors of a round whose products it opens, at most; None: any number.
    """

    holds: tuple[tuple[int, bool], ...]
    """(component, whether it arrives as a seed); the first is the one that this server opens."""
    parties: ClassVar[int]

    def __init__(
        self,
        number: int,
        run: str,
        d: int,
        entropy: Entropy = os.urandom,
        histories: Sequence[str] = (),
        sketch: int | None = None,
        min_support: float = MIN_SUPPORT,
        max_functionals: int | None = None,
        colluders: int = 0,
        secret: bytes | None = None,
        opens: Opens = "gram",
        vectors: int | None = None,
    ) -> None:
        if histories and opens != "gram":
            raise ValueError("histories are only for a Gram matrix that is opened whole")
        self.number, self.run, self.d, self.colluders = number, run, d, colluders
        self.opens, self.vectors = opens, vectors
        self.histories, self.min_support, self.max_functionals = tuple(histories), min_support, max_functionals
        self.stack = Stack([component for component, _ in self.holds], d, histories, sketch)
        self.links = Links(number, self.parties, secret or entropy(SEED_BYTES))
        self.round = self.training = -1
        """Numbers of the last round: that in messages, which is new in each attempt, and that of the training."""
        self.functionals = 0
        """Linear functionals of every update that have been opened so far: see `_count`."""
        self.products = 0
        """Products of updates and histories, each with itself or with another one, that have been opened so far."""
        self._summed: tuple[int, dict[int, int]] = -1, {}
        self.keep: Callable[[Ledger], None] = nowhere
        """Called with the ledger before anything is opened; `recall` takes the ledger after a restart."""
        self._done: set[str] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.number})"

    # Before the first round

    def introduce(self) -> bytes:
        """Its public key, as a message for the other servers."""
        return Message(self.run, 0, server_id(self.number), "servers", Kind.KEY, self.links.introduction()).pack()

    def meet(self, others: Sequence[bytes]) -> None:
        """Take the public keys of all other servers.

        others: the message that each returned from `introduce`.

        Raises `MessageError` if one is missing or invalid.
        """
        found = [expect(unpack(data), self.run, 0, None, Kind.KEY, INTRODUCTION_BYTES, "servers") for data in others]
        self._require_others(found, "key")
        self.links.meet({number_of(message.sender): message.body for message in found})

    def secrets(self) -> list[bytes]:
        """The secret of the sketches, sealed for each other server; empty for all but server 0."""
        return [
            Message(self.run, 0, server_id(0), server_name(other), Kind.SECRET, self.links.sealed(other)).pack()
            for other in range(1, self.parties if self.number == 0 else 0)
        ]

    def learn(self, data: bytes) -> None:
        """Take the secret of the sketches.

        data: the message for this server among the `secrets` of server 0.

        Raises `MessageError` if it is not from there.
        """
        name = server_name(self.number)
        message = expect(unpack(data), self.run, 0, server_id(0), Kind.SECRET, SEALED_BYTES, name)
        self.links.learn(message.body)

    # A round

    def begin(self, round: int, clients: Sequence[int], training: int | None = None) -> None:
        """Wait for the shares of these clients.

        round: the number in messages, higher than the last one.
        clients: different ids.
        training: the number of the training round whose updates they are, `round` by default. A training round that is
            repeated has the same number, and its sum must be the same.

        Raises `OpeningError` if one of them is not as it must be, `MessageError` before the servers have met.
        """
        if not self.links.ready:
            raise MessageError(f"server {self.number} has not met the other servers")
        training = round if training is None else training
        if not (is_number(round) and is_number(training)):
            raise OpeningError(f"a round is a number from 0 to 2^63 − 1, found {round!r}, of the training {training!r}")
        if round <= self.round or training < self.training:
            raise OpeningError(f"round {round} is over: the last one was {self.round}")
        if not are_numbers(clients):
            raise OpeningError(f"clients must be different numbers that are not negative, found {clients!r}")
        self.round, self.training, self._expected = round, training, frozenset(clients)
        self.stack.begin(self._fresh("sketch"))
        self._digests: dict[int, tuple[bytes, ...]] = {}
        self._public: list[Words] = []
        self._done = {"begin"}

    def receive(self, data: bytes | memoryview) -> None:
        """Take the share of a client.

        data: the client's message for this server.

        Raises `MessageError` if it is damaged, replayed, from a stranger, or a second one.
        """
        self._before("agree")
        data = viewed(data)
        seeds_only = all(seed for _, seed in self.holds)
        size = sum(SEED_BYTES if seed else 8 * self.d for _, seed in self.holds)
        kind = Kind.SEED if seeds_only else Kind.WORDS
        message = expect(unpack(data, copy=False), self.run, self.round, None, kind, size, server_name(self.number))
        if message.sender not in self._expected:
            raise MessageError(f"sender {message.sender} is no client of round {self.round}")
        if message.sender in self._digests:
            raise MessageError(f"client {message.sender} has sent its share of round {self.round} already")
        parts, start = [], 0
        for component, seed in self.holds:
            parts.append(message.body[start : start + (SEED_BYTES if seed else 8 * self.d)])
            line: Line = bytes(parts[-1]) if seed else np.frombuffer(parts[-1], dtype="<i8")
            self.stack.current[component][message.sender] = line
            start += len(parts[-1])
        self._digests[message.sender] = self._digests_of(data, parts)

    def senders(self) -> bytes:
        """The clients whose shares are here, with digests: for the other servers and the coordinator."""
        self._after("begin")
        return self._message(Kind.SENDERS, listed(self._digests), "all")

    def agree(self, others: Sequence[bytes]) -> tuple[int, ...]:
        """The clients, ascending, whose shares reached every server and fit; the other shares are dropped.

        others: the `senders` of the other servers.

        Raises `MessageError` if one is missing or invalid.
        """
        self._before("agree")
        found = [expect(unpack(data), self.run, self.round, None, Kind.SENDERS, None, "all") for data in others]
        self._require_others(found, "list of senders")
        lists = {number_of(message.sender): senders_of(message) for message in found} | {self.number: self._digests}
        here = {
            client
            for client in set.intersection(*map(set, lists.values()))
            if all(len(each[client]) == len(self.holds) for each in lists.values())
            and self._fit([lists[k][client] for k in range(self.parties)])
        }
        self._once("agree")
        self.stack.choose(sorted(here))
        return self.clients

    @property
    def clients(self) -> tuple[int, ...]:
        """The clients of the round on which the servers have agreed, without those that were dropped."""
        return self.stack.clients

    def check_share(self) -> bytes:
        """Its part of the random combinations (rows, PROJECTIONS) of each row's two sketches, with noise; once in a
        round."""
        self._after("agree")
        self._once("check")
        rows = self.stack.sketched_twice(self._fresh("check"))
        # Noise by client: if a round is repeated with other clients, no client gets the noise of another.
        labels = [f"check/{place}/{client}" for place in range(1 + len(self.histories)) for client in self.clients]
        noise = [self._noise(PROJECTIONS, label, MASK_BITS) for label in labels]
        share = projected(rows, self._fresh("projections"))
        return self._opened(Kind.PROJECTIONS, share + np.array(noise).reshape(share.shape), "check")

    def drop(self, clients: Sequence[int]) -> None:
        """Leave out clients whose updates are too long by the check; once in a round, before the Gram matrix.

        Raises `OpeningError` for clients that are not in the round.
        """
        self._after("check")
        self._before("triple")
        self._before("gram")
        if not are_numbers(clients) or not set(clients) <= set(self.clients):
            raise OpeningError(f"clients must be some of {list(self.clients)}, found {clients!r}")
        self._once("drop")
        self.stack.drop(clients)

    def anchor_share(self, vector: Words) -> bytes:
        """Its part of the products with a public vector, or of the sketches of both.

        vector: (d,) of norm ≤ 1.

        The products are those with the rows, with the round's earlier public vectors, and with itself: (rows + number
        of public vectors,).

        Raises `OpeningError` for a vector that is longer or of another shape, and if too many functionals would be
        opened, in this round or in all.
        """
        self._after("gram")
        self._before("aggregate")
        if not are_words(vector, self.d):
            raise OpeningError(f"a public vector must have d = {self.d} coordinates, as words")
        if square_sum(vector) > largest_square(self.d):
            raise OpeningError("a public vector must have a norm of 1 at most: a longer one reads several numbers")
        if self.vectors is not None and len(self._public) >= self.vectors:
            raise OpeningError(f"a round opens products with {self.vectors} public vectors at most")
        self._count(1 + len(self.histories))
        rows, width = self.stack.rows, self.stack.width
        if self.stack.sketch:
            vector = sketched(lambda part: vector[None, part].copy(), 1, self.d, width, self._fresh("sketch"))[0]
        self._public.append(vector)
        own, total = self.holds[0][0], np.zeros(rows + len(self._public), dtype=np.int64)
        for columns in column_chunks(rows, width):
            total[:rows] += self.stack.chunk(own, columns) @ vector[columns]
        if self.number == 0:  # a public product is a valid share of itself
            total[rows:] = [other @ vector for other in self._public]
        return self._opened(Kind.ANCHOR, total, f"anchor {len(self._public)}")

    def combine_share(self, weights: Words) -> bytes:
        """Its part of the weighted sum (d,) of the updates, with noise; once in a round.

        weights: (n,) whole numbers, one for each of `clients`.

        Raises `OpeningError` for weights that are not short, or that lie on too few updates. It is also raised for
        other weights than those of the sum opened in the same training round: the two sums would differ by single
        updates.
        """
        self._after("check" if self.opens == "sum" else "gram")
        require_support(require_short(weights, len(self.clients)), self.min_support)
        chosen = {client: weight for client, weight in zip(self.clients, weights.tolist(), strict=True) if weight}
        if self._summed[0] == self.training and self._summed[1] != chosen:
            raise OpeningError(f"another sum of training round {self.training} was opened before")
        self._once("aggregate")
        self._summed = self.training, chosen
        self.keep(self.ledger())
        share = self.stack.weighted_sum(weights)
        return self._opened(Kind.AGGREGATE, share + self._noise(self.d, "aggregate", NOISE_BITS), "aggregate")

    def forget(self, name: str, client: int) -> None:
        """Set a client's history to zero.

        name: of the history.

        Raises `OpeningError` if there is no such history.
        """
        if not isinstance(name, str) or name not in self.stack.past:
            raise OpeningError(f"there is no history {name!r}")
        if not is_number(client):
            raise OpeningError(f"a client is a number that is not negative, found {client!r}")
        self.stack.forget(name, client)

    def ledger(self) -> Ledger:
        """What it has opened; to be kept where only this server can write."""
        training, weights = self._summed
        return {"functionals": self.functionals, "training": training, "weights": dict(weights)}

    def recall(self, ledger: Ledger) -> None:
        """Restore what it had opened before a restart, from its `ledger`."""
        self.functionals = max(self.functionals, int(ledger["functionals"]))
        self._summed = int(ledger["training"]), {int(client): int(w) for client, w in ledger["weights"].items()}
        self.training = max(self.training, self._summed[0])

    def memory(self) -> Mapping[str, Mapping[int, Mapping[int, Line]]]:
        """Its components of the histories, for its own checkpoint: name → component → client → line."""
        return self.stack.past

    def restore(self, memory: Mapping[str, Mapping[int, Mapping[int, Line]]], round: int, functionals: int) -> None:
        """Go on after `round` with an earlier `memory`.

        It forgets nothing that it has opened since: the count of functionals only grows, and a training round that has
        begun can only be repeated. What it had of a round is dropped: the next step is `begin`.

        memory: as `memory` returned it.
        round: the number in messages of the last round.
        functionals: opened until then.
        """
        self.stack.restore(memory)
        self.round, self.functionals = round, max(self.functionals, functionals)
        self._done = set()

    def _digests_of(self, data: memoryview, parts: Sequence[bytes]) -> tuple[bytes, ...]:
        """A digest for each component of a client's share."""
        return tuple(digest(part) for part in parts)

    @abstractmethod
    def _fit(self, digests: Sequence[tuple[bytes, ...]]) -> bool:
        """Whether what servers 0, 1, … have of a client belongs together. All servers judge by the same lists, so all
        find the same: a client whose share fits at some servers only must not stop the round of the others."""

    def _require_others(self, messages: Sequence[Message], what: str) -> None:
        """Raises `MessageError` unless there is one message of each other server."""
        others = [server_id(k) for k in range(self.parties) if k != self.number]
        if sorted(message.sender for message in messages) != sorted(others):
            raise MessageError(f"expected one {what} of each of the {len(others)} other servers")

    def _fresh(self, label: str) -> bytes:
        """A seed that only the servers know, for one training round; it is the same if the round is repeated."""
        return derived(self.links.sketch, f"{self.training}/{label}")

    def _noise(self, count: int, label: str, bits: int) -> Words:
        """Its own noise (count,); it is the same if a training round is repeated."""
        return self.links.drawn(count, f"{self.training}/{label}", bits)

    def _opened(self, kind: Kind, share: Words, label: str) -> bytes:
        blinded = share.reshape(-1) + self.links.zeros(share.size, f"{self.round}/{label}")
        return self._message(kind, blinded.tobytes(), "coordinator")

    def _message(self, kind: Kind, body: bytes, receiver: str) -> bytes:
        return Message(self.run, self.round, server_id(self.number), receiver, kind, body).pack()

    def _multiplied(self, left: Words, right: Words) -> Words:
        """What it needs of the products (rows, rows) mod 2^64 of two stacks of rows (rows, w): all, or the diagonal
        (rows,)."""
        return products(left, right) if self.opens == "gram" else own_products(left, right)

    @property
    def _shape(self) -> tuple[int, ...]:
        """Of what `_multiplied` returns."""
        return (self.stack.rows,) * (2 if self.opens == "gram" else 1)

    def _require_products(self) -> None:
        if self.opens == "sum":
            raise OpeningError("the defence needs no product of updates: none is opened")

    def _open_gram(self) -> None:
        """Once in a round. A colluder's update and its histories are known vectors, if products of two are opened."""
        self._require_products()
        self._before("gram")
        rows, whole = self.stack.rows, self.opens == "gram"
        self._count(self.colluders * (1 + len(self.histories)) ** 2 if whole else 0)
        self.products += rows * (rows + 1) // 2 if whole else rows
        self._once("gram")

    def _count(self, functionals: int) -> None:
        """Each known vector opens its product with the updates of this round, and with each of their histories."""
        limit = self.max_functionals
        if limit is not None and self.functionals + functionals > limit:
            raise OpeningError(
                f"{self.functionals} linear functionals of the updates were opened, {functionals} more would pass "
                f"max_functionals = {limit}"
            )
        self.functionals += functionals
        if functionals:
            self.keep(self.ledger())

    def _once(self, step: str) -> None:
        self._before(step)
        self._done.add(step)

    def _before(self, step: str) -> None:
        if "begin" not in self._done:
            raise OpeningError("no round has begun")
        if step in self._done:
            raise OpeningError(f"round {self.round}: {step} is done, and is done once")

    def _after(self, step: str) -> None:
        if step not in self._done:
            raise OpeningError(f"round {self.round}: {step} must come first")
