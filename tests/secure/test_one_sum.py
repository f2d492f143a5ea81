"""A coordinator gets one sum of a training round, also if it is repeated: two sums would show single updates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from wrapped import EQUAL, NAMES, UNEQUAL, VICTIM, D, N, honest, opened_sum, parties, play

from fedrobust.aggregation import Combination
from fedrobust.federation.party_host import PartyHost
from fedrobust.secure import ReplicatedPrivacy, SharesPrivacy
from fedrobust.secure.local import LocalParties, introduce
from fedrobust.secure.messages import Kind, run_id
from fedrobust.secure.opening import joined
from fedrobust.secure.ring import Words
from fedrobust.secure.server import Server
from fedrobust.secure.shares import Dealer
from fedrobust.secure.weights import OpeningError
from fedrobust.updates import Demand

ASKED = Demand(frozenset({"gram"}), 2)


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


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_is_started_again_knows_what_it_has_opened(name: str, tmp_path: Path) -> None:
    """A crash between the sum and the commit: what another sum differs by would be one update."""
    privacy = (SharesPrivacy if name == "shares" else ReplicatedPrivacy)(max_functionals=9, sketch=None)

    def started(place: Path | None) -> list[PartyHost]:
        found = [PartyHost() for _ in range(privacy.servers)]
        for number, host in enumerate(found):
            secret = {"secret": np.full(32, number, dtype=np.uint8)}
            where = None if place is None else str(place)
            host.setup(privacy, 1, number, run_id("a run"), D, ASKED, -1, secret, b"o" * 16, where)
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
