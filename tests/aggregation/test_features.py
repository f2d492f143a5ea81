"""Auror against its paper, on the rows, and the exact 2-means of columns."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused

from fedrobust.aggregation import Aggregation, Auror, Context, Pipeline, capped_prior
from fedrobust.aggregation.rules.features import _suspicions, two_means
from fedrobust.aggregation.testing import INSTANCES, check_rule
from fedrobust.updates import ClearUpdates, ShardedUpdates, shard_columns
from fedrobust.updates.interface import CHUNK_BYTES

SHAPES = [(3, 1, 0), (4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 700, 2), (23, 17, 10)]


def clusters(values):
    """The values in two clusters, of least squared distances to their means; of equals (to 12 digits) the lowest."""
    ordered = sorted(values)
    cuts = [(ordered[:k], ordered[k:]) for k in range(1, len(ordered))]
    between = [
        len(a) * (np.mean(a) - np.mean(values)) ** 2 + len(b) * (np.mean(b) - np.mean(values)) ** 2 for a, b in cuts
    ]
    return next(cut for cut, gain in zip(cuts, between, strict=True) if gain >= max(between) * (1 - 1e-12))


def auror(rows, f, prior, alpha=3.0, unit="spread", tau=0.5):
    n, d = rows.shape
    suspected, indicative = np.zeros(n), 0
    for k in range(d):
        values = rows[:, k] - np.median(rows[:, k])
        low, high = clusters(values)
        spread = np.sqrt((sum((v - np.mean(low)) ** 2 for v in low) + sum((v - np.mean(high)) ** 2 for v in high)) / n)
        distance = np.mean(high) - np.mean(low)
        if distance <= alpha * (spread if unit == "spread" else 1.0):
            continue
        indicative += 1
        smaller = {len(low): low, len(high): high}[min(len(low), len(high))] if len(low) != len(high) else []
        suspected += np.isin(values, smaller)
    kept = [i for i in range(n) if suspected[i] <= tau * indicative] or range(n)
    return sum(prior[i] * rows[i] for i in kept) / sum(prior[i] for i in kept)


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize("options", [{}, {"alpha": 4.5, "tau": 0.3}, {"alpha": 1.5, "unit": "update"}], ids=str)
def test_follows_its_formula(options, kind):
    for n, d, f in SHAPES:
        rows = INSTANCES[kind](np.random.default_rng(n), n, d, f)
        found = Pipeline([Auror(**options)]).aggregate(rows, f=f)
        expected = auror(rows, f, np.full(n, 1 / n), **options)
        assert np.abs(found - expected).max() <= 1e-8 * max(1.0, np.abs(expected).max()), (n, d, f)


def test_keeps_its_promises():
    check_rule(Auror(alpha=0.5, unit="update"), claims=frozenset({"permutation", "translation"}))


def test_weighs_by_samples():
    rng = np.random.default_rng(5)
    rows, samples = rng.standard_normal((11, 30)), rng.integers(1, 100, 11)
    rows[:3] += 5.0
    expected = auror(rows, 3, capped_prior(samples, 11))
    assert np.allclose(Pipeline([Auror()]).aggregate(rows, samples=samples, f=3), expected, rtol=0, atol=1e-8)
    assert not np.allclose(expected, auror(rows, 3, np.full(11, 1 / 11)))


@settings(max_examples=100, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 2**16), whole=st.booleans())
def test_two_means_are_the_best_of_all_partitions(n, seed, whole):
    rng = np.random.default_rng(seed)
    rows = rng.integers(-3, 4, (n, 5)).astype(np.float64) if whole else rng.standard_normal((n, 5))
    found = two_means(torch.from_numpy(rows.copy()))
    for k in range(5):
        values = rows[:, k]
        least = values.var() * n
        for subset in range(1, 2**n - 1):
            inside = np.array([(subset >> i) & 1 for i in range(n)], dtype=bool)
            least = min(least, values[inside].var() * inside.sum() + values[~inside].var() * (~inside).sum())
        lower = values <= found.edge[k].item()
        assert n * found.spread[k].item() ** 2 == pytest.approx(least, abs=1e-9)
        if least < values.var() * n - 1e-9:  # not all equal
            assert found.size[k] == lower.sum()
            assert found.distance[k].item() == pytest.approx(values[~lower].mean() - values[lower].mean())
        else:
            assert found.distance[k] == 0


def test_two_means_far_from_zero_keep_their_digits():
    rows = torch.tensor([[1e9], [1e9 + 1], [1e9 + 10], [1e9 + 11]], dtype=torch.float64)
    found = two_means(rows)
    assert (found.size.item(), found.edge.item(), found.distance.item(), found.spread.item()) == (2, 1e9 + 1, 10, 0.5)


@pytest.mark.parametrize("step", [1.0, 0.1, 1 / 3])
def test_of_equally_good_cuts_the_lowest_counts(step):
    rows = torch.tensor([[0.7], [0.7 + 2 * step], [0.7 + step]], dtype=torch.float64)
    assert two_means(rows).size.item() == 1
    assert two_means(rows.flip(0)).size.item() == 1


def weights(rows, rule=None, **given):
    return Pipeline([rule or Auror()]).combination(rows, **given).weights


def test_a_lie_that_several_rows_share_has_no_weight():
    rng = np.random.default_rng(0)
    rows = 2.0 + rng.standard_normal((12, 3000))
    rows[[0, 4, 9]] *= -1
    assert np.allclose(weights(rows), np.where(np.isin(np.arange(12), [0, 4, 9]), 0.0, 1 / 9))
    rows[:, 1000:] = rng.standard_normal((12, 2000))  # a third of the coordinates tells rows apart
    assert (weights(rows, Auror(alpha=4.0))[[0, 4, 9]] == 0).all()


@pytest.mark.parametrize("n", [4, 10, 30, 60])
def test_honest_rows_are_all_kept(n):
    rng = np.random.default_rng(n)
    for rows in (rng.standard_normal((n, 5000)), rng.laplace(size=(n, 5000)) + rng.standard_normal(5000)):
        assert np.allclose(weights(rows), 1 / n)


def test_two_halves_suspect_nobody_and_neither_does_one_group():
    rows = np.repeat([[0.0] * 30, [9.0] * 30], 4, axis=0) + 0.01 * np.random.default_rng(1).standard_normal((8, 30))
    assert np.allclose(weights(rows), 1 / 8)
    assert np.allclose(weights(rows, Auror(alpha=100.0, unit="update")), 1 / 8)
    assert np.allclose(weights(np.ones((7, 30))), 1 / 7)
    assert np.allclose(weights(np.array([[1.0, 2.0], [3.0, 4.0]])), 0.5)


def test_nobody_below_tau_keeps_everybody():
    rows = np.eye(3) * 10.0
    assert np.allclose(weights(rows, Auror(tau=0.0)), 1 / 3)
    assert np.allclose(weights(rows), 1 / 3)  # each is suspected in a third


def test_alpha_in_the_unit_of_the_updates():
    rows = np.zeros((5, 4))
    rows[4] = [3.0, 3.0, 0.5, 0.5]
    rows[3] = [0.0, 0.0, 0.0, 0.6]
    assert np.allclose(weights(rows, Auror(alpha=1.0, unit="update")), [0.25, 0.25, 0.25, 0.25, 0])
    assert np.allclose(weights(rows, Auror(alpha=3.5, unit="update")), 0.2)


def test_chunks_and_shards_do_not_change_a_bit(monkeypatch):
    rows = np.random.default_rng(3).standard_normal((8, 20_000)).astype(np.float32)
    rows[:2] += 3
    expected = Pipeline([Auror()]).run(ClearUpdates([rows]), Context(f=2))
    assert (expected.weights > 0).tolist() == [False] * 2 + [True] * 6
    edge = shard_columns(20_000, 2)[0].stop
    split = Pipeline([Auror()]).run(ShardedUpdates.of([rows[:, :edge], rows[:, edge:]]), Context(f=2))
    assert np.array_equal(split.aggregate, expected.aggregate)
    counts = ClearUpdates([rows]).total(partial(_suspicions, alpha=3.0, relative=True))
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 1)
    assert np.array_equal(ClearUpdates([rows]).total(partial(_suspicions, alpha=3.0, relative=True)), counts)
    assert np.array_equal(Pipeline([Auror()]).run(ClearUpdates([rows]), Context(f=2)).weights, expected.weights)


def test_what_is_sent_pickles_small():
    assert len(pickle.dumps(partial(_suspicions, alpha=1.0, relative=True))) < 500


def test_options():
    read = Aggregation.model_validate(
        {"rule": {"name": "auror", "alpha": 0.02, "unit": "update"}, "weighting": "samples"}
    )
    assert read.rule == Auror(alpha=0.02, unit="update")
    assert Auror().bound(8, 4) == "auror needs n ≥ 2f + 1: n = 8, f = 4"
    assert Auror().bound(9, 4) is None
    for wrong in ({"alpha": 0.0}, {"tau": 1.1}, {"unit": "metre"}):
        with refused(path=next(iter(wrong))):
            Auror(**wrong)
