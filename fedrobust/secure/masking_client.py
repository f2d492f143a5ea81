"""One server learns the mean of the clients' updates and nothing else: masks that cancel in the sum.

K. Bonawitz et al., Practical secure aggregation for privacy-preserving machine learning, CCS 2017. Client u sends, in
the ring of 2^32 or 2^64,

    y_u = x_u + PRG(b_u) + Σ_{v ∈ N(u), v > u} PRG(s_uv) − Σ_{v ∈ N(u), v < u} PRG(s_uv)

with a seed b_u of its own and a key s_uv = s_vu that it agrees on with each neighbour. For each sender the server
learns b_u, for each dropout its mask key (the secret behind all its s_uv), never both, from a threshold t of the Shamir
shares that its neighbours hold. Then Σ x_u = Σ y_u − Σ PRG(b_u) ∓ Σ PRG(s_uv), the last sum over the dropouts and their
neighbours.

J. Bell et al., Secure single-server aggregation with (poly)logarithmic overhead, CCS 2020 (SecAgg+): N(u) are k
neighbours in a random k-regular graph (Harary's circulant on a random circle) instead of everybody.

This is the client's side; the server's is in `masking_server.py`.

A round: keys → directory → shares → delivery → masked → survivors → unmask. Keys are X25519, pairs of them go through
HKDF-SHA-256, shares travel under ChaCha20-Poly1305, masks are AES-CTR streams, all fresh in every round. The sum does
not depend on any of them, so a run is reproducible although its randomness is real.

What is opened is the sum over who sent y_u, and the sum of their weights. It stays closed to the server and fewer than
t of a client's neighbours. Since t > k / 2 and everybody answers once, a server that tells one half of the neighbours
that u is there and the other half that it is not gets one of u's secrets at most; with c of them on its side it takes
2 t > k + c. The server is trusted with what it passes on: it could invent clients. A client may send any element of
the ring, its clip is its own affair, so the mean is not robust.

Who is to blame for a wrong share: the one who dealt it, or the one who returns it to the server? Each client publishes,
beside a commitment to its own mask, a fingerprint of every share that it deals, and the server passes it on with the
share. An honest neighbour returns no share that does not fit its fingerprint. So

- a returned share that does not fit is the fault of who returned it: its message is refused, like any other that is
  wrong, and its own update stays in the sum;
- shares that fit, and do not give what was promised, are the fault of who dealt them: it is named, and up to
  ⌊(m − t) / 2⌋ wrong ones among m that came back are corrected;
- of a share that does not come back nobody can say whether it was sealed as rubbish or is kept back: a note says so of
  both, and neither is blamed.

What one client can do to the others: deal more wrong shares than that, so that the round opens nothing, in which case
it is named; seal rubbish for more than k − t neighbours, with the same outcome and the note; send a weight that cannot
be, or be masked with other keys than it published, so that the sum is of no use, where nobody knows who it was.
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
"""Steps that a client has taken who has left the round."""


class MaskingClient:
    """A client in one round: each method once, in this order; it holds its own secrets and shares of its neighbours'.

    Each takes the server's message and returns the next one to it. MessageError for one that is not what is due,
    MaskingError where going on would harm the client or make no sense: it has then left the round.

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
        """Its public keys: one for the way to its neighbours, one for masks."""
        self._begin(0)
        row = np.array([(self._client, public_key(self._channel), public_key(self._mask))], dtype=KEYS)
        return self._message(Kind.KEYS, row.tobytes())

    def shares(self, directory: Message) -> Message:
        """A commitment to its own mask, and for each neighbour a share of its mask key and of that mask, sealed, with
        their fingerprints.
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
        """The masked update. Neighbours whose shares did not come get no mask."""
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
        """For each neighbour one share: of its own mask if it is among the survivors, else of its mask key.

        A share that does not open, or is not the one whose fingerprint was published, is left out: the others can go
        on without it, and sending it would be taken for this client's own fault.
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
        """A step that does not come to its end is the client's last one."""
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
