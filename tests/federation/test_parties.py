"""Rounds of secret shares over actors: as in the clear, whatever fails, and nothing else reaches the coordinator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from acted import Actor, House, messages, options, updates

from fedrobust.audit.log import timeless
from fedrobust.errors import FederationError
from fedrobust.records import Record
from fedrobust.secure.messages import Kind
from fedrobust.secure.ring import Words

N, D, ROUNDS = 8, 3_000, 4
NAMES = ("shares", "replicated")
WORN = {"rule": "adaptive"}, {"trust": {"acts": True, "detector": "consensus"}}
"""A defence that remembers everything: updates, scores, reputations."""
MALICIOUS = (2, 5)


def worn(privacy: Any, patch: pytest.MonkeyPatch, workers: int = 2) -> House:
    return House(options(privacy, WORN[0], 12, **WORN[1]), D, patch, workers)


def play(house: House, first: int = 0, last: int = ROUNDS) -> House:
    for round in range(first, last):
        house.round(updates(10 + round, 12, D, MALICIOUS))
    return house


def models(house: House) -> list[str]:
    return [record["model"] for record in house.records]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# As in the clear


def test_the_coordinator_decides_as_in_the_clear(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clear, secret = (play(worn(privacy, monkeypatch)) for privacy in ("clear", name))
    for theirs, ours in zip(clear.records, secret.records, strict=True):
        assert "skipped" not in ours
        assert (ours["f"], ours["quarantined"], ours["rejected"]) == (theirs["f"], theirs["quarantined"], {})
        for what in ("weights", "anomaly", "reputation", "update_norm"):
            assert list(ours[what]) == list(theirs[what])
            assert list(ours[what].values()) == pytest.approx(list(theirs[what].values()), rel=1e-4, abs=1e-4)
        assert sorted(ours["commitments"]) == list(range(12))
        assert all(ours["commitments"][client] != theirs["commitments"][client] for client in range(12))
        assert ours["functionals"] == 0
    assert set(secret.records[-1]["quarantined"]) >= set(MALICIOUS)
    expected = clear.arrays["weights"]
    assert np.linalg.norm(secret.arrays["weights"] - expected) <= 5e-4 * np.linalg.norm(expected)


def test_attackers_who_know_everything_see_the_histories(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `rounds.py`, for previews: what the parties hold together is what the clear has."""
    # The average has coefficients of 12 bits: 0.8999 for 0.9.
    for rule, history, tolerance in (("adaptive", "average", 2e-3), ("foolsgold", "sum", 1e-4), ("fldetector", "last", 2e-6)):  # fmt: skip  # noqa: E501
        privacy = {"name": name, "clip": 1.0}
        clear, secret = (House(options(way, rule), D, monkeypatch) for way in ("clear", privacy))
        for house in (clear, secret):
            for round, clients in enumerate([range(8), range(7), range(8)]):
                house.round(updates(round)[list(clients)], clients=list(clients))
        theirs, ours = (house.way.histories(house.arrays) for house in (clear, secret))
        assert set(ours) == set(theirs) == {history}
        error = np.linalg.norm(ours[history] - theirs[history], axis=1)
        assert (error <= tolerance * np.linalg.norm(theirs[history], axis=1)).all()
        assert ours[history].dtype == np.float32
        assert not any(name.startswith("history") for name in secret.arrays)  # they are at the servers alone


# The same bits


def test_two_runs_and_any_number_of_workers_give_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [play(worn(name, monkeypatch, workers)) for workers in (1, 1, 2, 5)]
    assert len({tuple(models(run)) for run in runs}) == 1
    assert len({str(run.records[-1]["commitments"]) for run in runs}) == 1


def test_secrets_from_the_system_change_what_is_sent_and_not_what_comes_of_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = {"name": name, "randomness": "system"}
    one, other = (House(options(privacy), D, monkeypatch) for _ in range(2))
    for house in (one, other):
        house.round(updates())
    assert one.records[0]["commitments"] != other.records[0]["commitments"]
    for what in ("weights", "anomaly", "update_norm", "reputation"):
        assert one.records[0][what] == other.records[0][what]  # decisions are the same, to the last bit
    # What comes of them is not: the servers' noise in the sum is one of the secrets.
    np.testing.assert_allclose(one.arrays["weights"], other.arrays["weights"], rtol=0, atol=4e-7)
    np.testing.assert_allclose(one.arrays["weights"], updates().mean(axis=0), rtol=0, atol=4e-7)
    assert (one.arrays["weights"] != other.arrays["weights"]).mean() > 0.9


def test_a_run_that_goes_on_from_its_checkpoint_ends_with_the_same_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = play(worn(name, monkeypatch)), play(worn(name, monkeypatch), last=2)
    resumed = worn(name, monkeypatch)
    resumed.arrays, resumed.records = stopped.arrays, list(stopped.records)
    resumed.start(2)
    # Nothing of a round that was opened before is opened again.
    assert {each.made._party.round for each in resumed.parties if hasattr(each.made._party, "round")} == {2 * 3 - 1}
    assert models(play(resumed, 2)) == models(whole)
    forgetful = worn(name, monkeypatch)
    forgetful.arrays = {key: array for key, array in stopped.arrays.items() if not key.startswith("party/")}
    forgetful.records = list(stopped.records)
    forgetful.start(2)
    assert models(play(forgetful, 2)) != models(whole)  # the histories do count


