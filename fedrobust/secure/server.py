"""What a server that holds shares of updates does under every protocol: what it takes in, and what it lets out.

A server holds additive components of each update, as 32-byte seeds or as words. Everything but the Gram matrix is
linear, so each server opens its part by itself, blinded by shares of zero: who adds up the parts learns the sum, and
from each part nothing. Before the first round the `common_seed` of each server goes to the one before it, by
`receive_common`: no one else knows the blinds. The order of a round is fixed: `begin`, `receive` from each client,
`agree` on who is there, the Gram matrix, products with public vectors, one weighted sum; random projections only after
that, and single terms only after projections. Every method refuses to be called out of turn.
"""

from __future__ import annotations

import hashlib
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from fedrobust.aggregation.protocol import FORGETTING
from fedrobust.errors import FedRobustError
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
)
from fedrobust.secure.ring import (
    FRACTION,
    SEED_BYTES,
    Entropy,
    Words,
    column_chunks,
    derived,
    expand,
    products,
    signs,
    truncated,
    weighted,
)

Line = bytes | Words | None
"""A component of a row: a seed, words (d,), or nothing for a row of zeros."""

HISTORY_FRACTION = 20
"""Fraction bits of the histories "sum" and "average"; "last" keeps all."""
COEFFICIENT_FRACTION = 12
KEPT = round(FORGETTING * (1 << COEFFICIENT_FRACTION))
ADDED = (1 << COEFFICIENT_FRACTION) - KEPT
"""The coefficients of the history "average" in fixed point; together 1, so that its norm stays ≤ 1."""

SUMMED = 8
"""So many rows' worth of a chunk is one piece of a weighted sum, which needs one row at a time."""

PROJECTIONS = 32
MIN_SUPPORT = 3.0
SPREADING = ("mean", "multi_krum", "mda", "geometric_median", "centered_clipping", "norm_bound")
"""Rules whose weights lie on many updates."""


class OpeningError(FedRobustError):
    """Something that must not be opened: a second sum, a weight on too few updates, too many functionals."""


def support(weights: Words) -> float:
    """On how many updates the weights lie: Σw² / max w², between 1 and n; 0 without any weight."""
    largest = float(np.abs(weights.astype(np.float64)).max(initial=0.0))
    return float(np.sum(np.square(weights / largest))) if largest else 0.0


def supported(weights: Words, least: float) -> bool:
    """Whether they lie on so many; the random last bits of equal weights do not count."""
    return support(weights) >= 0.999 * least


def require_support(weights: Words, least: float) -> None:
    """OpeningError where the weighted sum would lay open one update, or nearly."""
    if not supported(weights, least):
        raise OpeningError(
            f"the weights lie on {support(weights):.2f} updates (Σw²/max w²), min_support is {least:g}: opening their "
            f"sum would show single updates; rules that spread them: {', '.join(SPREADING)}, or a stage nnm before"
        )


def grown(name: str, history: Words, update: Words, coefficient: int, second: bool) -> Words:
    """One party's share (w,) of a history after a round. `second`: see `truncated`.

    "sum": h + u; "average": (KEPT h + coefficient u) / 2^12, both at 20 fraction bits.
    """
    update = truncated(update, FRACTION - HISTORY_FRACTION, second)
    if name == "sum":
        return np.asarray(history + update, dtype=np.int64)
    return truncated(KEPT * history + coefficient * update, COEFFICIENT_FRACTION, second)


