"""What each part of a pipeline made of each row, and what a memory carries from round to round."""

from __future__ import annotations

import numpy as np
import pytest
from refused import refused

from fedrobust.aggregation import (
    AFA,
    NNM,
    Bucketing,
    CenteredClipping,
    Clip,
    Context,
    FoolsGold,
    GeometricMedian,
    Krum,
    Layer,
    Mean,
    Median,
    Memory,
    Pipeline,
    TrimmedMean,
)
from fedrobust.updates import ClearUpdates


def rows_of(n=9, d=60, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def test_scores_and_weights_of_every_step():
    rows = rows_of()
    rows[3] *= 100
    clip, nnm, krum = Pipeline([Clip(), NNM(), Krum()]).explain(rows, f=2)
    assert [clip.name, nnm.name, krum.name] == ["clip", "nnm", "krum"]
    norms = np.linalg.norm(rows, axis=1)
    assert np.allclose(clip.scores, norms)
    assert np.allclose(clip.weights, np.minimum(1, np.median(norms) / norms) / 9)
    clipped = rows * np.minimum(1, np.median(norms) / norms)[:, None]
    distances = ((clipped[:, None] - clipped[None]) ** 2).sum(-1)
    mixing = np.zeros((9, 9))
    for i in range(9):
        mixing[i, np.argsort(distances[i])[:7]] = 1 / 7
    assert np.allclose(nnm.weights, mixing.mean(axis=0) * np.minimum(1, np.median(norms) / norms))
    expected = Pipeline([Clip(), NNM(), Krum()]).combination(rows, f=2).weights
    assert np.array_equal(krum.weights, expected)
    assert krum.scores.shape == (9,)
    assert np.argmin(krum.scores) in np.flatnonzero(mixing @ np.ones(9))


def test_a_merged_row_is_judged_with_its_bucket():
    rows = rows_of(8)
    bucketing, krum = Pipeline([Bucketing(s=2), Krum()]).explain(rows, f=0, seed=4)
    assert np.allclose(bucketing.weights, 1 / 8)
    assert len(set(np.round(krum.scores, 9))) == 4  # four buckets
    assert sorted(krum.weights) == pytest.approx([0, 0, 0, 0, 0, 0, 0.5, 0.5])
    chosen = np.flatnonzero(krum.weights)
    assert krum.scores[chosen[0]] == krum.scores[chosen[1]] == krum.scores.min()


def test_a_rule_on_coordinates_has_neither_scores_nor_weights():
    nnm, median = Pipeline([NNM(), Median()]).explain(rows_of(), f=2)
    assert nnm.weights.sum() == pytest.approx(1.0)
    assert (median.scores, median.weights) == (None, None)
    (alone,) = Pipeline([TrimmedMean()]).explain(rows_of(), f=2)
    assert alone.weights is None


def test_the_result_of_a_run_tells_the_same():
    rows = rows_of()
    pipeline = Pipeline([Clip(), NNM(), GeometricMedian()])
    told, explained = pipeline.run(ClearUpdates([rows]), Context(f=2)).steps, pipeline.explain(rows, f=2)
    for a, b in zip(told, explained, strict=True):
        assert a.name == b.name
        assert np.array_equal(a.weights, b.weights)
        assert (a.scores is None) == (b.scores is None)
    assert np.array_equal(told[-1].weights, pipeline.run(ClearUpdates([rows]), Context(f=2)).weights)


def test_a_memory_carries_the_last_aggregate():
    pipeline, memory = Pipeline([CenteredClipping(tau=0.5)]), Memory()
    first = pipeline.aggregate(rows_of(), f=2, memory=memory)
    assert memory.round == 1
    assert np.allclose(memory.previous, first, rtol=1e-6)
    second = pipeline.aggregate(rows_of(seed=1), f=2, memory=memory)
    assert np.allclose(second, pipeline.aggregate(rows_of(seed=1), f=2, previous=first.astype(np.float32)), atol=1e-6)
    assert not np.allclose(second, pipeline.aggregate(rows_of(seed=1), f=2))


def test_a_memory_shares_no_array_with_the_aggregate():
    memory = Memory()
    found = Pipeline([CenteredClipping()]).aggregate(rows_of().astype(np.float32), f=2, memory=memory)
    before = memory.previous.copy()
    found *= 2.0
    assert np.array_equal(memory.previous, before)


def test_explaining_and_weighing_leave_the_memory_as_it_is():
    memory = Memory()
    pipeline = Pipeline([FoolsGold()])
    pipeline.aggregate(rows_of(), memory=memory)
    before = memory.round, memory.previous.copy(), memory.histories["sum"].copy()
    weights = pipeline.combination(rows_of(seed=1), memory=memory).weights
    assert np.array_equal(pipeline.explain(rows_of(seed=1), memory=memory)[-1].weights, weights)
    assert memory.round == before[0]
    assert np.array_equal(memory.previous, before[1])
    assert np.array_equal(memory.histories["sum"], before[2])
    assert np.allclose(pipeline.aggregate(rows_of(seed=1), memory=memory), weights @ rows_of(seed=1))


@pytest.mark.parametrize("rule", [FoolsGold(), AFA()])
def test_a_rule_that_remembers_clients_cannot_follow_buckets(rule):
    with refused(says=rule.name):
        Pipeline([Bucketing(), rule])
    Pipeline([NNM(), rule])


def test_layers_that_do_not_add_up_are_refused():
    context = Context(f=0, layers=(Layer("w", (2, 3)), Layer("b", (2,))))
    assert context.layer_columns(8) == [slice(0, 6), slice(6, 8)]
    assert Context(f=0).layer_columns(5) == [slice(0, 5)]
    with refused(path="layers", says="d = 9"):
        context.layer_columns(9)


def test_what_is_remembered_of_clients_follows_their_ids():
    first = Context(f=0, clients=np.array([4, 1]))
    state = {"good": first.remembered("good", np.array([7.0, 5.0]), start=3.0)}
    assert state["good"].tolist() == [3, 5, 3, 3, 7]
    second = Context(f=0, clients=np.array([9, 4, 0]), state=state)
    assert second.recalled("good", 3, start=3.0).tolist() == [3, 7, 3]
    assert second.remembered("good", np.array([1.0, 2, 6]), start=3.0).tolist() == [6, 5, 3, 3, 2, 3, 3, 3, 3, 1]
    assert state["good"].tolist() == [3, 5, 3, 3, 7]
    assert Context(f=0).recalled("good", 2).tolist() == [0, 0]


def test_noise_is_added_once_and_comes_from_the_seed():
    class Noisy(Mean):
        def combine(self, gram, context):
            from dataclasses import replace

            return replace(super().combine(gram, context), noise=2.0)

    rows = np.zeros((3, 40_000), dtype=np.float32)
    pipeline = Pipeline([Noisy()])
    found = pipeline.aggregate(rows, seed=1)
    assert found.std() == pytest.approx(2.0, rel=0.02)
    assert np.array_equal(found, pipeline.aggregate(rows, seed=1))
    assert not np.array_equal(found, pipeline.aggregate(rows, seed=2))
