"""Secret shares under malicious clients, damaged messages and senseless calls, all drawn by a seed.

Clients send messages that were tampered with, words that wrap around, other parts to each server, what was sent before,
or messages in another's name. What goes between the parties, and to the coordinator, is damaged, too; and all of them
are asked for what nobody may ask for. What is refused is refused by a `MessageError` or an `OpeningError` that changes
nothing; a sum that is opened is that of what was taken, and no row in it is longer than the clip, as far as the sketch
can tell; no honest client is refused or named; no secret is in what a party says. A round may be lost where a message
between honest parties was; the next one is not.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from acted import Actor, Answers
from hosted import Hosted, junk
from tampered import FaultError, cut, flipped, relabelled, resized, rewritten
from wrapped import named

from fedrobust.aggregation import Combination
from fedrobust.errors import FederationError
from fedrobust.federation import party_host as federation_party
from fedrobust.secure import replicated, server, shares
from fedrobust.secure import shared_updates as coordinator
from fedrobust.secure.lines import HISTORY_FRACTION
from fedrobust.secure.messages import MessageError, expect, unpack, viewed
from fedrobust.secure.replicated import ReplicatedServer
from fedrobust.secure.ring import FRACTION, derived, encode, expand, largest_square, square_sum
from fedrobust.secure.server import NOISE_BITS, Server
from fedrobust.secure.shares import ShareServer
from fedrobust.secure.sketch import sketched, stretch
from fedrobust.secure.weights import OpeningError, shortened

D, ROUNDS = 60, 3
HISTORIES = ((), ("sum",), ("last", "average", "sum"))


def hostile(draw, row):
    """Words (D,) that no honest client has."""
    row = row.copy()
    for _ in range(draw.choice((1, 1, 2, 4))):
        start, width = draw.randrange(D), draw.choice((1, 1, 2, 16, D))
        value = draw.choice((1 << draw.randrange(20, 64), draw.getrandbits(64), -(1 << draw.randrange(20, 63))))
        row[start : start + width] += np.array(value % 2**64, dtype=np.uint64).astype(np.int64)
    return draw.choice((row, row, row * 1_000_000, row * 0))


def inner(one, other):
    """The product of words over the integers, as it is opened: mod 2^63, from −2^62."""
    return (int(one.astype(object) @ other.astype(object)) + 2**62) % 2**63 - 2**62


class Fuzzed:
    """Some rounds of one run."""

    def __init__(self, seed, attempts, answers):
        self.draw, self.attempts, self.answers = random.Random(seed), attempts, answers
        draw = self.draw
        self.name, self.sketch = draw.choice(("shares", "replicated")), draw.choice((None, 32))
        self.histories = draw.choice(HISTORIES)
        self.n = draw.choice((7, 9))
        self.malicious = set(draw.sample(range(self.n), draw.choice((0, 1, 2, 2))))
        self.honest = set(range(self.n)) - self.malicious
        self.numbers = np.random.default_rng(seed)
        self.hosted = Hosted(self.name, f"run {seed}", D, seed, self.histories, self.sketch, attempts)
        self.hosted.honest = self.honest
        self.split = shares.share if self.name == "shares" else replicated.share
        self.earlier = [[] for _ in self.hosted.hosts]
        self.past, self.broken, self.tally = {}, False, Counter()

    def play(self):
        """FaultError if anything is not as it should be."""
        self.guarded(lambda: self.hosted.team.setup(0, {}))
        for round in range(1, ROUNDS + 1):
            self.round(round)
            self.answers.seen.clear()
            if self.draw.random() < 0.1:  # the run is resumed
                self.guarded(lambda last=round: self.hosted.team.setup(last, self.hosted.team.arrays()))
        self.tally["sent"] += self.hosted.sent
        return self.tally

    def guarded(self, step):
        """The answer of the parties, or the error by which a round is skipped."""
        try:
            found = step()
        except (MessageError, OpeningError) as error:
            found = error
        except FederationError as error:
            raise self.hosted.fault or FaultError(str(error)) from error
        except FaultError:
            raise
        except Exception as error:
            raise FaultError(f"{type(error).__name__} at the coordinator: {error}") from error
        if self.hosted.fault:
            raise self.hosted.fault
        return found

    def round(self, round):
        hosted = self.hosted
        hosted.fresh()
        rows = self.numbers.normal(size=(self.n, D)) + 0.3
        rows *= self.numbers.uniform(0.05, 2.0, size=(self.n, 1)) / np.linalg.norm(rows, axis=1)[:, None]
        self.rows = {client: encode(row, 1.0) for client, row in enumerate(rows)}
        holder = Actor(self)
        sent = hosted.team.send(round, self.draw.randrange(3), [(list(range(self.n)), None, holder)])
        found = self.guarded(lambda: sent.receive([range(self.n)], lambda here: np.ones(len(here)), self.too_few, {}))
        if isinstance(found, Exception):
            self.skipped(found)
            return
        opened, here, _ = found
        taken = sorted([*here.tolist(), *opened.dropped])
        if not hosted.misled and taken != sorted(self.rows):
            raise FaultError(f"the rows of {taken} were taken, not of {sorted(self.rows)}")
        # A row on two coordinates may be a few times as long in so small a sketch; honest ones are spread.
        bound = {client: largest_square(D) >> (0 if client in self.honest else 3) for client in self.rows}
        if not hosted.garbled and any(square_sum(self.rows[client]) <= bound[client] for client in opened.dropped):
            raise FaultError("a client is left out whose update is no longer than the clip")
        self.tally["named"] += len(opened.dropped)
        if self.honest & set(sent.refused) and not (hosted.misled or hosted.garbled):
            raise FaultError("honest clients are refused")
        self.rows = {client: self.rows[client] for client in here.tolist()}
        self.opened(opened)

    def too_few(self, accepted):
        return "too few" if accepted < 5 else None

    # What clients send

    def send(self, step, run, number, round, clients, updates):
        """The clients' packets for each server; `rows` becomes what they stand for, where it is one vector."""
        packets, wanted = [[] for _ in range(self.hosted.privacy.servers)], self.rows
        self.rows = {}
        for client in clients:
            honest = self.parts(wanted[client], run, number, client)
            if client in self.honest:
                chosen, offers = honest, [[data] for data in honest]
            else:
                chosen, offers = self.offered(wanted[client], run, number, client, honest)
            for to, data in zip(packets, offers, strict=True):
                to += [(client, array(each)) for each in data]
                if client in self.malicious and data and self.draw.random() < 0.2:
                    to.append((client, array(data[-1])))
            for seen, data in zip(self.earlier, honest, strict=False):
                seen.append(data)
            if (row := self.joined(chosen)) is not None:
                self.rows[client] = row
        for to in packets:
            if self.malicious and self.draw.random() < 0.3:
                to.append(self.draw.choice((junk(self.draw), (min(self.malicious), junk(self.draw)), ("a", to[0][1]))))
        return tuple(packets)

    def parts(self, row, run, number, client):
        return [bytes(message.pack()) for message in self.split(row, self.numbers.bytes, run, number, client)]

    def offered(self, row, run, number, client, honest):
        """What a malicious client sends each server: bad messages, and one that may be taken, or none."""
        draw, kind = self.draw, self.draw.random()
        chosen = list(honest)
        if kind < 0.4:
            chosen = self.parts(hostile(draw, row), run, number, client)
        elif kind < 0.55:
            other = self.parts(hostile(draw, row), run, number, client)
            chosen = [draw.choice(pair) for pair in zip(honest, other, strict=True)]
        elif kind < 0.75:
            at = draw.randrange(len(chosen))
            chosen[at] = rewritten(draw, honest[at])
        elif kind < 0.85:
            chosen[draw.randrange(len(chosen))] = None
        offers = []
        for place, data in enumerate(chosen):
            bad = [self.bad(place, client, honest) for _ in range(draw.randrange(self.attempts + 1))]
            self.hosted.sent += len(bad)
            offers.append([*bad, *([] if data is None else [data])])
        self.hosted.sent += len(chosen) * (kind < 0.85)
        return chosen, offers

    def bad(self, place, client, honest):
        """What server `place` must not take of this client."""
        draw = self.draw
        while True:
            choice = draw.random()
            if choice < 0.15 and self.earlier[place]:
                return draw.choice(self.earlier[place])  # of another client, or of an earlier round
            if choice < 0.25:
                return honest[place - 1]
            if choice < 0.35:
                return replace(unpack(honest[place]), sender=draw.choice(sorted(self.honest))).pack()
            if choice < 0.4:
                return junk(draw)
            found = draw.choice((flipped, cut, resized, relabelled))(draw, honest[place])
            if found != honest[place]:
                return found

    def joined(self, parts):
        """The words (D,) that what the servers take adds up to; None if they must not take it."""
        if None in parts:
            return None
        bodies = [unpack(data).body for data in parts]
        if self.name == "shares":
            return expand(bodies[0], D) + np.frombuffer(bodies[1], dtype=np.int64)
        held = [(bodies[0][:32], bodies[0][32:]), (bodies[1][:32], bodies[1][32:]), (bodies[2][:-32], bodies[2][-32:])]
        if any(held[k][1] != held[(k + 1) % 3][0] for k in range(3)):
            return None
        return expand(held[0][0], D) + expand(held[1][0], D) + np.frombuffer(held[2][0], dtype=np.int64)

    # What is opened

    def skipped(self, error):
        """A round that opens no sum."""
        self.tally["skipped"] += 1
        self.broken |= self.hosted.garbled
        if not self.hosted.spoiled:
            raise FaultError(f"a round without a damaged message between the parties is skipped: {error}")

    def opened(self, opened):
        hosted, draw = self.hosted, self.draw
        if hosted.refusing:
            raise FaultError(f"the coordinator takes a damaged message: {hosted.refusing}")
        if not hosted.garbled:
            self.check_rows(opened)
        public = self.numbers.normal(size=D)
        gram = self.guarded(lambda: opened.gram({"root": public} if draw.random() < 0.5 else {}, self.histories))
        if isinstance(gram, Exception):
            return self.skipped(gram)
        if gram.anchors and not (hosted.garbled or hosted.spoiled):
            self.check_anchor(opened)
        finite = np.flatnonzero(opened.finite_rows())
        weights = self.numbers.uniform(0.8, 1.0, size=len(finite))
        kept = opened.subset(finite)
        if len(finite) < 5:
            self.broken |= hosted.garbled
            return self.skipped("too few are no vectors")
        found = self.guarded(lambda: kept.combine(Combination(weights)))
        if isinstance(found, Exception):
            limit = largest_square(D) * (stretch(self.sketch) if self.sketch else 1)
            if not (hosted.spoiled or any(square_sum(self.rows[c]) > limit for c in self.accepted(opened))):
                raise FaultError(f"an honest sum is refused: {found}")
            self.tally["too long"] += 1
        elif hosted.refusing:
            raise FaultError(f"the coordinator takes a damaged message: {hosted.refusing}")
        elif not hosted.garbled:
            self.check_sum(opened, finite, weights, found)
        if isinstance(done := self.guarded(lambda: kept.remembered(self.histories)), Exception):
            self.broken = True
            return self.skipped(done)
        self.broken |= hosted.garbled
        self.count(opened)
        return None

    def accepted(self, opened):
        return [client for client in self.rows if client not in named(opened)]

    def check_rows(self, opened):
        """Who is named, how long the others are, and the Gram matrix."""
        if self.honest & named(opened):
            raise FaultError("honest clients are named")
        self.tally["named"] += len(named(opened) - set(opened.dropped))
        seed = derived(self.hosted.servers[0].links.sketch, f"{self.hosted.servers[0].training}/sketch")
        stack = np.stack(list(self.rows.values()))
        seen = sketched(lambda part: stack[:, part].copy(), len(stack), D, self.sketch, seed) if self.sketch else stack
        limit = largest_square(D)
        for client, row, short in zip(self.rows, stack, seen, strict=True):
            if client in named(opened) and square_sum(row) <= limit:
                raise FaultError("a client is named whose update is no longer than the clip")
            if client not in named(opened) and square_sum(short) > limit * (stretch(self.sketch) if self.sketch else 1):
                raise FaultError("a row longer than the clip is taken for an update")
        expected = [[inner(one, other) for other in seen] for one in seen]
        if opened._round.stack[: len(seen), : len(seen)].tolist() != expected:
            raise FaultError("the Gram matrix is wrong")
        again = any("not possible" in note for note in opened.notes)
        if again and not self.broken and all(square_sum(row) <= limit for row in stack):
            raise FaultError("an honest history starts again")
        self.seen = seen

    def check_anchor(self, opened):
        words = opened._round.vectors["root"][0]
        if self.sketch:
            seed = derived(self.hosted.servers[0].links.sketch, f"{self.hosted.servers[0].training}/sketch")
            words = sketched(lambda part: words[None, part].copy(), 1, D, self.sketch, seed)[0]
        if opened._round.products[0][: len(self.seen)].tolist() != (self.seen @ words).tolist():
            raise FaultError("a product with a public vector is wrong")

    def check_sum(self, opened, finite, weights, found):
        """The sum of the rows that were taken, but for the servers' noise."""
        rows, (whole, factor) = np.stack(list(self.rows.values()))[finite], shortened(weights)
        off = np.abs(opened._round.sum - whole @ rows)
        if off.max() > self.hosted.privacy.servers << NOISE_BITS:
            raise FaultError("the sum is wrong")
        if not np.allclose(found, opened._round.sum * (factor * 2.0**-FRACTION), rtol=1e-6):
            raise FaultError("the aggregate is not the sum")
        self.tally["opened"] += 1

    def count(self, opened):
        """The histories "sum" of honest clients are the sums of their updates."""
        if "sum" not in self.histories or self.broken:
            return
        for client in self.accepted(opened):
            self.past.setdefault(client, []).append(self.rows[client])
        for client in self.honest & set(self.past):
            lines = [each.memory()["sum"][k].get(client) for k, each in enumerate(self.hosted.servers)]
            held = sum(expand(line, D) if type(line) is bytes else line for line in lines)
            expected = sum(self.past[client]) >> FRACTION - HISTORY_FRACTION
            if np.abs(held - expected).max() > 4 * len(self.past[client]):
                raise FaultError("a history is wrong")


