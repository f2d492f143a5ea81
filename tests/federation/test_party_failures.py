"""Rounds of secret shares in which hospitals, parties or limits fail: told as it was, and the model unharmed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from acted import House, messages, options, updates

from fedrobust.federation.parties import SharesArrival
from fedrobust.secure import sending
from fedrobust.secure.messages import HEADER, Kind
from fedrobust.secure.ring import FRACTION, Words, encode

N, D = 8, 3_000
NAMES = ("shares", "replicated")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_an_update_that_is_not_finite_is_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    house, rows = House(options(name), D, monkeypatch), updates()
    rows[3, 7] = np.nan
    rows[6, 0] = np.inf
    record = house.round(rows)
    assert sorted(record["rejected"]) == [3, 6] and "did not reach every server" in record["rejected"][3]
    assert sorted(record["weights"]) == sorted(record["commitments"]) == [0, 1, 2, 4, 5, 7]
    np.testing.assert_allclose(house.arrays["weights"], rows[[0, 1, 2, 4, 5, 7]].mean(axis=0), rtol=0, atol=4e-7)
    assert record["reputation"][3] < 0.5 < record["reputation"][0]
    assert "skipped" not in house.round(updates(1))


@pytest.mark.parametrize("bad", [5, 8])
def test_below_the_quorum_nothing_is_opened(name: str, bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    house, rows = House(options(name), D, monkeypatch), updates()
    rows[:bad] = np.nan
    record = house.round(rows)
    lost = f"(its shares did not reach every server: {bad})"
    assert record["skipped"] == f"{8 - bad} of 8 updates were usable, below the quorum of 0.5 {lost}"
    assert sorted(record["rejected"]) == list(range(bad)) and record["functionals"] == 0
    assert {message.kind for message in messages(house)} == {Kind.SENDERS}
    assert not house.arrays["weights"].any()
    # Where all are rejected, that sets nobody apart.
    assert all((record["reputation"][client] < 0.5) == (bad < 8) for client in range(bad))
    assert "skipped" not in house.round(updates(1))


def test_weights_on_too_few_updates_skip_the_round_and_are_not_opened(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedrobust.secure.supports.always_below", lambda *_: None)  # it would be refused in the file
    house = House(options(name, {"rule": {"name": "multi_krum", "m": 2}, "f": 1}), D, monkeypatch)
    record = house.round(updates())
    assert "the weights lie on 2.00 updates (Σw²/max w²), at least 3 are needed" in record["skipped"]
    assert "multi_krum" not in record["skipped"]  # a server does not know the defence: it gives no advice on it
    assert Kind.AGGREGATE not in {message.kind for message in messages(house)}
    assert "weights" not in record and len(record["anomaly"]) == 8
    assert not house.arrays["weights"].any()
    assert "skipped" in house.round(updates(1))  # and the run goes on


def test_trust_that_leaves_two_skips_the_round(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trust = {"acts": True, "quarantine": {"enter": 0.95, "leave": 0.95, "quorum": 0.3}}
    house = House(options(name, n=6, trust=trust), D, monkeypatch)
    record = house.round(updates(n=6))
    assert len(record["quarantined"]) == 4
    assert "the weights lie on 2" in record["skipped"] or "the weights lie on 1" in record["skipped"]
    assert Kind.AGGREGATE not in {message.kind for message in messages(house)}


def test_the_last_functional_ends_the_sums_and_not_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that are repeated are not foreseen when the file is read; each server counts what it has opened."""
    privacy = {"name": name, "max_functionals": 3, "colluders": 1}
    house = House(options(privacy, federation={"clients": 8, "rounds": 3}), D, monkeypatch)
    first = house.round(updates())
    house.parties[1].dies = lambda called, arguments: called == "ask" and arguments[1] == "combine_share"
    second, third = house.round(updates(1)), house.round(updates(2))
    assert (first["functionals"], second["functionals"]) == (1, 1)
    assert "would pass max_functionals = 3" in third["skipped"]
    # The one that died has what its checkpoint says; the others have not forgotten the attempt in which it died.
    assert [each.made._party.functionals for each in house.parties[:2]] == [3, 3]
    house.start(3)
    assert [each.made._party.functionals for each in house.parties[:2]] == [3, 3]
    assert "max_functionals" in house.round(updates())["skipped"]


