"""The rules that cluster by angle, and the norm bound, against plain formulas on the rows."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from refused import refused

from fedrobust.aggregation import (
    Clip,
    ClippedClustering,
    Context,
    CosineMajority,
    Flame,
    Memory,
    NormBound,
    Pipeline,
    capped_prior,
    resolve_f,
)
from fedrobust.aggregation.numerics import cosine_distances
from fedrobust.aggregation.rules.clusters import average_linkage
from fedrobust.aggregation.testing import INSTANCES
from fedrobust.updates import ClearUpdates

SHAPES = [(3, 1, 0), (4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 700, 2), (23, 17, 10)]
RULES = [Flame(), CosineMajority(), CosineMajority(threshold=0.1), ClippedClustering(), NormBound()]
QUIET = Flame(noise_factor=0.0)


def names(rule):
    return f"{rule.name} {getattr(rule, 'threshold', None) or ''}"


def norm(row):
    return np.sqrt((row**2).sum())


def uniform(n):
    return np.full(n, 1 / n)


def angles(rows):
    """Cosine distances to 12 digits; a zero row is at 1 from all others."""
    n = len(rows)
    found = np.zeros((n, n))
    for i, j in itertools.permutations(range(n), 2):
        lengths = norm(rows[i]) * norm(rows[j])
        distance = 1.0 - (rows[i] * rows[j]).sum() / lengths if lengths > 0 else 1.0
        found[i, j] = 0.0 if distance < 1e-12 else float(f"{distance:.11e}")
    return found


def reached(distances, start, radius):
    """All rows that steps of `radius` at most lead to."""
    found = {start}
    while True:
        more = {j for i in found for j in range(len(distances)) if distances[i, j] <= radius} - found
        if not more:
            return sorted(found)
        found |= more


def first_majority(rows):
    """The rows that are within reach of each other at the smallest radius at which that is more than half of them."""
    distances, n = angles(rows), len(rows)
    for radius in np.unique(distances):
        for start in range(n):
            if 2 * len(found := reached(distances, start, radius)) > n:
                return found
    raise AssertionError


def by_hdbscan(rows):
    from sklearn.cluster import HDBSCAN

    size = len(rows) // 2 + 1
    found = HDBSCAN(size, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True).fit(angles(rows))
    return [i for i, label in enumerate(found.labels_) if label == 0]


def best_bipartition(rows):
    """Of all 2ⁿ⁻¹ bipartitions the one of least largest cosine across; the larger part, the tighter of two halves."""
    distances, everybody = angles(rows), set(range(len(rows)))
    sizes = range(1, len(rows) // 2 + 1)
    parts = [set(part) for size in sizes for part in itertools.combinations(range(len(rows)), size)]
    across = [min(distances[i, j] for i in part for j in everybody - part) for part in parts]
    best = parts[int(np.argmax(across))]
    return max(sorted(everybody - best), sorted(best), key=lambda rows: (len(rows), -tightness(distances, rows)))


def tightness(distances, rows):
    return distances[np.ix_(rows, rows)].mean()


def last_merge(distances, linkage):
    """The clusters before the last merge, and its height, when always the nearest clusters merge, all that tie."""

    def height(a, b):
        across = [distances[i, j] for i in a for j in b]
        return float(f"{min(across) if linkage == 'single' else sum(across) / len(across):.10e}")

    clusters = [{i} for i in range(len(distances))]
    while True:
        before = [set(cluster) for cluster in clusters]
        heights = {(i, j): height(before[i], before[j]) for i, j in itertools.combinations(range(len(before)), 2)}
        nearest = min(heights.values())
        for i, j in (pair for pair, distance in heights.items() if distance == nearest):
            a, b = (next(c for c in clusters if before[k] <= c) for k in (i, j))
            clusters = [c for c in clusters if c not in (a, b)] + [a | b]
        if len(clusters) == 1:
            return before, nearest


def larger(rows, linkage):
    """The larger of two clusters."""
    if len(rows) < 3:
        return list(range(len(rows)))
    distances = angles(rows)
    clusters, height = last_merge(distances, linkage)
    size = max(map(len, clusters))
    if height == 0 or 2 * size < len(rows):
        return list(range(len(rows)))
    largest = [sorted(cluster) for cluster in clusters if len(cluster) == size]
    return min(largest, key=lambda rows: (float(f"{tightness(distances, rows):.10e}"), rows))


def cut_again_and_again(rows, threshold):
    """The larger part, of the larger part … while the largest cosine across is below the threshold."""
    kept, distances = list(range(len(rows))), angles(rows)
    while len(kept) > 2:
        _, apart = last_merge(distances[np.ix_(kept, kept)], "single")
        part = larger(rows[kept], "single")
        if 1.0 - apart >= threshold or 2 * len(part) <= len(rows) or len(part) == len(kept):
            break
        kept = [kept[i] for i in part]
    return kept


def mean_of(rows, kept, prior, radius=np.inf):
    total = sum(prior[i] for i in kept)
    return sum(prior[i] / total * rows[i] * min(1.0, radius / max(norm(rows[i]), 1e-300)) for i in kept)


def median_norm(rows):
    return np.median([norm(row) for row in rows])


def flame(rows, prior):
    return mean_of(rows, first_majority(rows), prior, median_norm(rows))


def close(found, expected):
    return np.abs(found - expected).max() <= 1e-8 * max(1.0, np.abs(expected).max())


def instances(kind):
    for n, d, f in SHAPES:
        yield INSTANCES[kind](np.random.default_rng(n), n, d, f), f


@pytest.mark.parametrize("kind", INSTANCES)
def test_flame(kind):
    for rows, f in instances(kind):
        assert first_majority(rows) == by_hdbscan(rows)
        assert close(Pipeline([QUIET]).aggregate(rows, f=f), flame(rows, uniform(len(rows)))), rows.shape


@pytest.mark.parametrize("n", [3, 4, 5, 8, 12])
def test_cosine_majority_is_the_best_of_all_bipartitions(n):
    for seed in range(20):
        rows = np.random.default_rng(seed).standard_normal((n, 6)) + 0.5
        assert close(Pipeline([CosineMajority()]).aggregate(rows), mean_of(rows, best_bipartition(rows), uniform(n)))


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize("linkage", ["single", "average"])
def test_two_clusters(linkage, kind):
    for rows, f in instances(kind):
        n, radius = len(rows), median_norm(rows) if linkage == "average" else np.inf
        rule = CosineMajority() if linkage == "single" else ClippedClustering()
        found = Pipeline([rule]).aggregate(rows, f=f)
        assert close(found, mean_of(rows, larger(rows, linkage), uniform(n), radius)), rows.shape


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("kind", ["plain", "duplicated", "with_huge", "all_equal"])
def test_cosine_majority_with_a_threshold(kind, threshold):
    for rows, f in instances(kind):
        found = Pipeline([CosineMajority(threshold=threshold)]).aggregate(rows, f=f)
        assert close(found, mean_of(rows, cut_again_and_again(rows, threshold), uniform(len(rows)))), rows.shape


def test_a_threshold_leaves_alone_what_is_alike():
    rng = np.random.default_rng(0)
    honest = rng.standard_normal(50) + 0.1 * rng.standard_normal((6, 50))
    strangers, pipeline = rng.standard_normal((4, 50)), Pipeline([CosineMajority(threshold=0.5)])
    for rows in (honest, np.concatenate([honest, strangers])):
        assert (pipeline.combination(rows, f=1).weights > 0).tolist() == [True] * 6 + [False] * (len(rows) - 6)


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize("radius", ["median", 3.0])
def test_norm_bound(radius, kind):
    for rows, f in instances(kind):
        length = median_norm(rows) if radius == "median" else radius
        expected = mean_of(rows, range(len(rows)), uniform(len(rows)), length)
        assert close(Pipeline([NormBound(radius=radius)]).aggregate(rows, f=f), expected), rows.shape


def test_they_weigh_by_samples():
    rng = np.random.default_rng(5)
    samples, rows = rng.integers(1, 100, 11), rng.standard_normal((11, 30)) + 0.3
    prior = capped_prior(samples, 11)
    two = larger(rows, "average")
    for rule, expected in [
        (QUIET, flame(rows, prior)),
        (CosineMajority(), mean_of(rows, best_bipartition(rows), prior)),
        (ClippedClustering(), mean_of(rows, two, prior, median_norm(rows))),
        (NormBound(radius=4.0), mean_of(rows, range(11), prior, 4.0)),
    ]:
        found = Pipeline([rule]).aggregate(rows, samples=samples, f=3)
        assert close(found, expected)
        assert not close(found, Pipeline([rule]).aggregate(rows, f=3))


def test_clipped_clustering_clips_to_the_norms_of_all_rounds():
    pipeline, memory, norms = Pipeline([ClippedClustering()]), Memory(), []
    for t in range(4):
        rng = np.random.default_rng(t)
        rows = (rng.standard_normal((7 + t, 20)) + 0.5) / (1 + t)  # clients come, and norms shrink
        norms += [norm(row) for row in rows]
        kept = larger(rows, "average")
        expected = mean_of(rows, kept, uniform(len(rows)), np.median(norms))
        found = pipeline.aggregate(rows, f=2, memory=memory)
        assert close(found, expected)
        if t:
            assert not close(found, mean_of(rows, kept, uniform(len(rows)), median_norm(rows)))
    Pipeline([ClippedClustering()]).run(ClearUpdates([rows]), Context(f=2, state=memory.state))
    assert np.allclose(memory.state["norms"], norms, rtol=1e-12)


def test_attackers_at_other_angles_are_left_out():
    rng = np.random.default_rng(1)
    honest = rng.standard_normal(100) + 0.5 * rng.standard_normal((7, 100))
    rows = np.concatenate([-3.0 * honest[:2], honest, np.zeros((1, 100))])
    for rule in (Flame(), CosineMajority(threshold=0.2), ClippedClustering()):
        weights = Pipeline([rule]).combination(rows, f=3).weights
        assert (weights[[0, 1]] == 0).all()
        assert (weights > 0).sum() == (6 if rule.name == "flame" else 7)


def test_noise_has_its_size_and_its_seed():
    rows = np.random.default_rng(2).standard_normal((9, 40_000)) + 0.5
    for rule, quiet, size in [
        (Flame(noise_factor=0.01), QUIET, 0.01 * median_norm(rows)),
        (Flame(), QUIET, 0.001 * median_norm(rows)),
        (NormBound(noise=0.25), NormBound(), 0.25),
    ]:
        plain, pipeline = Pipeline([quiet]).aggregate(rows, f=2), Pipeline([rule])
        first = pipeline.aggregate(rows, f=2, seed=3)
        noise = (first - plain) / size
        assert abs(noise.mean()) < 0.02
        assert noise.std() == pytest.approx(1.0, abs=0.02)
        assert np.array_equal(first, pipeline.aggregate(rows, f=2, seed=3))
        others = [pipeline.aggregate(rows, f=2, seed=4), pipeline.aggregate(rows, f=2, seed=3, memory=Memory(round=1))]
        for other in others:
            assert abs(np.corrcoef(noise, (other - plain) / size)[0, 1]) < 0.03
        result = pipeline.run(ClearUpdates([rows]), Context(f=2, generator=np.random.default_rng(0)))
        assert (result.aggregate - plain).std() == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("rule", RULES, ids=names)
def test_claims(rule):
    pipeline = Pipeline([rule])
    for n in (5, 6, 11, 12):
        rng = np.random.default_rng(n)
        rows, order = rng.standard_normal((n, 30)) + 0.4, rng.permutation(n)
        found = pipeline.aggregate(rows, f=2)
        assert close(pipeline.aggregate(rows[order], f=2), found)
        if "scaling" in rule.claims:
            assert close(pipeline.aggregate(7.5 * rows, f=2) / 7.5, found)
        if "breakdown" in rule.claims:
            for attack in (rng.standard_normal((2, 30)), np.ones((2, 30)), rows[2:4]):
                lied = np.concatenate([1e9 * attack, rows[2:]])
                assert norm(pipeline.aggregate(lied, f=2)) <= 1.1 * max(norm(row) for row in rows)


def test_a_huge_row_at_a_small_angle_carries_the_cosine_majority_away():
    rows = np.random.default_rng(0).standard_normal((9, 30)) * 0.3 + 1.0
    rows[0] *= 1e6
    assert norm(Pipeline([CosineMajority()]).aggregate(rows, f=4)) > 1e4
    assert norm(Pipeline([Clip(), CosineMajority()]).aggregate(rows, f=4)) < 10


@pytest.mark.parametrize("rule", RULES, ids=names)
def test_their_bounds(rule):
    assert resolve_f("largest", 5, rule) == 2
    with refused(message=rule.bound(6, 3), hint="largest f here: 2"):
        resolve_f(3, 6, rule)


@pytest.mark.parametrize("rule", RULES, ids=names)
def test_degenerate_rows(rule):
    rng = np.random.default_rng(0)
    pipeline = Pipeline([rule])
    row = rng.standard_normal(20)
    cases = [rng.standard_normal((n, 20)) for n in (1, 2, 3)]
    cases += [np.stack([row, -row]), np.zeros((7, 20)), np.concatenate([np.zeros((6, 20)), row[None]]), np.eye(8, 20)]
    cases += [np.outer([1, 2, 3, 1e6, 1e-6, 5], row), np.outer([1, -2, 3, -1e6, 1e-6, -5], row)]
    cases += [1e148 * rng.standard_normal((9, 20)), 1e-150 * rng.standard_normal((9, 20))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in cases:
            weights = pipeline.combination(rows, f=0).weights
            assert (weights >= 0).all()
            assert weights.sum() <= 1 + 1e-9
            assert np.isfinite(pipeline.aggregate(rows, f=0)).all()
            (step,) = pipeline.explain(rows, f=0)
            assert np.isfinite(step.scores).all()


@pytest.mark.parametrize("rule", [CosineMajority(), ClippedClustering(), Flame()], ids=names)
def test_rows_that_cannot_be_told_apart_all_count(rule):
    row, *rows = np.random.default_rng(0).standard_normal((8, 20))
    alike = [np.outer([1, 2, 3, 0.5, 1.5], row), np.eye(7, 20), np.zeros((5, 20)), np.array(rows[:2])]
    alike += [np.linalg.qr(np.transpose(rows))[0].T]  # orthogonal but for rounding
    for rows in alike:
        assert (Pipeline([rule]).combination(rows, f=0).weights > 0).all()


@pytest.mark.parametrize("rule", [CosineMajority(), ClippedClustering()], ids=names)
def test_of_two_halves_the_tighter_one_is_kept(rule):
    halves = np.repeat(np.eye(2, 60), 3, axis=0)
    looser = np.repeat([0.05, 0.01], 3)[:, None] * np.random.default_rng(0).standard_normal((6, 60))
    assert (Pipeline([rule]).combination(halves + looser, f=0).weights > 0).tolist() == [False] * 3 + [True] * 3
    assert (Pipeline([rule]).combination(halves, f=0).weights > 0).tolist() == [True] * 3 + [False] * 3


def test_a_tie_at_the_top_keeps_the_largest_cluster():
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.zeros((2, 10)), 1 + 0.2 * rng.standard_normal((3, 10))])
    for rule in (CosineMajority(), ClippedClustering()):
        for order in itertools.permutations(range(5)):
            weights = Pipeline([rule]).combination(rows[list(order)], f=0).weights
            assert ((weights > 0) == (np.array(order) >= 2)).all()


def test_average_linkage_merges_all_that_tie_at_once():
    path = 1.5 - 0.5 * (np.eye(5, k=1) + np.eye(5, k=-1)) - 1.5 * np.eye(5)
    labels, apart = average_linkage(path)
    assert (len(set(labels)), apart) == (5, 1.0)
    for seed in range(100):
        pairs, rng = 0.1 * (1 - np.eye(6)), np.random.default_rng(seed)
        across = 0.5 + rng.random(4)
        for a, b in ((0, 2), (0, 4), (2, 4)):  # the same mean, but for rounding
            pairs[a : a + 2, b : b + 2] = rng.permutation(across).reshape(2, 2)
        labels, apart = average_linkage(np.triu(pairs) + np.triu(pairs).T)
        assert labels.tolist() == [0, 0, 2, 2, 4, 4]
        assert apart == pytest.approx(across.mean())


@pytest.mark.parametrize("rule", [Flame(), CosineMajority(), CosineMajority(threshold=0.6)], ids=names)
def test_the_scores_part_what_is_kept_from_what_is_not(rule):
    for n in (5, 12, 23):
        rows = np.random.default_rng(n).standard_normal((n, 12)) + 0.5
        (step,) = Pipeline([rule]).explain(rows, f=2)
        kept = step.weights > 0
        assert 0 < kept.sum() < n
        assert step.scores[kept].max() < step.scores[~kept].min()


def test_scores_on_the_rows():
    rows = np.random.default_rng(3).standard_normal((9, 12)) + 0.5
    distances = angles(rows)
    (step,) = Pipeline([Flame()]).explain(rows, f=2)
    kept = first_majority(rows)
    assert np.allclose(step.scores, [min(distances[i, j] for j in kept if j != i) for i in range(9)])
    (step,) = Pipeline([ClippedClustering()]).explain(rows, f=2)
    kept = larger(rows, "average")
    assert np.allclose(step.scores, [np.mean([distances[i, j] for j in kept if j != i]) for i in range(9)])
    (step,) = Pipeline([NormBound()]).explain(rows, f=2)
    assert np.allclose(step.scores, [norm(row) for row in rows])


@pytest.mark.parametrize("n", [6, 7, 16, 23, 33, 50])
def test_cosine_distances(n):
    for d in (30, 700, 5000):
        rows = np.random.default_rng(n).standard_normal((n, d))
        rows[2], rows[4], rows[5] = 0.0, 3.0 * rows[3], -rows[3]
        gram = ClearUpdates([rows]).gram()
        before, found = gram.matrix.copy(), cosine_distances(gram)
        Flame().combine(gram, Context(f=1))
        assert (gram.matrix == before).all()
        assert np.allclose(found, angles(rows), rtol=1e-11, atol=1e-14)
        assert (found == found.T).all()
        assert (np.delete(found[2], 2) == 1.0).all()  # though the Gram may hold rounding there
        assert found[3, 4] == found[2, 2] == 0.0
