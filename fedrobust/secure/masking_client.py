"""One server learns the mean of the clients' updates and nothing else: masks that cancel in the sum.

K. Bonawitz et al., Practical secure aggregation for privacy-preserving machine learning, CCS 2017. Client u sends, in
the ring of 2^32 or 2^64,

    y_u = x_u + PRG(b_u) + Σ_{v ∈ N(u), v > u} PRG(s_uv) − Σ_{v ∈ N(u), v < u} PRG(s_uv)

with a seed b_u of its own and a key s_uv = s_vu that it agrees on with each neighbour. For each sender the server
learns b_u, for each dropout its mask key (the secret behind all its s_uv), never both, from a threshold t of the Shamir
shares that its neighbours hold. Then Σ x_u = Σ y_u − Σ PRG(b_u) ∓ Σ PRG(s_uv), the last sum over the dropouts and their
neighbours.

J. Bell et al., Secure single-server aggregation with (poly)logarithmic overhead, CCS 2020 (SecAgg+): N(u) are k
neighbours in a random k-regular graph (Harary's circulant on a random circle) instead of all clients.

This is the client's side; the server's is in `masking_server.py`.

A round: keys → directory → shares → delivery → masked → survivors → unmask. Keys are X25519, pairs of them go through
HKDF-SHA-256, shares travel under ChaCha20-Poly1305, masks are AES-CTR streams, all fresh in every round. The sum does
not depend on any of them, so a run is reproducible although its randomness is real.

The round opens the sum of the updates of the clients that sent y_u, and the sum of their weights. Apart from that, a
client's update stays hidden from the server and fewer than t of the client's neighbours. Since t > k / 2 and every
neighbour answers once, a server that says to one half of the neighbours that u is there, and to the other half that it
is not, gets at most one of u's secrets. If c of the neighbours collude with the server, this needs 2 t > k + c. The
server is trusted with what it passes on: it could invent clients. A client may send any element of the ring, and nobody
can check that it has clipped its update, so the mean is not robust.

A wrong share can be the fault of the client that dealt it, or of the client that returns it to the server. Therefore
each client publishes, together with a commitment to its own mask, a fingerprint of every share that it deals, and the
server passes it on with the share. An honest neighbour returns no share that does not fit its fingerprint. So

- a returned share that does not fit is the fault of the client that returned it: its message is refused, like any other
  wrong message, and its own update stays in the sum;
- shares that fit, and do not give what was promised, are the fault of the client that dealt them: it is named, and up
  to ⌊(m − t) / 2⌋ wrong ones among m returned shares are corrected;
- if a share does not come back, nobody can say whether it was sealed as rubbish or is kept back: a note says so of both
  clients, and neither is blamed.

One client can do this to the others: deal more wrong shares than that, so that the round opens nothing, in which case
it is named; seal rubbish for more than k − t neighbours, with the same outcome and the note; send an impossible weight,
or use other keys for its masks than it published, so that the sum is of no use, and nobody knows which client it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.secure.masking_terms import (
    ANSWER,
    KEY_BYTES,
    KEYS,
    SEALED,
    SERVER,
    STEPS,
    Directory,
    MaskingError,
    Terms,
    add_masks,
    agreed,
    commitment,
    encode,
    fingerprint,
    is_dealt,
    mask_key,
    public_key,
    seal,
    unseal,
)
from fedrobust.secure.messages import COORDINATOR, Kind, Message, MessageError, expect
from fedrobust.secure.ring import Entropy
from fedrobust.secure.shamir import SECRET_BYTES, SHARE_BYTES, split

LEFT = -1
"""The step of a client that has left the round."""


class MaskingClient:
    """One client in one round: call each method once, in this order. It holds its own secrets, and shares of its
    neighbours'.

    Each method takes the server's message and returns the next message to the server. Raises `MessageError` for a
    message that is not the expected one, and `MaskingError` where going on would harm the client or make no sense: the
    client has then left the round.

    terms: those of the round.
    client: its id.
    entropy: where its secrets come from. A stream that can be made again protects nobody; it changes no sum, either.
    """

    def __init__(self, terms: Terms, client: int, entropy: Entropy = os.urandom) -> None:
        self._terms, self._client, self._done = terms, client, 0
        self._channel, self._mask = entropy(KEY_BYTES), entropy(KEY_BYTES)
        self._seed = entropy(SECRET_BYTES)
        self._directory = Directory({}, {})
        self._sealing: dict[int, bytes] = {}
        self._received: dict[int, Any] = {}

    def keys(self) -> Message:
        """Its public keys: one for messages to its neighbours, one for masks."""
        self._begin(0)
        row = np.array([(self._client, public_key(self._channel), public_key(self._mask))], dtype=KEYS)
        return self._message(Kind.KEYS, row.tobytes())

    def shares(self, directory: Message) -> Message:
        """A commitment to its own mask. For each neighbour, a share of its mask key and a share of its own mask, both
        sealed, and their fingerprints.

        directory: the public keys of all clients.
        """
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
            rows.append((other, *map(fingerprint, pair), seal(key, self._client, other, b"".join(pair))))
        body = commitment(self._seed) + np.array(rows, dtype=SEALED).tobytes()
        return self._message(Kind.KEY_SHARES, body)

    def masked(self, delivery: Message, update: NDArray[Any], count: float | None = None) -> Message:
        """The masked update. Neighbours whose shares did not arrive get no mask.

        delivery: the sealed shares from its neighbours.
        update: (d,) numbers.
        count: its sample count, where counts are weights.
        """
        self._begin(2)
        rows = np.frombuffer(self._read(delivery, Kind.KEY_SHARES, SEALED), dtype=SEALED)
        self._received = {int(row["client"]): row for row in rows}
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
        """For each neighbour one share: of the neighbour's own mask if it is among the survivors, else of its mask key.

        A share that cannot be decrypted, or does not fit the published fingerprint, is left out: the others can go on
        without it, and sending it would count as this client's own fault.

        survivors: the clients that sent a masked update.
        """
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
        for other, row in self._received.items():
            opened = unseal(self._sealing[other], other, self._client, bytes(row["sealed"])) or b""
            survived = other in alive
            share = opened[SHARE_BYTES:] if survived else opened[:SHARE_BYTES]
            if is_dealt(share, bytes(row["mask_print" if survived else "key_print"])):
                rows.append((other, survived, share))
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
        """Begin a step. If it fails, it is the client's last one."""
        if self._done != step:
            where = "left the round" if self._done == LEFT else f"taken {self._done} steps of the round"
            raise MaskingError(f"client {self._client} has {where}, this is number {step}")
        self._done = LEFT

    def _read(self, message: Message, kind: Kind, row: np.dtype[Any]) -> bytes:
        expect(message, self._terms.run, self._terms.round, COORDINATOR, kind)
        if message.receiver not in (f"client{self._client}", "clients") or len(message.body) % row.itemsize:
            raise MessageError(f"message {kind.name.lower()} is not for client {self._client}, or is cut off")
        return message.body

    def _message(self, kind: Kind, body: bytes) -> Message:
        self._done = STEPS.index(kind) + 1
        return Message(self._terms.run, self._terms.round, self._client, SERVER, kind, body)
