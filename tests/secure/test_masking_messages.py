"""Masked sums: messages that are late, damaged, or lies, at every step of a round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from masked import TERMS, N, Round, entropy_of, neighbourhoods_of, ring_mean, updates

from fedrobust.secure.masking import MaskingClient
from fedrobust.secure.masks import ANSWER, KEYS, SEALED, MaskingError, public_key
from fedrobust.secure.messages import MessageError, run_id

# Messages


def test_what_is_sent_twice_late_or_by_a_stranger_is_refused():
    game = Round()
    first = game.clients[0].keys()
    game.send(first)
    with pytest.raises(MessageError, match="client 0 has sent its message already"):
        game.server.receive(first)
    with pytest.raises(MessageError, match="client 99 is not awaited"):
        game.server.receive(replace(first, sender=99))
    for i in range(1, N - 1):
        game.send(game.clients[i].keys())
    late = game.clients[N - 1].keys()
    game.directory = game.server.directory()
    with pytest.raises(MessageError, match="expected a message key_shares, got keys"):
        game.server.receive(late)
    game.shares(gone=(N - 1,))
    game.masked(updates(), gone=(4, N - 1))
    with pytest.raises(MessageError, match="expected a message unmask, got masked"):
        game.server.receive(game.clients[4].masked(game.deliveries[4], updates()[4]))
    assert game.unmask(gone=(4, N - 1)).survivors == (0, 1, 2, 3, 5, 6, 7)
    with pytest.raises(MessageError, match="the round is over"):
        game.server.receive(late)


@pytest.mark.parametrize("change", [{"round": 3}, {"round": 5}, {"run": run_id("another")}])
def test_replays_from_other_rounds_and_runs_are_refused(change):
    ours, other = Round(), Round(replace(TERMS, **change))
    for game in (ours, other):
        game.keys()
        game.shares()
    with pytest.raises(MessageError, match="masked of sender 0 belongs to"):
        ours.server.receive(other.clients[0].masked(other.deliveries[0], updates()[0]))
    with pytest.raises(MessageError, match="key_shares of sender -1 belongs to"):
        ours.clients[1].masked(other.deliveries[1], updates()[1])


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("cut", [1, -1])
def test_bodies_of_a_wrong_size_are_refused(step, cut):
    game = Round()
    make = [
        lambda client: client.keys(),
        lambda client: client.shares(game.directory),
        lambda client: client.masked(game.deliveries[0], updates()[0]),
        lambda client: client.unmask(game.survivors),
    ]
    for go in [game.keys, game.shares, lambda: game.masked(updates())][:step]:
        go()
    message = make[step](game.clients[0])
    body = message.body[:-1] if cut == 1 else message.body + b"\0"
    with pytest.raises(MessageError):
        game.server.receive(replace(message, body=body))
    game.server.receive(message)  # and the round goes on


def test_a_message_of_the_server_for_somebody_else_is_refused():
    game = Round()
    game.keys()
    game.shares()
    with pytest.raises(MessageError, match="not for client 0"):
        game.clients[0].masked(game.deliveries[1], updates()[0])


def test_steps_out_of_order_are_refused():
    game = Round()
    with pytest.raises(MaskingError, match="client 0 has taken 0 steps of the round, this is number 1"):
        game.clients[0].shares(game.clients[1].keys())
    with pytest.raises(MaskingError, match="server has taken 0 steps of the round, this is number 2"):
        game.server.survivors()


def test_a_directory_with_other_or_repeated_keys_is_refused():
    game = Round()
    game.keys()
    rows = np.frombuffer(game.directory.body, dtype=KEYS)
    swapped, doubled, twice = rows.copy(), rows.copy(), rows.copy()
    swapped["mask"][0] = np.void(public_key(b"k" * 32))
    doubled["mask"][3] = rows["mask"][4]
    twice["client"][3] = 4
    for wrong, why in ((swapped, "with other keys"), (doubled, "a key twice"), (twice, "a client or")):
        with pytest.raises(MaskingError, match=why):
            client = MaskingClient(TERMS, 0, entropy_of("0/0"))  # a new one: a failed step ends its round
            client.keys()
            client.shares(replace(game.directory, body=wrong.tobytes()))


# Lies


def test_a_degenerate_key_is_not_taken():
    game = Round()
    message = game.clients[0].keys()
    for field in ("channel", "mask"):
        row = np.frombuffer(message.body, dtype=KEYS).copy()
        row[field] = np.void(bytes(32))
        with pytest.raises(MaskingError, match="small order"):
            game.server.receive(replace(message, body=row.tobytes()))


def test_a_key_of_another_client_is_not_taken():
    game = Round()
    first = game.clients[0].keys()
    game.send(first)
    row = np.frombuffer(first.body, dtype=KEYS).copy()
    row["client"] = 1
    with pytest.raises(MessageError, match="client 1 sent a key of another"):
        game.server.receive(replace(first, sender=1, body=row.tobytes()))


def test_shares_go_to_neighbours_alone():
    game = Round(replace(TERMS, neighbours=4))
    game.keys()
    first = game.clients[0].shares(game.directory)
    graph = neighbourhoods_of(game)
    stranger = next(i for i in range(1, N) if i not in graph[0])
    rows = np.frombuffer(first.body, dtype=SEALED, offset=32).copy()
    rows["client"][0] = stranger
    with pytest.raises(MessageError, match="to its neighbours, by ascending id"):
        game.server.receive(replace(first, body=first.body[:32] + rows.tobytes()))
    game.send(first)
    for i in range(1, N):
        game.send(game.clients[i].shares(game.directory))
    delivery = game.server.deliveries()[0]
    rows = np.frombuffer(delivery.body, dtype=SEALED)
    wrong = rows.copy()
    wrong["client"][0] = stranger
    for body in (wrong.tobytes(), rows.tobytes() + rows[:1].tobytes()):
        client = MaskingClient(game.terms, 0, entropy_of("0/0"))
        client.keys()
        client.shares(game.directory)
        with pytest.raises(MaskingError, match="shares twice, or from who is no neighbour"):
            client.masked(replace(delivery, body=body), updates()[0])


def test_a_wrong_share_is_left_out_and_too_many_open_nothing():
    for liars, error in (((3,), None), ((1, 2, 3), "wrong shares")):
        game = Round()
        game.keys()
        game.shares()
        game.masked(updates(), gone=(8,))
        for i in range(8):
            answer = game.clients[i].unmask(game.survivors)
            rows = np.frombuffer(answer.body, dtype=ANSWER).copy()
            if i in liars:
                rows["share"] = [np.void(b"\7" * 32 + b"\0")] * len(rows)
            game.send(replace(answer, body=rows.tobytes()))
        if error is None:
            np.testing.assert_array_equal(game.server.open().mean, ring_mean(updates(), TERMS, N, range(8)))
        else:
            with pytest.raises(MaskingError, match=error):
                game.server.open()


def test_sealed_rubbish_does_not_stop_the_others():
    game = Round()
    game.keys()
    for i, client in game.clients.items():
        message = client.shares(game.directory)
        if i == 4:
            rows = np.frombuffer(message.body, dtype=SEALED, offset=32).copy()
            rows["sealed"][:2] = [np.void(b"\1" * rows["sealed"].dtype.itemsize)] * 2
            message = replace(message, body=message.body[:32] + rows.tobytes())
        game.send(message)
    game.deliveries = game.server.deliveries()
    game.masked(updates())
    np.testing.assert_array_equal(game.unmask().mean, ring_mean(updates(), TERMS, N, range(N)))


def test_shares_cannot_be_passed_on_as_somebody_elses():
    game = Round()
    game.keys()
    game.shares()
    rows = np.frombuffer(game.deliveries[0].body, dtype=SEALED).copy()
    rows["sealed"][[0, 1]] = rows["sealed"][[1, 0]]
    game.deliveries[0] = replace(game.deliveries[0], body=rows.tobytes())
    game.masked(updates())
    answer = np.frombuffer(game.clients[0].unmask(game.survivors).body, dtype=ANSWER)
    assert set(answer["client"].tolist()) == set(range(3, N))  # those of 1 and 2 do not open
