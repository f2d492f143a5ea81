"""What a coordinator asks for that wants to read single updates: refused, and what it would get if it were not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wrapped import CLIP, EQUAL, NAMES, UNEQUAL, D, N, honest, mean, parties, play

from fedrobust.aggregation import Combination
from fedrobust.federation.party_host import STEPS, PartyHost
from fedrobust.secure import ReplicatedPrivacy, SharesPrivacy, weights
from fedrobust.secure import server as servers
from fedrobust.secure.local import LocalParties, introduce
from fedrobust.secure.messages import Kind, run_id
from fedrobust.secure.opening import encode_anchor, joined
from fedrobust.secure.ring import FRACTION, Words, encode
from fedrobust.secure.server import NOISE_BITS, Server
from fedrobust.secure.shares import Dealer
from fedrobust.secure.weights import LARGEST_WEIGHT, OpeningError

UNIT = 2.0**-FRACTION
VICTIM = 3


def opened_sum(played: LocalParties, chosen: np.ndarray) -> Words:
    """What the coordinator gets for weights of its own choice."""
    return joined(played.ask("combine_share", chosen), played.run, played.round, Kind.AGGREGATE, D)


def unguarded(patch: pytest.MonkeyPatch) -> None:
    """Servers that take any weights, and add no noise."""
    patch.setattr(servers, "require_short", lambda chosen, n: chosen)
    patch.setattr(Server, "_noise", lambda self, count, label, bits: np.zeros(count, dtype=np.int64))


# Weights


@pytest.mark.parametrize("name", NAMES)
def test_long_weights_would_read_one_update_and_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = honest()
    chosen = np.full(N, -(2**63))
    chosen[VICTIM] = 1
    played = parties(name)
    play(played, rows)
    with pytest.raises(OpeningError, match="from 0 to 4095"):
        opened_sum(played, chosen)
    unguarded(monkeypatch)
    played = parties(name)
    play(played, rows)
    found = opened_sum(played, chosen)
    assert np.array_equal(found * 2, rows[VICTIM] * 2)  # but for the sign, of every coordinate
    assert weights.support(chosen) >= N - 1  # which the support does not see


@pytest.mark.parametrize("name", NAMES)
def test_weights_one_above_the_other_would_read_two_updates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = honest()
    chosen = np.full(N, 2**62)
    chosen[VICTIM], chosen[6] = 1, 2**31
    played = parties(name, max_functionals=0)
    play(played, rows)
    with pytest.raises(OpeningError, match="longer"):
        opened_sum(played, chosen)
    unguarded(monkeypatch)
    played = parties(name, max_functionals=0)
    play(played, rows)
    found = opened_sum(played, chosen) & (2**62 - 1)
    low = (found + 2**30) % 2**31 - 2**30
    high = ((found - low) >> 31) % 2**31
    assert np.array_equal(low, rows[VICTIM])
    assert np.array_equal((high + 2**30) % 2**31 - 2**30, rows[6])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", ["negative", "floats", "too many", "a list", "4096", "nobody", "huge"])
def test_weights_that_are_none_are_refused_and_leave_the_round_as_it_was(name: str, bad: str) -> None:
    forms: dict[str, Any] = {
        "negative": np.array([-1, *[5] * (N - 1)]),
        "floats": np.full(N, 1.0),
        "too many": np.full(N + 1, 7),
        "a list": [7] * N,
        "4096": np.full(N, LARGEST_WEIGHT + 1),
        "nobody": np.zeros(N, dtype=np.int64),
        "huge": np.full(N, 2**63, dtype=np.uint64),
    }
    played = parties(name)
    play(played, honest())
    with pytest.raises(OpeningError):
        played.ask("combine_share", forms[bad])
    found = opened_sum(played, np.full(N, 100)) * (UNIT / (100 * N))
    assert np.abs(found - mean(honest(), EQUAL)).max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_weights_on_one_update_are_not_opened(name: str) -> None:
    rows, alone = honest(), np.eye(N)[VICTIM]
    for chosen in (alone, 0.98 * alone + 0.02 * EQUAL):
        with pytest.raises(OpeningError, match="at least 3 are needed"):
            play(parties(name), rows).combine(Combination(chosen))
    played = parties(name)
    play(played, rows)
    with pytest.raises(OpeningError, match="min_support"):  # the servers look for themselves
        played.ask("combine_share", np.rint(alone * 100).astype(np.int64))
    # Switched off, it is the update.
    found = play(parties(name, min_support=1.0), rows).combine(Combination(alone))
    assert np.abs(found - rows[VICTIM] * UNIT).max() < 1e-6


def test_what_is_left_without_the_colluders_has_the_support() -> None:
    """Σ w² ≥ (s + c) max w² leaves s max w² at least: whoever the c colluders are."""
    draw = np.random.default_rng(0)
    for _ in range(2_000):
        n, c, s = int(draw.integers(4, 12)), int(draw.integers(0, 4)), float(draw.uniform(1, 4))
        chosen = draw.integers(0, LARGEST_WEIGHT + 1, n)
        if weights.support(chosen) < s + c:
            continue
        rest = np.delete(chosen, np.argsort(chosen)[::-1][:c])
        assert weights.support(rest) >= s - 1e-9
        rest = np.delete(chosen, draw.choice(n, min(c, n - 1), replace=False))
        assert weights.support(rest) >= s - 1e-9


# The low bits of a sum


def singles(sums: np.ndarray, rows: np.ndarray, weight: int) -> int:
    """How many updates come out where two combinations are read from one word: Σ u_i and Σ δ_i u_i."""
    low = (sums + weight // 2) % weight - weight // 2
    return sum(bool(np.mean(np.abs(low - row) <= 1) > 0.9) for row in [*rows, *(2 * rows), *(-rows)])


@pytest.mark.parametrize("name", NAMES)
def test_the_low_bits_of_a_sum_show_no_second_combination(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three equal weights, of which a coordinator makes one a little larger: W Σu + u_3."""
    rows = honest(3) >> 16  # so short that one could be seen in the low bits
    for round, bump in enumerate((1, 2)):
        chosen = np.full(3, LARGEST_WEIGHT - bump)
        chosen[0] += bump
        played = parties(name)
        play(played, rows, round)
        assert singles(opened_sum(played, chosen), rows, LARGEST_WEIGHT - bump) == 0
    unguarded(monkeypatch)
    played = parties(name)
    play(played, rows)
    assert singles(opened_sum(played, chosen), rows, LARGEST_WEIGHT - 2) > 0


