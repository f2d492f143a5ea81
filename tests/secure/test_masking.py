"""Masked sums: whole rounds, with drop-outs at every step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import TERMS, D, N, Round, plain, play, ring_mean, updates

from fedrobust.secure import masking_server
from fedrobust.secure.masking_terms import CHUNK_BYTES, SEALED, MaskingError, add_masks, neighbourhoods

# Sums


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("neighbours", [None, 4])
def test_the_sum_is_that_of_the_clipped_updates(bits, neighbours):
    rows = updates() * np.linspace(0.05, 3, N, dtype=np.float32)[:, None]
    opened = play(rows, replace(TERMS, bits=bits, neighbours=neighbours))
    np.testing.assert_allclose(opened.mean, plain(rows, 2.0), rtol=0, atol=2.0 * 2**-27 if bits == 32 else 1e-7)
    assert opened.weight == N
    assert opened.survivors == tuple(range(N))
    assert opened.dropped == ()
    assert opened.mean.dtype == np.float32


@settings(max_examples=25, deadline=None)
@given(
    gone=st.lists(st.sampled_from([None, None, None, 0, 1, 2, 3]), min_size=13, max_size=13),
    neighbours=st.sampled_from([None, 6]),
    bits=st.sampled_from([32, 64]),
)
def test_drop_outs_at_any_step_leave_the_exact_sum_or_a_clear_error(gone, neighbours, bits):
    rows, terms = updates(13), replace(TERMS, neighbours=neighbours, threshold=0.5, bits=bits)
    steps = [[i for i, step in enumerate(gone) if step == at] for at in range(4)]
    senders = [i for i, step in enumerate(gone) if step in (None, 3)]
    try:
        opened = play(rows, terms, steps)
    except MaskingError as error:
        assert "needed" in str(error)
        # Who never sent a key is no neighbour; of the others, more than half a neighbourhood must be left to the end.
        assert neighbours is not None or 2 * gone.count(None) <= 13 - len(steps[0]) + 1
        return
    assert opened.survivors == tuple(senders)
    assert opened.dropped == tuple(sorted(steps[1] + steps[2]))
    np.testing.assert_array_equal(opened.mean, ring_mean(rows, terms, 13 - len(steps[0]), senders))


@pytest.mark.parametrize("step", range(4))
def test_one_who_drops_out_at_a_step(step):
    gone = [(), (), (), ()]
    gone[step] = (2, 5)
    opened = play(updates(), gone=gone)
    senders = [i for i in range(N) if step == 3 or i not in (2, 5)]
    assert opened.survivors == tuple(senders)
    np.testing.assert_array_equal(opened.mean, ring_mean(updates(), TERMS, N - 2 * (step == 0), senders))


def test_the_bits_do_not_depend_on_any_secret():
    gone = ((), (1,), (4,), (7,))
    results = {play(updates(), replace(TERMS, threshold=0.5), gone, seed=seed).mean.tobytes() for seed in range(3)}
    assert len(results) == 1


def test_updates_longer_than_a_chunk():
    d = 2 * CHUNK_BYTES // 4 + 13
    rows, terms = updates(4, d), replace(TERMS, d=d, threshold=0.5)
    opened = play(rows, terms, gone=((), (), (3,), ()))
    np.testing.assert_array_equal(opened.mean, ring_mean(rows, terms, 4, [0, 1, 2]))
    np.testing.assert_allclose(opened.mean, plain(rows[:3], 2.0), rtol=0, atol=1e-7)


def test_extremes_do_not_wrap():
    rows = np.zeros((7, D), dtype=np.float32)
    rows[:, 3] = -3e38
    np.testing.assert_array_equal(play(rows).mean, [-2.0 if i == 3 else 0.0 for i in range(D)])


@pytest.mark.parametrize("bits", [32, 64])
def test_counts_weigh_and_only_their_sum_is_opened(bits):
    counts = [10, 200, 35, 1, 999, 60, 80, 5000, 42]
    terms = replace(TERMS, largest_count=1000.0, bits=bits)
    opened = play(updates(), terms, gone=((), (), (2,), ()), counts=counts)
    senders = [i for i in range(N) if i != 2]
    capped = np.minimum(counts, 1000)[senders]
    np.testing.assert_allclose(opened.mean, plain(updates()[senders], 2.0, capped), rtol=0, atol=2e-7)
    assert opened.weight == pytest.approx(capped.sum(), rel=1e-6)
    np.testing.assert_array_equal(opened.mean, ring_mean(updates(), terms, N, senders, counts))


# Too few


def fresh(monkeypatch):
    """A list that grows whenever a mask is removed."""
    removed = []
    monkeypatch.setattr(
        masking_server, "add_masks", lambda words, seeds: (removed.append(seeds), add_masks(words, seeds))
    )
    return removed


def test_too_few_updates_open_nothing(monkeypatch):
    game = Round()
    game.keys()
    game.shares()
    with pytest.raises(MaskingError, match=r"4 of the 8 .* client 0 .* 6 "):
        game.masked(updates(), gone=(5, 6, 7, 8))
    removed = fresh(monkeypatch)
    with pytest.raises(MaskingError, match="over"):
        game.server.open()
    assert not removed


def test_too_few_answers_open_nothing(monkeypatch):
    game = Round()
    game.keys()
    game.shares()
    game.masked(updates(), gone=(8,))
    for i in range(6):  # of client 0, which answers for others, five have answered
        game.send(game.clients[i].unmask(game.survivors))
    removed = fresh(monkeypatch)
    with pytest.raises(MaskingError, match=r"client 0 .* secret, 6 "):
        game.server.open()
    assert not removed
    with pytest.raises(MaskingError, match="over"):
        game.server.open()


@pytest.mark.parametrize("step", ["keys", "shares"])
def test_too_few_from_the_start(step):
    game = Round(n=4)
    with pytest.raises(MaskingError, match=f"2 clients sent {step}, .* 3 "):
        game.keys((1, 2)) if step == "keys" else (game.keys(), game.shares((0, 1)))


def test_where_all_have_too_few_neighbours_the_round_is_over():
    game = Round()
    game.keys()
    with pytest.raises(MaskingError, match=r"4 of the 8 .* client 0 .*shares, 6 "):
        game.shares(gone=(5, 6, 7, 8))
    with pytest.raises(MaskingError, match=r"server .* 4 steps"):
        game.server.survivors()


def test_a_client_with_too_few_neighbours_sends_nothing():
    game = Round()
    game.keys()
    game.shares()
    rows = np.frombuffer(game.deliveries[0].body, dtype=SEALED)
    with pytest.raises(MaskingError, match=r"4 of the 8 .* client 0 .*shares, 6 "):
        game.clients[0].masked(replace(game.deliveries[0], body=rows[:4].tobytes()), updates()[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 20), st.integers(2, 8), st.integers(0, 99), st.data())
def test_who_has_too_few_neighbours_left_would_take_everybody_with_it(n, k, seed, data):
    # So nothing is lost where the round is over as soon as one client cannot go on.
    graph, terms = neighbourhoods(range(n), k, bytes([seed])), replace(TERMS, threshold=0.5)
    there = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    needed = terms.shares_needed(len(graph[0]))
    lonely = first = {i for i in there if len(there.intersection(graph[i])) < needed}
    while lonely:
        there = there - lonely
        lonely = {i for i in there if len(there.intersection(graph[i])) < needed}
    assert not (first and there)