def array(data):
    """As an actor hands a message on."""
    return np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes) else data


def fuzz(messages, seed=0, attempts=3):
    """Runs until so many hostile messages were sent; what came of them."""
    tally = Counter()
    with pytest.MonkeyPatch.context() as patch:
        answers = Answers(patch)
        while tally["sent"] < messages:
            try:
                tally += Fuzzed(seed, attempts, answers).play()
            except FaultError as fault:
                raise FaultError(f"seed {seed}: {fault}") from fault
            seed += 1
    return tally


def test_two_thousand_hostile_messages():
    tally = fuzz(2_000)
    # It is no fuzzing where all is refused, or all is taken.
    assert min(tally[name] for name in ("opened", "skipped", "named")) >= 5, tally


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_hostile_messages():
    fuzz(100_000, seed=1_000_000)


# It can fail


def sizeless(message, run, round, sender, kind, size=None, receiver=None):
    return expect(message, run, round, sender, kind, None, receiver)


def alone(self, others):
    self._once("agree")
    self.stack.clients = tuple(sorted(self._digests))
    return self.clients


def hasty(self, others, agree=Server.agree):
    self.stack.clients = ()
    return agree(self, others)


def early(self, data, receive=ShareServer.receive):
    self._digests.setdefault(int.from_bytes(bytes(viewed(data)[29:37]), "little", signed=True), (bytes(32),))
    receive(self, data)