def test_an_update_is_hidden_among_all_that_give_the_same_sum() -> None:
    """u_0 + w_1 z and u_1 − w_0 z for any z: the sum is the same to its last bit, and z is a small change."""
    rows = honest()
    chosen, _ = weights.shortened(UNEQUAL)
    z = np.random.default_rng(2).integers(-50, 51, D)
    other = rows.copy()
    other[0] += chosen[1] * z
    other[1] -= chosen[0] * z
    sums = []
    for each in (rows, other):
        played = parties("shares")
        play(played, each)
        sums.append(opened_sum(played, chosen))
    assert np.array_equal(*sums)
    assert (rows[0] != other[0]).mean() > 0.9
    assert LARGEST_WEIGHT * UNIT < 2e-5  # one step of z, of the clip


@pytest.mark.parametrize("name", NAMES)
def test_every_server_has_its_own_noise_in_a_sum(name: str) -> None:
    rows, chosen = honest(), np.full(N, 4000)
    played = LocalParties(name, run_id("noise"), D)  # type: ignore[arg-type]
    found = []
    for round in range(3):
        play(played, rows, round)
        noise = opened_sum(played, chosen) - chosen @ rows
        assert np.abs(noise).max() <= played.count << NOISE_BITS
        expected = np.sqrt(played.count / 3) * 2**NOISE_BITS
        assert noise.std() == pytest.approx(expected, rel=0.1)
        found.append(noise)
        parts = [server._noise(D, "aggregate", NOISE_BITS) for server in played.servers]
        assert np.array_equal(sum(parts), noise)
        assert all(not np.array_equal(one, other) for i, one in enumerate(parts) for other in parts[:i])
    assert abs(np.corrcoef(found)[np.triu_indices(3, 1)]).max() < 0.1


