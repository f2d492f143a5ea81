"""SignGuard against its paper, on the rows, and the coordinates that it draws."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
from refused import refused

from fedrobust.aggregation import Aggregation, Context, Pipeline, SignGuard, capped_prior
from fedrobust.aggregation.rules.signs import _signs, drawn, largest_cluster
from fedrobust.aggregation.testing import INSTANCES, check_rule
from fedrobust.updates import ClearUpdates, ShardedUpdates, shard_columns
from fedrobust.updates.interface import CHUNK_BYTES

SHAPES = [(3, 1, 0), (4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 700, 2), (23, 17, 10)]


def distance(a, b):
    return np.sqrt(((np.asarray(a) - np.asarray(b)) ** 2).sum())


def mean_shift(points):
    """The largest cluster of a mean shift with a flat kernel: each point climbs to the mean of what is around it."""
    n = len(points)
    width = np.mean([sorted(distance(p, q) for q in points)[max(n // 2, min(n, 2)) - 1] for p in points])
    width = max(width * (1 + 1e-9), 1e-12)
    peaks = []
    for centre in points:
        for _ in range(300):
            around = [p for p in points if distance(p, centre) <= width]
            moved, centre = distance(centre, np.mean(around, axis=0)), np.mean(around, axis=0)
            if moved <= 1e-3 * width:
                break
        peaks.append((len(around), tuple(centre)))
    centres = []
    for _, centre in sorted(set(peaks), reverse=True):
        if all(distance(centre, other) > width for other in centres):
            centres.append(centre)
    members = [[] for _ in centres]
    for i, point in enumerate(points):
        near = [distance(point, centre) for centre in centres]
        if min(near) <= width:
            members[int(np.argmin(near))].append(i)
    return max(members, key=len)


def signguard(rows, f, prior, lower=0.1, upper=3.0, similarity=False):
    """With all coordinates, as for fewer than a thousand."""
    n, d = rows.shape
    norms = [np.sqrt((row**2).sum()) for row in rows]
    median = np.median(norms)
    features = []
    for i, row in enumerate(rows):
        feature = [(row > 0).sum() / d, (row == 0).sum() / d, (row < 0).sum() / d]
        if similarity:
            cosines = [
                row @ rows[j] / (norms[i] * norms[j]) if norms[i] * norms[j] else 0.0 for j in range(n) if j != i
            ]
            feature.append(np.median(cosines))
        features.append(np.array(feature))
    band = [i for i in range(n) if lower * median <= norms[i] <= upper * median]
    chosen = [i for i in mean_shift(features) if i in band] or band
    clipped = [rows[i] * min(1.0, median / norms[i]) if norms[i] else rows[i] for i in range(n)]
    return sum(prior[i] * clipped[i] for i in chosen) / sum(prior[i] for i in chosen)


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize("options", [{}, {"similarity": True}, {"lower": 0.9, "upper": 2.0}, {"share": 0.7}], ids=str)
def test_follows_its_formula(options, kind):
    known = {name: value for name, value in options.items() if name != "share"}
    for n, d, f in SHAPES:
        rows = INSTANCES[kind](np.random.default_rng(n), n, d, f)
        found = Pipeline([SignGuard(**options)]).aggregate(rows, f=f)
        expected = signguard(rows, f, np.full(n, 1 / n), **known)
        assert np.abs(found - expected).max() <= 1e-8 * max(1.0, np.abs(expected).max()), (n, d, f)


def test_keeps_its_promises():
    check_rule(SignGuard(similarity=True), shapes=((5, 3, 1), (9, 40, 3)))


def test_weighs_by_samples():
    rng = np.random.default_rng(5)
    rows, samples = rng.standard_normal((11, 30)), rng.integers(1, 100, 11)
    expected = signguard(rows, 3, capped_prior(samples, 11))
    assert np.allclose(Pipeline([SignGuard()]).aggregate(rows, samples=samples, f=3), expected, rtol=0, atol=1e-8)
    assert not np.allclose(expected, signguard(rows, 3, np.full(11, 1 / 11)))


def leaning(n, d, seed=0):
    """Honest rows of which six coordinates in ten are positive."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, d)) < 0.6, 1.0, -1.0) * rng.random((n, d))


def weights(rows, rule=None, **given):
    return Pipeline([rule or SignGuard()]).combination(rows, **given).weights


@pytest.mark.parametrize("similarity", [False, True])
def test_flipped_signs_have_no_weight(similarity):
    rows = leaning(12, 20_000)
    rows[[1, 5, 7]] *= -1
    found = weights(rows, SignGuard(similarity=similarity))
    assert (found[[1, 5, 7]] == 0).all()
    assert (np.delete(found, [1, 5, 7]) > 0).sum() >= 7


def test_zeros_have_no_weight():
    rows = leaning(9, 5000)
    rows[:3, ::2] = 0.0
    assert (weights(rows)[:3] == 0).all()