def test_real_secrets_come_back_with_the_checkpoint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sketch and the noise of a round are the same after a crash, so nothing new of its updates is opened."""
    privacy = {"name": name, "randomness": "system", "sketch": 128}

    def house() -> House:
        return House(options(privacy, "multi_krum", 12), D, monkeypatch)

    stopped = play(house(), last=2)
    ends = []
    for _ in range(2):
        resumed = house()
        resumed.arrays, resumed.records = dict(stopped.arrays), list(stopped.records)
        resumed.parties = []  # none is alive that was there before
        resumed.start(2)
        ends.append(models(play(resumed, 2)))
    assert ends[0] == ends[1] == models(play(stopped, 2))
    assert models(play(house())) != ends[0]


def test_a_run_that_is_resumed_opens_no_other_sum_of_a_round_that_it_had_begun(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver dies between the sum and the commit; then one hospital is late: the difference would be its update."""
    privacy = {"name": name, "randomness": "system"}

    def house() -> House:
        return House(options(privacy), D, monkeypatch, ledgers=tmp_path)

    before = house()
    before.round(updates(0))
    kept = dict(before.arrays)
    before.round(updates(1))
    for clients in (range(7), range(8)):
        resumed = house()
        resumed.arrays, resumed.records, resumed.parties = dict(kept), before.records[:1], []
        resumed.start(1)
        record = resumed.round(updates(1)[: len(clients)], clients=list(clients))
        if len(clients) == 7:
            assert record["skipped"] == "another sum of training round 2 was opened before"
        else:
            assert record["model"] == before.records[1]["model"]


DEATHS = [
    (0, "receive", None),
    (1, "receive", None),
    (0, "agree", None),
    (1, "agree", None),
    (0, "ask", "gram_share"),
    (1, "ask", "gram_share"),
    (1, "ask", "combine_share"),
    (0, "ask", "remember"),
    (1, "traffic", None),
    (0, "memory", None),
]
OF_SHARES = [(0, "ask", "difference"), (1, "ask", "add_difference"), (0, "ask", "receive_triple"), (2, "triple", None)]
OF_REPLICATED = [(2, "receive", None), (2, "ask", "gram_share"), (1, "reshared", None)]
ALL = [
    *(("shares", *death) for death in DEATHS + OF_SHARES),
    *(("replicated", *death) for death in DEATHS + OF_REPLICATED),
]


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, House]:
    with pytest.MonkeyPatch.context() as patch:
        return {name: play(worn(name, patch)) for name in NAMES}


def told_of(record: Record) -> str:
    """All of a record but what the new beginning costs, and the digests of messages, which are bound to the attempt."""
    return json.dumps(
        timeless({key: value for key, value in record.items() if key not in ("commitments", "server_bytes")})
    )


@pytest.mark.parametrize(("name", "party", "method", "asked"), ALL)
def test_a_party_that_dies_is_replaced_and_the_round_repeated_to_the_same_bits(
    name: str,
    party: int,
    method: str,
    asked: str | None,
    undisturbed: dict[str, House],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = play(worn(name, monkeypatch), last=1)
    dying = house.parties[party]
    dying.dies = lambda called, arguments: called == method and (asked is None or arguments[1] == asked)
    play(house, 1)
    assert not dying.alive and house.parties[party] is not dying
    told = ([told_of(record) for record in each.records] for each in (house, undisturbed[name]))
    assert next(told) == next(told)


def test_a_round_that_is_repeated_opens_the_same_sum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same sketch and the same noise: nothing new is seen."""
    house = House(options({"name": name, "randomness": "system"}), D, monkeypatch)
    house.parties[0].dies = lambda called, arguments: called == "memory"  # everything is opened
    house.round(updates())
    bodies: dict[int, Words] = {}
    for message in messages(house):
        if message.kind is Kind.AGGREGATE:
            share = np.frombuffer(message.body, dtype=np.int64)
            bodies[message.round] = bodies.get(message.round, np.zeros(D, dtype=np.int64)) + share
    assert sorted(bodies) == [0, 1]
    np.testing.assert_array_equal(bodies[0], bodies[1])


def test_a_worker_that_dies_between_training_and_sharing_changes_nothing(
    name: str, undisturbed: dict[str, House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = play(worn(name, monkeypatch), last=1)
    house.hospitals[0].dies = lambda called, arguments: arguments[0] == "share"
    play(house, 1)
    assert models(house) == models(undisturbed[name])


def test_a_party_that_always_dies_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(options("shares"), D, monkeypatch)
    started: list[Actor] = []

    def mortal() -> list[Actor]:
        found = house._found(3, 1.0)
        found[0].dies = lambda called, arguments: called == "receive"
        started.append(found[0])
        return found

    monkeypatch.setattr(house.way._parties, "_find", mortal)
    house.start(0)
    with pytest.raises(FederationError, match="died"):
        house.round(updates())
    assert len(set(map(id, started))) == 3


def test_the_adversary_is_told_what_a_defence_keeps_at_the_servers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    aware: dict[str, Any] = {"attacks": [{"name": "optimal_alie", "count": 1}], "trust": {"detector": "consensus"}}
    told = []
    for privacy in ("clear", {"name": name, "clip": 1.0}):
        house = House(options(privacy, "foolsgold", **aware), D, monkeypatch)
        for round in range(3):
            house.round(updates(round))
        told.append(house.federation._outlook(house.arrays).arrays)
    clear, secret = told
    for history in ("history/average", "history/sum"):
        error = np.linalg.norm(secret[history] - clear[history]) / np.linalg.norm(clear[history])
        assert error <= (2e-3 if history.endswith("average") else 1e-4)
    shown = {key for key in secret if not key.startswith("party/")}
    assert shown == set(clear)