def waiting(self, round, clients, training=None):
    if self._awaited:
        raise MessageError("shares of histories have not come from server 0")
    Server.begin(self, round, clients, training)


def telling(self, data, learn=Server.learn):
    try:
        learn(self, data)
    except MessageError:
        raise MessageError(f"not sealed with {self.links.own.hex()}") from None


FAULTS = {
    "digests are not compared": (("fedrobust.secure.messages.compare_digest", lambda *_: True), "cannot be right"),
    "sizes are not checked": ((shares, "expect", sizeless), "rror from ask|ask is taken|cannot be right"),
    "sizes of shares are not checked": ((server, "expect", sizeless), "ValueError|the rows of|cannot be right"),
    "parts are not compared": ((ReplicatedServer, "_fit", lambda *_: True), "the rows of"),
    "lists are not compared": ((Server, "agree", alone), "is skipped|cannot be right|the rows of"),
    "a refused list is the last one": ((Server, "agree", hasty), "changes the party"),
    "a refused share counts": ((ShareServer, "receive", early), "the rows of|Error"),
    "names are not checked": ((federation_party, "_require_own", lambda *_: None), "the rows of|are refused"),
    "weights may be long": ((server, "require_short", lambda weights, n: weights), "rror from ask|ask is taken"),
    "words may be anything": ((server, "are_words", lambda *_: True), "rror from ask|ask is taken"),
    "numbers may be anything": ((shares, "is_number", lambda *_: True), "Error from|is taken"),
    "rows may be anything": ((shares, "require_rows", lambda *_: None), "rror from ask|ask is taken"),
    "public vectors may be long": ((server, "largest_square", lambda d: 1 << 200), "ask is taken"),
    "lengths are not checked": ((coordinator, "largest_square", lambda d: 1 << 126), "longer than the clip"),
    "wraps are not looked for": ((coordinator, "too_long", lambda *_: False), "longer than the clip"),
    "everybody wraps": ((coordinator, "too_long", lambda *_: True), "is skipped|are refused"),
    "a lost history stops the rounds": ((ReplicatedServer, "begin", waiting), "is skipped"),
    "noise is too loud": ((server, "NOISE_BITS", 24), "the sum is wrong"),
    "answers are not checked": (
        ("fedrobust.secure.opening.expect", lambda message, *_: message),
        "damaged message|ValueError at the coordinator",
    ),
    "a server tells its secret": ((Server, "learn", telling), "a secret of a party"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_fuzzer_finds_a_planted_fault(fault, monkeypatch):
    planted, found = FAULTS[fault]
    monkeypatch.setattr(*planted)
    with pytest.raises(FaultError, match=found):
        fuzz(10_000)
