"""One server learns the mean of the clients' updates and nothing else: masks that cancel in the sum.

K. Bonawitz et al., Practical secure aggregation for privacy-preserving machine learning, CCS 2017. Client u sends, in
the ring of 2^32 or 2^64,

    y_u = x_u + PRG(b_u) + Σ_{v ∈ N(u), v > u} PRG(s_uv) − Σ_{v ∈ N(u), v < u} PRG(s_uv)

with a seed b_u of its own and a key s_uv = s_vu that it agrees on with each neighbour. Of who sent y_u the server gets
b_u, of who did not the secret key behind all its s_uv, never both, from a threshold t of the Shamir shares that its
neighbours hold. Then Σ x_u = Σ y_u − Σ PRG(b_u) ∓ Σ PRG(s_uv), the last sum over who dropped out and its neighbours.

J. Bell et al., Secure single-server aggregation with (poly)logarithmic overhead, CCS 2020 (SecAgg+): N(u) are k
neighbours in a random k-regular graph (Harary's circulant on a random circle) instead of everybody.

A round: keys → directory → shares → delivery → masked → survivors → unmask. Keys are X25519, pairs of them go through
HKDF-SHA-256, shares travel under ChaCha20-Poly1305, masks are AES-CTR streams, all fresh in every round. The sum does
not depend on any of them, so a run is reproducible although its randomness is real.

What is opened is the sum over who sent y_u, and the sum of their weights. It stays closed to the server and fewer than
t of a client's neighbours. Since t > k / 2 and everybody answers once, a server that tells one half of the neighbours
that u is there and the other half that it is not gets one of u's secrets at most; with c of them on its side it takes
2 t > k + c. The server is trusted with what it passes on: it could invent clients. A client may send any element of
the ring, its clip is its own affair, so the mean is not robust; and one whose shares are wrong and who then drops out
stops the round, with nothing opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.secure.masks import (
    ANSWER,
    KEY_BYTES,
    KEYS,
    SEALED,
    Directory,
    MaskingError,
    Terms,
    Words,
    add_masks,
    agreed,
    commitment,
    decode,
    encode,
    mask_key,
    public_key,
    seal,
    unseal,
)
from fedrobust.secure.messages import COORDINATOR, Kind, Message, MessageError, expect
from fedrobust.secure.ring import Entropy
from fedrobust.secure.shamir import SECRET_BYTES, SHARE_BYTES, ShareError, recover, split

SERVER = "coordinator"


class MaskingClient:
    """A client in one round: each method once, in this order; it holds its own secrets and shares of its neighbours'.

    Each takes the server's message and returns the next one to it. MaskingError where going on would harm the client
    or make no sense: to the others it has then dropped out.

    entropy: where its secrets come from. A stream that can be made again protects nobody; it changes no sum, either.
    """

    def __init__(self, terms: Terms, client: int, entropy: Entropy = os.urandom) -> None:
        self._terms, self._client, self._done = terms, client, 0
        self._channel, self._mask = entropy(KEY_BYTES), entropy(KEY_BYTES)
        self._seed = entropy(SECRET_BYTES)
        self._directory = Directory({}, {})
        self._sealing: dict[int, bytes] = {}
        self._received: dict[int, bytes] = {}

    def keys(self) -> Message:
        """Its public keys: one for the way to its neighbours, one for masks."""
        self._begin(0)
        row = np.array([(self._client, public_key(self._channel), public_key(self._mask))], dtype=KEYS)
        return self._message(Kind.KEYS, row.tobytes())

    def shares(self, directory: Message) -> Message:
        """A commitment to its own mask, and for each neighbour, sealed, a share of its mask key and of that mask."""
        self._begin(1)
        read = Directory.read(self._read(directory, Kind.KEYS, KEYS), self._terms)
        if read.keys.get(self._client) != (public_key(self._channel), public_key(self._mask)):
            raise MaskingError(f"client {self._client} is in the directory with other keys, or not at all")
        self._directory, around = read, read.graph[self._client]
        t = self._terms.shares_needed(len(around))
        pairs = zip(split(self._mask, len(around), t), split(self._seed, len(around), t), strict=True)
        rows = []
        for other, pair in zip(around, pairs, strict=True):
            ends = sorted((self._client, other))
            key = self._sealing[other] = agreed(self._channel, read.keys[other][0], self._terms, "shares", *ends)
            rows.append((other, seal(key, self._client, other, b"".join(pair))))
        body = commitment(self._seed) + np.array(rows, dtype=SEALED).tobytes()
        return self._message(Kind.KEY_SHARES, body)

    def masked(self, delivery: Message, update: NDArray[Any], count: float | None = None) -> Message:
        """The masked update. Neighbours whose shares did not come get no mask."""
        self._begin(2)
        rows = np.frombuffer(self._read(delivery, Kind.KEY_SHARES, SEALED), dtype=SEALED)
        self._received = {int(row["client"]): bytes(row["sealed"]) for row in rows}
        around = self._directory.graph[self._client]
        if len(self._received) != len(rows) or not set(self._received) <= set(around):
            raise MaskingError(f"client {self._client} got shares twice, or from who is no neighbour")
        self._enough(self._received, "sent shares")
        n = len(self._directory.keys)
        words = encode(update, count, self._terms, n)
        masks = [(self._seed, 1)]
        for other in self._received:
            masks.append(mask_key(self._mask, self._directory.keys[other][1], self._terms, self._client, other))
        add_masks(words, masks)
        return self._message(Kind.MASKED, words.tobytes())

    def unmask(self, survivors: Message) -> Message:
        """For each neighbour one share: of its own mask if it is among the survivors, else of its mask key."""
        self._begin(3)
        named = np.frombuffer(self._read(survivors, Kind.UNMASK, np.dtype("<i8")), dtype="<i8").tolist()
        alive = set(named)
        if len(alive) != len(named) or self._client not in alive or not alive <= set(self._directory.keys):
            raise MaskingError(f"client {self._client} is not among the survivors, or they are no participants")
        if len(alive) < self._terms.minimum:
            raise MaskingError(f"a sum of {len(alive)} updates must not be opened, {self._terms.minimum} are needed")
        if set(self._directory.graph[self._client]) & alive - set(self._received):
            raise MaskingError(f"client {self._client} has no mask with a neighbour that is said to have survived")
        self._enough(alive.intersection(self._received), "sent updates")
        rows = []
        for other, sealed in self._received.items():
            opened = unseal(self._sealing[other], other, self._client, sealed)
            if opened is not None:  # a neighbour that seals rubbish does not keep the others from going on
                kept = opened[SHARE_BYTES:] if other in alive else opened[:SHARE_BYTES]
                rows.append((other, other in alive, kept))
        self._received = {}
        return self._message(Kind.UNMASK, np.array(rows, dtype=ANSWER).tobytes())

    def _enough(self, there: Iterable[int], what: str) -> None:
        around, found = self._directory.graph[self._client], len(list(there))
        needed = self._terms.shares_needed(len(around))
        if found < needed:
            raise MaskingError(
                f"{found} of the {len(around)} neighbours of client {self._client} {what}, {needed} are needed"
            )

    def _begin(self, step: int) -> None:
        if self._done != step:
            raise MaskingError(
                f"client {self._client} has taken {self._done} steps of the round, this is number {step}"
            )
        self._done += 1

    def _read(self, message: Message, kind: Kind, row: np.dtype[Any]) -> bytes:
        expect(message, self._terms.run, self._terms.round, COORDINATOR, kind)
        if message.receiver not in (f"client{self._client}", "clients") or len(message.body) % row.itemsize:
            raise MessageError(f"message {kind.name.lower()} is not for client {self._client}, or is cut off")
        return message.body

    def _message(self, kind: Kind, body: bytes) -> Message:
        return Message(self._terms.run, self._terms.round, self._client, SERVER, kind, body)


@dataclass(frozen=True, eq=False)
class Opened:
    """What a round opened, which is all that the server learns of the updates.

    `mean` (d,) float32 is the weighted mean over `survivors`, `weight` the sum of their weights: of their sample
    counts, each capped, or their number.
    """

    mean: NDArray[np.float32]
    weight: float
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]


class MaskingServer:
    """The server in one round: it takes the clients' messages of one step, then says what the next step is.

    Who sends nothing before the next step is called for has dropped out; what it sends later is refused.
    """

    _STEPS = (Kind.KEYS, Kind.KEY_SHARES, Kind.MASKED, Kind.UNMASK)

    def __init__(self, terms: Terms, clients: Iterable[int]) -> None:
        self._terms, self._step = terms, 0
        self._awaited = frozenset(clients)
        self._arrived: set[int] = set()
        self._keys: dict[int, bytes] = {}
        self._directory = Directory({}, {})
        self._commitments: dict[int, bytes] = {}
        self._mailbox: dict[int, dict[int, bytes]] = {}
        self._sum: Words = np.zeros(terms.d + 1, dtype=terms.word)
        self._alive: frozenset[int] = frozenset()
        self._answers: dict[tuple[int, bool], dict[int, bytes]] = {}

    def receive(self, message: Message) -> None:
        """Take one client's message. MessageError: not of this round and step, not awaited, or sent before."""
        if self._step >= len(self._STEPS):
            raise MessageError("the round is over")
        expect(message, self._terms.run, self._terms.round, None, self._STEPS[self._step], receiver=SERVER)
        sender = message.sender
        if sender not in self._awaited or sender in self._arrived:
            why = "has sent its message already" if sender in self._arrived else "is not awaited"
            raise MessageError(f"message {message.kind.name.lower()}: client {sender} {why}")
        (self._take_keys, self._take_shares, self._take_masked, self._take_answers)[self._step](sender, message.body)
        self._arrived.add(sender)

    def directory(self) -> Message:
        """The public keys of all who sent theirs, for all of them."""
        arrived = self._next(0, "sent keys")
        body = b"".join(self._keys[client] for client in sorted(arrived))
        self._directory = Directory.read(body, self._terms)
        return Message(self._terms.run, self._terms.round, COORDINATOR, "clients", Kind.KEYS, body)

    def deliveries(self) -> dict[int, Message]:
        """For each client that sent shares those that its neighbours sent it."""
        arrived = self._next(1, "sent shares")
        rows = {client: sorted(self._mailbox.get(client, {}).items()) for client in sorted(arrived)}
        self._mailbox = {}
        return {
            client: Message(
                self._terms.run,
                self._terms.round,
                COORDINATOR,
                f"client{client}",
                Kind.KEY_SHARES,
                np.array(sealed, dtype=SEALED).tobytes(),
            )
            for client, sealed in rows.items()
        }

    def survivors(self) -> Message:
        """Who sent a masked update, for all of them. MaskingError if there are too few to open the sum."""
        self._alive = self._next(2, "sent updates")
        for client in self._secrets():
            self._enough(client, len(self._alive.intersection(self._directory.graph[client])), "are left")
        body = np.array(sorted(self._alive), dtype="<i8").tobytes()
        return Message(self._terms.run, self._terms.round, COORDINATOR, "clients", Kind.UNMASK, body)

    def open(self) -> Opened:
        """The mean of the survivors' updates. Nothing is unmasked before every secret that is needed is there."""
        if self._step != 3:
            raise MaskingError("the updates are not there yet, or the round is over")
        self._step += 1
        masks: list[tuple[bytes, int]] = []
        for client, alive in self._secrets().items():
            secret = self._recovered(client, alive)
            if alive:
                masks.append((secret, -1))
                continue
            for other in sorted(self._alive.intersection(self._directory.graph[client])):
                key, sign = mask_key(secret, self._directory.keys[other][1], self._terms, other, client)
                masks.append((key, -sign))
        self._answers = {}
        add_masks(self._sum, masks)
        senders, n = len(self._alive), len(self._directory.keys)
        mean, weight = decode(self._sum, self._terms, senders, n)
        gone = sorted(set(self._directory.keys) - self._alive)
        return Opened(mean, weight, tuple(sorted(self._alive)), tuple(gone))

    def _secrets(self) -> dict[int, bool]:
        """Of whom a secret is needed: True its own mask, False, for who dropped out after its shares, its mask key."""
        needed = dict.fromkeys(sorted(self._alive), True)
        for client in sorted(set(self._commitments) - self._alive):
            if self._alive.intersection(self._directory.graph[client]):
                needed[client] = False
        return needed

    def _recovered(self, client: int, alive: bool) -> bytes:
        around = self._directory.graph[client]
        sent = self._answers.get((client, alive), {})
        self._enough(client, len(sent), "have sent their share of its secret")
        shares = {around.index(other) + 1: share for other, share in sent.items()}
        promised = self._commitments[client] if alive else self._directory.keys[client][1]
        given = commitment if alive else public_key
        try:
            return recover(shares, self._terms.shares_needed(len(around)), lambda secret: given(secret) == promised)
        except ShareError as error:
            raise MaskingError(f"the secret of client {client} cannot be put together: {error}") from error

    def _enough(self, client: int, found: int, what: str) -> None:
        around = len(self._directory.graph[client])
        needed = self._terms.shares_needed(around)
        if found < needed:
            self._step = len(self._STEPS)
            raise MaskingError(
                f"{found} of the {around} neighbours of client {client} {what}, {needed} are needed: nothing is opened"
            )

    def _next(self, step: int, what: str) -> frozenset[int]:
        """Close a step, and await from now on who has taken it. With too few of them the round is over."""
        if self._step != step:
            raise MaskingError(f"the server has taken {self._step} steps of the round, this is number {step}")
        arrived = frozenset(self._arrived)
        self._step, self._awaited, self._arrived = step + 1, arrived, set()
        if len(arrived) < self._terms.minimum:
            self._step = len(self._STEPS)
            raise MaskingError(
                f"{len(arrived)} clients {what}, at least {self._terms.minimum} are needed: nothing is opened"
            )
        return arrived

    def _take_keys(self, sender: int, body: bytes) -> None:
        if len(body) != KEYS.itemsize or int(np.frombuffer(body, dtype=KEYS)["client"][0]) != sender:
            raise MessageError(f"client {sender} has to send its own two keys")
        row = np.frombuffer(body, dtype=KEYS)[0]
        for public in (bytes(row["channel"]), bytes(row["mask"])):
            if any(public in other for other in self._keys.values()):
                raise MessageError(f"client {sender} sent a key of another client")
            agreed(os.urandom(KEY_BYTES), public, self._terms)  # a degenerate key would stop its neighbours
        self._keys[sender] = body

    def _take_shares(self, sender: int, body: bytes) -> None:
        around = self._directory.graph[sender]
        if len(body) != KEY_BYTES + len(around) * SEALED.itemsize:
            raise MessageError(f"client {sender} has to send a commitment and {len(around)} sealed shares")
        rows = np.frombuffer(body, dtype=SEALED, offset=KEY_BYTES)
        if tuple(rows["client"].tolist()) != around:
            raise MessageError(f"client {sender} has to send shares to its neighbours, by ascending id")
        self._commitments[sender] = body[:KEY_BYTES]
        for row in rows:
            self._mailbox.setdefault(int(row["client"]), {})[sender] = bytes(row["sealed"])

    def _take_masked(self, sender: int, body: bytes) -> None:
        if len(body) != self._sum.nbytes:
            raise MessageError(f"client {sender} sent {len(body)} bytes for {self._sum.nbytes} of a masked update")
        self._sum += np.frombuffer(body, dtype=self._terms.word)

    def _take_answers(self, sender: int, body: bytes) -> None:
        if len(body) % ANSWER.itemsize:
            raise MessageError(f"client {sender} sent shares that are cut off")
        rows = np.frombuffer(body, dtype=ANSWER)
        named = rows["client"].tolist()
        if len(set(named)) != len(named) or not set(named) <= set(self._directory.graph[sender]):
            raise MessageError(f"client {sender} sent shares twice, or of who is no neighbour")
        if any(bool(row["survived"]) != (int(row["client"]) in self._alive) for row in rows):
            raise MessageError(f"client {sender} sent a share that must not be revealed")
        for row in rows:
            key = int(row["client"]), bool(row["survived"])
            self._answers.setdefault(key, {})[sender] = bytes(row["share"])
