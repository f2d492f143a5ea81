"""Rounds of pairwise masks over actors: the mean and no more, whoever drops out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from acted import House, options, updates
from masked import dealt

from fedrobust.secure.masking_client import MaskingClient
from fedrobust.secure.messages import Kind, Message, unpack
from fedrobust.secure.sending import Sender

N, D = 9, 1_000
CLIP = {"name": "masked", "clip": 1.0}
GROUPS = {"name": "grouped", "clip": 1.0, "size": 3}
STEPS = {"begin": 0, "shares": 1, "masked": 2, "unmask": 3}


def house(
    privacy: Any, patch: pytest.MonkeyPatch, rule: Any = "mean", n: int = N, workers: int = 3, **more: Any
) -> House:
    return House(options(privacy, rule, n, **more), D, patch, workers)


def silent(patch: pytest.MonkeyPatch, clients: set[int], step: int) -> None:
    """These clients send nothing from this step on: 0 keys, 1 shares, 2 masked updates, 3 answers."""
    kinds = {1: Kind.KEYS, 2: Kind.KEY_SHARES, 3: Kind.UNMASK}
    begin, reply = Sender.begin, Sender.reply

    def begun(self: Sender, *arguments: Any) -> dict[int, bytes]:
        found = begin(self, *arguments)
        return {client: data for client, data in found.items() if step > 0 or client not in clients}

    def replied(self: Sender, received: dict[int, bytes]) -> dict[int, bytes]:
        kept = {
            client: data
            for client, data in received.items()
            if client not in clients or next(at for at, kind in kinds.items() if kind == unpack(data).kind) < step
        }
        return reply(self, kept)

    patch.setattr(Sender, "begin", begun)
    patch.setattr(Sender, "reply", replied)


@pytest.mark.parametrize("privacy", [CLIP, GROUPS, CLIP | {"neighbours": 4}, CLIP | {"bits": 64}], ids=str)
def test_the_model_moves_by_the_mean_of_the_clipped_updates(privacy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(privacy, monkeypatch), updates(0, N, D, malicious=(1, 4))
    record = made.round(rows)
    clipped = rows * np.minimum(1, 1 / np.linalg.norm(rows, axis=1))[:, None]
    expected = clipped.mean(axis=0)
    assert np.linalg.norm(made.arrays["weights"] - expected) <= 1e-5 * np.linalg.norm(expected)
    assert record["weights"] == pytest.approx(dict.fromkeys(range(N), 1 / N))
    assert record["rejected"] == {} and sorted(record["commitments"]) == list(range(N))
    assert ("anomaly" in record) == (privacy["name"] == "grouped")
    # Masks are real randomness: another run sends other messages, and opens the same bits.
    again = house(privacy, monkeypatch)
    other = again.round(rows)
    assert other["model"] == record["model"] and other["commitments"] != record["commitments"]


def test_the_bits_do_not_depend_on_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for privacy in (CLIP, GROUPS):
        runs = [house(privacy, monkeypatch, workers=workers) for workers in (1, 2, 9)]
        assert len({run.round(updates(0, N, D))["model"] for run in runs}) == 1


def test_sample_counts_are_weights_that_only_their_sum_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = house(CLIP | {"largest_count": 15}, monkeypatch, {"rule": "mean", "weighting": "samples"})
    rows = updates(0, N, D)
    made.round(rows)
    counts = np.minimum(made.samples, 15)
    expected = counts @ rows / counts.sum()
    assert np.linalg.norm(made.arrays["weights"] - expected) <= 1e-5 * np.linalg.norm(expected)


def test_what_reaches_the_coordinator_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(CLIP, monkeypatch), updates(0, N, D)
    made.answers.seen.clear()
    made.round(rows)
    found = [unpack(data) for each in made.answers.seen if isinstance(each, dict) for data in each.values()]
    kinds = {kind: [m for m in found if m.kind is kind] for kind in {message.kind for message in found}}
    assert {kind: len(each) for kind, each in kinds.items()} == dict.fromkeys(
        (Kind.KEYS, Kind.KEY_SHARES, Kind.MASKED, Kind.UNMASK), N
    )
    words = np.stack([np.frombuffer(m.body, dtype=np.uint32)[:-1] for m in kinds[Kind.MASKED]])
    correlations = np.corrcoef(np.vstack([words.astype(np.float64), rows]))[:N, N:]
    assert np.abs(correlations).max() < 5 / np.sqrt(D)
    pairs = words[:, None] + words[None]  # nor do those of any two
    correlations = np.corrcoef(np.vstack([pairs.reshape(N * N, D).astype(np.float64), rows]))[: N * N, N * N :]
    assert np.abs(correlations).max() < 5.5 / np.sqrt(D)


@pytest.mark.parametrize("privacy", [CLIP, GROUPS], ids=["masked", "grouped"])
def test_an_update_that_is_not_finite_is_left_out(privacy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(privacy | ({"size": 4} if "size" in privacy else {}), monkeypatch), updates(0, N, D)
    rows[3, 7] = np.nan
    record = made.round(rows)
    assert record["rejected"] == {3: "dropped out while the masks were made"}
    assert 3 not in record["weights"] and 3 not in record["commitments"]
    expected = np.delete(rows, 3, axis=0).mean(axis=0)
    np.testing.assert_allclose(made.arrays["weights"], expected, rtol=0, atol=1e-6)
    assert record["reputation"][3] < 0.5
    assert "skipped" not in made.round(updates(1, N, D))


@pytest.mark.parametrize("step", range(4))
def test_who_drops_out_at_a_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(CLIP, monkeypatch), updates(0, N, D)
    with monkeypatch.context() as patch:
        silent(patch, {2, 5}, step)
        record = made.round(rows)
    there = [client for client in range(N) if step == 3 or client not in (2, 5)]
    assert sorted(record["weights"]) == there and sorted(record["commitments"]) == there
    assert sorted(record["rejected"]) == sorted(set(range(N)) - set(there))
    np.testing.assert_allclose(made.arrays["weights"], rows[there].mean(axis=0), rtol=0, atol=1e-6)
    assert "skipped" not in made.round(updates(1, N, D))


@pytest.mark.parametrize(("step", "reason"), [(0, "2 clients sent keys, at least 3 are needed"), (1, "2 clients sent shares"), (2, "2 of 9 updates were usable, below the quorum"), (3, "1 of the 8 neighbours of client 0")])  # fmt: skip  # noqa: E501
def test_too_few_left_skip_the_round_with_nothing_opened(
    step: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = house(CLIP | {"threshold": 0.5}, monkeypatch)
    with monkeypatch.context() as patch:
        silent(patch, set(range(2, N)), step)
        patch.setattr("fedrobust.secure.masking_server.decode", lambda *_: pytest.fail("a sum was opened"))
        record = made.round(updates(0, N, D))
    assert reason in record["skipped"]
    assert "weights" not in record and not made.arrays["weights"].any()
    # Only who did not do its part loses its standing.
    assert sorted(record["rejected"]) == list(range(2, N))
    assert record["reputation"][0] == 0.5
    assert "skipped" not in made.round(updates(1, N, D))


def test_below_the_quorum_the_sum_stays_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = house(CLIP, monkeypatch, federation={"clients": N, "quorum": 0.9})
    with monkeypatch.context() as patch:
        silent(patch, {4}, 1)
        patch.setattr("fedrobust.secure.masking_server.decode", lambda *_: pytest.fail("a sum was opened"))
        record = made.round(updates(0, N, D))
    assert record["skipped"] == (
        "8 of 9 updates were usable, below the quorum of 0.9 (dropped out while the masks were made: 1)"
    )
    assert sorted(record["rejected"]) == [4]


@pytest.mark.parametrize("step", range(4))
def test_a_worker_that_dies_is_a_few_hospitals_that_drop_out(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(CLIP, monkeypatch, workers=9), updates(0, N, D)
    calls: list[str] = []

    def dies(method: str, arguments: Any) -> bool:
        calls.append(arguments[0])
        return len(calls) == step + 1

    made.hospitals[6].dies = dies
    record = made.round(rows)
    there = [client for client in range(N) if client != 6 or step == 3]
    assert sorted(record["weights"]) == there
    np.testing.assert_allclose(made.arrays["weights"], rows[there].mean(axis=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("fault", ["damaged", "in the name of another"])
def test_messages_that_are_wrong_cost_only_their_client(step: int, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(CLIP, monkeypatch), updates(0, N, D)
    kinds = (Kind.KEYS, Kind.KEY_SHARES, Kind.MASKED, Kind.UNMASK)
    for method in ("begin", "reply"):
        honest = getattr(Sender, method)

        def spoilt(self: Sender, *arguments: Any, honest: Any = honest) -> dict[int, bytes]:
            found: dict[int, bytes] = honest(self, *arguments)
            for client, data in found.items():
                message = unpack(data)
                if client == 4 and message.kind is kinds[step]:
                    forged = type(message)(message.run, message.round, 5, message.receiver, message.kind, message.body)
                    found[client] = data[:-1] if fault == "damaged" else forged.pack()
            return found

        monkeypatch.setattr(Sender, method, spoilt)
    record = made.round(rows)
    assert list(record["rejected"]) == [4]
    assert ("truncated" if fault == "damaged" else "in the name of client 5") in record["rejected"][4]
    there = [client for client in range(N) if client != 4 or step == 3]
    np.testing.assert_allclose(made.arrays["weights"], rows[there].mean(axis=0), rtol=0, atol=1e-6)


def spoil(patch: pytest.MonkeyPatch, client: int, kind: Kind, change: Callable[[MaskingClient, Message], Any]) -> None:
    """What a client sends at a step is what `change` makes of it."""
    for method in ("begin", "reply"):
        honest = getattr(Sender, method)

        def spoilt(self: Sender, *arguments: Any, honest: Any = honest) -> dict[int, Any]:
            found: dict[int, Any] = honest(self, *arguments)
            if client in found and (message := unpack(found[client])).kind is kind:
                changed = change(self._masking[client][0], message)
                found[client] = changed.pack() if isinstance(changed, Message) else changed
            return found

        patch.setattr(Sender, method, spoilt)


def small_order(_: MaskingClient, message: Message) -> Message:
    return replace(message, body=message.body[:8] + bytes(64))


def one_key_twice(_: MaskingClient, message: Message) -> Message:
    return replace(message, body=message.body[:40] + message.body[8:40])


def other_share(_: MaskingClient, message: Message) -> Message:
    return replace(message, body=message.body[:9] + bytes(33) + message.body[42:])


def other_flag(_: MaskingClient, message: Message) -> Message:
    return replace(message, body=message.body[:8] + b"\2" + message.body[9:])


REFUSED = {
    "small order": (Kind.KEYS, small_order),
    "one key for both": (Kind.KEYS, one_key_twice),
    "by ascending id": (Kind.KEY_SHARES, lambda _, message: replace(message, body=bytes(len(message.body)))),
    "of a masked update": (Kind.MASKED, lambda _, message: replace(message, body=b"")),
    "marked it wrongly": (Kind.UNMASK, other_flag),
    "than the one dealt to it": (Kind.UNMASK, other_share),
}  # fmt: skip


@pytest.mark.parametrize("privacy", [CLIP | {"threshold": 0.5}, GROUPS | {"size": 4, "threshold": 0.5}], ids=["masked", "grouped"])  # fmt: skip  # noqa: E501
@pytest.mark.parametrize("why", list(REFUSED))
def test_what_the_server_refuses_costs_only_its_client_in_every_group(
    why: str, privacy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, rows = house(privacy, monkeypatch, n=12), updates(0, 12, D)
    kind, change = REFUSED[why]
    spoil(monkeypatch, 4, kind, change)
    record = made.round(rows)
    assert list(record["rejected"]) == [4] and why in record["rejected"][4]
    there = [client for client in range(12) if client != 4 or kind is Kind.UNMASK]
    assert sorted(record["weights"]) == there
    assert record["reputation"][4] < min(record["reputation"][client] for client in range(12) if client != 4)
    if privacy["name"] == "masked":
        np.testing.assert_allclose(made.arrays["weights"], rows[there].mean(axis=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("others", "opened"), [({2}, True), ({0, 1, 2}, False)], ids=["corrected", "too many"])
def test_who_deals_wrong_shares_is_named_whether_or_not_the_sum_is_opened(
    others: set[int], opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, rows = house(CLIP, monkeypatch), updates(0, N, D)
    wrong = dict.fromkeys(others, (bytes(33), bytes(33)))
    spoil(monkeypatch, 4, Kind.KEY_SHARES, lambda client, message: dealt(client, message, wrong))
    record = made.round(rows)
    assert list(record["rejected"]) == [4]
    assert ("skipped" in record) != opened
    if opened:
        assert record["rejected"][4] == "it dealt wrong shares of its secret, to clients 2"
        np.testing.assert_allclose(made.arrays["weights"], rows.mean(axis=0), rtol=0, atol=1e-6)
    else:
        assert record["rejected"][4] == "the shares that it dealt do not give the secret that it promised"
        assert "the secret of client 4 cannot be put together" in record["skipped"]


def test_what_may_be_either_clients_fault_is_a_note_and_no_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(CLIP, monkeypatch), updates(0, N, D)
    spoil(monkeypatch, 4, Kind.KEY_SHARES, lambda client, message: dealt(client, message, {2: None}))
    record = made.round(rows)
    assert record["rejected"] == {}
    (note,) = record["notes"]
    assert note.startswith("shares that client 4 dealt to clients 2 did not come back")
    np.testing.assert_allclose(made.arrays["weights"], rows.mean(axis=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("step", ["shares", "masked", "unmask"])
def test_a_hospital_whose_own_step_fails_loses_nobody_elses_round(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(CLIP, monkeypatch, workers=1), updates(0, N, D)
    honest = getattr(MaskingClient, step)

    def fails(self: MaskingClient, *arguments: Any) -> Message:
        if self._client == 4:
            raise RuntimeError("out of order")
        made: Message = honest(self, *arguments)
        return made

    monkeypatch.setattr(MaskingClient, step, fails)
    record = made.round(rows)
    there = [client for client in range(N) if client != 4 or step == "unmask"]
    assert sorted(record["weights"]) == there
    np.testing.assert_allclose(made.arrays["weights"], rows[there].mean(axis=0), rtol=0, atol=1e-6)


def test_a_hospital_without_a_sample_count_loses_nobody_elses_round(monkeypatch: pytest.MonkeyPatch) -> None:
    made = house(CLIP | {"largest_count": 15}, monkeypatch, {"rule": "mean", "weighting": "samples"})
    made.way._counts[4] = 0
    record = made.round(updates(0, N, D))
    assert sorted(record["weights"]) == [client for client in range(N) if client != 4]
    assert list(record["rejected"]) == [4]


@pytest.mark.parametrize("kind", [Kind.KEYS, Kind.KEY_SHARES, Kind.MASKED, Kind.UNMASK])
@pytest.mark.parametrize("sent", [None, 7, "text", b"", b"FRSA" * 40, [b"", b""]], ids=repr)
def test_what_is_no_message_costs_only_its_client(sent: Any, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(CLIP, monkeypatch), updates(0, N, D)
    spoil(monkeypatch, 4, kind, lambda _, message: sent)
    record = made.round(rows)
    there = [client for client in range(N) if client != 4 or kind is Kind.UNMASK]
    assert sorted(record["weights"]) == there
    assert set(record["rejected"]) <= {4}
    np.testing.assert_allclose(made.arrays["weights"], rows[there].mean(axis=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("answer", [None, [], {99: b"x", -1: b"x"}], ids=repr)
def test_a_worker_answers_for_its_own_hospitals_alone(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(CLIP | {"threshold": 0.5}, monkeypatch), updates(0, N, D)  # hospitals 0, 3 and 6 on one worker
    reply = Sender.reply

    def forged(self: Sender, received: dict[int, bytes]) -> Any:
        found = reply(self, received)
        if 0 in received:
            # In the place of hospital 1, which has not sent yet, a message of its name with a right digest.
            message = unpack(found[0])
            forgery = {1: replace(message, sender=1, body=message.body[:-1]).pack()}
            return found | forgery if answer is None else answer
        return found

    monkeypatch.setattr(Sender, "reply", forged)
    record = made.round(rows)
    there = [client for client in range(N) if answer is None or client not in (0, 3, 6)]
    assert sorted(record["weights"]) == there
    assert set(record["rejected"]) == set(range(N)) - set(there)
    np.testing.assert_allclose(made.arrays["weights"], rows[there].mean(axis=0), rtol=0, atol=1e-6)


# Groups


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