def test_a_norm_out_of_the_band_has_no_weight_and_one_within_it_is_clipped():
    rows = leaning(9, 5000)
    rows[0] *= 3.2
    rows[1] *= 0.09
    rows[2] *= 2.5
    rows[3:] = rows[3]
    rows[:3] = np.abs(rows[:3]) * np.sign(rows[3])
    found, norms = weights(rows), np.linalg.norm(rows, axis=1)
    assert (found[:2] == 0).all()
    assert np.allclose(found[2:], np.minimum(1.0, np.median(norms) / norms[2:]) / 7)


def test_similarity_sees_what_signs_in_sum_do_not():
    """An attack that shuffles the coordinates has as many positive ones as the others."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal(4000) + 0.3 * rng.standard_normal((10, 4000))
    rows[8:] = rng.permuted(rows[8:], axis=1)
    assert (weights(rows, SignGuard(similarity=True))[8:] == 0).all()


def test_where_band_and_cluster_have_nothing_in_common_the_band_decides():
    rows = np.zeros((5, 40))
    rows[:3] = 1e-3  # the largest cluster, of rows that are too small
    rows[3], rows[4] = -1.0, np.where(np.arange(40) % 2, 1.0, -1.0)
    rows = np.concatenate([rows, [np.where(np.arange(40) % 4, 1.0, -1.0), np.where(np.arange(40) % 4, -1.0, 1.0)]])
    shares = np.array([[(row > 0).mean(), (row < 0).mean()] for row in rows])
    assert np.flatnonzero(largest_cluster(shares)).tolist() == [0, 1, 2]
    assert np.allclose(weights(rows), [0, 0, 0, 0.25, 0.25, 0.25, 0.25])


def test_clusters():
    line = np.array([[0.0], [0.1], [0.2], [5.0], [9.0]])
    assert largest_cluster(line).tolist() == [True, True, True, False, False]
    assert largest_cluster(np.zeros((1, 3))).tolist() == [True]
    assert largest_cluster(np.array([[0.3], [0.4]])).tolist() == [True, True]
    assert largest_cluster(np.array([[0.0], [0.1], [1.0]])).tolist() == [True, True, False]
    assert largest_cluster(np.repeat([[0.2], [0.7]], [2, 3], axis=0)).tolist() == [False] * 2 + [True] * 3


def test_a_coordinate_is_drawn_or_not_however_the_columns_are_cut():
    whole = drawn(slice(0, 5000), 0.1, 7)
    for a, b in [(0, 1), (1, 2), (2, 9), (3, 5000), (4, 8), (4096, 5000), (4999, 5000)]:
        assert np.array_equal(drawn(slice(a, b), 0.1, 7), whole[a:b])
    assert not np.array_equal(drawn(slice(0, 5000), 0.1, 8), whole)
    assert drawn(slice(0, 1_000_000), 0.1, 3).mean() == pytest.approx(0.1, abs=2e-3)
    assert drawn(slice(0, 100), 1.0, 3).all()


def test_the_signs_are_those_of_the_drawn_coordinates():
    rng = np.random.default_rng(3)
    rows = np.sign(rng.standard_normal((6, 30_000))) * (rng.random((6, 30_000)) < 0.9)
    among = rows[:, drawn(slice(0, 30_000), 0.2, 11)]
    counts = ClearUpdates([rows]).total(partial(_signs, probability=0.2, seed=11))
    assert counts.tolist() == [(among == sign).sum(axis=1).tolist() for sign in (1, 0, -1)]


def test_the_seed_decides_which_coordinates_are_drawn():
    rows = np.random.default_rng(4).standard_normal((20, 30_000))
    first = weights(rows, seed=1)
    assert np.array_equal(weights(rows, seed=1), first)
    assert any(not np.array_equal(weights(rows, seed=seed), first) for seed in range(2, 6))


def test_chunks_and_shards_do_not_change_a_bit(monkeypatch):
    rows = leaning(8, 20_000).astype(np.float32)
    rows[0] *= -1
    context = partial(Context, f=2)
    expected = Pipeline([SignGuard()]).run(ClearUpdates([rows]), context())
    edge = shard_columns(20_000, 2)[0].stop
    split = Pipeline([SignGuard()]).run(ShardedUpdates.of([rows[:, :edge], rows[:, edge:]]), context())
    assert np.array_equal(split.aggregate, expected.aggregate)
    assert np.array_equal(split.weights, expected.weights)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 1)
    found = Pipeline([SignGuard()]).run(ClearUpdates([rows]), context())
    assert np.array_equal(found.weights > 0, expected.weights > 0)
    assert np.allclose(found.weights, expected.weights, rtol=1e-12, atol=0)


def test_what_is_sent_pickles_small():
    assert len(pickle.dumps(partial(_signs, probability=0.1, seed=1))) < 500


def test_options():
    read = Aggregation.model_validate({"rule": {"name": "signguard", "share": 0.2}, "weighting": "samples"})
    assert read.rule == SignGuard(share=0.2)
    assert SignGuard().bound(8, 4) == "signguard needs n ≥ 2f + 1: n = 8, f = 4"
    assert SignGuard().bound(9, 4) is None
    for wrong in ({"lower": 1.1}, {"upper": 1.9}, {"share": 0.0}, {"share": 1.1}):
        with refused(path=next(iter(wrong))):
            SignGuard(**wrong)
