"""Each stage against its paper's formula, written on the rows in float64, and what follows a stage that merges rows."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal

import numpy as np
import pytest
from refused import refused

from fedrobust.aggregation import (
    ARC,
    NNM,
    Aggregation,
    Bucketing,
    Clip,
    Combination,
    Context,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    Memory,
    Pipeline,
    Rule,
    TrimmedMean,
    capped_prior,
    resolve_f,
)
from fedrobust.aggregation.testing import INSTANCES
from fedrobust.seeds import generator
from fedrobust.updates import ClearUpdates


def norm(row):
    return np.sqrt((row**2).sum())


def clipped(rows, radius):
    return np.array([row * min(1.0, radius / norm(row)) if norm(row) > 0 else row for row in rows])


def arc(rows, f, draw):
    n = len(rows)
    k = int(np.floor(2 * f / n * (n - f) + 1e-9))
    return clipped(rows, sorted((norm(row) for row in rows), reverse=True)[k])


def nearest(rows, row, count):
    """Of equal distances (to 12 digits) the lower index."""
    distances = [((row - other) ** 2).sum() for other in rows]
    return sorted(range(len(rows)), key=lambda j: (float(f"{distances[j]:.11e}"), j))[:count]


def nnm(rows, f, draw):
    return np.array([rows[nearest(rows, row, len(rows) - f)].mean(axis=0) for row in rows])


def buckets(rows, f, draw, s=2, prior=None):
    order, prior = list(draw.permutation(len(rows))), np.ones(len(rows)) if prior is None else prior
    means = []
    while order:
        members, order = order[:s], order[s:]
        means.append(sum(prior[i] * rows[i] for i in members) / sum(prior[i] for i in members))
    return np.array(means)


STAGES = {
    "clip": (Clip(), lambda u, f, draw: clipped(u, np.median([norm(row) for row in u]))),
    "clip to 2": (Clip(radius=2.0), lambda u, f, draw: clipped(u, 2.0)),
    "clip to a quantile": (
        Clip(radius="quantile", quantile=0.8),
        lambda u, f, draw: clipped(u, np.quantile([norm(row) for row in u], 0.8)),
    ),
    "arc": (ARC(), arc),
    "nnm": (NNM(), nnm),
    "bucketing": (Bucketing(), buckets),
    "bucketing of 3": (Bucketing(s=3), lambda u, f, draw: buckets(u, f, draw, s=3)),
    "bucketing of all": (Bucketing(s=99), lambda u, f, draw: buckets(u, f, draw, s=99)),
}
SHAPES = [(3, 1, 0), (4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 700, 2), (23, 17, 10)]


def drawn(round=0):
    return generator(0, "aggregation", round)


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize("name", STAGES)
def test_follows_its_formula(name, kind):
    stage, reference = STAGES[name]
    for n, d, most in SHAPES:
        f = min(most, resolve_f("largest", n, Mean(), [stage]))
        rows = INSTANCES[kind](np.random.default_rng(n), n, d, f)
        mixing = stage.mix(ClearUpdates([rows]).gram(), Context(f, generator=drawn()))
        found, expected = mixing @ rows, reference(rows, f, drawn())
        assert found.shape == expected.shape == (stage.rows(n), d)
        assert np.abs(found - expected).max() <= 1e-8 * max(1.0, np.abs(expected).max()), (n, d, f)


@pytest.mark.parametrize("name", STAGES)
def test_rules_get_the_rows_that_it_makes(name):
    stage, reference = STAGES[name]
    rows = np.random.default_rng(1).standard_normal((13, 50)) * np.arange(1, 14)[:, None]
    f = min(2, resolve_f("largest", 13, Mean(), [stage]))
    mixed = reference(rows, f, drawn())
    assert np.allclose(Pipeline([stage, Median()]).aggregate(rows, f=f), np.median(mixed, axis=0), rtol=0, atol=1e-9)
    expected = np.sort(mixed, axis=0)[f : len(mixed) - f].mean(axis=0)
    assert np.allclose(Pipeline([stage, TrimmedMean()]).aggregate(rows, f=f), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("n", "f", "k"), [(10, 0, 0), (10, 1, 1), (10, 2, 3), (10, 4, 4), (3, 1, 1), (25, 5, 8), (9, 3, 4)]
)
def test_arc_clips_so_many(n, f, k):
    rows = np.diag(np.arange(1.0, n + 1))
    norms = np.diag(ARC().mix(ClearUpdates([rows]).gram(), Context(f)) @ rows)
    assert np.allclose(norms, np.minimum(np.arange(1, n + 1), n - k), rtol=1e-12)


def test_arc_bounds_every_row_by_an_honest_one():
    rows = np.random.default_rng(2).standard_normal((11, 30))
    largest = max(norm(row) for row in rows[5:])
    rows[:5] *= 1e12
    found = Pipeline([ARC(), Mean()]).aggregate(rows, f=5)
    assert norm(found) <= largest


@pytest.mark.parametrize("stage", [stage for stage, _ in STAGES.values()], ids=STAGES)
@pytest.mark.filterwarnings("error")
def test_degenerate_rows(stage):
    for n in (1, 2, 3, 8):
        for f in range(resolve_f("largest", n, Mean(), [stage]) + 1):
            for rows in (np.zeros((n, 3)), np.full((n, 3), 1e12), np.eye(n, 3)):
                step, _ = Pipeline([stage, Mean()]).explain(rows, f=f)
                found = Pipeline([stage, Median()]).aggregate(rows, f=f)
                assert np.isfinite(found).all()
                assert step.weights is not None
                assert np.isfinite(step.weights).all()


def test_what_the_stages_judge_by():
    rows = np.random.default_rng(3).standard_normal((9, 40)) * np.arange(1, 10)[:, None]
    for stage in (Clip(), Clip(radius=2.0), ARC()):
        step, _ = Pipeline([stage, Mean()]).explain(rows, f=2)
        assert np.allclose(step.scores, [norm(row) for row in rows])
    step, _ = Pipeline([NNM(), Mean()]).explain(rows, f=2)
    among = [nearest(rows, row, 7) for row in rows]
    assert np.allclose(
        step.scores, [((rows[at] - row) ** 2).sum(axis=1).mean() for row, at in zip(rows, among, strict=True)]
    )
    assert Pipeline([Bucketing(), Mean()]).explain(rows, f=2)[0].scores is None


def test_a_radius_or_a_quantile():
    read = Aggregation.model_validate({"stages": [{"name": "clip", "radius": "quantile", "quantile": 0.9}]})
    assert read.stages == (Clip(radius="quantile", quantile=0.9),)
    assert Aggregation.model_validate(read.model_dump(serialize_as_any=True)) == read
    rows = np.random.default_rng(4).standard_normal((8, 20))
    gram = ClearUpdates([rows]).gram()
    half = Clip(radius="quantile", quantile=0.5).mix(gram, Context(0))
    assert np.allclose(half, Clip().mix(gram, Context(0)), rtol=1e-14)
    assert np.array_equal(Clip(radius="quantile", quantile=1.0).mix(gram, Context(0)), np.eye(8))
    for wrong in ({"quantile": 0.9}, {"radius": "quantile"}, {"radius": 2.0, "quantile": 0.9}):
        with refused(path="quantile", says="radius"):
            Clip(**wrong)
    for wrong in (0.0, 1.5):
        with refused(path="quantile", found=str(wrong)):
            Clip(radius="quantile", quantile=wrong)


@pytest.mark.parametrize(("n", "s"), [(6, 2), (7, 2), (11, 3), (4, 5), (5, 1)])
def test_each_row_is_in_one_bucket(n, s):
    gram = ClearUpdates([np.random.default_rng(n).standard_normal((n, 8))]).gram()
    for round in range(20):
        mixing = Bucketing(s=s).mix(gram, Context(0, generator=drawn(round)))
        assert ((mixing > 0).sum(axis=0) == 1).all()
        sizes = (mixing > 0).sum(axis=1)
        assert (sizes[:-1] == s).all()
        assert sizes[-1] == n - s * (len(sizes) - 1)
        assert np.allclose(mixing.sum(axis=1), 1.0, rtol=0, atol=1e-15)


def test_buckets_are_drawn_anew_in_each_round_and_alike_for_a_seed():
    rows, pipeline = np.random.default_rng(5).standard_normal((12, 30)), Pipeline([Bucketing(), Median()])
    memory, rounds = Memory(), []
    for _ in range(4):
        rounds.append(pipeline.aggregate(rows, memory=memory))
    assert len({found.tobytes() for found in rounds}) == 4
    assert np.array_equal(rounds[0], pipeline.aggregate(rows))
    assert np.array_equal(rounds[2], pipeline.aggregate(rows, memory=Memory(round=2)))
    assert not np.array_equal(rounds[0], pipeline.aggregate(rows, seed=1))


def test_every_two_rows_meet_as_often():
    gram, draw, meetings = ClearUpdates([np.eye(6)]).gram(), np.random.default_rng(6), Counter()
    rounds = 5000
    for _ in range(rounds):
        mixing = Bucketing().mix(gram, Context(0, generator=draw))
        meetings.update(tuple(np.flatnonzero(bucket)) for bucket in mixing)
    assert len(meetings) == 15
    expected, spread = rounds / 5, np.sqrt(rounds / 5 * 4 / 5)
    assert all(abs(count - expected) < 4.5 * spread for count in meetings.values())


def test_bucketing_leaves_the_weighted_mean_as_it_is():
    rng = np.random.default_rng(7)
    rows, samples = rng.standard_normal((11, 30)), rng.integers(1, 100, 11)
    prior = capped_prior(samples, 11)
    for s in (1, 2, 3, 11):
        pipeline = Pipeline([Bucketing(s=s), Mean()])
        assert np.allclose(pipeline.combination(rows, samples=samples).weights, prior, rtol=1e-12)
        step, _ = pipeline.explain(rows, samples=samples)
        assert np.allclose(step.weights, prior, rtol=1e-12)


def test_buckets_weigh_what_their_members_weigh():
    rng = np.random.default_rng(8)
    rows, samples = rng.standard_normal((11, 30)), rng.integers(1, 100, 11)
    prior = capped_prior(samples, 11)
    gram = ClearUpdates([rows], prior=prior).gram()
    mixing = Bucketing(s=3).mix(gram, Context(1, generator=drawn()))
    order = drawn().permutation(11)
    sums = [sum(prior[i] for i in order[start : start + 3]) for start in range(0, 11, 3)]
    assert np.allclose(gram.mixed(mixing).prior, sums, rtol=1e-12)
    means = buckets(rows, 1, drawn(), s=3, prior=prior)
    assert np.allclose(mixing @ rows, means, rtol=0, atol=1e-12)
    found = Pipeline([Bucketing(s=3), GeometricMedian()]).aggregate(rows, samples=samples, f=1)
    gradient = sum(p * (found - row) / norm(found - row) for p, row in zip(sums, means, strict=True))
    assert norm(gradient) < 1e-6


def test_stages_after_bucketing_see_its_rows():
    rows = np.random.default_rng(9).standard_normal((14, 30)) * np.arange(1, 15)[:, None]
    found = Pipeline([ARC(), Bucketing(), NNM(), ARC(), Krum()]).aggregate(rows, f=2)
    seven = arc(nnm(buckets(arc(rows, 2, None), 2, drawn()), 2, None), 2, None)
    assert seven.shape == (7, 30)
    scores = [sum(sorted(((row - other) ** 2).sum() for other in seven)[1:4]) for row in seven]
    assert np.allclose(found, seven[int(np.argmin(scores))], rtol=0, atol=1e-9)
    steps = Pipeline([ARC(), Bucketing(), NNM(), ARC(), Krum()]).explain(rows, f=2)
    for step in steps:
        assert step.scores is None or (step.scores.shape == (14,) and np.isfinite(step.scores).all())
        assert step.weights.shape == (14,)
    order = drawn().permutation(14)
    by_bucket = steps[2].scores[order].reshape(7, 2)
    assert np.allclose(by_bucket[:, 0], by_bucket[:, 1], rtol=1e-12)
    assert len(np.unique(by_bucket[:, 0])) == 7


@pytest.mark.parametrize(
    ("stage", "rule", "n", "largest"),
    [
        (Bucketing(), Mean(), 10, 2),
        (Bucketing(), Krum(), 10, 1),
        (Bucketing(), Krum(), 13, 2),
        (Bucketing(s=3), Median(), 10, 1),
        (Bucketing(s=1), Median(), 10, 4),
        (Bucketing(s=4), Median(), 4, 0),
        (ARC(), Mean(), 10, 4),
    ],
)
def test_the_rule_must_allow_f_of_the_rows_that_are_left(stage, rule, n, largest):
    assert resolve_f("largest", n, rule, [stage]) == largest
    with refused(hint=f"largest f here: {largest}"):
        Pipeline([stage, rule]).aggregate(np.ones((n, 2)), f=largest + 1)


def test_bounds():
    assert Bucketing(s=3).bound(12, 2) == "bucketing needs ⌈n / s⌉ ≥ 2f + 1: n = 12, s = 3, f = 2"
    assert Bucketing(s=3).bound(13, 2) is None
    assert ARC().bound(4, 2) == "arc needs n ≥ 2f + 1: n = 4, f = 2"
    with refused(message=Krum().bound(6, 2)):
        Pipeline([Bucketing(), Krum()]).aggregate(np.ones((12, 2)), f=2)


class Remembering(Rule):
    """A rule with a memory of clients."""

    name: Literal["remembering"] = "remembering"
    per_client: ClassVar[bool] = True

    def combine(self, gram, context):
        return Combination(gram.prior)


def test_a_bucket_is_no_client():
    with refused(says="bucketing"):
        Pipeline([NNM(), Bucketing(), Remembering()])
    Pipeline([NNM(), ARC(), Remembering()])
