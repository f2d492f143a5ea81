"""Rounds of masked sums with all parties in one process: for the tests of masking."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import numpy as np

from fedrobust.secure import masking_terms as masks
from fedrobust.secure.masking_client import MaskingClient
from fedrobust.secure.masking_server import MaskingServer
from fedrobust.secure.masking_terms import SEALED, SEALED_BYTES, Terms, decode, encode, fingerprint, seal, unseal
from fedrobust.secure.messages import MessageError, run_id, unpack
from fedrobust.secure.shamir import SHARE_BYTES

N, D = 9, 40
TERMS = Terms(run_id("a run"), 4, D, clip=2.0)


def entropy_of(seed):
    return random.Random(seed).randbytes


def updates(n=N, d=D, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


class Round:
    """All parties; every message goes through its bytes, and `wire` keeps what the server got."""

    def __init__(self, terms=TERMS, n=N, seed=0):
        self.terms = terms
        self.clients = {i: MaskingClient(terms, i, entropy_of(f"{seed}/{i}")) for i in range(n)}
        self.server = MaskingServer(terms, range(n))
        self.wire = []

    def send(self, message):
        self.wire.append(message.pack())
        self.server.receive(unpack(self.wire[-1]))

    def keys(self, gone=()):
        for i, client in self.clients.items():
            if i not in gone:
                self.send(client.keys())
        self.directory = unpack(self.server.directory().pack())

    def shares(self, gone=()):
        for i in set(self.clients) - set(gone):
            self.send(self.clients[i].shares(self.directory))
        self.deliveries = {i: unpack(message.pack()) for i, message in self.server.deliveries().items()}

    def masked(self, rows, gone=(), counts=None):
        for i in set(self.clients) - set(gone):
            count = None if counts is None else counts[i]
            self.send(self.clients[i].masked(self.deliveries[i], rows[i], count))
        self.survivors = unpack(self.server.survivors().pack())

    def unmask(self, gone=()):
        for i in set(self.clients) - set(gone):
            self.send(self.clients[i].unmask(self.survivors))
        return self.server.open()


def refused(server, message):
    """Why the server refuses a message; refusing has to change nothing and to name the client."""
    before = pickle.dumps(vars(server))
    try:
        server.receive(message)
    except MessageError as error:
        assert pickle.dumps(vars(server)) == before
        assert f"client {message.sender}" in str(error)
        return str(error)
    raise AssertionError("the message was taken")


def dealt(client, message, changes, prints=True, commitment=None):
    """The message with which a malicious client deals other shares: neighbour → the pair that it seals for it.

    None seals rubbish. prints: whether the fingerprints are those of what it seals. commitment: to another mask.
    """
    rows = np.frombuffer(message.body, dtype=SEALED, offset=32).copy()
    for other, pair in changes.items():
        (at,) = np.flatnonzero(rows["client"] == other)
        key = client._sealing[other]
        sealed = bytes(SEALED_BYTES) if pair is None else seal(key, client._client, other, b"".join(pair))
        rows["sealed"][at] = np.void(sealed)
        if prints and pair is not None:
            rows["key_print"][at], rows["mask_print"][at] = (np.void(fingerprint(share)) for share in pair)
    return replace(message, body=(commitment or message.body[:32]) + rows.tobytes())


def pair_for(client, message, other):
    """The two shares that a client has sealed for a neighbour."""
    rows = np.frombuffer(message.body, dtype=SEALED, offset=32)
    (row,) = rows[rows["client"] == other]
    opened = unseal(client._sealing[other], client._client, other, bytes(row["sealed"]))
    return opened[:SHARE_BYTES], opened[SHARE_BYTES:]


def play(rows, terms=TERMS, gone=((), (), (), ()), counts=None, seed=0):
    """A whole round; `gone[step]` are those who drop out there."""
    game, away = Round(terms, len(rows), seed), set()
    away |= set(gone[0])
    game.keys(away)
    away |= set(gone[1])
    game.shares(away)
    away |= set(gone[2])
    game.masked(rows, away, counts)
    away |= set(gone[3])
    return game.unmask(away)


def plain(rows, clip, weights=None):
    """The weighted mean of the clipped rows."""
    norms = np.linalg.norm(rows.astype(float), axis=1)
    return np.average(rows * np.minimum(1, clip / norms)[:, None], axis=0, weights=weights)


def ring_mean(rows, terms, directory, senders, counts=None):
    """What the sum of the encoded rows, without any mask, says."""
    words = [encode(rows[i], None if counts is None else counts[i], terms, directory) for i in senders]
    return decode(np.sum(words, axis=0, dtype=terms.word), terms, len(senders), directory)[0]


def neighbourhoods_of(game):
    return masks.Directory.read(game.directory.body, game.terms).graph
