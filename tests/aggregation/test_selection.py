"""MDA, MoNNA and FABA against their papers' formulas on the rows; MDA's search against trying all subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from refused import refused

from fedrobust.aggregation import FABA, MDA, Context, MoNNA, Pipeline, capped_prior
from fedrobust.aggregation.rules.selection import _Covers, _first_subset, _least_diameter
from fedrobust.aggregation.testing import INSTANCES, check_rule
from fedrobust.updates import ClearUpdates

SHAPES = [(3, 1, 0), (4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 700, 2), (13, 17, 6)]


def distance(a, b):
    return np.sqrt(((a - b) ** 2).sum())


def digits(value):
    """To 12 digits: what differs by rounding alone is equal."""
    return float(f"{value:.11e}")


def mean(rows, chosen, prior):
    return sum(prior[i] * rows[i] for i in chosen) / sum(prior[i] for i in chosen)


def diameter(rows, subset):
    return max((distance(rows[i], rows[j]) for i, j in itertools.combinations(subset, 2)), default=0.0)


def mda(rows, f, prior):
    apart = [[distance(a, b) for b in rows] for a in rows]
    best, least = None, np.inf
    for subset in itertools.combinations(range(len(rows)), len(rows) - f):
        found = digits(max((apart[i][j] for i, j in itertools.combinations(subset, 2)), default=0.0))
        if found < least:
            best, least = subset, found
    return mean(rows, best, prior)


def nearest(rows, point, count):
    return sorted(range(len(rows)), key=lambda i: (digits(distance(rows[i], point)), i))[:count]


def monna(rows, f, prior, pivot=None):
    if pivot is None:
        sums = [digits(sum(distance(row, other) for other in rows)) for row in rows]
        pivot = sums.index(min(sums))
    return mean(rows, nearest(rows, rows[pivot], len(rows) - f), prior)


def faba(rows, f, prior):
    left = list(range(len(rows)))
    for _ in range(f):
        centre = rows[left].mean(axis=0)
        left.remove(max(left, key=lambda i: (digits(distance(rows[i], centre)), i)))
    return mean(rows, left, prior)


RULES = {
    "mda": (MDA(), mda),
    "monna": (MoNNA(), monna),
    "monna around row 2": (MoNNA(pivot=2), lambda u, f, p: monna(u, f, p, pivot=2)),
    "faba": (FABA(), faba),
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


def test_monna_around_a_fixed_row_keeps_its_word():
    check_rule(MoNNA(pivot=2), claims=MoNNA.claims - {"permutation", "breakdown"})


@pytest.mark.parametrize("rule", [MDA(), MoNNA(), FABA()])
def test_bounds(rule):
    with refused(message=rule.bound(6, 3), hint="largest f here: 2"):
        Pipeline([rule]).aggregate(np.eye(6), f=3)


def test_monna_needs_its_pivot():
    with refused(message=MoNNA(pivot=6).bound(6, 1), says="pivot = 6"):
        Pipeline([MoNNA(pivot=6)]).aggregate(np.eye(6), f=1)


def test_monna_around_a_byzantine_row_is_lost_and_around_the_medoid_is_not():
    rows = np.random.default_rng(0).standard_normal((9, 20))
    rows[0] = 1e6
    assert np.abs(Pipeline([MoNNA(pivot=0)]).aggregate(rows, f=2)).max() > 1e5
    assert np.abs(Pipeline([MoNNA()]).aggregate(rows, f=2)).max() < 10


def test_scores_tell_the_dropped_rows():
    rows = np.random.default_rng(1).standard_normal((12, 30))
    rows[[2, 7, 9]] += 3.0
    gram = ClearUpdates([rows]).gram()
    for rule in (MDA(), MoNNA(), FABA()):
        weights, scores = rule.combine(gram, Context(f=3)).weights, rule.scores(gram, Context(f=3))
        assert np.flatnonzero(weights == 0).tolist() == [2, 7, 9]
        assert sorted(np.argsort(scores)[-3:]) == [2, 7, 9]


def test_scores_of_mda_are_distances_to_the_farthest_chosen_row():
    rows = np.random.default_rng(2).standard_normal((10, 8))
    gram = ClearUpdates([rows]).gram()
    chosen = np.flatnonzero(MDA().combine(gram, Context(f=4)).weights)
    scores = MDA().scores(gram, Context(f=4))
    assert np.allclose(scores, [max(distance(row, rows[i]) for i in chosen) for row in rows])
    assert np.isclose(scores[chosen].max(), diameter(rows, chosen))


# The search of MDA


def first_subset(distances, f):
    """The first of all subsets with the least diameter."""
    subsets = itertools.combinations(range(len(distances)), len(distances) - f)
    return min(subsets, key=lambda subset: max(digits(distances[i, j]) for i in subset for j in subset))


def distances_of(rows):
    return ((rows[:, None] - rows[None]) ** 2).sum(axis=2)


def random_rows(rng, place):
    n = int(rng.integers(1, 11))
    rows = rng.standard_normal((n, int(rng.integers(1, 9))))
    if place % 4 == 1:
        rows = np.round(rows)  # many equal distances
    if place % 4 == 2:
        rows[rng.integers(0, n, n)] = rows[0]
    if place % 4 == 3:
        rows *= 10.0 ** rng.integers(0, 9, (n, 1))
    return rows


def test_the_search_finds_the_first_of_all_subsets_of_least_diameter():
    rng = np.random.default_rng(0)
    for place in range(300):
        distances = distances_of(random_rows(rng, place))
        for f in range((len(distances) + 1) // 2):
            found = _least_diameter(distances.tobytes(), len(distances), f, 10_000)
            assert found == (first_subset(distances, f), True), (place, f)


def graphs(rng, count):
    """Conflicts of up to 9 rows: sparse and dense ones, and such where nobody has more than three."""
    for place in range(count):
        n = int(rng.integers(2, 10))
        conflicts = np.triu(rng.random((n, n)) < rng.choice([0.15, 0.3, 0.5, 0.8]), 1)
        if place % 2:
            for i, j in np.argwhere(conflicts):
                conflicts[i, j] = conflicts[i].sum() + conflicts[:, i].sum() <= 3 >= conflicts[:, j].sum()
        conflicts = conflicts | conflicts.T
        yield n, conflicts, [sum(1 << int(j) for j in np.flatnonzero(row)) for row in conflicts]


def free_subsets(conflicts, size):
    everything = itertools.combinations(range(len(conflicts)), size)
    return [subset for subset in everything if not conflicts[np.ix_(subset, subset)].any()]


def test_covers_are_found_if_and_only_if_there_are_any():
    for n, conflicts, neighbours in graphs(np.random.default_rng(1), 600):
        for size in range(n):
            cover = _Covers(10_000).find(neighbours, (1 << n) - 1, size)
            assert (cover is not None) == bool(free_subsets(conflicts, n - size))
            if cover is not None:
                rest = [row for row in range(n) if not cover >> row & 1]
                assert len(rest) >= n - size
                assert not conflicts[np.ix_(rest, rest)].any()


def test_of_subsets_without_conflicts_the_first_is_found():
    rng = np.random.default_rng(2)
    for n, conflicts, neighbours in graphs(rng, 600):
        for size in range(1, n + 1):
            if subsets := free_subsets(conflicts, size):
                known = np.array(subsets[rng.integers(len(subsets))])
                assert _first_subset(neighbours, known, n, _Covers(10_000)) == subsets[0]


def test_distances_that_only_rounding_tells_apart_are_equal():
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [4.0]])
    distances = distances_of(rows)
    distances[0, 2] *= 1 + 1e-14
    distances[2, 0] = distances[0, 2]
    assert _least_diameter(distances.tobytes(), 5, 2, 100)[0] == (0, 1, 2)
    distances[0, 2] *= 1 + 1e-9
    distances[2, 0] = distances[0, 2]
    assert _least_diameter(distances.tobytes(), 5, 2, 100)[0] == (1, 2, 3)


def test_the_search_ends_for_a_hundred_rows():
    rng = np.random.default_rng(2)
    for f in (10, 33, 49):
        rows = rng.standard_normal((100, 50))
        result = MDA().combine(ClearUpdates([rows]).gram(), Context(f=f))
        assert not result.notes
        assert np.count_nonzero(result.weights) == 100 - f


def test_a_search_that_is_cut_short_says_so_and_is_no_worse_than_twice_the_least():
    rng = np.random.default_rng(3)
    cut = 0
    for _ in range(20):
        rows = rng.standard_normal((40, 30))
        gram = ClearUpdates([rows]).gram()
        short = MDA(nodes=0).combine(gram, Context(f=19))
        best, chosen = (np.flatnonzero(rule.combine(gram, Context(f=19)).weights) for rule in (MDA(), MDA(nodes=0)))
        assert not MDA().combine(gram, Context(f=19)).notes
        assert len(chosen) == 21
        if short.notes:
            assert short.notes == ("mda: n = 40, f = 19: search cut short, best subset found",)
            assert diameter(rows, best) <= diameter(rows, chosen) <= 2 * diameter(rows, best)
            cut += 1
        else:
            assert chosen.tolist() == best.tolist()
    assert cut > 0