# More than one sum


@pytest.mark.parametrize("name", NAMES)
def test_a_second_sum_would_be_the_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, first = honest(), np.full(N, 2**11)
    second = first.copy()
    second[5] += 1
    played = parties(name)
    play(played, rows)
    played.ask("combine_share", first)
    for again in (first, second):
        with pytest.raises(OpeningError, match=r"done once|another sum"):
            played.ask("combine_share", again)
    # Switched off, the two differ by a single update: they have the same noise.
    monkeypatch.setattr(Server, "_once", lambda self, step: self._done.add(step))
    monkeypatch.setattr(Server, "_before", lambda self, step: None)
    played = parties(name)
    play(played, rows)
    sums = []
    for chosen in (first, second):
        for server in played.servers:
            server._summed = -1, {}
        sums.append(opened_sum(played, chosen))
    assert np.array_equal(sums[1] - sums[0], rows[5])


@pytest.mark.parametrize("name", NAMES)
def test_a_round_that_is_repeated_opens_the_same_sum_or_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator could say that a party has died, to have another sum of the same updates."""
    rows, chosen = honest(), np.full(N, 4000)
    other = chosen.copy()
    other[VICTIM] = 0

    def attempt(played: LocalParties, number: int, training: int) -> None:
        sent = {client: played.sent(row, number, client) for client, row in enumerate(rows)}
        for server in played.servers:
            server.begin(number, range(N), training)
        monkeypatch.setattr(Server, "begin", lambda *_: None)
        played.receive(number, sent)
        monkeypatch.undo()
        played.ask("check_share")
        played.gram()

    played = parties(name, sketch=128)
    attempt(played, 3, 1)
    first = opened_sum(played, chosen)
    attempt(played, 4, 1)
    with pytest.raises(OpeningError, match="round 1"):
        opened_sum(played, other)
    assert np.array_equal(opened_sum(played, chosen), first)  # with the same noise, too
    with pytest.raises(OpeningError, match="is over"):
        played.servers[0].begin(5, range(N), 0)
    if name == "shares":
        played.dealer = Dealer()
        introduce(played.servers, played.dealer)
    for server in played.servers:  # nor is it forgotten when they are told to go back
        server.restore(server.memory(), 2, 0)
    attempt(played, 3, 1)
    with pytest.raises(OpeningError, match="round 1"):
        opened_sum(played, other)
    attempt(played, 5, 2)
    opened_sum(played, other)


def test_a_repeated_round_has_the_same_sketch_and_another_round_another_one() -> None:
    played = parties("shares", sketch=128)
    found = []
    for number, training in ((1, 1), (2, 1), (3, 2)):
        for server in played.servers:
            server.begin(number, range(N), training)
        found.append(played.servers[1]._fresh("sketch"))
        assert played.servers[0]._fresh("sketch") == found[-1]
    assert found[0] == found[1] != found[2]


def test_the_coordinator_object_opens_one_sum_too() -> None:
    opened = play(parties("shares"), honest())
    opened.combine(Combination(EQUAL))
    with pytest.raises(OpeningError, match="second"):
        opened.combine(Combination(UNEQUAL))


# Functionals


@pytest.mark.parametrize("name", NAMES)
def test_functionals_are_counted_and_limited(name: str) -> None:
    played, vector = parties(name, max_functionals=2 * 3 + 3, colluders=2), np.ones(D)
    for round in range(3):
        opened = play(played, honest(), round)
        opened.gram({"momentum": vector})
        opened.gram({"momentum": vector})  # the same one again is not opened again
        assert {each.functionals for each in played.servers} == {3 * (round + 1)}
    with pytest.raises(OpeningError, match=r"9 linear functionals .* 2 more"):
        play(played, honest(), 3)
    endless = parties(name)
    for round in range(4):
        play(endless, honest(), round).gram({"momentum": vector})
    assert endless.servers[0].functionals == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_known_vector_reads_every_history_too(name: str) -> None:
    """One public vector: its product with this round's update, and with both histories of each client."""
    names = ("last", "sum")
    played = parties(name, histories=names, colluders=1)
    play(played, honest(), 0)
    assert {each.functionals for each in played.servers} == {
        9
    }  # a colluder knows three rows, each opens three products
    play(played, honest(), 1).gram({"root": np.ones(D)}, names)
    assert {each.functionals for each in played.servers} == {9 + 9 + 3}