class Server(ABC):
    """One server; it keeps no update longer than its round, and of the histories only its own components.

    number: 0, 1, …; run: a `run_id`; d: coordinates; histories: names as in `Protocol.remembered`.
    entropy: where its own secrets come from. One that can be made again is for reproducible experiments only.
    min_support: least Σw²/max w² of a sum that is opened.
    max_functionals: linear functionals of every update, over all rounds, that may be opened; None: any number.
    colluders: clients who may tell the coordinator their update: each is a functional in every round, and one more for
        each history.
    """

    holds: tuple[tuple[int, bool], ...]
    """(component, whether it arrives as a seed); the first is the one it opens."""
    parties: ClassVar[int]

    def __init__(
        self,
        number: int,
        run: str,
        d: int,
        entropy: Entropy = os.urandom,
        histories: Sequence[str] = (),
        min_support: float = MIN_SUPPORT,
        max_functionals: int | None = None,
        colluders: int = 0,
    ) -> None:
        self.number, self.run, self.d, self.colluders = number, run, d, colluders
        self.histories, self.min_support, self.max_functionals = tuple(histories), min_support, max_functionals
        self._own, self._next = entropy(SEED_BYTES), b""
        self.round = -1
        self.functionals = 0
        """Opened so far: products with public vectors, with projections, and with the colluders' updates."""
        self._past: dict[str, dict[int, dict[int, Line]]] = {
            name: {component: {} for component, _ in self.holds} for name in histories
        }
        self._done: set[str] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.number})"

    def common_seed(self) -> bytes:
        """Its seed for shares of zero, for the server before it in the circle."""
        before = server_name((self.number - 1) % self.parties)
        return Message(self.run, 0, server_id(self.number), before, Kind.COMMON, self._own).pack()

    def receive_common(self, data: bytes) -> None:
        """The seed of the server after it."""
        after, name = server_id((self.number + 1) % self.parties), server_name(self.number)
        self._next = expect(unpack(data), self.run, 0, after, Kind.COMMON, SEED_BYTES, name).body

    def begin(self, round: int, clients: Sequence[int]) -> None:
        """Wait for the shares of these clients. A round that is repeated needs a new, higher number."""
        if not self._next:
            raise MessageError(f"server {self.number} has not got the seed of the server after it")
        if round <= self.round:
            raise OpeningError(f"round {round} is over: the last one was {self.round}")
        if len(set(clients)) != len(clients) or min(clients, default=0) < 0:
            raise OpeningError(f"clients must be different numbers that are not negative, found {list(clients)}")
        self.round, self._expected = round, frozenset(clients)
        self.clients: tuple[int, ...] = ()
        self._current: dict[int, dict[int, Line]] = {component: {} for component, _ in self.holds}
        self._digests: dict[int, tuple[bytes, ...]] = {}
        self._weights = np.zeros(0, dtype=np.int64)
        self._done = set()

    def receive(self, data: bytes) -> None:
        """The share of a client. MessageError if it is damaged, replayed, from a stranger, or a second one."""
        self._before("agree")
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
            self._current[component][message.sender] = line
            start += len(parts[-1])
        self._digests[message.sender] = self._digests_of(data, parts)

    def senders(self) -> bytes:
        """Whose shares are here, with their digests: for the other servers and the coordinator."""
        entries = [struct.pack("<q", client) + b"".join(self._digests[client]) for client in sorted(self._digests)]
        width = len(next(iter(self._digests.values()), ()))
        return self._message(Kind.SENDERS, bytes([width]) + b"".join(entries), "all")

    def agree(self, others: Sequence[bytes]) -> tuple[int, ...]:
        """The clients, ascending, whose shares reached every server and fit; the other shares are dropped."""
        self._once("agree")
        lists = [expect(unpack(data), self.run, self.round, None, Kind.SENDERS) for data in others]
        if {message.sender for message in lists} != {server_id(k) for k in range(self.parties) if k != self.number}:
            raise MessageError(f"expected one list of senders of each of the {self.parties - 1} other servers")
        here = set(self._digests)
        for message in lists:
            here &= self._matching(number_of(message.sender), senders_of(message))
        self.clients = tuple(sorted(here))
        for lines in self._current.values():
            for client in set(lines) - here:
                del lines[client]
        return self.clients

    @property
    def rows(self) -> int:
        """Lines of the stack that the Gram matrix is of: the updates, and the clients' rows of each history."""
        return len(self.clients) * (1 + len(self.histories))

    def anchor_share(self, vector: Words) -> bytes:
        """Its part of the products (rows,) of the stack with a public vector (d,) of norm ≤ 1."""
        self._after("gram")
        self._before("aggregate")
        if vector.shape != (self.d,):
            raise OpeningError(f"a public vector must have d = {self.d} coordinates, found {vector.shape}")
        self._count(1)
        own, total = self.holds[0][0], np.zeros(self.rows, dtype=np.int64)
        for columns in column_chunks(self.rows, self.d):
            total += self._stack(own, columns) @ vector[columns]
        return self._opened(Kind.ANCHOR, total, f"anchor {self.functionals}")

    def combine_share(self, weights: Words) -> bytes:
        """Its part of the weighted sum (d,) of the updates. OpeningError for a second one, or too few with weight."""
        self._after("gram")
        if weights.shape != (len(self.clients),):
            raise OpeningError(f"{len(self.clients)} weights are needed, found {weights.shape}")
        require_support(weights, self.min_support)
        self._once("aggregate")
        self._weights = weights.copy()
        return self._opened(Kind.AGGREGATE, self._weighted_sum(weights), "aggregate")

    def projection_share(self, seed: bytes) -> bytes:
        """Its part of the projections (used, PROJECTIONS) of the updates with weight, see `signs`; once, after the sum.

        The seed must have been drawn after `agree`.
        """
        self._after("aggregate")
        self._once("projection")
        self._count(PROJECTIONS)
        own, used = self.holds[0][0], np.flatnonzero(self._weights)
        total = np.zeros((len(used), PROJECTIONS), dtype=np.int64)
        lines = [self._current[own][self.clients[row]] for row in used]
        for columns in column_chunks(len(used) + PROJECTIONS, self.d):
            total += products(_filled(lines, columns), signs(seed, columns, PROJECTIONS))
        return self._opened(Kind.PROJECTION, total, "projection")

    def term_share(self, row: int) -> bytes:
        """Its part of w_i u_i (d,) of one row, which leaves the sum; refused where too few would be left in it."""
        self._after("projection")
        alone = np.zeros_like(self._weights)
        alone[row] = self._weights[row]
        require_support(self._weights - alone, self.min_support)
        self._once(f"term {row}")
        self._weights = self._weights - alone
        return self._opened(Kind.TERM, self._weighted_sum(alone), f"term {row}")

    def forget(self, name: str, client: int) -> None:
        """A client's history is zero again."""
        for lines in self._past[name].values():
            lines.pop(client, None)

    def memory(self) -> Mapping[str, Mapping[int, Mapping[int, Line]]]:
        """Its components of the histories, for its own checkpoint: name → component → client → line."""
        return self._past

    def restore(self, memory: Mapping[str, Mapping[int, Mapping[int, Line]]], round: int, functionals: int) -> None:
        """Go on after `round` with what `memory` and `functionals` were then."""
        self._past = {name: {k: dict(lines) for k, lines in parts.items()} for name, parts in memory.items()}
        self.round, self.functionals = round, functionals

    def _digests_of(self, data: bytes, parts: Sequence[bytes]) -> tuple[bytes, ...]:
        """What it says of a client's share: a digest for each component."""
        return tuple(digest(part) for part in parts)

    @abstractmethod
    def _matching(self, server: int, digests: Mapping[int, tuple[bytes, ...]]) -> set[int]:
        """The clients whose shares are at the other server, too, and fit what is here."""

    def _zero(self, count: int, label: str) -> Words:
        """Its share of `count` zeros: uniform, and together with those of the other servers zero."""
        return expand(derived(self._own, label), count) - expand(derived(self._next, label), count)

    def _opened(self, kind: Kind, share: Words, label: str) -> bytes:
        blinded = share.reshape(-1) + self._zero(share.size, f"{self.round}/{label}")
        return self._message(kind, blinded.tobytes(), "coordinator")

    def _message(self, kind: Kind, body: bytes, receiver: str) -> bytes:
        return Message(self.run, self.round, server_id(self.number), receiver, kind, body).pack()

    def _stack(self, component: int, columns: slice) -> Words:
        """Its component of these columns of [updates; histories] (rows, w)."""
        return _filled(self._stacked(component), columns)

    def _lines(self, component: int, columns: slice) -> Iterator[Words]:
        """The same line by line (w,), see `_pieces`."""
        return _pieces(self._stacked(component), columns)

    def _stacked(self, component: int) -> list[Line]:
        lines = [self._current[component][client] for client in self.clients]
        for name in self.histories:
            lines += [self._past[name][component].get(client) for client in self.clients]
        return lines

    def _weighted_sum(self, weights: Words) -> Words:
        own, used = self.holds[0][0], np.flatnonzero(weights)
        total = np.zeros(self.d, dtype=np.int64)
        lines = [self._current[own][self.clients[row]] for row in used]
        for columns in column_chunks(SUMMED, self.d):
            total[columns] = weighted(weights[used], _pieces(lines, columns), columns.stop - columns.start)
        return total

    def _whole(self, line: Line) -> Words:
        """A line (d,)."""
        return _filled([line], slice(0, self.d)).reshape(self.d)

    def _open_gram(self) -> None:
        self._before("gram")
        self._count(self.colluders * (1 + len(self.histories)))  # a known history is a known vector, too
        self._once("gram")

    def _count(self, functionals: int) -> None:
        limit = self.max_functionals
        if limit is not None and self.functionals + functionals > limit:
            raise OpeningError(
                f"{self.functionals} linear functionals of the updates were opened, {functionals} more would pass "
                f"max_functionals = {limit}"
            )
        self.functionals += functionals

    def _once(self, step: str) -> None:
        self._before(step)
        self._done.add(step)

    def _before(self, step: str) -> None:
        if self.round < 0:
            raise OpeningError("no round has begun")
        if step in self._done:
            raise OpeningError(f"round {self.round}: {step} is done, and is done once")

    def _after(self, step: str) -> None:
        if step not in self._done:
            raise OpeningError(f"round {self.round}: {step} must come first")


