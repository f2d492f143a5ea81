"""`shares`: two servers and a dealer open the Gram matrix of updates, or of sketches, that no one of them sees.

Each update is u = u_0 + u_1 mod 2^64: server 0 gets u_0 as a seed of 32 bytes, server 1 the words u − u_0. A dealer
that sees no update hands out a square triple: seeds of A = A_0 + A_1, uniform like U, and a correction (D. Beaver,
Efficient multiparty protocols using circuit randomization, CRYPTO 1991; of a matrix: P. Mohassel, Y. Zhang, SecureML,
2017). The servers open E = U − A to each other, which is uniform. With V = E + A_0,

    U Uᵀ = (E + A_0 + A_1)(E + A_0 + A_1)ᵀ = V Vᵀ + (E A_1ᵀ + A_1 Eᵀ) + (A Aᵀ − A_0 A_0ᵀ),

one product for server 0, one for server 1, and one for the dealer: (2 A_0 + A_1) A_1ᵀ and its transpose are together
twice the last term. So twice the Gram matrix is opened, and read mod 2^63. Where norms suffice, all three compute the
diagonals of these products alone. No two of the three may collude; all follow the protocol, but may be curious. What
they open is blinded by shares of zero that the dealer does not know, so a dealer that sees what the coordinator sees
learns no more than the coordinator.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fedrobust.secure.arguments import is_number, require_rows
from fedrobust.secure.lines import Line, grown, whole
from fedrobust.secure.links import INTRODUCTION_BYTES, sealed_for
from fedrobust.secure.messages import (
    DEALER,
    HEADER,
    Kind,
    Message,
    MessageError,
    borrowed,
    expect,
    in_place,
    number_of,
    server_id,
    server_name,
    unpack,
    viewed,
)
from fedrobust.secure.ring import SEED_BYTES, Entropy, Words, column_chunks, derived, expand, own_products, products
from fedrobust.secure.server import Server
from fedrobust.secure.weights import OpeningError
from fedrobust.updates.demand import Opens

SHAPE = struct.Struct("<QQ")
"""Rows and columns of a triple."""
MOST_ROWS = 1 << 15
"""Most rows of a triple: its Gram matrix has 8 GiB, and requests for more must not stop the dealer."""


def share(encoded: Words, entropy: Entropy, run: str, round: int, sender: int) -> tuple[Message, Message]:
    """A client's messages: to server 0 a seed, to server 1 words.

    encoded: (d,) the update, as `ring.encode` returns it.
    entropy: source of the seed, which must be fresh in every round.
    run: a `run_id`.
    round: the number in messages.
    sender: the client's id.
    """
    seed = entropy(SEED_BYTES)
    words, whole = in_place(8 * len(encoded))
    expand(seed, len(encoded), out=words)
    np.subtract(encoded, words, out=words)
    return (
        Message(run, round, sender, server_name(0), Kind.SEED, seed),
        Message(run, round, sender, server_name(1), Kind.WORDS, borrowed(words), whole),
    )


class Dealer:
    """Hands out square triples, each once. It sees no update, and no message of a client or server.

    entropy: source of the seeds.
    opens: as for `Server`: for "norms", triples hold the diagonal of their square alone.
    """

    def __init__(self, entropy: Entropy = os.urandom, opens: Opens = "gram") -> None:
        self._entropy, self._opens = entropy, opens
        self._given: dict[str, int] = {}
        self._servers: dict[int, bytes] = {}

    def meet(self, run: str, introductions: Sequence[bytes]) -> None:
        """Take the public keys of both servers. A triple is sealed, because with the triple E would show the updates.

        run: a `run_id`.
        introductions: of server 0 and server 1.
        """
        found = [expect(unpack(data), run, 0, None, Kind.KEY, INTRODUCTION_BYTES, "servers") for data in introductions]
        if sorted(message.sender for message in found) != sorted(server_id(number) for number in range(2)):
            raise MessageError("expected one key of each of the 2 servers")
        self._servers = {number_of(message.sender): message.body for message in found}

    def triple(self, run: str, round: int, rows: int, columns: int) -> tuple[Message, Message]:
        """Its messages to server 0 and server 1 for A (rows, columns).

        run: a `run_id`.
        round: the number in messages.

        Raises `OpeningError` if the round had one already, or there is no such matrix.
        """
        if not (isinstance(run, str) and is_number(round) and is_number(rows, MOST_ROWS + 1) and is_number(columns)):
            raise OpeningError(
                f"a triple is for the number of a round, at most {MOST_ROWS:,} rows, and columns, found {round!r}, "
                f"{rows!r} and {columns!r}"
            )
        if self._opens == "sum":
            raise OpeningError("the defence needs no product of updates: there is no triple")
        if not self._servers:
            raise OpeningError("the dealer has not met the servers")
        if round <= self._given.get(run, -1):
            raise OpeningError(f"round {round} has had its triple; a round that is repeated needs a new number")
        self._given[run] = round
        first, second, blind = (self._entropy(SEED_BYTES) for _ in range(3))
        multiplied = products if self._opens == "gram" else own_products
        correction = np.zeros((rows, rows) if self._opens == "gram" else (rows,), dtype=np.int64)
        for part in column_chunks(rows, columns):
            one, other = _expanded(first, rows, part), _expanded(second, rows, part)
            one *= 2
            one += other
            correction += multiplied(one, other)
        correction += correction.T.copy()
        correction -= expand(blind, correction.size).reshape(correction.shape)
        shape = SHAPE.pack(rows, columns)
        bodies = (shape + first + blind, shape + second + correction.tobytes())
        to_0, to_1 = (
            Message(run, round, DEALER, server_name(number), Kind.TRIPLE, sealed_for(self._servers[number], body))
            for number, body in enumerate(bodies)
        )
        return to_0, to_1


class ShareServer(Server):
    """Server 0 or 1 of the two; arguments as for `Server`.

    Between `agree` and the openings: `receive_triple`; then for each of `chunks` its `difference` goes to the other
    server, which takes it by `add_difference`; then `gram_share`. It holds one chunk or a few at a time.
    """

    parties: ClassVar[int] = 2

    def __init__(self, number: int, run: str, d: int, **options: Any) -> None:
        if number not in (0, 1):
            raise ValueError(f"servers are 0 and 1, found {number}")
        self.holds = ((number, number == 0),)
        super().__init__(number, run, d, **options)
        self._used: set[bytes] = set()

    def begin(self, round: int, clients: Sequence[int], training: int | None = None) -> None:
        super().begin(round, clients, training)
        self._held: dict[int, tuple[Words, Words]] = {}
        self._taken: set[int] = set()

    def receive_triple(self, data: bytes) -> None:
        """Take the dealer's message.

        data: the one for this server.

        Raises `MessageError` if it does not fit, is for other rows, or was used in another round.
        """
        self._require_products()
        self._after("agree")
        self._before("triple")
        count = math.prod(self._shape)
        words = count if self.number else SEED_BYTES // 8
        size = SHAPE.size + SEED_BYTES + 8 * words
        message = expect(unpack(data), self.run, self.round, DEALER, Kind.TRIPLE, None, server_name(self.number))
        body = self.links.unsealed(message.body)
        if len(body) != size or SHAPE.unpack_from(body) != (self.stack.rows, self.stack.width):
            raise MessageError(f"triple is not for {self.stack.rows} rows and {self.stack.width} columns")
        seed = body[SHAPE.size :][:SEED_BYTES]
        if seed in self._used:
            raise MessageError("triple was used in an earlier round")
        self._used.add(seed)
        self._seed, rest = seed, body[SHAPE.size + SEED_BYTES :]
        matrix = np.frombuffer(rest, dtype="<i8") if self.number else expand(rest, count)
        self._correction = matrix.reshape(self._shape)
        self._total = np.zeros(self._shape, dtype=np.int64)
        self._once("triple")

    @property
    def chunks(self) -> list[slice]:
        """The column chunks of the differences."""
        return column_chunks(self.stack.rows, self.stack.width)

    def difference(self, chunk: int) -> bytes:
        """Its part of E = U − A in the columns of a chunk, for the other server; each chunk once.

        chunk: its index in `chunks`.
        """
        self._after("triple")
        if not is_number(chunk, len(self.chunks)):
            raise OpeningError(f"chunk {chunk!r} is none of the {len(self.chunks)}")
        self._once(f"difference {chunk}")
        columns = self.chunks[chunk]
        mask = _expanded(self._seed, self.stack.rows, columns)
        body = np.empty(1 + mask.size, dtype="<i8")
        body[0], part = chunk, body[1:].reshape(mask.shape)
        if self.number:
            for row, line, masked in zip(part, self.stack.lines(1, columns), mask, strict=True):
                np.subtract(line, masked, out=row)
            self._held[chunk] = part, mask
        else:
            own = self.stack.chunk(0, columns)
            np.subtract(own, mask, out=part)
            self._held[chunk] = own, own
        # U − A is hidden from whoever passes it on: together with the dealer's A it would give U.
        pad, receiver = self._pad(self.number, chunk, mask.size), server_name(1 - self.number)
        body[1:] += pad
        message = Message(self.run, self.round, server_id(self.number), receiver, Kind.DIFFERENCE, borrowed(body))
        data = message.pack(self._key(self.number, chunk))
        body[1:] -= pad
        return data

    def add_difference(self, data: bytes) -> None:
        """Take the other server's part of a chunk, after `difference` of the same chunk; each once.

        data: what `difference` of the other server returned.
        """
        self._after("triple")
        self._before("gram")
        other, name = 1 - self.number, server_name(self.number)
        chunk = int.from_bytes(viewed(data)[HEADER.size : HEADER.size + 8], "little")
        message = expect(
            unpack(data, self._key(other, chunk), copy=False),
            self.run,
            self.round,
            server_id(other),
            Kind.DIFFERENCE,
            None,
            name,
        )
        if chunk not in self._held:
            raise MessageError(f"difference of chunk {chunk}: it is not awaited, or has come already")
        own, right = self._held[chunk]
        if len(message.body) != 8 + own.nbytes:
            raise MessageError(f"difference of chunk {chunk} has {len(message.body)} bytes, expected {8 + own.nbytes}")
        del self._held[chunk]
        # Server 0: U_0 + E_1 = E + A_0, with itself. Server 1: E = E_1 + E_0, with A_1.
        other_part = np.frombuffer(message.body, dtype="<i8", offset=8) - self._pad(other, chunk, own.size)
        own += other_part.reshape(own.shape)
        self._total += self._multiplied(own, right)
        self._taken.add(chunk)

    def gram_share(self) -> bytes:
        """Its part of twice the Gram matrix (rows, rows), or of its diagonal (rows,); once in a round, when all chunks
        are there."""
        self._after("triple")
        self._after("check")
        if missing := len(self.chunks) - len(self._taken):
            raise OpeningError(f"{missing} of {len(self.chunks)} chunks of differences are missing")
        self._open_gram()
        total = self._total + (self._total.T if self.number else self._total)
        part = self._correction + (2 * total if self.number else total)
        return self._opened(Kind.GRAM, part, "gram")

    def remember(self, rows: Sequence[int], coefficients: Words) -> None:
        """End the round: the histories grow by these rows.

        rows: which of the round's updates.
        coefficients: public ones, at 12 fraction bits, for the history "average".
        """
        self._after("gram")
        require_rows(rows, coefficients, len(self.clients))
        self._once("remember")
        for name, parts in self.stack.past.items():
            past, current = parts[self.number], self.stack.current[self.number]
            for row, coefficient in zip(rows, coefficients.tolist(), strict=True):
                client = self.clients[row]
                past[client] = self._grown(name, past.get(client), current[client], coefficient)

    def _grown(self, name: str, past: Line, current: Line, coefficient: int) -> Line:
        if name == "last":
            return current
        return grown(name, whole(past, self.d), whole(current, self.d), coefficient, second=self.number == 1)

    def _digests_of(self, data: memoryview, parts: Sequence[bytes]) -> tuple[bytes, ...]:
        return (bytes(data[-32:]),)  # the message's own: nobody else has this component

    def _fit(self, digests: Sequence[tuple[bytes, ...]]) -> bool:
        return True  # any two parts are those of some words

    def _key(self, sender: int, chunk: int) -> bytes:
        """The key of one message between the servers."""
        return derived(self.links.session_edge(sender, 1 - sender), f"{self.round}/difference {chunk}")

    def _pad(self, sender: int, chunk: int, count: int) -> Words:
        """The words that hide one message between the servers."""
        return expand(derived(self._key(sender, chunk), "pad"), count)


def _expanded(seed: bytes, rows: int, columns: slice) -> Words:
    """These columns, a chunk, of the uniform matrix of a seed (rows, w): the words of one chunk follow each other."""
    width = columns.stop - columns.start
    return expand(seed, rows * width, rows * columns.start).reshape(rows, width)
