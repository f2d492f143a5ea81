"""Order statistics, and the rules made of them, against formulas written on the rows in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused

from fedrobust.aggregation import (
    NNM,
    RLR,
    Bulyan,
    Context,
    MeaMed,
    Median,
    Pipeline,
    SignVote,
    TrimmedMean,
    capped_prior,
    resolve_f,
)
from fedrobust.aggregation.rules.order_statistics import in_order, mean_around_median, select
from fedrobust.aggregation.testing import INSTANCES
from fedrobust.updates import ClearUpdates
from fedrobust.updates.interface import CHUNK_BYTES


def digits(value):
    """As many as two ways of computing have in common."""
    return float(f"{value:.10e}")


def around_median(column, keep):
    middle = np.median(column)
    return np.mean(sorted(column, key=lambda value: (digits(abs(value - middle)), value))[:keep])


def meamed(rows, f, prior):
    return np.array([around_median(column, len(rows) - f) for column in rows.T])


def krum_scores(rows, f):
    n = len(rows)
    found = []
    for i in range(n):
        others = sorted(((rows[i] - rows[j]) ** 2).sum() for j in range(n) if j != i)
        found.append(sum(others[: max(0, n - f - 2)]))
    return found


def bulyan(rows, f, prior):
    first, left, picked = krum_scores(rows, f), list(range(len(rows))), []
    while len(picked) < len(rows) - 2 * f:
        scores = krum_scores(rows[left], f)
        at = min(range(len(left)), key=lambda k: (digits(scores[k]), digits(first[left[k]]), left[k]))
        picked.append(left.pop(at))
    return np.array([around_median(column, len(rows) - 4 * f) for column in rows[picked].T])


def sign_vote(rows, f, prior, step=None):
    step = np.median([np.abs(row).mean() for row in rows]) if step is None else step
    return step * np.sign(sum(np.sign(row) for row in rows))


def rlr(rows, f, prior, threshold=None):
    mean = sum(p * row for p, row in zip(prior, rows, strict=True))
    votes = np.abs(sum(np.sign(row) for row in rows))
    return np.where(votes >= (f + 1 if threshold is None else threshold), mean, -mean)


RULES = {
    "median": (Median(), lambda u, f, p: np.median(u, axis=0)),
    "trimmed_mean": (TrimmedMean(), lambda u, f, p: np.sort(u, axis=0)[f : len(u) - f].mean(axis=0)),
    "meamed": (MeaMed(), meamed),
    "bulyan": (Bulyan(), bulyan),
    "sign_vote": (SignVote(), sign_vote),
    "sign_vote, fixed": (SignVote(step=0.01), lambda u, f, p: sign_vote(u, f, p, step=0.01)),
    "rlr": (RLR(), rlr),
    "rlr of 3": (RLR(threshold=3), lambda u, f, p: rlr(u, f, p, threshold=3)),
}
SHAPES = [(3, 1, 0), (4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 700, 2), (23, 17, 10), (31, 60, 5), (40, 30, 19)]


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize("name", RULES)
def test_follows_its_formula(name, kind):
    rule, reference = RULES[name]
    for n, d, most in SHAPES:
        f = min(most, resolve_f("largest", n, rule))
        rows = INSTANCES[kind](np.random.default_rng(n), n, d, f)
        found, expected = Pipeline([rule]).aggregate(rows, f=f), reference(rows, f, np.full(n, 1 / n))
        assert np.abs(found - expected).max() <= 1e-8 * max(1.0, np.abs(expected).max()), (n, d, f)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 70), seed=st.integers(0, 2**16), data=st.data())
def test_any_ranks(n, seed, data):
    ranks = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    rows = np.random.default_rng(seed).integers(-4, 5, (n, 33)).astype(dtype)
    before = rows.copy()
    assert np.array_equal(select(rows, ranks), np.sort(rows, axis=0)[ranks])
    assert np.array_equal(in_order(rows), np.sort(rows, axis=0))
    assert np.array_equal(rows, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sorts_alike():
    rows = torch.randn(20, 3000)
    assert np.array_equal(in_order(rows.cuda()).cpu().numpy(), in_order(rows.numpy()))


@settings(max_examples=100, deadline=None)
@given(m=st.integers(1, 40), seed=st.integers(0, 2**16), data=st.data())
def test_the_values_nearest_to_the_median(m, seed, data):
    keep = data.draw(st.integers(1, m))
    rows = np.random.default_rng(seed).integers(-9, 10, (m, 40)).astype(np.float64)
    expected = [around_median(column, keep) for column in rows.T]
    assert np.allclose(mean_around_median(rows, keep), expected, rtol=0, atol=1e-12)


def test_of_two_values_as_far_from_the_median_the_lower_is_kept():
    rows = np.array([[0.0, 5.1], [1.0, 5.3], [2.0, 5.2]])  # 5.3 − 5.2 and 5.2 − 5.1 differ in the last digits
    for flipped in (rows, rows[::-1]):
        assert np.allclose(Pipeline([MeaMed()]).aggregate(flipped, f=1), [0.5, 5.15], rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 31])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_median_and_trimmed_mean(n, dtype):
    rows = np.random.default_rng(n).standard_normal((n, 1000)).astype(dtype)
    assert np.array_equal(
        Pipeline([Median()]).aggregate(rows), np.median(rows.astype(np.float64), axis=0).astype(dtype)
    )
    for f in range((n + 1) // 2):
        expected = np.sort(rows.astype(np.float64), axis=0)[f : n - f].mean(axis=0)
        assert np.allclose(
            Pipeline([TrimmedMean()]).aggregate(rows, f=f), expected, rtol=0, atol=np.finfo(dtype).eps * 4
        )


@pytest.mark.parametrize("n", range(1, 60))
def test_what_fedrdf_takes_of_sorted_values_is_their_median(n):
    """As docs/aggregation.md says of a public strategy of this name."""
    values = np.sort(np.random.default_rng(n).standard_cauchy(n))
    middle = int(np.argmax(np.abs(np.fft.fftfreq(n))))
    assert middle == n // 2
    if n % 2:
        assert values[middle] == Pipeline([Median()]).aggregate(values[:, None])[0]


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "meamed", "bulyan"])
@pytest.mark.parametrize("n", [11, 31])
def test_rows_of_the_largest_size_do_not_wash_out_the_middle(name, n):
    rows = np.random.default_rng(0).standard_normal((n, 100)).astype(np.float32)
    rows[0], rows[-1] = np.float32(3e38), np.float32(-3e38)
    rule, reference = RULES[name]
    expected = reference(rows.astype(np.float64), 2, None)
    assert np.allclose(Pipeline([rule]).aggregate(rows, f=2), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [9, 27])
@pytest.mark.parametrize("rule", [rule for rule, _ in RULES.values()], ids=RULES)
def test_chunks_do_not_change_a_bit(rule, n, monkeypatch):
    rows = np.random.default_rng(1).standard_normal((n, 1111)).astype(np.float32)
    expected = Pipeline([rule]).aggregate(rows, f=1)
    mixed = Pipeline([NNM(), rule]).aggregate(rows, f=1)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 1)
    assert np.array_equal(Pipeline([rule]).aggregate(rows, f=1), expected)
    assert np.allclose(Pipeline([NNM(), rule]).aggregate(rows, f=1), mixed, rtol=0, atol=1e-6)


def test_hundreds_of_rows():
    rows = np.random.default_rng(2).standard_normal((300, 50))
    for name in ("median", "trimmed_mean", "meamed"):
        rule, reference = RULES[name]
        assert np.allclose(Pipeline([rule]).aggregate(rows, f=60), reference(rows, 60, None), rtol=0, atol=1e-12)
    assert np.abs(Pipeline([Bulyan()]).aggregate(rows, f=60)).max() < 1


@pytest.mark.parametrize("n", [7, 11, 12])
def test_bulyan_does_not_look_at_the_order_of_the_rows(n):
    """The last picks of a small f leave one neighbour to count, or none: the rows then tie."""
    rng = np.random.default_rng(n)
    for f in range((n - 3) // 4 + 1):
        for _ in range(20):
            rows = rng.standard_normal((n, 30))
            found, other = (Pipeline([Bulyan()]).aggregate(u, f=f) for u in (rows, rng.permutation(rows)))
            assert np.allclose(found, other, rtol=0, atol=1e-12)


def test_bulyan_shows_the_scores_of_krum():
    rows = np.random.default_rng(3).standard_normal((11, 40))
    step = Pipeline([Bulyan()]).explain(rows, f=2)[-1]
    assert np.allclose(step.scores, krum_scores(rows, 2))
    assert step.weights is None


def test_bulyan_leaves_out_what_krum_lets_in():
    """A row that is near in all coordinates but one is Krum's choice; the mean around the median drops that one."""
    rows = 0.1 * np.random.default_rng(4).standard_normal((11, 4000))
    rows[:2] = 0.0
    rows[:2, 0] = 5.0
    assert krum_scores(rows, 2)[0] < min(krum_scores(rows, 2)[2:])
    assert abs(Pipeline([Bulyan()]).aggregate(rows, f=2)[0]) < 0.2