def senders_of(message: Message) -> dict[int, tuple[bytes, ...]]:
    """Client → digests, from a message of `Server.senders`; MessageError if it cannot be read."""
    count, entries = message.body[:1], message.body[1:]
    width = 8 + 32 * int.from_bytes(count, "little")
    if not count or len(entries) % width:
        raise MessageError(f"list of senders of {message.sender} has {len(message.body)} bytes, no whole entries")
    return {
        struct.unpack_from("<q", entries, start)[0]: tuple(
            entries[at : at + 32] for at in range(start + 8, start + width, 32)
        )
        for start in range(0, len(entries), width)
    }


def commitments(lists: Sequence[bytes]) -> dict[int, str]:
    """Client → the SHA-256 of what every server says of its share: an audit log is bound to shares it does not see."""
    found = [senders_of(unpack(data)) for data in lists]
    return {
        client: hashlib.sha256(b"".join(b"".join(each[client]) for each in found)).hexdigest()
        for client in sorted(set.intersection(*map(set, found)))
    }


def _pieces(lines: Sequence[Line], columns: slice) -> Iterator[Words]:
    """These columns of each line (w,), to be read only, and before the next one is asked for."""
    width = columns.stop - columns.start
    stream = np.empty(width, dtype=np.int64)
    for line in lines:
        if isinstance(line, bytes):
            yield expand(line, width, columns.start, out=stream)
        else:
            yield np.zeros(width, dtype=np.int64) if line is None else line[columns]


def _filled(lines: Sequence[Line], columns: slice) -> Words:
    """The same as one array (n, w)."""
    chunk = np.empty((len(lines), columns.stop - columns.start), dtype=np.int64)
    for row, line in zip(chunk, lines, strict=True):
        if isinstance(line, bytes):
            expand(line, len(row), columns.start, out=row)
        else:
            row[:] = 0 if line is None else line[columns]
    return chunk
