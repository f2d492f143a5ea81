"""What masks are made of: the terms of a round, the graph of neighbours, numbers in the ring, keys.

The protocol that uses them is in `masking_client.py`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.secure.messages import Kind
from fedrobust.secure.ring import expand
from fedrobust.secure.shamir import SHARE_BYTES, is_share
from fedrobust.updates import NotOpened

RingElements = NDArray[Any]
"""Elements of the ring, uint32 or uint64; the last one is the weight."""

CHUNK_BYTES = 1 << 19
"""Masks are made and added in pieces of this many bytes, which stay in a core's cache."""
PIECE = CHUNK_BYTES // 8
"""Coordinates that are encoded at once."""
SERVER = "coordinator"
STEPS = (Kind.KEYS, Kind.KEY_SHARES, Kind.MASKED, Kind.UNMASK)
"""The messages of a client, in this order."""
KEY_BYTES = 32
PRINT_BYTES = 16
"""Length of a share's fingerprint: it takes 2^128 attempts to find another share with the same one."""
SEALED_BYTES = 12 + 2 * SHARE_BYTES + 16
KEYS = np.dtype([("client", "<i8"), ("channel", "V32"), ("mask", "V32")])
PRINT = f"V{PRINT_BYTES}"
SEALED = np.dtype([("client", "<i8"), ("key_print", PRINT), ("mask_print", PRINT), ("sealed", f"V{SEALED_BYTES}")])
"""For or from a neighbour: the fingerprints of a share of the mask key and of a share of the own mask, and both,
sealed."""
ANSWER = np.dtype([("client", "<i8"), ("survived", "u1"), ("share", f"V{SHARE_BYTES}")])


class MaskingError(NotOpened):
    """A round of masks that cannot go on, for one client or for all: there is no mean."""


@dataclass(frozen=True)
class Terms:
    """What all parties of a round agree on beforehand; all of it is public."""

    run: str
    """The `run_id`."""
    round: int
    d: int
    """Coordinates of an update."""
    clip: float
    """C: a client clips its update to this norm."""
    largest_count: float | None = None
    """Weights are sample counts, which stay hidden, and each is capped at this; None: all weights are equal."""
    neighbours: int | None = None
    """k, rounded up to an even number; None: all clients are neighbours."""
    threshold: float = 2 / 3
    """t is the least number above this share of the k neighbours; at least one half."""
    minimum: int = 3
    """A sum of fewer updates is not opened."""
    bits: int = 32
    """Bits of a ring element. 32 sends 4 bytes a coordinate, as many as in the clear, with an error of up to 2^−26 C in
    each coordinate of an unweighted mean for n ≤ 63; 64 sends twice as much, with an error of up to 2^−41 C."""

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise ValueError(f"the ring has 32 or 64 bits, found {self.bits}")
        if not 0.5 <= self.threshold < 1:
            raise ValueError(f"the threshold must be a share from 1/2 to 1 of the neighbours, found {self.threshold}")
        if self.minimum < 3 or (self.neighbours is not None and self.neighbours < 2):
            raise ValueError("at least 3 clients with 2 neighbours each are needed, or the sum tells on them")
        if self.d < 1 or not (math.isfinite(self.clip) and self.clip > 0):
            raise ValueError(f"expected d ≥ 1 and a clip above 0, found {self.d} and {self.clip}")
        if self.largest_count is not None and not 0 < self.largest_count < math.inf:
            raise ValueError(f"the largest count must be a positive number, found {self.largest_count}")

    @property
    def word(self) -> np.dtype[Any]:
        """The type of a ring element."""
        return np.dtype(f"<u{self.bits // 8}")

    def shares_needed(self, k: int) -> int:
        """t for k neighbours.

        It is above half of k, so two halves of the neighbours cannot both answer the server in full. Nor can the
        clients that are left fall apart into groups, each with a sum of its own: a client at a gap has lost k / 2
        neighbours.
        """
        return min(math.floor(self.threshold * k + 1e-9) + 1, k)

    def scale(self, n: int) -> float:
        """2^F, the largest power of two for which a sum of n numbers in [−1, 1] stays within the ring, at most 2^40."""
        return 2.0 ** min(self.bits - 1 - n.bit_length(), 40)


# The graph


