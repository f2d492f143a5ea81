"""Rounds of masked sums in groups, over actors: a group that fails costs its members alone, and rules see its mean."""

from __future__ import annotations

import numpy as np
import pytest
from acted import updates
from masked import dealt
from masked_house import GROUPS, D, N, house, silent, small_order, spoil

from fedrobust.secure.masking_client import MaskingClient
from fedrobust.secure.messages import Kind, Message


def test_who_did_its_part_in_a_lost_group_is_not_blamed_below_the_quorum_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, rows = house(GROUPS, monkeypatch, federation={"clients": N, "quorum": 0.9}), updates(0, N, D)
    spoil(monkeypatch, 4, Kind.KEYS, small_order)
    record = made.round(rows)
    assert record["skipped"].startswith("6 of 9 updates were usable, below the quorum of 0.9 (client 4 sent ")
    assert list(record["rejected"]) == [4]


def test_a_dealer_of_wrong_shares_costs_its_group_alone_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(GROUPS, monkeypatch), updates(0, N, D)
    wrong = dict.fromkeys(range(N), (bytes(33), bytes(33)))

    def deal(client: MaskingClient, message: Message) -> Message:
        return dealt(client, message, {other: wrong[other] for other in client._sealing})

    spoil(monkeypatch, 4, Kind.KEY_SHARES, deal)
    record = made.round(rows)
    assert list(record["rejected"]) == [4] and len(record["weights"]) == N - 3
    (note,) = record["notes"]
    assert "the secret of client 4 cannot be put together" in note


def test_a_group_that_fails_leaves_the_others_and_blames_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(GROUPS, monkeypatch), updates(0, N, D)
    rows[4] = np.nan
    record = made.round(rows)
    assert record["rejected"] == {4: "dropped out while the masks were made"}
    (note,) = record["notes"]
    assert note.startswith("group of ") and "2 clients sent keys, at least 3 are needed" in note
    lost = {int(word.strip(":,")) for word in note.split(":")[0].removeprefix("group of ").split()}
    assert 4 in lost and len(lost) == 3
    assert set(record["weights"]) == set(range(N)) - lost
    innocent = lost - {4}
    assert all(record["reputation"][client] == 0.5 for client in innocent)  # no evidence, as for who is absent
    assert record["reputation"][4] < 0.5
    np.testing.assert_allclose(
        made.arrays["weights"], rows[sorted(set(range(N)) - lost)].mean(axis=0), rtol=0, atol=1e-6
    )


def test_groups_are_drawn_anew_and_a_robust_rule_works_on_their_means(monkeypatch: pytest.MonkeyPatch) -> None:
    made = house(GROUPS, monkeypatch, {"rule": "geometric_median", "f": 1})
    seen = []
    for round in range(2):
        rows = updates(round, N, D)
        rows[2] *= -1.5
        record = made.round(rows)
        shares: dict[float, list[int]] = {}
        for client, norm in record["update_norm"].items():
            shares.setdefault(norm, []).append(client)
        seen.append(sorted(map(tuple, shares.values())))
        assert [len(group) for group in seen[-1]] == [3, 3, 3]
        for group in seen[-1]:  # each member's figure is that of the group's mean
            expected = np.linalg.norm(rows[list(group)].mean(axis=0))
            assert record["update_norm"][group[0]] == pytest.approx(float(expected), rel=1e-5)
            assert len({record["weights"][client] for client in group}) == 1
        bad = next(group for group in seen[-1] if 2 in group)
        good = next(group for group in seen[-1] if 2 not in group)
        assert record["weights"][bad[0]] < record["weights"][good[0]]
    assert seen[0] != seen[1]


def test_who_drops_out_lowers_no_declared_f(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows whether those who dropped out were the liars."""
    made = house(GROUPS, monkeypatch, {"rule": "geometric_median", "f": 1}, n=15)
    with monkeypatch.context() as patch:
        silent(patch, {3}, 1)
        record = made.round(updates(0, 15, D))
    assert sorted(record["rejected"]) == [3]
    assert len(record["weights"]) == 12  # its group has too few left to open its mean
    assert record["f"] == 1


def test_over_the_rounds_the_one_that_spoils_its_groups_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = house(GROUPS, monkeypatch, {"rule": "geometric_median", "f": 1}, n=15)
    for round in range(10):
        rows = updates(round, 15, D)
        rows[7] *= -1.9
        record = made.round(rows)
    reputation = record["reputation"]
    assert reputation[7] < min(reputation[client] for client in range(15) if client != 7)
    resumed = house(GROUPS, monkeypatch, {"rule": "geometric_median", "f": 1}, n=15)
    resumed.arrays, resumed.records = made.arrays, list(made.records)
    resumed.start(10)
    one, other = (each.round(updates(10, 15, D)) for each in (made, resumed))
    assert one["reputation"] == other["reputation"] and one["model"] == other["model"]
