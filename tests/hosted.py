"""The parties of secret shares behind wires on which messages are tampered with, for the fuzzer: no Ray, one process.

What arrives at a party is offered to it in other forms first; what it refuses must change nothing. It is also asked for
what nobody may ask for. All of it goes through the code of the team and of the coordinator, up to what is opened.
"""

from __future__ import annotations

import math
import pickle
import random
from functools import partial

import numpy as np
from acted import Actor
from pydantic import BaseModel
from tampered import FaultError, cut, flipped, relabelled, resized, rewritten

from fedrobust.federation.parties import PartyTeam
from fedrobust.federation.party_host import PartyHost
from fedrobust.secure.messages import SEAL, MessageError, digest
from fedrobust.secure.shares import Dealer
from fedrobust.secure.sharing import ReplicatedPrivacy, SharesPrivacy
from fedrobust.secure.weights import LARGEST_WEIGHT, OpeningError
from fedrobust.updates import Demand

OWNER = b"o" * 16
OUT = ("check_share", "gram_share", "anchor_share", "combine_share")
"""Steps whose answers go to the coordinator."""
SEALED = ("add_difference", "learn")
"""What nobody else than the sender can have made: no change of the body is taken either."""
NO_STEPS = (
    "memory",
    "begin",
    "restore",
    "receive",
    "links",
    "secrets",
    "_noise",
    "__init__",
    "",
    None,
    [],
    3,
    b"forget",
)


def junk(draw):
    """Something that is no argument of any step."""
    return draw.choice(
        (
            *(None, True, -1, 1 << 63, 1 << 70, 1.0, math.nan, "a", "ä\0", b"", b"x" * 200, [[1]], {}, {1}, object()),
            *(np.zeros(3), np.ones((2, 2), dtype=np.int64), np.float32(1), np.array("a"), np.array(None, dtype=object)),
            *(bytearray(94), np.zeros(94, dtype=np.uint8)[::2], np.int64(-5), {"a": []}, range(-3, 0)),
        )
    )


def hidden(words, count):
    """Words of which those that are too large do not show in a sum or a maximum."""
    return np.ma.masked_array(np.full(count, words, dtype=np.int64), mask=np.ones(count, dtype=bool))


def bad_weights(draw, n):
    one = np.eye(1, n, dtype=np.int64)[0]
    return draw.choice(
        (
            *(np.full(n, LARGEST_WEIGHT + 1), np.full(n, -1), one, one * LARGEST_WEIGHT, hidden(1 << 40, n)),
            *(np.ones(n), np.ones(n + 1, dtype=np.int64), np.ones(n, dtype=">i8"), np.ones(n, dtype=np.uint64)),
            *([1] * n, np.ones((n, 1), dtype=np.int64), np.full(n, 1 << 62), np.ones(n, dtype=bool)),
        )
    )


def bad_vector(draw, d):
    unit = np.eye(1, d, dtype=np.int64)[0]
    return draw.choice(
        (
            *(unit << 29, np.full(d, -(1 << 63)), np.full(d, (1 << 63) - 1), hidden(1 << 40, d), unit.astype(float)),
            *(unit[None], unit.astype(">i8"), unit.astype(np.int32), unit[:-1], unit.tolist(), np.zeros((0, d))),
        )
    )


def bad_rows(draw, n):
    """Rows of histories with coefficients: one of both is wrong."""
    one = np.ones(1, dtype=np.int64)
    return draw.choice(
        (
            *(([0, 0], np.ones(2, dtype=np.int64)), ([n], one), ([-1], one), ([True], one), ([0.0], one), ("0", one)),
            *(([0], one * 4097), ([0], -one), ([0], one[None]), ([0], [1]), ([0], np.ones(1)), ({0}, one), (0, one)),
            *(([0], hidden(1 << 40, 1)), ([[0]], one), (junk(draw), one), ([0], junk(draw)), (np.zeros(1, int), one)),
            *(([1 << 70], one), (None, None), ([0, 1], one), ([None], one)),
        )
    )


