"""SMEA, CAF and DnC against their papers' formulas on the rows; SMEA's search against trying all subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from refused import refused

from fedrobust.aggregation import CAF, SMEA, Context, DnC, Gram, Pipeline, capped_prior
from fedrobust.aggregation.rules.least_scatter import least_scatter, top_eigenvalues
from fedrobust.aggregation.testing import INSTANCES, check_rule
from fedrobust.updates import ClearUpdates

SHAPES = [(3, 1, 0), (4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 700, 2), (11, 17, 5)]


def digits(value):
    """To 12 digits: what differs by rounding alone is equal."""
    return float(f"{value:.11e}")


def mean(rows, chosen, prior):
    return sum(prior[i] * rows[i] for i in chosen) / sum(prior[i] for i in chosen)


def directions(rows, weights):
    """The mean, the top eigenvalue of the covariance, and the squared parts of the rows along its eigenvectors."""
    centre = weights @ rows / weights.sum()
    roots = np.sqrt(weights / weights.sum())[:, None] * (rows - centre)
    _, singular, right = np.linalg.svd(roots, full_matrices=False)
    top = right[singular >= singular[0] * (1 - 1e-9)]
    return centre, singular[0] ** 2, (((rows - centre) @ top.T) ** 2).sum(axis=1)


def smea(rows, f, prior):
    best, least = None, np.inf
    for subset in itertools.combinations(range(len(rows)), len(rows) - f):
        chosen = rows[list(subset)]
        value = digits(np.linalg.norm(chosen - chosen.mean(axis=0), 2) ** 2)
        if value < least * (1 - 1e-12):
            best, least = subset, value
    return mean(rows, best, prior)


def caf(rows, f, prior):
    counts, found = np.ones(len(rows)), []
    while counts.sum() > len(rows) - 2 * f or not found:
        left = counts > 0
        _, value, tau = directions(rows[left], counts[left])
        found.append((digits(value), len(found), counts.copy()))
        if tau.max() <= 1e-25 * np.abs(rows).max() ** 2:
            break
        shares = np.array([1.0 if ratio > 1 - 1e-12 else ratio for ratio in tau / tau.max()])
        counts[left] *= 1 - shares
    counts = min(found)[2]
    return (prior * counts) @ rows / (prior @ counts)


def dnc(rows, f, prior, c=1.0):
    _, _, tau = directions(rows, np.ones(len(rows)))
    order = sorted(range(len(rows)), key=lambda i: (digits(tau[i]), i))
    return mean(rows, order[: len(rows) - math.ceil(c * f - 1e-9)], prior)


RULES = {
    "smea": (SMEA(), smea),
    "caf": (CAF(), caf),
    "dnc": (DnC(), dnc),
    "dnc, half": (DnC(c=0.5), lambda u, f, p: dnc(u, f, p, c=0.5)),
    "dnc, more": (DnC(c=1.4), lambda u, f, p: dnc(u, f, p, c=1.4)),
}


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize("name", RULES)
def test_follows_its_formula(name, kind):
    rule, reference = RULES[name]
    for n, d, f in SHAPES:
        rows = INSTANCES[kind](np.random.default_rng(n), n, d, f)
        found = Pipeline([rule]).aggregate(rows, f=f)
        expected = reference(rows, f, np.full(n, 1 / n))
        assert np.abs(found - expected).max() <= 1e-8 * max(1.0, np.abs(expected).max()), (n, d, f)


@pytest.mark.parametrize("name", RULES)
def test_weighs_by_samples(name):
    rule, reference = RULES[name]
    rng = np.random.default_rng(5)
    samples, rows = rng.integers(1, 100, 11), rng.standard_normal((11, 30))
    expected = reference(rows, 3, capped_prior(samples, 11))
    assert np.allclose(Pipeline([rule]).aggregate(rows, samples=samples, f=3), expected, rtol=0, atol=1e-8)
    assert not np.allclose(expected, reference(rows, 3, np.full(11, 1 / 11)))


@pytest.mark.parametrize("rule", [DnC(c=0.5), DnC(c=1.4)], ids=str)
def test_keeps_its_word(rule):
    check_rule(rule)


@pytest.mark.parametrize("rule", [SMEA(), CAF(), DnC()])
def test_bounds(rule):
    with refused(message=rule.bound(6, 3), hint="largest f here: 2"):
        Pipeline([rule]).aggregate(np.eye(6), f=3)


def test_dnc_leaves_a_row():
    assert np.isfinite(Pipeline([DnC(c=2.4)]).aggregate(np.eye(5), f=1)).all()
    with refused(message=DnC(c=2.4).bound(5, 2), hint="largest f here: 1"):
        Pipeline([DnC(c=2.4)]).aggregate(np.eye(5), f=2)


def test_dnc_drops_as_many_rows_as_it_says():
    rows = np.random.default_rng(0).standard_normal((60, 90))
    for c, dropped in [(1.0, 10), (1.1, 11), (1.11, 12), (0.01, 1)]:
        weights = DnC(c=c).combine(ClearUpdates([rows]).gram(), Context(f=10)).weights
        assert np.count_nonzero(weights == 0) == dropped


def test_caf_without_byzantine_rows_is_the_mean():
    rows = np.random.default_rng(1).standard_normal((8, 20))
    assert np.allclose(Pipeline([CAF()]).aggregate(rows, f=0), rows.mean(axis=0), rtol=0, atol=1e-12)


def test_caf_ends_with_huge_rows_one_after_the_other():
    rows = np.random.default_rng(2).standard_normal((11, 30))
    rows[:5] *= 10.0 ** np.arange(4, 14, 2)[:, None]
    scores = CAF().scores(ClearUpdates([rows]).gram(), Context(f=5))
    assert (scores[:5] == 1.0).all()
    assert np.abs(Pipeline([CAF()]).aggregate(rows, f=5)).max() < 4


@pytest.mark.parametrize("rule", [CAF(), DnC()])
def test_equal_top_eigenvalues_do_not_depend_on_the_order_of_the_rows(rule):
    """Orthogonal rows of two lengths: any vector between the long ones is a top eigenvector."""
    rows = np.diag([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 1.0])
    weights = rule.combine(ClearUpdates([rows]).gram(), Context(f=3)).weights
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(9)
        moved = rule.combine(ClearUpdates([rows[order]]).gram(), Context(f=3)).weights
        assert np.allclose(moved, weights[order], rtol=0, atol=1e-12)
    assert (weights[[1, 3, 5]] == 0).all()


def test_scores_tell_the_dropped_rows():
    rows = np.random.default_rng(3).standard_normal((12, 30))
    rows[[2, 7, 9]] += 3.0
    gram = ClearUpdates([rows]).gram()
    for rule in (SMEA(), DnC(), CAF()):
        scores = rule.scores(gram, Context(f=3))
        assert sorted(np.argsort(scores)[-3:]) == [2, 7, 9]
        assert sorted(np.argsort(rule.combine(gram, Context(f=3)).weights)[:3]) == [2, 7, 9]


@pytest.mark.parametrize("rule", [SMEA(), CAF(), DnC()])
@pytest.mark.parametrize("size", [1e-160, 1e145])
def test_the_unit_of_the_rows_plays_no_part(rule, size):
    rows = np.random.default_rng(4).standard_normal((9, 20))
    expected = rule.combine(ClearUpdates([rows]).gram(), Context(f=3)).weights
    found = rule.combine(ClearUpdates([size * rows]).gram(), Context(f=3)).weights
    assert np.allclose(found, expected, rtol=0, atol=1e-3 if size < 1 else 1e-9)


# The search of SMEA


def distances_of(rows):
    """From differences, so that huge rows do not cost the others their digits."""
    return np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])


def all_values(distances, f):
    n = len(distances)
    subsets = np.array(list(itertools.combinations(range(n), n - f)))
    return subsets, top_eigenvalues(distances, subsets)


def search(distances, f, nodes=100_000):
    chosen, exact = least_scatter(distances.tobytes(), len(distances), f, nodes)
    return list(chosen), float(top_eigenvalues(distances, np.array([chosen]))[0]), exact


def random_rows(rng, place, n):
    f, rows = (n - 1) // 2, rng.standard_normal((n, int(rng.integers(1, 15))))
    kind = place % 7
    if kind == 1:
        rows = np.round(rows)  # many subsets with equal eigenvalues
    if kind == 2:
        rows[n - f :] = rows[n - f - 1]
    if kind == 3:
        rows[: f + 1] = 0.0
    if kind == 4:
        rows[:f] *= 10.0 ** rng.integers(1, 13, (f, 1))
    if kind == 5:
        rows = np.diag(rng.integers(1, 4, n).astype(float))
    if kind == 6:
        rows[: f // 2], rows[f // 2 : f] = 1.0, -1.0
    return rows


@pytest.mark.parametrize("n", range(1, 12))
def test_the_search_finds_the_first_of_all_subsets_of_least_eigenvalue(n):
    rng = np.random.default_rng(n)
    for place in range(28):
        distances = distances_of(random_rows(rng, place, n))
        for f in range((n + 1) // 2):
            subsets, values = all_values(distances, f)
            first = subsets[np.flatnonzero(values <= values.min() * (1 + 1e-12))[0]]
            chosen, value, exact = search(distances, f)
            assert exact
            assert value <= values.min() * (1 + 1e-12), (place, f)
            assert chosen == first.tolist(), (place, f)


@pytest.mark.parametrize(("n", "f", "d"), [(14, 6, 3), (14, 6, 400), (16, 7, 20), (16, 4, 5000)])
def test_the_search_is_exact_where_the_tree_is_deep(n, f, d):
    for seed in range(3):
        rows = np.random.default_rng([seed, n]).standard_normal((n, d))
        distances = distances_of(rows)
        subsets, values = all_values(distances, f)
        chosen, _, exact = search(distances, f)
        assert exact
        assert chosen == subsets[values.argmin()].tolist()


def test_the_search_ends_where_more_subsets_tie_than_it_may_look_at():
    chosen, value, exact = search(distances_of(np.eye(24)), 11, nodes=4000)
    assert exact
    assert value == pytest.approx(1.0)
    assert len(chosen) == 13


@pytest.mark.parametrize(("n", "f"), [(20, 4), (20, 9)])
def test_typical_rows_are_searched_to_the_end(n, f):
    for seed in range(4):
        rows = np.random.default_rng(seed).standard_normal((n, 20_000))
        assert not SMEA(nodes=20_000).combine(ClearUpdates([rows]).gram(), Context(f=f)).notes
        if f == 4:
            assert not SMEA().combine(ClearUpdates([rows]).gram(), Context(f=f)).notes


def test_a_search_that_is_cut_short_says_so_and_is_close():
    exact, rows = SMEA(nodes=100_000), np.random.default_rng(0).standard_normal((20, 100))
    gram, context = ClearUpdates([rows]).gram(), Context(f=9)
    short, best = SMEA(nodes=0).combine(gram, context), exact.combine(gram, context)
    assert short.notes == ("smea: n = 20, f = 9: search cut short, best subset found",)
    assert not best.notes
    subsets = [np.flatnonzero(result.weights) for result in (short, best)]
    least, greatest = sorted(top_eigenvalues(gram.distances_squared(), np.array(subsets)))
    assert least <= greatest <= 1.05 * least


def test_large_federations_are_no_trouble():
    rows = np.random.default_rng(1).standard_normal((100, 300))
    rows[:33] += 0.5
    result = SMEA().combine(ClearUpdates([rows]).gram(), Context(f=33))
    assert np.count_nonzero(result.weights) == 67


def test_a_gram_without_a_reference_will_do():
    rows = np.random.default_rng(2).standard_normal((9, 30))
    gram = Gram(rows @ rows.T, np.full(9, 1 / 9))
    for rule in (SMEA(), CAF(), DnC()):
        expected = rule.combine(ClearUpdates([rows]).gram(), Context(f=3)).weights
        assert np.allclose(rule.combine(gram, Context(f=3)).weights, expected, rtol=0, atol=1e-9)


def test_more_rows_than_the_tree_can_hold_are_exchanged_alone():
    rows = np.random.default_rng(3).standard_normal((255, 300))
    result = SMEA().combine(ClearUpdates([rows]).gram(), Context(f=3))
    assert result.notes == ("smea: n = 255, f = 3: search cut short, best subset found",)
    assert np.count_nonzero(result.weights) == 252
