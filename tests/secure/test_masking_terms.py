"""What masked sums are made of: terms, encoding, keys, masks, and the graph of neighbours."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import TERMS, N, Round, neighbourhoods_of, updates

from fedrobust.secure import masking_terms as masks
from fedrobust.secure.masking_terms import (
    CHUNK_BYTES,
    MaskingError,
    add_masks,
    decode,
    encode,
    neighbourhoods,
    public_key,
    risk,
)
from fedrobust.secure.messages import run_id
from fedrobust.secure.ring import expand


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 16},
        {"threshold": 0.49},
        {"threshold": 1.0},
        {"minimum": 2},
        {"neighbours": 1},
        {"d": 0},
        {"clip": 0.0},
        {"clip": float("inf")},
        {"largest_count": 0.0},
    ],
)
def test_terms_that_protect_nobody_are_refused(change):
    with pytest.raises(ValueError, match=r"bits|threshold|at least 3|clip|count"):
        replace(TERMS, **change)


@pytest.mark.parametrize(("bits", "n", "fraction"), [(32, 50, 25), (32, 63, 25), (32, 64, 24), (64, 50, 40)])
def test_fraction_bits(bits, n, fraction):
    assert replace(TERMS, bits=bits).scale(n) == 2.0**fraction


@pytest.mark.parametrize("share", [0.5, 0.6, 2 / 3, 0.9])
def test_two_halves_cannot_both_answer_in_full(share):
    terms = replace(TERMS, threshold=share)
    assert all(k < 2 * terms.shares_needed(k) <= 2 * k for k in range(2, 200))


def test_the_least_number_above_the_share():
    assert [replace(TERMS, threshold=2 / 3).shares_needed(k) for k in (2, 3, 6, 8, 9, 33)] == [2, 3, 5, 6, 7, 23]


# Encoding


@pytest.mark.parametrize("count", [None, 0, -3, float("nan"), float("inf")])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(MaskingError, match="positive number"):
        encode(updates()[0], count, replace(TERMS, largest_count=9.0), N)


def test_weights_that_cannot_be_are_noticed():
    words = np.sum([encode(row, None, TERMS, N) for row in updates()], axis=0, dtype=TERMS.word)
    for change in (1, -1, 1 << 20):
        wrong = words.copy()
        wrong[-1:] += np.uint32(change % 2**32)
        with pytest.raises(MaskingError, match="add up to"):
            decode(wrong, TERMS, N, N)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_sent(bad):
    row = updates()[0]
    row[7] = bad
    with pytest.raises(MaskingError, match="NaN or Inf"):
        encode(row, None, TERMS, N)
    with pytest.raises(MaskingError, match="40 coordinates"):
        encode(row[:-1], None, TERMS, N)


# Keys and masks


@pytest.mark.parametrize("change", [{"round": 5}, {"run": run_id("another")}])
def test_keys_are_bound_to_run_round_and_purpose(change):
    public = public_key(b"k" * 32)
    ours = masks.agreed(b"s" * 32, public, TERMS, "mask", 1, 2)
    assert ours == masks.agreed(b"k" * 32, public_key(b"s" * 32), TERMS, "mask", 1, 2)
    assert ours != masks.agreed(b"s" * 32, public, replace(TERMS, **change), "mask", 1, 2)
    assert len({ours, *(masks.agreed(b"s" * 32, public, TERMS, *p) for p in (("mask", 1, 3), ("shares", 1, 2)))}) == 3


def test_a_mask_is_the_key_stream_of_its_seed():
    words = np.arange(CHUNK_BYTES // 4 + 9, dtype="<u4")
    add_masks(words, [(b"a" * 32, 1), (b"b" * 32, -1)])
    streams = [expand(seed * 32, len(words) // 2 + 1).view("<u4")[: len(words)] for seed in (b"a", b"b")]
    np.testing.assert_array_equal(words, np.arange(len(words), dtype="<u4") + streams[0] - streams[1])


# The graph


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 10**6), min_size=3, max_size=30), st.integers(2, 40), st.binary(max_size=40))
def test_the_graph_is_regular_symmetric_and_depends_on_its_seed_alone(clients, k, seed):
    ordered = sorted(clients)
    graph = neighbourhoods(ordered, k, seed)
    degree = min(2 * -(-k // 2), len(clients) - 1)
    assert all(len(around) == degree and client not in around for client, around in graph.items())
    assert all(client in graph[other] for client, around in graph.items() for other in around)
    assert all(list(around) == sorted(set(around)) for around in graph.values())
    assert graph == neighbourhoods(ordered[::-1], k, seed)
    assert networkx.is_connected(networkx.Graph([(a, b) for a, around in graph.items() for b in around]))


def test_every_neighbourhood_comes_up():
    found = Counter(neighbourhoods(range(6), 2, bytes([seed]))[0] for seed in range(250))
    assert len(found) == 10  # pairs of five
    assert max(found.values()) < 50  # 25 on average


def test_the_graph_comes_from_keys_that_nobody_knew():
    graphs = []
    for round_, seed in ((0, 0), (1, 0), (0, 1)):
        game = Round(replace(TERMS, round=round_, neighbours=4), n=20, seed=seed)
        game.keys()
        graphs.append(neighbourhoods_of(game))
    assert graphs[0] != graphs[1] != graphs[2] != graphs[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 16), st.integers(2, 8), st.integers(0, 99), st.data())
def test_clients_that_fall_apart_are_below_the_threshold(n, k, seed, data):
    # So a sum of a part of the survivors can never be opened by itself.
    graph = neighbourhoods(range(n), k, bytes([seed]))
    left = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    whole = networkx.Graph([(a, b) for a, around in graph.items() for b in around])
    if not networkx.is_connected(whole.subgraph(left)):
        t = replace(TERMS, threshold=0.5).shares_needed(len(graph[0]))
        assert any(len(left.intersection(graph[client])) < t for client in left)


def test_the_risk_bounds_what_happens():
    n, k, colluding, dropping = 30, 8, 9, 6
    secrecy, success = risk(n, k, 0.5, colluding, dropping)
    t, bad, failed = 5, 0, 0
    for trial in range(1500):
        graph = neighbourhoods(range(n), k, trial.to_bytes(2, "little"))  # the first ones collude, then some drop out
        bad += any(sum(other < colluding for other in around) >= t for around in graph.values())
        failed += any(sum(other >= n - dropping for other in around) > k - t for around in graph.values())
    assert bad / 1500 <= secrecy
    assert 0.1 * success < failed / 1500 <= success
    assert risk(n, k, 0.5, 0, 20)[0] == 0.0  # who drops out tells nothing
    assert risk(n, n - 1, 0.5, 14, 0)[0] == 0.0  # 15 of 29 neighbours are needed
    assert risk(n, n - 1, 0.5, 15, 0)[0] == 1.0