@pytest.mark.parametrize("name", NAMES)
def test_a_count_does_not_go_back(name: str) -> None:
    played = parties(name, max_functionals=4)
    for round in range(3):
        play(played, honest(), round).gram({"momentum": np.ones(D)})
    for server in played.servers:
        server.restore(server.memory(), 0, 0)
        assert server.functionals == 3
        server.restore(server.memory(), 0, 7)
        assert server.functionals == 7


@pytest.mark.parametrize("name", NAMES)
def test_a_public_vector_longer_than_one_would_read_several_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = honest()
    long = np.zeros(D, dtype=np.int64)
    long[[700, 701, 702]] = 1, 2**29, 2**58
    played = parties(name)
    play(played, rows)
    with pytest.raises(OpeningError, match="norm of 1"):
        played.ask("anchor_share", long)
    assert played.servers[0].functionals == 0
    for bad in (np.ones(D), np.ones(D - 1, dtype=np.int64), "words", encode_anchor(np.ones(D), CLIP)[0][None]):
        with pytest.raises(OpeningError, match="coordinates, as words"):
            played.ask("anchor_share", bad)
    monkeypatch.setattr(servers, "largest_square", lambda d: 2**200)
    found = joined(played.ask("anchor_share", long), played.run, played.round, Kind.ANCHOR, N + 1)[:N]
    for place in (700, 701):
        digit = (found + 2**28) % 2**29 - 2**28
        assert np.array_equal(digit, rows[:, place])
        found = (found - digit) >> 29


# What can be asked for at all


def hosts(name: str) -> Iterator[PartyHost]:
    privacy = (SharesPrivacy if name == "shares" else ReplicatedPrivacy)(max_functionals=9, sketch=None)
    for number in range(privacy.servers):
        host = PartyHost()
        host.setup(privacy, 1, number, run_id("a run"), D, (), -1, {}, b"o" * 16)
        yield host


@pytest.mark.parametrize("name", NAMES)
def test_a_server_answers_to_the_steps_of_the_protocol_and_to_nothing_else(name: str) -> None:
    for host in hosts(name):
        for method, arguments in {
            "_stacked": (0,),
            "_stack": (0, slice(0, 5)),
            "_whole": (b"",),
            "memory": (),
            "restore": ({}, 0, 0),
            "__setattr__": ("min_support", 0.0),
            "__getattribute__": ("links",),
            "links": (),
            "begin": (5, [0]),
            "receive": (b"",),
            "agree": ([],),
            "keep": ({},),
            "recall": ({},),
            "ledger": (),
            "introduce": (),
            "meet": ([],),
            "secrets": (),
            "__class__": (),
            "__reduce__": (),
            "nothing": (),
        }.items():
            with pytest.raises(OpeningError, match="is no step"):
                host.ask(-1, method, *arguments)
        assert {name for name in STEPS if callable(getattr(Server, name, None)) or not name.startswith("_")} == STEPS
        for method in STEPS:
            with pytest.raises(OpeningError):
                host.ask(4, method)