def test_a_vote():
    rows = np.array([[1.0, -5.0, 0.0, 2.0], [-2.0, -1.0, 0.0, 0.0], [3.0, 9.0, 0.0, -1.0]])
    assert np.array_equal(Pipeline([SignVote(step=0.5)]).aggregate(rows, f=0), [0.5, -0.5, 0, 0])
    assert np.array_equal(Pipeline([SignVote()]).aggregate(rows, f=0), [2, -2, 0, 0])  # means 2, 0.75, 3.25
    assert np.array_equal(Pipeline([SignVote()]).aggregate(-4 * rows, f=0), [-8, 8, 0, 0])


def test_where_few_agree_the_mean_is_turned():
    rows = np.array([[1.0, 1.0, 1.0, 1.0]] * 3 + [[1.0, 1.0, -1.0, 0.0]] * 2 + [[1.0, -9.0, -1.0, 0.0]] * 2)
    expected = rows.mean(axis=0) * [1, 1, -1, 1]  # votes 7, 3, 1, 3
    assert np.allclose(Pipeline([RLR()]).aggregate(rows, f=2), expected)
    assert np.allclose(Pipeline([RLR(threshold=4)]).aggregate(rows, f=1), expected * [1, -1, 1, -1])
    assert np.allclose(Pipeline([RLR(threshold=1)]).aggregate(rows, f=0), expected * [1, 1, -1, 1])


