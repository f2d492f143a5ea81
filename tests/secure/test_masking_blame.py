"""Masked sums: who is named for a wrong share, and who never is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from masked import TERMS, N, Round, dealt, pair_for, refused, ring_mean, updates

from fedrobust.secure import shamir
from fedrobust.secure.masking_server import unreturned
from fedrobust.secure.masking_terms import ANSWER, SEALED, MaskingError, commitment
from fedrobust.secure.shamir import FIELD, split

LIAR = 4
ALL = set(range(N)) - {LIAR}


def element(value):
    return value.to_bytes(33, "little")


def game_with(deal, terms=TERMS, n=N):
    """A round in which client 4 deals shares of its own: `deal` makes its message from the honest one."""
    game = Round(terms, n)
    game.keys()
    for i, client in game.clients.items():
        message = client.shares(game.directory)
        game.send(deal(client, message) if i == LIAR else message)
    game.deliveries = game.server.deliveries()
    return game


def wrong_for(others, prints=True):
    pair = element(12), element(FIELD - 1)
    return lambda client, message: dealt(client, message, dict.fromkeys(others, pair), prints)


# Who returns another share than it was dealt


def test_three_liars_among_sixty_are_named_and_nothing_is_searched_for(monkeypatch):
    n, liars, terms = 60, {3, 17, 58}, replace(TERMS, d=5)
    monkeypatch.setattr(shamir, "_decoded", lambda *_: pytest.fail("wrong shares came as far as the decoder"))
    rows = updates(n, 5)
    game = Round(terms, n)
    game.keys()
    game.shares()
    game.masked(rows)
    for i, client in game.clients.items():
        answer = client.unmask(game.survivors)
        if i in liars:
            wrong = np.frombuffer(answer.body, dtype=ANSWER).copy()
            wrong["share"][i] = np.void(element(7))
            assert "than the one dealt to it" in refused(game.server, replace(answer, body=wrong.tobytes()))
        else:
            game.send(answer)
    np.testing.assert_array_equal(game.server.open().mean, ring_mean(rows, terms, n, range(n)))
    assert game.server.culprits == {} and game.server.notes == []


# Who deals wrong ones


@pytest.mark.parametrize("gone", [(), (LIAR,)], ids=["its own mask", "its mask key"])
def test_who_deals_a_wrong_share_is_named_and_the_sum_is_right(gone):
    game = game_with(wrong_for((2,)))
    game.masked(updates(), gone)
    opened = game.unmask(gone)
    senders = [i for i in range(N) if i not in gone]
    np.testing.assert_array_equal(opened.mean, ring_mean(updates(), TERMS, N, senders))
    assert game.server.culprits == {LIAR: "it dealt wrong shares of its secret, to clients 2"}
    assert game.server.notes == []


@pytest.mark.parametrize("gone", [(), (LIAR,)], ids=["its own mask", "its mask key"])
def test_more_than_can_be_found_open_nothing_and_name_it_all_the_same(gone):
    game = game_with(wrong_for((0, 2)))
    game.masked(updates(), gone)
    with pytest.raises(MaskingError, match=f"client {LIAR} .*wrong shares"):
        game.unmask(gone)
    assert list(game.server.culprits) == [LIAR]
    assert game.server.notes == []


def test_shares_of_another_secret_than_was_promised_name_their_dealer():
    for terms in (TERMS, replace(TERMS, threshold=0.5)):
        t = terms.shares_needed(N - 1)

        def deal(client, message, t=t):
            pairs = zip(split(b"k" * 32, N - 1, t), split(b"m" * 32, N - 1, t), strict=True)
            return dealt(client, message, dict(zip(sorted(ALL), pairs, strict=True)))

        game = game_with(deal, terms)
        game.masked(updates())
        with pytest.raises(MaskingError, match="promised"):
            game.unmask()
        assert list(game.server.culprits) == [LIAR]


def test_a_commitment_to_another_mask_names_who_sent_it():
    game = game_with(lambda client, message: dealt(client, message, {}, commitment=commitment(b"x" * 32)))
    game.masked(updates())
    with pytest.raises(MaskingError, match=f"secret of client {LIAR}"):
        game.unmask()
    assert list(game.server.culprits) == [LIAR]


def test_two_dealers_of_wrong_shares_are_both_named():
    game = Round()
    game.keys()
    for i, client in game.clients.items():
        message = client.shares(game.directory)
        game.send(dealt(client, message, dict.fromkeys({0, 1, 2}, (element(1),) * 2)) if i in (5, 6) else message)
    game.deliveries = game.server.deliveries()
    game.masked(updates())
    with pytest.raises(MaskingError):
        game.unmask()
    assert sorted(game.server.culprits) == [5, 6]


# Framing


@pytest.mark.parametrize(
    "deal",
    [
        wrong_for((2,), prints=False),
        lambda client, message: dealt(client, message, {2: None}),
        lambda client, message: dealt(client, message, {2: (b"\xff" * 33, b"\xff" * 33)}),
        lambda client, message: dealt(client, message, {2: (element(FIELD), element(FIELD))}),
        lambda client, message: dealt(client, message, {2: pair_for(client, message, 3)}, prints=False),
        lambda client, message: swapped(message),
    ],
    ids=[
        "wrong fingerprints",
        "rubbish",
        "no elements",
        "the field's order",
        "another's share",
        "swapped fingerprints",
    ],
)
def test_a_dealer_cannot_put_the_blame_on_its_neighbour(deal):
    """Client 2 cannot return what it was dealt. It could as well keep a right share back, so neither is named."""
    game = game_with(deal)
    game.masked(updates())
    np.testing.assert_array_equal(game.unmask().mean, ring_mean(updates(), TERMS, N, range(N)))
    assert game.server.culprits == {}
    (note,) = game.server.notes
    assert note.startswith(f"shares that client {LIAR} dealt to clients 2 did not come back")


def swapped(message):
    rows = np.frombuffer(message.body, dtype=SEALED, offset=32).copy()
    rows["key_print"][2], rows["mask_print"][2] = rows["mask_print"][2], rows["key_print"][2]
    return replace(message, body=message.body[:32] + rows.tobytes())


def test_sealing_rubbish_for_many_opens_nothing_and_accuses_nobody():
    game = game_with(lambda client, message: dealt(client, message, dict.fromkeys((0, 1, 2))))
    game.masked(updates())
    with pytest.raises(MaskingError, match=f"5 of the 8 .* client {LIAR} "):
        game.unmask()
    assert game.server.culprits == {}
    (note,) = game.server.notes
    assert note.startswith(f"shares that client {LIAR} dealt to clients 0, 1, 2 did not come back")


def test_a_client_that_returns_nothing_is_one_note():
    pairs = [(dealer, 3) for dealer in range(9) if dealer != 3] + [(7, 5), (7, 6)]
    first, second = unreturned(pairs)
    assert first.startswith("shares that clients 0, 1, 2, 4, 5, 6, 7, 8 dealt to client 3 did not come back")
    assert second.startswith("shares that client 7 dealt to clients 5, 6 did not come back")
    assert unreturned([]) == []
    assert len(unreturned((a, b) for a in range(9) for b in range(9) if a != b)) <= 9


def test_the_fingerprints_tell_a_right_share_from_every_other():
    game = Round()
    game.keys()
    message = game.clients[0].shares(game.directory)
    rows = np.frombuffer(message.body, dtype=SEALED, offset=32)
    prints = [bytes(row[name]) for row in rows for name in ("key_print", "mask_print")]
    assert len(set(prints)) == 2 * (N - 1)
    shares = [share for other in range(1, N) for share in pair_for(game.clients[0], message, other)]
    assert not any(part in share for part in prints for share in shares)
