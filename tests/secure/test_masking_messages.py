"""Masked sums: messages that are late, damaged, or lies, at every step of a round."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from masked import TERMS, N, Round, entropy_of, neighbourhoods_of, refused, ring_mean, updates

from fedrobust.secure import masking_client as masking
from fedrobust.secure.masking_client import MaskingClient
from fedrobust.secure.masking_terms import ANSWER, KEYS, SEALED, MaskingError, agreed, public_key
from fedrobust.secure.messages import Kind, MessageError, run_id
from fedrobust.secure.shamir import FIELD

# Messages


def test_what_is_sent_twice_late_or_by_a_stranger_is_refused():
    game = Round()
    first = game.clients[0].keys()
    game.send(first)
    with pytest.raises(MessageError, match=r"client 0 .*already"):
        game.server.receive(first)
    with pytest.raises(MessageError, match="client 99"):
        game.server.receive(replace(first, sender=99))
    for i in range(1, N - 1):
        game.send(game.clients[i].keys())
    late = game.clients[N - 1].keys()
    game.directory = game.server.directory()
    with pytest.raises(MessageError, match="key_shares, got keys"):
        game.server.receive(late)
    game.shares(gone=(N - 1,))
    game.masked(updates(), gone=(4, N - 1))
    with pytest.raises(MessageError, match="unmask, got masked"):
        game.server.receive(game.clients[4].masked(game.deliveries[4], updates()[4]))
    assert game.unmask(gone=(4, N - 1)).survivors == (0, 1, 2, 3, 5, 6, 7)
    with pytest.raises(MessageError, match="over"):
        game.server.receive(late)


@pytest.mark.parametrize("change", [{"round": 3}, {"round": 5}, {"run": run_id("another")}])
def test_replays_from_other_rounds_and_runs_are_refused(change):
    ours, other = Round(), Round(replace(TERMS, **change))
    for game in (ours, other):
        game.keys()
        game.shares()
    with pytest.raises(MessageError, match="masked of sender 0"):
        ours.server.receive(other.clients[0].masked(other.deliveries[0], updates()[0]))
    with pytest.raises(MessageError, match="key_shares of sender -1"):
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
    with pytest.raises(MaskingError, match=r"client 0 .* 0 steps .* 1"):
        game.clients[0].shares(game.clients[1].keys())
    with pytest.raises(MaskingError, match=r"server .* 0 steps .* 2"):
        game.server.survivors()


def test_a_client_that_refused_a_step_has_left_the_round():
    game = Round()
    game.keys()
    with pytest.raises(MessageError, match="belongs to round"):
        game.clients[0].shares(replace(game.directory, round=9))
    for step in (game.clients[0].shares, lambda message: game.clients[0].masked(message, updates()[0])):
        with pytest.raises(MaskingError, match=r"client 0 .*left"):
            step(game.directory)
    with pytest.raises(MaskingError, match=r"client 0 .*left"):
        game.clients[0].unmask(game.directory)


@pytest.mark.parametrize("bad", [np.full(40, np.nan), np.full(39, 1.0)])
def test_an_update_that_cannot_be_sent_ends_its_clients_round_alone(bad):
    game = Round()
    game.keys()
    game.shares()
    with pytest.raises(MaskingError, match=r"NaN|40 coordinates"):
        game.clients[0].masked(game.deliveries[0], bad)
    game.masked(updates(), gone=(0,))
    assert game.unmask(gone=(0,)).survivors == tuple(range(1, N))


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


P = 2**255 - 19
EIGHTH = 325606250916557431795983626356110631294008115727848805560023387167927233504
OTHER_EIGHTH = 39382357235489614581723060781553021112529911719440698176882885853963445705823
# u-coordinates of the points of order 1 or 2 (0), 4 (on the curve 1, on its twist −1) and 8, in all their encodings.
SMALL = [value + top for value in (0, 1, P - 1, P, P + 1, EIGHTH, OTHER_EIGHTH) for top in (0, 2**255)]


def with_keys(message, **fields):
    row = np.frombuffer(message.body, dtype=KEYS).copy()
    for field, key in fields.items():
        row[field] = np.void(key)
    return replace(message, body=row.tobytes())


@pytest.mark.parametrize("field", ["channel", "mask"])
def test_no_key_of_small_order_is_taken_and_the_round_goes_on(field):
    game = Round()
    message = game.clients[0].keys()
    for value in SMALL:
        wrong = with_keys(message, **{field: value.to_bytes(32, "little")})
        assert refused(game.server, wrong) == "client 0 sent a public key of small order"
    for i in range(1, N):
        game.send(game.clients[i].keys())
    game.directory = game.server.directory()
    game.shares(gone=(0,))
    game.masked(updates(), gone=(0,))
    opened = game.unmask(gone=(0,))
    assert opened.survivors == tuple(range(1, N))
    np.testing.assert_array_equal(opened.mean, ring_mean(updates(), TERMS, N - 1, range(1, N)))


def disguises(key):
    """The key, and others that agree with everybody on the same: in another encoding, plus the point of order two."""
    value = int.from_bytes(key, "little")
    inverse = pow(value, -1, P)
    return [each.to_bytes(32, "little") for each in (value, value + 2**255, inverse, inverse + 2**255)]


def test_disguised_keys_agree_on_the_same():
    ours = agreed(b"s" * 32, public_key(b"k" * 32), TERMS)
    assert {agreed(b"s" * 32, key, TERMS) for key in disguises(public_key(b"k" * 32))} == {ours}


@pytest.mark.parametrize("disguise", range(4))
def test_a_key_of_another_client_or_one_key_twice_is_not_taken(disguise):
    game = Round()
    game.send(game.clients[0].keys())
    theirs = public_key(game.clients[0]._mask)
    second = game.clients[1].keys()
    for field in ("channel", "mask"):
        stolen = with_keys(second, **{field: disguises(theirs)[disguise]})
        assert refused(game.server, stolen) == "client 1 sent a key of another client, 0"
    own = disguises(public_key(game.clients[1]._channel))[disguise]
    assert refused(game.server, with_keys(second, mask=own)) == "client 1 sent one key for both purposes"
    game.send(second)


@pytest.mark.parametrize("disguise", [1, 2, 3])
def test_a_client_that_writes_its_own_keys_otherwise_stops_nobody(disguise, monkeypatch):
    game = Round()
    odd = {game.clients[4]._channel, game.clients[4]._mask}
    honest = masking.public_key
    monkeypatch.setattr(
        masking, "public_key", lambda key: disguises(honest(key))[disguise] if key in odd else honest(key)
    )
    game.keys()
    game.shares()
    game.masked(updates(), gone=(4,))  # so that its key is put together and has to be known again
    opened = game.unmask(gone=(4,))
    np.testing.assert_array_equal(opened.mean, ring_mean(updates(), TERMS, N, [i for i in range(N) if i != 4]))
    assert game.server.culprits == {}


def test_keys_in_another_clients_row_are_not_taken():
    game = Round()
    message = game.clients[0].keys()
    assert "has to send its own two keys" in refused(game.server, replace(message, sender=1))


def test_shares_go_to_neighbours_alone():
    game = Round(replace(TERMS, neighbours=4))
    game.keys()
    first = game.clients[0].shares(game.directory)
    graph = neighbourhoods_of(game)
    stranger = next(i for i in range(1, N) if i not in graph[0])
    rows = np.frombuffer(first.body, dtype=SEALED, offset=32).copy()
    rows["client"][0] = stranger
    with pytest.raises(MessageError, match="ascending id"):
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
        with pytest.raises(MaskingError, match="twice"):
            client.masked(replace(delivery, body=body), updates()[0])


def answering(gone=(8,), terms=TERMS):
    """A round that has come to the answers, and that of client 3 as rows."""
    game = Round(terms)
    game.keys()
    game.shares(gone=(7,))
    game.masked(updates(), gone=(7, *gone))
    answer = game.clients[3].unmask(game.survivors)
    return game, answer, np.frombuffer(answer.body, dtype=ANSWER).copy()


def changed(rows, **fields):
    rows = rows.copy()
    for field, value in fields.items():
        rows[field][0] = value
    return rows


def test_answers_that_no_honest_client_gives_are_refused_and_change_nothing():
    game, answer, rows = answering(terms=replace(TERMS, threshold=0.5))
    assert rows["client"].tolist() == [0, 1, 2, 4, 5, 6, 8]
    field = np.void(FIELD.to_bytes(33, "little"))
    wrong = {
        "marked it wrongly": [changed(rows, survived=flag) for flag in (0, 2, 255)],
        "than the one dealt to it": [
            changed(rows, share=np.void(bytes(33))),
            changed(rows, share=field),
            changed(rows, share=np.void(b"\xff" * 33)),
            changed(rows, share=rows["share"][1]),
        ],
        "twice, or of who dealt it none": [
            np.concatenate([rows, rows[:1]]),
            changed(rows, client=3),
            changed(rows, client=7),  # dropped out before it dealt any
            changed(rows, client=99),
            changed(rows, client=-1),
        ],
        "cut off": [np.frombuffer(answer.body[:-1], dtype=np.uint8)],
    }
    for why, bodies in wrong.items():
        for body in bodies:
            assert why in refused(game.server, replace(answer, body=body.tobytes()))
    game.send(answer)
    for i in (0, 1, 2, 4, 5, 6):
        game.send(game.clients[i].unmask(game.survivors))
    np.testing.assert_array_equal(game.server.open().mean, ring_mean(updates(), TERMS, N, range(7)))


def test_an_answer_without_some_shares_is_taken_and_a_note_accuses_nobody():
    game, answer, rows = answering(terms=replace(TERMS, threshold=0.5))
    game.send(replace(answer, body=rows[2:].tobytes()))
    for i in (0, 1, 2, 4, 5, 6):
        game.send(game.clients[i].unmask(game.survivors))
    np.testing.assert_array_equal(game.server.open().mean, ring_mean(updates(), TERMS, N, range(7)))
    assert game.server.culprits == {}
    (note,) = game.server.notes
    assert note.startswith("shares that clients 0, 1 dealt to client 3 did not come back")


def test_refused_messages_of_every_step_change_nothing():
    game = Round()
    steps = [
        (game.keys, lambda client: client.keys()),
        (game.shares, lambda client: client.shares(game.directory)),
        (lambda: game.masked(updates()), lambda client: client.masked(game.deliveries[0], updates()[0])),
    ]
    for go, make in steps:
        other = copy.deepcopy(game)
        message = make(other.clients[0])
        for wrong in (
            replace(message, round=99),
            replace(message, run=run_id("another")),
            replace(message, receiver="server1"),
            replace(message, kind=Kind.GRAM),
            replace(message, sender=99),
            replace(message, sender=-1),
            replace(message, body=b""),
            replace(message, body=message.body[:-1]),
            replace(message, body=message.body + b"\0"),
        ):
            refused(other.server, wrong)
        go()


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
