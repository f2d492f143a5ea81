"""Shares that come again, damaged, or to one server only, with the check on, and with it switched off."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from wrapped import CLIP, EQUAL, NAMES, RUN, D, N, honest, mean, parties, play

from fedrobust.aggregation import Combination
from fedrobust.secure import server, shared_updates
from fedrobust.secure.local import LocalParties, introduce
from fedrobust.secure.messages import HEADER, Kind, MessageError, run_id
from fedrobust.secure.shared_updates import SharedUpdates
from fedrobust.secure.shares import Dealer, ShareServer
from fedrobust.secure.weights import OpeningError


def differences(dealer: Dealer, rows: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """E = U − A of two rounds, as both servers see it."""
    seen: list[list[np.ndarray]] = [[], []]

    def wire(data: bytes) -> bytes:
        if data[HEADER.size - 9] == Kind.DIFFERENCE:
            seen[now].append(np.frombuffer(data[HEADER.size + 8 : -32], dtype=np.int64))
        return data

    played = parties("shares", wire=wire)
    played.dealer = dealer
    introduce(played.servers, dealer)
    for now, words in enumerate(rows):
        play(played, words, now + 1)
    return [sum(parts) for parts in seen]


def test_a_triple_that_is_used_again_would_show_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShareServer, "_pad", lambda self, sender, chunk, count: np.zeros(count, dtype=np.int64))
    rows = honest(), honest()
    rows[1][3, 700] += 123
    with pytest.raises(MessageError, match="earlier"):
        differences(Dealer(lambda count: b"\1" * count), rows)
    # Switched off: the servers see the difference of the updates.
    begin = ShareServer.begin

    def forgetful(self: ShareServer, round: int, clients: Sequence[int]) -> None:
        begin(self, round, clients)
        self._used = set()

    monkeypatch.setattr(ShareServer, "begin", forgetful)
    first, second = differences(Dealer(lambda count: b"\1" * count), rows)
    assert np.flatnonzero(second - first).tolist() == [3 * D + 700]
    first, second = differences(Dealer(np.random.default_rng(1).bytes), rows)
    assert np.count_nonzero(second - first) > 0.99 * N * D


@pytest.mark.parametrize("name", NAMES)
def test_a_share_of_another_round_or_run_is_not_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def replayed(source_run: str = RUN) -> tuple[LocalParties, SharedUpdates]:
        played = parties(name)
        other = LocalParties(name, source_run, D, np.random.default_rng(1).bytes)  # type: ignore[arg-type]
        old = other.sent(honest()[0], 1, 6)
        play(played, honest(), 1)
        sent = {client: played.sent(row, 2, client) for client, row in enumerate(honest())}
        sent[6] = old
        played.receive(2, sent)
        return played, SharedUpdates(played, D, CLIP)

    played, opened = replayed()
    assert played.clients == (0, 1, 2, 3, 4, 5, 7) and "belongs to round 1, this is round 2" in played.refused[6]
    keep = np.array(played.clients)
    assert np.abs(opened.combine(Combination(np.full(7, 1 / 7))) - mean(honest()[keep], np.ones(7))).max() < 1e-7
    assert "another run" in replayed(run_id("elsewhere"))[0].refused[6]
    # Switched off, an old update of somebody counts again.
    monkeypatch.setattr(server, "expect", lambda message, *_: message)
    played, opened = replayed()
    assert played.clients == tuple(range(8))
    assert opened.gram().distances_squared()[0, 6] == 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["truncated", "longer", "changed", "empty"])
def test_a_damaged_share_costs_only_its_client(name: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(data: bytes) -> bytes:
        forms = {"truncated": data[:-8], "longer": data + b"12345678", "empty": b""}
        return forms.get(change, data[: HEADER.size] + bytes([data[HEADER.size] ^ 1]) + data[HEADER.size + 1 :])

    played, rows = parties(name), honest()
    sent = {client: played.sent(row, 1, client) for client, row in enumerate(rows)}
    sent[1] = [*sent[1][:-1], damaged(bytes(sent[1][-1]))]
    played.receive(1, sent)
    assert played.clients == (0, 2, 3, 4, 5, 6, 7)
    assert any(word in played.refused[1] for word in ("truncated", "extra bytes", "changed on its way"))
    found = SharedUpdates(played, D, CLIP).combine(Combination(np.full(7, 1 / 7)))
    assert np.abs(found - mean(np.delete(rows, 1, axis=0), np.ones(7))).max() < 1e-7


def test_a_changed_share_would_change_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrobust.secure.messages.compare_digest", lambda *_: True)
    monkeypatch.setattr(shared_updates, "misfit", lambda *_: None)
    monkeypatch.setattr(shared_updates, "too_long", lambda *_: False)
    played, rows = parties("shares"), honest()
    sent = {client: played.sent(row, 1, client) for client, row in enumerate(rows)}
    whole = bytes(sent[1][1])
    sent[1][1] = whole[: HEADER.size + 7] + b"\x31" + whole[HEADER.size + 8 :]
    played.receive(1, sent)
    found = SharedUpdates(played, D, CLIP).combine(Combination(EQUAL))
    assert np.abs(found - mean(rows, EQUAL)).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("missing", [0, 1])
def test_a_share_that_reached_one_server_only_is_dropped(name: str, missing: int) -> None:
    played, rows = parties(name), honest()
    sent: dict[int, list[bytes | None]] = {c: list(played.sent(row, 1, c)) for c, row in enumerate(rows)}
    sent[4][missing] = None
    played.receive(1, sent)
    assert played.clients == (0, 1, 2, 3, 5, 6, 7) and "did not reach every server" in played.refused[4]
    found = SharedUpdates(played, D, CLIP).combine(Combination(np.full(7, 1 / 7)))
    assert np.abs(found - mean(np.delete(rows, 4, axis=0), np.ones(7))).max() < 1e-7


def test_without_the_comparison_the_servers_would_add_up_different_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(self: ShareServer, others: Sequence[bytes]) -> tuple[int, ...]:
        self._once("agree")
        self.stack.clients = tuple(sorted(self._digests))
        return self.clients

    monkeypatch.setattr(ShareServer, "agree", alone)
    played, rows = parties("shares"), honest()
    sent: dict[int, list[bytes | None]] = {c: list(played.sent(row, 1, c)) for c, row in enumerate(rows)}
    sent[4][0] = None
    with pytest.raises(MessageError, match="do not agree"):
        played.receive(1, sent)


@pytest.mark.parametrize("name", NAMES)
def test_a_round_is_repeated_after_a_server_has_died(name: str) -> None:
    names, rows = ("sum",), honest()
    played, undisturbed = parties(name, histories=names), parties(name, histories=names)
    for each in (played, undisturbed):
        first = play(each, rows, 0)
        first.combine(Combination(EQUAL))
        first.remembered(names)
    kept = [pickle.loads(pickle.dumps((each.memory(), each.functionals))) for each in played.servers]
    play(played, rows, 1)  # a server dies after the Gram matrix was opened
    again = parties(name, histories=names)
    again.entropy = np.random.default_rng(8).bytes
    for each, (memory, functionals) in zip(again.servers, kept, strict=True):
        each.restore(memory, 1, functionals)
    if name == "shares":
        again.dealer = Dealer(again.entropy)
        introduce(again.servers, again.dealer)
    with pytest.raises(OpeningError, match="round 1 is over"):
        play(again, rows, 1)
    repeated, expected = play(again, rows, 2), play(undisturbed, rows, 2)
    ours, theirs = repeated.gram({}, names), expected.gram({}, names)
    assert np.array_equal(ours.matrix, theirs.matrix)
    assert np.allclose(ours.histories["sum"].matrix, theirs.histories["sum"].matrix, rtol=1e-12)
    assert np.allclose(repeated.combine(Combination(EQUAL)), expected.combine(Combination(EQUAL)), atol=1e-6)