def test_rlr_weighs_the_mean_and_counts_the_votes():
    rng = np.random.default_rng(5)
    rows, samples = rng.standard_normal((11, 300)), rng.integers(1, 100, 11)
    expected = rlr(rows, 3, capped_prior(samples, 11))
    assert np.allclose(Pipeline([RLR()]).aggregate(rows, samples=samples, f=3), expected, rtol=0, atol=1e-12)
    assert not np.allclose(expected, rlr(rows, 3, np.full(11, 1 / 11)))
    gram = ClearUpdates([rows]).gram().weighted(samples.astype(float))
    result = Pipeline([RLR()]).run(ClearUpdates([rows]), Context(f=3), gram)
    assert np.allclose(result.aggregate, rlr(rows, 3, samples / samples.sum()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(), MeaMed(), Bulyan(), SignVote()], ids=lambda rule: rule.name)
def test_the_others_only_count(rule):
    with refused(path="samples", says=rule.name):
        Pipeline([rule]).aggregate(np.ones((11, 2)), samples=np.arange(1, 12), f=0)


@pytest.mark.parametrize(
    ("rule", "n", "f", "message"),
    [
        (Median(), 4, 2, "median needs n ≥ 2f + 1: n = 4, f = 2"),
        (TrimmedMean(), 6, 3, "trimmed_mean needs n ≥ 2f + 1: n = 6, f = 3"),
        (MeaMed(), 6, 3, "meamed needs n ≥ 2f + 1: n = 6, f = 3"),
        (Bulyan(), 10, 2, "bulyan needs n ≥ 4f + 3: n = 10, f = 2"),
        (SignVote(), 2, 1, "sign_vote needs n ≥ 2f + 1: n = 2, f = 1"),
        (RLR(), 6, 2, "rlr needs n ≥ 3f + 1: n = 6, f = 2"),
        (RLR(threshold=4), 11, 4, "rlr needs f < threshold ≤ n − 2f: threshold = 4, n = 11, f = 4"),
        (RLR(threshold=4), 7, 2, "rlr needs f < threshold ≤ n − 2f: threshold = 4, n = 7, f = 2"),
    ],
)
def test_bounds(rule, n, f, message):
    assert rule.bound(n, f) == message
    assert rule.bound(n + 5, f - 1) is None
    assert rule.bound(1, 0) is None or rule in (Bulyan(), RLR(threshold=4))


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES.values()], ids=RULES)
@pytest.mark.filterwarnings("error")
def test_degenerate_rows(rule):
    for n in (1, 2, 3, 7, 26):
        if rule.bound(n, 0):
            continue
        for rows in (np.zeros((n, 3)), np.full((n, 3), 1e12), np.full((n, 3), -1e-300)):
            found = Pipeline([rule]).aggregate(rows)
            assert np.isfinite(found).all()
            if rule.name not in ("sign_vote", "rlr"):
                assert np.allclose(found, rows[0], rtol=1e-12, atol=0)
