from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused

from fedrobust.aggregation import Aggregation, Krum
from fedrobust.experiment import Experiment
from fedrobust.trust import Trust
from fedrobust.trust.defence import Defence
from fedrobust.updates import ClearUpdates, NotRevealed
from fedrobust.updates.sketch import sketched


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3000), st.integers(1, 700), st.integers(0, 99))
def test_every_coordinate_goes_to_one_column_with_a_sign(lines, d, k, seed):
    unit = np.eye(min(d, lines), d)
    assert (np.abs(sketched(list(unit), k, seed)).sum(axis=1) == 1).all()
    rows = np.random.default_rng(seed).standard_normal((lines, d))
    together = sketched(list(rows), k, seed, threads=3)
    assert np.array_equal(together, sketched(list(rows), k, seed))
    mixing = np.random.default_rng(seed).standard_normal((2, lines))
    assert np.allclose(sketched(list(mixing @ rows), k, seed), mixing @ together, atol=1e-9)


def test_products_are_those_of_the_rows_in_the_mean_with_the_spread_that_is_promised():
    draw, k = np.random.default_rng(0), 256
    u, v = draw.standard_normal((2, 5000))
    v += 0.5 * u
    found = np.array([np.prod(sketched([u, v], k, seed), axis=0).sum() for seed in range(400)])
    spread = np.sqrt((u @ u * (v @ v) + (u @ v) ** 2) / k)
    assert abs(found.mean() - u @ v) < 4 * spread / 20
    assert 0.8 * spread < found.std() < 1.15 * spread


@pytest.mark.parametrize("common", [0.0, 1000.0])
def test_distances_are_near_beside_a_large_common_part(common):
    draw = np.random.default_rng(1)
    rows = (common * draw.standard_normal(60_000) + draw.standard_normal((12, 60_000))).astype(np.float32)
    exact = ClearUpdates([rows]).gram().distances_squared()
    found = ClearUpdates([rows]).sketched(4096, 3).gram().distances_squared()
    others = ~np.eye(12, dtype=bool)
    assert np.abs(found[others] / exact[others] - 1).max() < 5 * np.sqrt(2 / 4096)


def test_rows_in_any_blocks_anchors_and_histories_are_sketched_alike():
    draw = np.random.default_rng(2)
    rows, past, root = (draw.standard_normal((8, 9000)).astype(np.float32) for _ in range(3))
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    whole = ClearUpdates([rows], histories={"sum": past}).sketched(512, 9).gram({"root": root[0]}, ["sum"])
    split = ClearUpdates([rows[order[:4]], rows[order[4:]]], np.argsort(order), histories={"sum": past})
    found = split.sketched(512, 9).gram({"root": root[0]}, ["sum"])
    assert np.array_equal(found.matrix, whole.matrix)
    assert np.array_equal(found.histories["sum"].cross, whole.histories["sum"].cross)
    short = sketched([*rows, root[0], *past], 512, 9)
    assert np.allclose(found.matrix, short[:8] @ short[:8].T, rtol=1e-9, atol=1e-6)
    assert np.allclose(found.anchors["root"].products, short[:8] @ short[8], rtol=1e-9, atol=1e-6)
    assert np.allclose(found.histories["sum"].cross, short[:8] @ short[9:].T, rtol=1e-9, atol=1e-6)


def test_a_sketch_as_long_as_the_rows_is_not_made():
    rows = np.random.default_rng(3).standard_normal((5, 300))
    assert np.array_equal(ClearUpdates([rows]).sketched(300, 0).gram().matrix, ClearUpdates([rows]).gram().matrix)


def test_a_defence_draws_a_sketch_for_every_round_and_takes_the_sum_of_the_rows_themselves():
    rows = np.random.default_rng(4).standard_normal((9, 6000)).astype(np.float32)
    rows[:2] *= 30
    ids = np.arange(9)
    aggregation = Aggregation(rule=Krum(), f=2, sketch=256)
    defence = Defence(aggregation, Trust(), 9, seed=1)
    rounds = [defence.defend(defence.start(9), ClearUpdates([rows]), ids, number) for number in (1, 2, 1)]
    grams = [done.judgement.gram.matrix for done in rounds]
    assert np.array_equal(grams[0], grams[2])
    assert not np.array_equal(grams[0], grams[1])
    for done in rounds:
        chosen = int(np.argmax(done.aggregated.weights))
        assert chosen > 1
        assert np.array_equal(done.aggregated.aggregate, rows[chosen])


def test_where_there_are_no_rows_there_is_no_sketch():
    with refused(path="aggregation.sketch", says="privacy.sketch"):
        Experiment().changed({"privacy": "shares", "aggregation": {"rule": "geometric_median", "sketch": 512}})
    with refused(path="aggregation.sketch", says="no updates to sketch"):
        Experiment().changed({"privacy": "masked", "aggregation.sketch": 512})
    with refused(path="workers.shards", says="sketch"):
        Experiment().changed({"aggregation.sketch": 512, "workers.shards": 2})
    with refused(path="aggregation.sketch"):
        Experiment().changed({"aggregation.sketch": 5})
    assert Experiment().changed({"aggregation.sketch": 512}).digest() != Experiment().digest()


def test_updates_that_are_hidden_cannot_be_sketched():
    from updates.test_clear import GramOnly

    with pytest.raises(NotRevealed):
        GramOnly(np.zeros((3, 4))).sketched(128, 0)