@pytest.mark.parametrize("name", NAMES)
def test_only_its_owner_sets_a_server_up_again_and_sees_what_it_remembers(name: str) -> None:
    for number, host in enumerate(hosts(name)):
        for call in (host.memory, host.introduce, host.secrets):
            with pytest.raises(OpeningError, match="party"):
                call(b"x" * 16)
        privacy = (SharesPrivacy if name == "shares" else ReplicatedPrivacy)(min_support=1.0)
        with pytest.raises(OpeningError, match="party"):
            host.setup(privacy, 1, number, run_id("a run"), D, (), -1, {}, b"x" * 16)
        with pytest.raises(OpeningError, match="party"):
            host.meet(b"", b"")
        server = host._party
        assert isinstance(server, Server) and server.min_support == 3.0
        server.functionals = 6
        host.setup(privacy, 1, number, run_id("a run"), D, (), -1, {"functionals": np.array(2)}, b"o" * 16)
        assert host._party is server and server.functionals == 6 and server.min_support == 3.0
        # Nor by way of another run, and back.
        with pytest.raises(OpeningError, match="party"):
            host.setup(privacy, 1, number, run_id("another run"), D, (), -1, {}, b"x" * 16)
        with pytest.raises(OpeningError, match="party"):
            host.receive(b"x" * 16, 5, 5, [0, 1, 2])
        with pytest.raises(OpeningError, match="party"):
            host.agree(b"x" * 16)
        host.setup(privacy, 1, number, run_id("another run"), D, (), -1, {}, b"o" * 16)
        assert host._party is not server


def test_encoded_updates_are_within_what_a_server_takes() -> None:
    assert int(np.abs(encode(np.full(D, 1e9), CLIP)).max()) <= 2**FRACTION


# What a server remembers when it is started again


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_is_started_again_knows_what_it_has_opened(name: str, tmp_path: Path) -> None:
    """A crash between the sum and the commit: what another sum differs by would be one update."""
    privacy = (SharesPrivacy if name == "shares" else ReplicatedPrivacy)(max_functionals=9, sketch=None)

    def started(place: Path | None) -> list[PartyHost]:
        found = [PartyHost() for _ in range(privacy.servers)]
        for number, host in enumerate(found):
            secret = {"secret": np.full(32, number, dtype=np.uint8)}
            where = None if place is None else str(place)
            host.setup(privacy, 1, number, run_id("a run"), D, (), -1, secret, b"o" * 16, where)
        return found

    def opened_in(hosts: list[PartyHost], chosen: np.ndarray, training: int = 7) -> Words:
        played = LocalParties(name, run_id("a run"), D)  # type: ignore[arg-type]
        played.servers = [host._server() for host in hosts]  # type: ignore[assignment]
        introduce(played.servers, played.dealer)
        for server in played.servers:
            server.begin(3, range(N), training)
        for client, row in enumerate(honest()):
            for server, data in zip(played.servers, played.sent(row, 3, client), strict=True):
                server.receive(data)
        lists = [server.senders() for server in played.servers]
        for number, server in enumerate(played.servers):
            server.agree(lists[:number] + lists[number + 1 :])
        played.round, played.clients = 3, tuple(range(N))
        played.ask("check_share")
        played.gram()
        played.ask("anchor_share", np.ones(D, dtype=np.int64))
        return joined(played.ask("combine_share", chosen), played.run, 3, Kind.AGGREGATE, D)

    first, second = np.full(N, 4000), np.full(N, 4000)
    second[VICTIM] = 0
    one = opened_in(started(tmp_path), first)
    again = started(tmp_path)
    assert {host._server().functionals for host in again} == {1}
    with pytest.raises(OpeningError, match="round 7"):
        opened_in(again, second)
    assert np.array_equal(opened_in(started(tmp_path), first), one)
    files = sorted(tmp_path.rglob("*.json"))
    assert len(files) == privacy.servers and all(file.stat().st_mode & 0o077 == 0 for file in files)
    # Without its file it does not know: the two sums differ by the update, and by no noise.
    forgetful = [opened_in(started(None), chosen) for chosen in (first, second)]
    assert np.array_equal(forgetful[0] - forgetful[1], 4000 * honest()[VICTIM])
    files[0].write_text("{")
    with pytest.raises(OpeningError, match="opened"):
        started(tmp_path)
