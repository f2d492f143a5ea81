"""Three servers without a dealer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from fedrobust.secure import ring
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import HEADER, OVERHEAD, Kind, Message, MessageError, run_id, server_id, unpack
from fedrobust.secure.replicated import ReplicatedServer, share
from fedrobust.secure.weights import OpeningError

RUN = run_id("replicated")
D = 50


def uniform(data: bytes) -> float:
    """The p-value of the bytes being uniform."""
    return float(chisquare(np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)).pvalue)


def parties(**options: object) -> LocalParties:
    """Three servers with the same randomness every time."""
    return LocalParties("replicated", RUN, D, np.random.default_rng(3).bytes, **options)


def test_any_two_servers_have_the_update_and_no_one_has() -> None:
    words = np.arange(D) - 7
    bodies = [bytes(message.body) for message in share(words, np.random.default_rng(0).bytes, RUN, 2, 5)]
    first, second = (ring.expand(bodies[0][at : at + 32], D) for at in (0, 32))
    rest = np.frombuffer(bodies[2][:-32], dtype=np.int64)
    assert (first + second + rest == words).all()
    assert bodies[1] == bodies[0][32:] + bodies[2][:-32] and bodies[2][-32:] == bodies[0][:32]
    assert sum(map(len, bodies)) == 4 * 32 + 2 * 8 * D


@pytest.mark.parametrize("value", [0, 1, -1, 2**62, -(2**63)])
def test_what_each_server_sees_of_an_update_is_uniform(value: int) -> None:
    entropy, seen = np.random.default_rng(8).bytes, [b"", b"", b""]
    for round in range(300):
        for server, message in enumerate(share(np.full(D, value), entropy, RUN, round, 3)):
            seen[server] += message.body
    for data in seen:
        assert uniform(data) > 1e-3
    # Both parts that a server has, together: neither is the other's negative.
    bodies = np.frombuffer(seen[1], dtype=np.uint8).reshape(300, 32 + 8 * D)
    seeds, words = bodies[:, :32].tobytes(), np.ascontiguousarray(bodies[:, 32:]).view(np.int64)
    other = np.stack([ring.expand(seeds[at : at + 32], D) for at in range(0, len(seeds), 32)])
    assert uniform((words + other).tobytes()) > 1e-3


def test_what_each_server_opens_is_uniform_and_the_sum_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "CHUNK_BYTES", 1)
    seen: dict[int, bytes] = {0: b"", 1: b"", 2: b""}

    def wire(data: bytes) -> bytes:
        if data[HEADER.size - 9] == Kind.GRAM:
            sender = int.from_bytes(data[29:37], "little", signed=True)
            seen[-10 - sender] += data[HEADER.size : -32]
        return data

    d = 2_100
    played = LocalParties("replicated", RUN, d, np.random.default_rng(3).bytes, wire)
    updates = np.random.default_rng(2).normal(size=(5, d))
    opened = played.play(updates, 0, 100.0)
    words = np.stack([ring.encode(update, 100.0) for update in updates]).astype(object)
    assert np.array_equal(opened.gram().matrix, (words @ words.T).astype(float) * 1e4 * 2.0**-56)
    for round in range(1, 60):
        played.play(np.zeros((5, d)), round, 1.0)
    assert len(seen[0]) == 60 * 200
    assert all(uniform(data) > 1e-3 for data in seen.values())


def test_servers_that_were_sent_different_parts_drop_the_client() -> None:
    played = parties()
    sent = {client: played.sent(np.full(D, client), 1, client) for client in range(4)}
    other = played.sent(np.full(D, 9), 1, 2)
    sent[2] = [sent[2][0], sent[2][1], other[2]]
    played.receive(1, sent)
    assert played.clients == (0, 1, 3)
    assert "did not fit" in played.refused[2]


def test_a_share_that_reached_two_servers_only_is_dropped() -> None:
    played = parties()
    sent = {client: list(played.sent(np.full(D, client), 1, client)) for client in range(4)}
    for server in range(3):
        sent[server][server] = None  # type: ignore[call-overload]
    played.receive(1, sent)
    assert played.clients == (3,)


def test_it_does_not_begin_before_it_has_met_the_others() -> None:
    server, other, third = (ReplicatedServer(number, RUN, D) for number in range(3))
    with pytest.raises(MessageError, match="met"):
        server.begin(0, [0])
    for incomplete in ([], [other.introduce()], [other.introduce()] * 2, [server.introduce(), other.introduce()]):
        with pytest.raises(MessageError, match="2 other servers"):
            server.meet(incomplete)
    small = Message(RUN, 0, server_id(1), "servers", Kind.KEY, bytes(64)).pack()
    with pytest.raises(MessageError, match="small order"):
        server.meet([small, third.introduce()])
    server.meet([other.introduce(), third.introduce()])
    server.begin(0, [0])
    other.meet([server.introduce(), third.introduce()])
    with pytest.raises(MessageError, match="has not met"):  # it does not know the secret of the sketches
        other.begin(0, [0])
    to_1, to_2 = server.secrets()
    assert other.secrets() == third.secrets() == []
    for wrong in (to_2, to_1[:-40] + bytes(8) + to_1[-32:]):
        with pytest.raises(MessageError):
            other.learn(wrong)
    sealed_by_another = Message(RUN, 0, server_id(0), "server1", Kind.SECRET, bytes(48)).pack()
    with pytest.raises(MessageError, match="by server 0"):
        other.learn(sealed_by_another)
    other.learn(to_1)
    other.begin(0, [0])
    assert other.links.sketch == server.links.sketch
    with pytest.raises(ValueError, match="0, 1 and 2"):
        ReplicatedServer(3, RUN, D)


def test_the_gram_is_opened_once_and_sums_after_it() -> None:
    played = parties()
    played.receive(1, {client: played.sent(np.full(D, client), 1, client) for client in range(4)})
    with pytest.raises(OpeningError, match=r"gram .*first"):
        played.ask("combine_share", np.ones(4, dtype=np.int64))
    with pytest.raises(OpeningError, match=r"check .*first"):
        played.gram()
    played.ask("check_share")
    played.gram()
    with pytest.raises(OpeningError, match="gram is done"):
        played.gram()


@pytest.mark.parametrize("server", range(3))
def test_a_client_that_sends_two_servers_different_parts_is_left_out_by_all_three(server: int) -> None:
    """Each component is at two servers; the third one sees by their lists that it is not the same."""
    played = parties()
    sent = {client: played.sent(np.full(D, client), 1, client) for client in range(4)}
    message = unpack(sent[2][server])
    sent[2][server] = replace(message, body=bytes([message.body[0] ^ 1]) + message.body[1:]).pack()
    played.receive(1, sent)
    assert played.clients == (0, 1, 3)


@pytest.mark.parametrize("sketch", [None, 40])
def test_a_history_that_was_not_shared_again_starts_again(sketch: int | None) -> None:
    played = parties(histories=("sum",), sketch=sketch)
    updates = np.random.default_rng(4).normal(size=(4, D))
    played.play(updates, 1, 99.0)
    messages = [server.remember([0, 1, 2], np.zeros(3, dtype=np.int64)) for server in played.servers]
    receiver = played.servers[1]
    assert isinstance(receiver, ReplicatedServer)
    receiver.receive_reshared(messages[0][0])
    with pytest.raises(MessageError, match="changed"):
        receiver.receive_reshared(messages[0][1][:-40] + bytes(40))
    receiver.forget("sum", 2)
    with pytest.raises(MessageError, match="client 2"):
        receiver.receive_reshared(messages[0][2])
    opened = played.play(updates, 2, 99.0)
    assert not opened.dropped and set(opened.notes) == {
        f"history sum of client {client} was not possible and starts again" for client in (1, 2)
    }
    gram = opened.gram({}, ("sum",)).histories["sum"].matrix
    assert np.flatnonzero(np.diag(gram)).tolist() == [0]
    opened.remembered(("sum",))
    assert not played.play(updates, 3, 99.0).notes


def test_what_is_shared_again_comes_once() -> None:
    played = parties(histories=("sum",))
    opened = played.play(np.ones((4, D)), 1, 1.0)
    messages = [server.remember([0, 1], np.zeros(2, dtype=np.int64)) for server in played.servers]
    assert [len(found or ()) for found in messages] == [2, 0, 0]
    assert len(messages[0][0]) == OVERHEAD + 16 + 8 * D
    receiver = played.servers[1]
    assert isinstance(receiver, ReplicatedServer)
    receiver.receive_reshared(messages[0][0])
    with pytest.raises(MessageError, match="has come already"):
        receiver.receive_reshared(messages[0][0])
    receiver.receive_reshared(messages[0][1])
    receiver.begin(2, range(4))
    assert opened.n == 4