def neighbourhoods(clients: Sequence[int], k: int | None, seed: bytes) -> dict[int, tuple[int, ...]]:
    """Each client's neighbours, by ascending id: those up to k / 2 positions away on a circle in random order.

    k: None makes all clients neighbours.
    seed: the order is drawn from it.
    """
    n, half = len(clients), -(-(k if k is not None else len(clients)) // 2)
    if 2 * half >= n - 1:
        return {client: tuple(sorted(set(clients) - {client})) for client in clients}
    circle = np.random.default_rng(int.from_bytes(seed, "little")).permutation(np.array(sorted(clients))).tolist()
    steps = [step for step in range(-half, half + 1) if step]
    return {client: tuple(sorted(circle[(at + step) % n] for step in steps)) for at, client in enumerate(circle)}


def risk(n: int, k: int, threshold: float, colluding: int, dropping: int) -> tuple[float, float]:
    """Bounds on the probabilities that the random graph fails: (secrecy, success).

    `secrecy`: some client has t or more colluding neighbours (hypergeometric, summed over the clients), or colluding
    and dropped clients cut the circle (n ((c + r) / n)^(k/2)), so that less than the sum of all is hidden. `success`:
    more than k − t neighbours of some client drop out, and the round fails. The conditions are those of Bell et al.
    Colluding clients must not know the graph beforehand. It is drawn from the round's keys: a client that sends its own
    after the server has shown it the others' can try keys until it likes the graph.

    n: clients.
    k: neighbours of each client, rounded up to an even number.
    threshold: t is the least number above this share of k.
    colluding: clients that collude with the server.
    dropping: clients that drop out.
    """
    from scipy.stats import hypergeom

    k = min(2 * -(-k // 2), n - 1)
    t = min(math.floor(threshold * k + 1e-9) + 1, k)
    cut = 0.0 if k == n - 1 or not colluding else n * ((colluding + dropping) / n) ** (k // 2)
    secrecy = n * float(hypergeom.sf(t - 1, n - 1, colluding, k)) + cut
    return min(secrecy, 1.0), min(n * float(hypergeom.sf(k - t, n - 1, dropping, k)), 1.0)


# Numbers and masks


def encode(update: NDArray[Any], count: float | None, terms: Terms, n: int) -> RingElements:
    """An update as d + 1 words: clipped and weighted, and then its weight.

    update: (d,) numbers.
    count: its sample count; used only where counts are weights.
    terms: those of the round.
    n: clients in the directory.

    Raises `MaskingError` for an update of another shape or with numbers that are not finite, and for a count that is
    not positive.
    """
    if update.shape != (terms.d,):
        raise MaskingError(f"the update has the shape {update.shape}, agreed are {terms.d} coordinates")
    pieces = [slice(first, min(first + PIECE, terms.d)) for first in range(0, terms.d, PIECE)]
    doubles = (update[piece].astype(np.float64) for piece in pieces)
    norm = math.sqrt(math.fsum(float(part @ part) for part in doubles))
    if not math.isfinite(norm):
        raise MaskingError("an update with NaN or Inf cannot be masked")
    weight = 1.0
    if terms.largest_count is not None:
        if count is None or not 0 < count < math.inf:
            raise MaskingError(f"a sample count must be a positive number, found {count}")
        weight = min(count / terms.largest_count, 1.0)
    scale = terms.scale(n)
    words = np.empty(terms.d + 1, dtype=terms.word)
    for piece in pieces:
        scaled = update[piece] * np.float64(weight * scale / max(norm, terms.clip))
        words[piece] = np.rint(scaled, out=scaled).astype(np.int64)  # the low bits are those of the ring
    words[-1] = round(weight * scale)
    return words


def decode(total: RingElements, terms: Terms, senders: int, n: int) -> tuple[NDArray[np.float32], float]:
    """The weighted mean (d,) float32, and the sum of the weights, from an opened sum.

    total: (d + 1,) the sum of encoded updates.
    terms: those of the round.
    senders: how many updates are in the sum.
    n: clients in the directory.

    Raises `MaskingError` if the weights cannot have this sum.
    """
    signed, scale = total.view(f"<i{terms.bits // 8}"), terms.scale(n)
    weight = float(signed[-1]) / scale
    if not 0 < weight <= senders or (terms.largest_count is None and weight != senders):
        raise MaskingError(f"the weights of {senders} updates add up to {weight:g}: the sum is of no use")
    mean = (signed[:-1] * (terms.clip / (scale * weight))).astype(np.float32)
    return mean, weight * (terms.largest_count or 1.0)


def add_masks(words: RingElements, masks: Sequence[tuple[bytes, int]]) -> None:
    """Add the stream of each seed to the words in place, or subtract it where the sign is −1.

    masks: pairs of a seed (32 bytes) and a sign.
    """
    buffer, width = np.empty(CHUNK_BYTES // 8, dtype=np.int64), CHUNK_BYTES // words.itemsize
    for first in range(0, len(words), width):
        part = words[first : first + width]
        stream = buffer[: -(-part.nbytes // 8)]
        mask = stream.view(words.dtype)[: len(part)]
        for seed, sign in masks:
            expand(seed, len(stream), first * words.itemsize // 8, out=stream)
            (np.add if sign > 0 else np.subtract)(part, mask, out=part)


# Keys


def public_key(private: bytes) -> bytes:
    """The X25519 public key (32 bytes) of a private key (32 bytes)."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes, terms: Terms, *purpose: object) -> bytes:
    """The 32 bytes that two parties share for one purpose in one round.

    private: one party's private key (32 bytes).
    public: the other party's public key (32 bytes).
    terms: those of the round.
    purpose: names the use.

    Raises `MaskingError` for a degenerate public key.
    """
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = "\n".join(map(str, ("fedrobust masking", terms.run, terms.round, *purpose))).encode()
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(_exchanged(private, public))


def _exchanged(private: bytes, public: bytes) -> bytes:
    """X25519. Raises `MaskingError` for a public key with which every private key gives zero."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise MaskingError("a public key of small order") from error


def essence(public: bytes) -> bytes:
    """The unique form (32 bytes) of a public key: the same for all keys that lead to the same agreed secrets.

    A point of the curve can be written in several ways, and a point of order 1, 2, 4 or 8 may be added: the agreed
    secret stays the same, since private keys are multiples of eight. So does 2^254 times the point, which is the form.

    Raises `MaskingError` for a key of small order.
    """
    return _exchanged(bytes(KEY_BYTES), public)


def mask_key(private: bytes, public: bytes, terms: Terms, one: int, other: int) -> tuple[bytes, int]:
    """The seed of the mask between two clients, and the sign with which `one` adds it.

    private: the private mask key of one of the two (32 bytes).
    public: the public mask key of the other (32 bytes).
    """
    pair = min(one, other), max(one, other)
    return agreed(private, public, terms, "mask", *pair), 1 if one < other else -1


def seal(key: bytes, sender: int, receiver: int, plain: bytes) -> bytes:
    """Encrypt `plain` with a nonce from the operating system, so that a repeated round never uses one twice.

    key: 32 bytes, as `agreed` returns them.
    sender: the client that seals.
    receiver: the client that may read it.
    """
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce = os.urandom(12)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, f"{sender} {receiver}".encode())


def unseal(key: bytes, sender: int, receiver: int, sealed: bytes) -> bytes | None:
    """Decrypt what `seal` has returned; None if it was not sealed by this sender for this receiver.

    key: 32 bytes, as `agreed` returns them.
    sender: the client that sealed it.
    receiver: the client that may read it.
    sealed: the encrypted bytes.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:12], sealed[12:], f"{sender} {receiver}".encode())
    except InvalidTag:
        return None


def commitment(seed: bytes) -> bytes:
    """What a client publishes about the seed of its own mask, so that the seed recovered from shares can be checked."""
    return hashlib.sha256(b"fedrobust self mask" + seed).digest()


def fingerprint(share: bytes) -> bytes:
    """What a client publishes of each share that it deals (16 bytes).

    A share is as good as random, so its fingerprint reveals nothing about it, unless somebody guesses all of its 256
    bits.
    """
    return hashlib.sha256(b"fedrobust share" + share).digest()[:PRINT_BYTES]


def is_dealt(share: bytes, published: bytes) -> bool:
    """Whether these bytes are a share, and fit the published fingerprint."""
    return is_share(share) and fingerprint(share) == published


@dataclass(frozen=True)
class Directory:
    """The clients of a round, their public keys and their neighbours; all parties compute it from one message."""

    keys: Mapping[int, tuple[bytes, bytes]]
    graph: Mapping[int, tuple[int, ...]]

    @classmethod
    def read(cls, body: bytes, terms: Terms) -> Directory:
        """Read the server's message.

        body: the body of the message.
        terms: those of the round.

        Raises `MaskingError` for fewer clients than the minimum, a client named twice, or a key that two of them use.
        """
        rows = np.frombuffer(body, dtype=KEYS)
        clients = rows["client"].tolist()
        keys = {c: (bytes(row["channel"]), bytes(row["mask"])) for c, row in zip(clients, rows, strict=True)}
        if clients != sorted(keys) or len({key for both in keys.values() for key in both}) != 2 * len(clients):
            raise MaskingError("the directory of keys names a client or a key twice")
        if len(clients) < terms.minimum:
            raise MaskingError(f"{len(clients)} clients sent keys, at least {terms.minimum} are needed")
        # The circle is drawn from fresh keys, so no client can find its neighbours before it has sent its own keys.
        seed = hashlib.sha256(f"{terms.run}\n{terms.round}\n".encode() + body).digest()
        return cls(keys, neighbourhoods(clients, terms.neighbours, seed))