def wrapping(patch: pytest.MonkeyPatch, culprit: int, seed: int = 0) -> np.ndarray:
    """Updates, of which one is sent with 2^32 in a coordinate in which no other one lives."""
    rows = updates(seed)
    rows[:, 0] = 0.0

    def wrapped(update: np.ndarray, clip: float) -> Words:
        words = encode(update, clip)
        if np.array_equal(update, rows[culprit]):
            words[0] += 1 << 32
        return words

    patch.setattr(sending, "encode", wrapped)
    return rows


@pytest.mark.parametrize("sketch", [None, 512])
def test_who_wraps_around_is_named_and_the_model_unharmed(
    name: str, sketch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = {"name": name, "sketch": sketch}
    house = House(options(privacy, trust={"acts": True}), D, monkeypatch)
    rows = wrapping(monkeypatch, 2)
    record = house.round(rows)
    assert record["rejected"] == {2: "its update wraps around"}
    assert record["notes"] == [] and record["functionals"] == 0
    reputation = record["reputation"]
    assert reputation[2] < 0.5 and reputation[2] < min(reputation[client] for client in range(8) if client != 2)
    # What is told of the weights is what the aggregate was made with.
    assert sorted(record["weights"]) == [0, 1, 3, 4, 5, 6, 7]
    assert sum(record["weights"].values()) == pytest.approx(1.0)
    weights = np.array(list(record["weights"].values()))
    np.testing.assert_allclose(house.arrays["weights"], weights @ np.delete(rows, 2, axis=0), rtol=0, atol=2e-6)
    again = house.round(wrapping(monkeypatch, 2, seed=1))
    assert again["rejected"] == {2: "its update wraps around"}
    last = house.round(wrapping(monkeypatch, 2, seed=2))
    assert last["quarantined"] == [2] and 2 not in last["weights"]


def test_an_update_that_is_longer_than_the_clip_is_rejected_as_such(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    house, rows = House(options({"name": name, "clip": 1.0}), D, monkeypatch), updates()
    monkeypatch.setattr(
        sending, "encode", lambda update, clip: encode(update, clip) * (3 if np.array_equal(update, rows[4]) else 1)
    )
    record = house.round(rows)
    assert record["rejected"] == {4: "longer than an update that was cut to the clip"}
    np.testing.assert_allclose(house.arrays["weights"], np.delete(rows, 4, axis=0).mean(axis=0), rtol=0, atol=4e-7)


def test_nobody_sends_in_the_name_of_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    house, rows = House(options(name), D, monkeypatch), updates()
    share = sending.Sender.share

    def forged(self: Any, run: str, number: int, round: int, clients: list[int], block: np.ndarray) -> Any:
        found = share(self, run, number, round, [0 if client == 4 else client for client in clients], block)
        return tuple([(client, data) for client, (_, data) in zip(clients, part, strict=True)] for part in found)

    monkeypatch.setattr(sending.Sender, "share", forged)
    record = house.round(rows)
    assert record["rejected"] == {4: "it is in the name of client 0"}
    np.testing.assert_allclose(house.arrays["weights"], np.delete(rows, 4, axis=0).mean(axis=0), rtol=0, atol=4e-7)


def test_a_second_message_is_refused_and_the_first_one_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    house, rows = House(options(name), D, monkeypatch), updates()
    share = sending.Sender.share

    def twice(self: Any, *arguments: Any) -> Any:
        return tuple([*part, part[0]] for part in share(self, *arguments))

    monkeypatch.setattr(sending.Sender, "share", twice)
    record = house.round(rows)
    assert record["rejected"] == {} and len(record["weights"]) == 8


@pytest.mark.parametrize("change", ["damaged", "one server only"])
def test_a_share_that_does_not_arrive_whole_costs_only_its_client(
    change: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, rows = House(options(name), D, monkeypatch), updates()
    share = sending.Sender.share

    def changed(self: Any, run: str, number: int, round: int, clients: list[int], block: np.ndarray) -> Any:
        *others, last = share(self, run, number, round, clients, block)
        if change == "one server only":
            last = [(client, data) for client, data in last if client != 4]
        else:
            last = [(client, data if client != 4 else data[: HEADER.size + 40]) for client, data in last]
        return (*others, last)

    monkeypatch.setattr(sending.Sender, "share", changed)
    record = house.round(rows)
    assert list(record["rejected"]) == [4]
    assert ("truncated" if change == "damaged" else "did not reach every server") in record["rejected"][4]
    np.testing.assert_allclose(house.arrays["weights"], np.delete(rows, 4, axis=0).mean(axis=0), rtol=0, atol=4e-7)


def test_long_updates_are_cut_where_they_are_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    house, rows = House(options({"name": name, "clip": 0.5}), D, monkeypatch), 2 * updates(malicious=(1,))
    house.round(rows)
    norms = np.linalg.norm(rows, axis=1)
    expected = (rows * np.minimum(1, 0.5 / norms)[:, None]).mean(axis=0)
    np.testing.assert_allclose(house.arrays["weights"], expected, rtol=0, atol=4e-7)
    assert 0.5 * 2.0**-FRACTION < 4e-9


def test_sample_counts_weigh_as_in_the_clear(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = {"rule": "mean", "weighting": "samples"}
    clear, secret = (House(options(privacy, rule), D, monkeypatch) for privacy in ("clear", name))
    theirs, ours = (house.round(updates()) for house in (clear, secret))
    assert ours["weights"] == pytest.approx(theirs["weights"])
    assert len(set(ours["weights"].values())) > 4
    np.testing.assert_allclose(secret.arrays["weights"], clear.arrays["weights"], rtol=0, atol=2e-6)  # 12 bits


def test_the_servers_own_update_is_an_anchor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is public, so each product with it is a functional; no triple is spent on it."""
    rule = {"rule": "fltrust", "stages": ["nnm"]}
    clear, secret = (House(options(privacy, rule), D, monkeypatch) for privacy in ("clear", name))
    root = updates(seed=7)[0]
    theirs, ours = (house.round(updates(malicious=(1,)), root) for house in (clear, secret))
    assert "skipped" not in ours and ours["functionals"] == 1
    assert ours["weights"] == pytest.approx(theirs["weights"], abs=1e-5)
    bad = root.copy()
    bad[0] = np.nan
    assert secret.round(updates(1), bad)["skipped"] == "the server's own update is not finite"


def test_a_dealer_that_dies_is_noticed_where_its_triple_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the servers' complaint that there is no triple, which would skip the round."""
    monkeypatch.setattr(SharesArrival, "traffic", lambda self, updates, d: {})
    house = House(options("shares"), D, monkeypatch)
    house.parties[2].dies = lambda called, arguments: called == "triple"
    assert "skipped" not in house.round(updates())


def test_who_is_in_quarantine_stays_there_when_a_round_has_no_judgement(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = {"clients": 8, "quorum": 0.9}
    house = House(options(name, trust={"acts": True}, federation=federation), D, monkeypatch)
    for round in range(4):
        record = house.round(updates(round, malicious=(2,)))
    assert record["quarantined"] == [2]
    rows = updates(4)
    rows[2] = np.nan
    record = house.round(rows)
    assert "below the quorum" in record["skipped"]
    assert (list(record["rejected"]), record["quarantined"]) == ([2], [2])
