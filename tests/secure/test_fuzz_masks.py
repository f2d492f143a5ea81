"""Masked sums under malicious clients, and under a malicious server: messages that are drawn, by a seed.

Some clients of each round are malicious: at each step they send messages that were tampered with until one is taken, or
at last the honest one, or none. What is refused is refused by a `MessageError` that changes nothing; a sum that is
opened is that of what was taken; no honest client is refused, stopped or named. Shares and nonces come from the system,
so a seed gives the same tampering each time, and other bytes.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from masked import Round, dealt, refused, updates
from tampered import FaultError, cut, flipped, relabelled, resized, rewritten

from fedrobust.secure import masking_server
from fedrobust.secure.masking_server import MaskingServer
from fedrobust.secure.masking_terms import ANSWER, KEYS, SEALED, Directory, MaskingError, Terms, decode, encode
from fedrobust.secure.messages import Kind, MessageError, run_id, unpack
from fedrobust.secure.shamir import FIELD, SHARE_BYTES

D = 6


# Tampering with what masks have: as in `tampered`


def other_rows(draw, data):
    """Rows twice, in another order, left out, of other clients, or with a field that is drawn."""
    message = unpack(data)
    if message.kind is Kind.MASKED:
        return rewritten(draw, data)
    answer = ANSWER if message.sender >= 0 else np.dtype([("client", "<i8")])
    dtype = {Kind.KEYS: KEYS, Kind.KEY_SHARES: SEALED, Kind.UNMASK: answer}[message.kind]
    first = len(message.body) % dtype.itemsize  # a commitment, or nothing
    rows = np.frombuffer(message.body, dtype=dtype, offset=first)
    if len(rows):
        some = draw.sample(range(len(rows)), draw.randrange(1, len(rows) + 1))
        rows = rows[draw.choice((list(range(len(rows))), some, [*some, some[0]]))].copy()
        name, at = draw.choice(dtype.names), draw.randrange(len(rows))
        if name == "client":
            rows[name][at] = draw.choice((-1, 0, 5, 99, 2**62))
        elif name == "survived":
            rows[name][at] = draw.choice((0, 1, 2, 255))
        elif draw.random() < 0.7:
            size = dtype[name].itemsize
            rows[name][at] = np.void(draw.choice((draw.randbytes(size), bytes(size), b"\xff" * size)))
    return replace(message, body=message.body[:first] + rows.tobytes()).pack()


TAMPERING = (flipped, cut, resized, rewritten, relabelled, other_rows)


def element(draw):
    return draw.choice((0, 1, FIELD - 1, FIELD, draw.randrange(FIELD), 2**264 - 1)).to_bytes(SHARE_BYTES, "little")


def dealing(draw, client, message):
    """A well-made message with rubbish inside: under the seals, in the fingerprints, or as a commitment."""
    around = sorted(client._sealing)
    others = draw.sample(around, draw.choice((1, 1, 2, len(around))))
    changes = {other: draw.choice((None, (element(draw), element(draw)))) for other in others}
    promised = draw.randbytes(32) if draw.random() < 0.1 else None
    return dealt(client, message, changes, prints=draw.random() < 0.7, commitment=promised).pack()


def offers(draw, client, message, replays, attempts):
    """What a malicious client sends one after the other."""
    honest = message.pack()
    for _ in range(draw.randrange(attempts + 1)):
        choice = draw.random()
        if choice < 0.15 and replays:
            yield draw.choice(replays)
        elif choice < 0.5 and message.kind is Kind.KEY_SHARES:
            yield dealing(draw, client, message)
        else:
            yield draw.choice(TAMPERING)(draw, honest)
    if draw.random() < 0.8:
        yield honest


# A round


class Fuzzed:
    """A round; `sent` counts the messages of malicious clients, `refused` those that were, for each client."""

    def __init__(self, seed, earlier, attempts):
        self.draw, self.attempts, self.earlier = random.Random(seed), attempts, earlier
        n = self.draw.choice((5, 7, 9))
        self.terms = Terms(
            run_id("fuzz"),
            4,
            D,
            2.0,
            largest_count=self.draw.choice((None, 9.0)),
            neighbours=self.draw.choice((None, 4)),
            threshold=self.draw.choice((0.5, 2 / 3)),
            bits=self.draw.choice((32, 64)),
        )
        self.rows, self.counts = updates(n, D, seed), [float(1 + i) for i in range(n)]
        self.game = Round(self.terms, n, seed)
        self.malicious = set(self.draw.sample(range(n), self.draw.choice((0, 1, 1, 2, 3))))
        self.there, self.sent, self.refused = list(range(n)), 0, Counter()
        self.words, self.senders = np.zeros(D + 1, dtype=self.terms.word), []
        self.opened = self.error = None

    def play(self):
        """FaultError if anything is not as it should be."""
        game = self.game
        try:
            self.step(lambda i: game.clients[i].keys())
            game.directory = self.ended(game.server.directory)
            self.step(lambda i: game.clients[i].shares(game.directory))
            game.deliveries = self.ended(game.server.deliveries)
            self.step(lambda i: game.clients[i].masked(game.deliveries[i], self.rows[i], self.counts[i]))
            game.survivors = self.ended(game.server.survivors)
            self.step(lambda i: game.clients[i].unmask(game.survivors))
            self.opened = self.ended(game.server.open)
        except MaskingError as error:
            self.error = error
        self.check()
        return self

    def step(self, made):
        """All clients send what is `made` at this step, the malicious ones what they like."""
        left, self.there = self.there, []
        for i in left:
            try:
                message = made(i)
            except Exception as error:
                if i in self.malicious and isinstance(error, MaskingError):
                    continue  # the server knows other keys or shares of it than it does itself
                raise FaultError(f"client {i} is stopped: {type(error).__name__}: {error}") from error
            sent = [message.pack()]
            if i in self.malicious:
                sent = offers(self.draw, self.game.clients[i], message, [*self.earlier, *self.game.wire], self.attempts)
            for data in sent:
                self.sent += i in self.malicious
                if (taken := self.given(i, data)) is None:
                    self.refused[i] += 1
                    continue
                self.game.wire.append(data)
                self.there.append(i)
                if message.kind is Kind.MASKED:
                    self.count(i, message.body, taken.body)
                break

    def given(self, client, data):
        """The message, if transport and server take it; None if they refuse it."""
        try:
            message = unpack(data)
            if message.sender != client:
                return None  # the transport knows whom it comes from
        except MessageError:
            return None
        before = copy.deepcopy(self.game.server)
        try:
            self.game.server.receive(message)
        except MessageError:
            try:
                refused(before, message)
            except AssertionError as error:
                raise FaultError("what is refused changes the server, or its client is not named") from error
            return None
        except Exception as error:
            raise FaultError(f"{type(error).__name__} from the server: {error}") from error
        return message

    def ended(self, step):
        """What the server says at the end of a step."""
        try:
            return step()
        except MaskingError:
            raise
        except Exception as error:
            raise FaultError(f"{type(error).__name__} from the server: {error}") from error

    def count(self, client, honest, taken):
        """Add to the sum what the client adds: its update, and what it has done to its masked update."""
        self.words += encode(self.rows[client], self.counts[client], self.terms, self.n())
        self.words += np.frombuffer(taken, self.terms.word) - np.frombuffer(honest, self.terms.word)
        self.senders.append(client)

    def check(self):
        named = set(self.refused) | set(self.game.server.culprits)
        if named - self.malicious:
            raise FaultError(f"honest clients are named: {sorted(named - self.malicious)}")
        if self.opened is None:
            self.check_failed()
            return
        expected, weight = self.expected()
        if self.opened.survivors != tuple(self.senders):
            raise FaultError("others are said to be in the sum than those whose updates were taken")
        if not np.array_equal(self.opened.mean, expected) or self.opened.weight != weight:
            raise FaultError("the sum is wrong")

    def check_failed(self):
        """A round fails where too many have dropped out, a dealer is at fault, or a weight cannot be."""
        if "add up to" in str(self.error):
            try:
                self.expected()
            except MaskingError:
                return
            raise FaultError("the sum is wrong, and refused")
        if len(self.malicious) < 2 and not (self.game.server.culprits or self.game.server.notes):
            raise FaultError(f"a round has failed, and nothing says by whose fault: {self.error}")

    def expected(self):
        """The mean and the weight of what was taken."""
        return decode(self.words, self.terms, len(self.senders), self.n())

    def n(self):
        return len(Directory.read(self.game.directory.body, self.terms).keys)


def fuzz(messages, seed=0, attempts=4):
    """Rounds until malicious clients have sent so many messages; what came of them."""
    tally, replays, sent = Counter(), [], 0
    while sent < messages:
        try:
            played = Fuzzed(seed, replays, attempts).play()
        except FaultError as fault:
            raise FaultError(f"seed {seed}: {fault}") from fault
        sent, seed, replays = sent + played.sent, seed + 1, played.game.wire
        tally["opened" if played.opened is not None else "failed"] += 1
        tally["refused"] += sum(played.refused.values())
        tally["taken"] += played.sent - sum(played.refused.values())
        tally["culprits"] += len(played.game.server.culprits)
        tally["notes"] += len(played.game.server.notes)
    return tally


@pytest.mark.slow
def test_a_thousand_hostile_messages():
    tally = fuzz(1_000)
    # It is no fuzzing where all is refused, or all is taken.
    assert min(tally[name] for name in ("opened", "failed", "culprits", "notes")) >= 3, tally
    assert min(tally["refused"], tally["taken"]) >= 250, tally


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_hostile_messages():
    fuzz(100_000, seed=1_000_000, attempts=12)


# It can fail


def keys_unchecked(self, sender, body):
    self._keys[sender] = body


def answers_unchecked(self, sender, body):
    for row in np.frombuffer(body[: len(body) // ANSWER.itemsize * ANSWER.itemsize], dtype=ANSWER):
        self._answers.setdefault(int(row["client"]), {})[sender] = bytes(row["share"])


def added_first(self, sender, body):
    self._sum += np.frombuffer(body.ljust(self._sum.nbytes, b"\0")[: self._sum.nbytes], dtype=self._terms.word)
    if len(body) != self._sum.nbytes:
        raise MessageError(f"client {sender}: {len(body)} bytes")


FAULTS = {
    "keys are not checked": (
        (MaskingServer, "_take_keys", keys_unchecked),
        "stopped|from the server|by whose fault",
    ),
    "answers are not checked": (
        (MaskingServer, "_take_answers", answers_unchecked),
        "honest clients are named|from the server",
    ),
    "a refused update is added": ((MaskingServer, "_take_masked", added_first), "changes the server"),
    "fingerprints are not checked": ((masking_server, "is_dealt", lambda share, _: True), "honest clients are named"),
    "secrets are not checked": (
        (MaskingServer, "_promised", lambda self, client, alive: lambda secret: True),
        "the sum is wrong",  # and refused, or opened
    ),
    "clients return what does not fit": (
        ("fedrobust.secure.masking_client.is_dealt", lambda share, _: len(share) == SHARE_BYTES),
        "honest clients are named",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_fuzzer_finds_a_planted_fault(fault, monkeypatch):
    planted, found = FAULTS[fault]
    monkeypatch.setattr(*planted)
    with pytest.raises(FaultError, match=found):
        fuzz(4_000)


# A malicious server


def hostile_server(seed):
    """What a client does with messages of the server that were tampered with; how many they were."""
    draw, rows = random.Random(seed), updates(5, D)
    game = Round(Terms(run_id("fuzz"), 4, D, 2.0, threshold=0.5), 5, seed)
    goes_on = [game.keys, game.shares, lambda: game.masked(rows)]
    steps = [
        ("directory", lambda client, message: client.shares(message)),
        ("deliveries", lambda client, message: client.masked(message, rows[0])),
        ("survivors", lambda client, message: client.unmask(message)),
    ]
    for go, (name, step) in zip(goes_on, steps, strict=True):
        go()
        message = getattr(game, name)
        honest = (message[0] if name == "deliveries" else message).pack()
        for _ in range(4):
            data = draw.choice((draw.choice(TAMPERING)(draw, honest), draw.choice(TAMPERING)(draw, honest), *game.wire))
            try:
                step(copy.deepcopy(game.clients[0]), unpack(data))
            except (MessageError, MaskingError):
                continue
            except Exception as error:
                raise FaultError(f"seed {seed}, {name}: {type(error).__name__} from the client: {error}") from error
    return 12


def test_a_client_refuses_cleanly_whatever_the_server_sends():
    assert sum(hostile_server(seed) for seed in range(50)) == 600


@pytest.mark.long
def test_a_client_refuses_cleanly_ten_thousand_messages_of_the_server():
    assert sum(hostile_server(seed) for seed in range(1_000, 1_900)) == 10_800
