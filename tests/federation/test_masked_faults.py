"""Rounds of pairwise masks in which a hospital or a worker sends what is wrong: only its own part is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from acted import updates
from masked import dealt
from masked_house import CLIP, GROUPS, D, N, house, small_order, spoil

from fedrobust.secure.masking_client import MaskingClient
from fedrobust.secure.messages import Kind, Message, unpack
from fedrobust.secure.sending import Sender


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