def bad_clients(draw):
    return draw.choice(
        ([0, 0], [-1], ["a"], [None], [True], [[0]], "ab", b"ab", 5, None, [1 << 70], {1}, [1.0], np.arange(3), {})
    )


def state(host):
    """All that a party remembers, as bytes."""
    party = host._party
    if isinstance(party, Dealer):
        return pickle.dumps(party._given)
    kept = {name: value for name, value in vars(party).items() if name != "links"}
    return pickle.dumps((kept, party.links.sketch, party.links._common))


def flat(value):
    """The bytes and texts in an answer."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [part for each in value for part in flat(each)]
    return [bytes(value)] if isinstance(value, (bytes, memoryview)) else [value.encode()] if type(value) is str else []


class UncheckedShares(SharesPrivacy):
    model_copy = BaseModel.model_copy


class UncheckedReplicated(ReplicatedPrivacy):
    model_copy = BaseModel.model_copy


class Wired:
    """Stands for a party: what it is asked for goes over the wires of `hosted`."""

    def __init__(self, host, hosted):
        self.host, self.hosted = host, hosted

    def __getattr__(self, step):
        return partial(self.hosted.deliver, self.host, step)


class Hosted:
    """The parties of one run. `sent` counts hostile messages and calls.

    What becomes of a round: `fault`, what is wrong; `spoiled`, that a good message was lost, or a bad one came in its
    place; `garbled`, that a body which only an honest party makes was another one, so that no number can be right;
    `misled`, that a server was told of other senders; `refusing`, the answer that the coordinator has to refuse.
    """

    def __init__(self, name, run, d, seed, histories, sketch, attempts):
        self.draw, self.attempts, self.sent, self.taken = random.Random(seed), attempts, 0, 0
        kind = UncheckedShares if name == "shares" else UncheckedReplicated
        # Fewer columns than an experiment may ask for: more goes wrong there.
        self.privacy = kind(clip=1.0, randomness="seed").model_copy(update={"sketch": sketch})
        self.hosts = [PartyHost() for _ in range(self.privacy.servers + self.privacy.dealer)]
        actors = [Actor(Wired(host, self)) for host in self.hosts]
        self.wires, self.honest = {}, set()
        self.fresh()
        self.quiet = False
        demand = Demand(frozenset({"gram"}), 9, tuple(histories))
        self.team = PartyTeam(self.privacy, seed, run, d, demand, lambda: actors, 1.0, OWNER)
        self.d, self.histories = d, histories

    @property
    def servers(self):
        return [host._party for host in self.hosts[: self.privacy.servers]]

    def fresh(self):
        """Before a round."""
        self.fault, self.spoiled, self.garbled, self.misled = None, False, False, False
        self.refusing = ""

    def deliver(self, host, step, *given):
        """What a party answers at last."""
        if self.quiet:
            return getattr(host, step)(*given)
        try:
            if host._party is not None:
                for _ in range(self.draw.randrange(self.attempts + 1)):
                    self.pester(host)
            if step != "reshared":
                return self.through(host, step, given)
            for data in given[0]:  # each by itself: what was taken before a bad one stays
                self.through(host, step, ([data],))
            return None
        except FaultError as fault:
            self.fault = self.fault or fault
            raise

    def through(self, host, step, given):
        """The answer to a call whose messages are offered in other forms first."""
        name = given[1] if step == "ask" else step
        for place in places(step, name, given):
            honest = bytes(given[0][0] if step == "reshared" else given[place])
            for _ in range(self.draw.randrange(self.attempts + 1)):
                bad, allowed = self.tampered(name, honest)
                self.sent += 1
                changed = ([bad],) if step == "reshared" else (*given[:place], bad, *given[place + 1 :])
                taken, answer = self.call(host, step, changed)
                if not taken:
                    continue
                if not allowed:
                    raise FaultError(f"{name}: a message is taken that cannot be right")
                self.taken += 1
                if step == "meet":  # what comes later counts
                    break
                self.spoiled = True
                self.misled |= step == "agree"
                self.garbled |= step != "agree"
                return answer
            if step != "meet" and step != "learn" and self.draw.random() < (0.04 if step == "reshared" else 0.01):
                self.spoiled = True
                raise MessageError("it was lost on its way")
            self.wires.setdefault(name, []).append(honest)
        taken, answer = self.call(host, step, given)
        if not taken:
            raise answer
        if step == "setup" and isinstance(host._party, Dealer):
            host._party._entropy = self.draw.randbytes  # a seed gives the same round each time
        return self.outgoing(name, answer) if name in OUT else answer

    def call(self, host, step, given):
        """Whether a party takes what it is asked for, and its answer or its error. What it refuses changes nothing."""
        before = state(host) if host._party is not None else b""
        try:
            answer = getattr(host, step)(*given)
        except (MessageError, OpeningError) as error:
            if before and state(host) != before:
                raise FaultError(f"{step}: what is refused changes the party: {error}") from error
            answer = error
        except Exception as error:
            raise FaultError(f"{type(error).__name__} from {step}{given[1:2]}: {error}") from error
        if step != "memory":  # its owner's
            self.overhear(host, [str(answer)] if isinstance(answer, Exception) else answer)
        return not isinstance(answer, Exception), answer

    def overhear(self, host, answer):
        """No secret of a party, and no share of an honest client, is in what it says."""
        party = host._party
        if party is None or isinstance(party, Dealer) or not (said := flat(answer)):
            return
        secrets = [party.links.own, party.links.noise, party.links.sketch, getattr(party, "_seed", b"")]
        for lines in party.stack.current.values():
            secrets += [
                lines[c] if type(lines[c]) is bytes else lines[c][:4].tobytes() for c in self.honest & set(lines)
            ]
        for secret in filter(None, secrets):
            if any(secret in part or secret.hex().encode() in part for part in said):
                raise FaultError("a secret of a party is in what it answers")

    def outgoing(self, name, answer):
        """What the coordinator gets of it."""
        earlier = self.wires.setdefault(name, [])
        if self.draw.random() < 0.03 and not self.spoiled:
            self.sent += 1
            self.spoiled = True
            answer, allowed = self.tampered(name, bytes(answer))
            if allowed:
                self.garbled, self.taken = True, self.taken + 1
            else:
                self.refusing = name
        else:
            earlier.append(bytes(answer))
        return answer

    def tampered(self, name, honest):
        """Another message in its place, and whether it may be taken: whoever changes a message may seal it again."""
        while True:
            choice = self.draw.random()
            earlier = self.wires.get(name, [])
            if choice < 0.2 and earlier:
                bad, allowed = self.draw.choice(earlier), name == "meet"  # a key is one for the whole run
            elif choice < 0.3:
                bad, allowed = junk(self.draw), False
            else:
                way = self.draw.choices((flipped, cut, resized, relabelled, rewritten), (5, 5, 5, 5, 1))[0]
                # Who has not the key of a message can only seal it as others are.
                keyed = name == "add_difference" and way not in (flipped, cut)
                bad = way(self.draw, honest[:-SEAL] + digest(honest[:-SEAL]) if keyed else honest)
                allowed = (way is rewritten and name not in SEALED) or (way is resized and name == "agree")
            if not (isinstance(bad, bytes) and bad == honest):
                return bad, allowed

    def pester(self, host):
        """Ask a party for something that it must not do."""
        self.sent += 1
        step, *given = self.dealer_asked(host) if isinstance(host._party, Dealer) else self.server_asked(host)
        if self.call(host, step, given)[0]:
            raise FaultError(f"{step} is taken with {given}")

    def dealer_asked(self, host):
        draw, run = self.draw, self.team._run
        good = [run, host._party._given.get(run, -1) + 1, 5, self.privacy.sketch or self.d]
        good[draw.randrange(4)] = junk(draw)
        old = (run, host._party._given.get(run, 0), 5, good[3])
        large = (run, good[1], 1 << 20, self.privacy.sketch or self.d)
        wide = (run, good[1], 5, 1 << 40)
        return draw.choice(
            (
                *(("triple", *good), ("triple", *good), ("triple", *(old if run in host._party._given else good))),
                *(("triple", *large), ("triple", *wide), ("triple", "f" * 32, *good[1:])),
                *(("ask", 0, "gram_share"), ("receive", OWNER, 5, 5, [0]), ("agree", OWNER, b""), ("reshared", [b""])),
                *(("meet", OWNER, b""), ("introduce", OWNER), ("memory", junk(draw))),
            )
        )

    def server_asked(self, host):
        draw, party = self.draw, host._party
        number, n = party.round, len(getattr(party, "clients", ()))
        odd, history = junk(draw), draw.choice((*self.histories, "none"))
        asked = draw.choice(
            (
                *(("combine_share", bad_weights(draw, n)), ("combine_share", odd), ("anchor_share", odd)),
                *(("anchor_share", bad_vector(draw, self.d)), ("remember", *bad_rows(draw, n)), ("remember", odd, odd)),
                *(("forget", odd, 1), ("forget", history, odd), ("forget", "none", 1), ("drop", odd), ("drop", [99])),
                *(("difference", odd), ("difference", 1), ("difference", np.int64(7)), ("receive_triple", odd)),
                *(("add_difference", odd), ("gram_share", odd), ("check_share", odd), ("difference",), ("forget", odd)),
                *(("combine_share",), ("remember", odd), ("receive_triple", odd, odd), (draw.choice(NO_STEPS),)),
                *(
                    (step, draw.choice(sent))
                    for step, sent in self.wires.items()
                    if step in ("receive_triple",) and sent
                ),
                *((("check_share",),) if "check" in party._done or "agree" not in party._done else ()),
                *((("gram_share",),) if "gram" in party._done or "check" not in party._done else ()),
                *((("combine_share", np.ones(n, dtype=np.int64)),) if "gram" not in party._done else ()),
                *((("difference", 0),) if "difference 0" in party._done or "triple" not in party._done else ()),
            )
        )
        if "gram" in party._done and draw.random() < 0.5:  # what is refused now is not refused for being too early
            asked = draw.choice(
                (
                    ("combine_share", bad_weights(draw, n)),
                    ("anchor_share", bad_vector(draw, self.d)),
                    ("remember", *bad_rows(draw, n)),
                )
            )
        late = draw.choice((odd, number + 1, number - 1))
        return draw.choice(
            (
                *(12 * [("ask", number, *asked)] + [("ask", late, "check_share"), ("ask", late, *asked)]),
                *(("agree", OWNER), ("agree", OWNER, *[odd] * draw.choice((1, 2))), ("agree", odd, b"")),
                *(("reshared", odd), ("reshared", [odd]), ("receive", odd, number + 1, number + 1, [0])),
                *(("receive", OWNER, number, number, [0]), ("receive", OWNER, odd, number + 9, [0])),
                *(("triple", "", 1, 5, self.d), ("receive", OWNER, number + 1, 1 << 70, [0])),
                ("receive", OWNER, number + 1, number + 1, bad_clients(draw)),
                *(("meet", odd, b""), ("introduce", odd), ("memory", odd), ("secrets", odd), ("learn", odd, b"")),
                *(("meet", OWNER, odd), ("meet", OWNER), ("learn", OWNER, odd)),
            )
        )


def places(step, name, given):
    """Which of the arguments are messages."""
    if step in ("agree", "meet"):
        return range(1, len(given))
    return {"learn": (1,), "reshared": (0,), "receive_triple": (2,), "add_difference": (2,)}.get(name, ())
