"""The rules that weigh by how far a row is from the others, against plain formulas on the rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrobust.aggregation import ASMR, DOS, Clip, Pipeline, capped_prior
from fedrobust.aggregation.rules.outliers import copod
from fedrobust.aggregation.testing import INSTANCES, check_rule

SHAPES = [(4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 700, 2), (23, 17, 10)]


def distances(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and Euclidean distances of float64 rows; a zero row has the cosine distance 1 to all others."""
    n = len(rows)
    angles, lengths = np.zeros((n, n)), np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            product = math.sqrt(float(rows[i] @ rows[i]) * float(rows[j] @ rows[j]))
            angle = 1.0 if product == 0 else 1.0 - float(rows[i] @ rows[j]) / product
            angles[i, j] = 0.0 if i == j or angle < 1e-12 else angle
            lengths[i, j] = float(np.linalg.norm(rows[i] - rows[j]))
    return angles, lengths


def tails(table: np.ndarray) -> list[float]:
    """COPOD by counting, entry by entry."""
    n = len(table)
    found = []
    for i in range(n):
        left = right = leaning = 0.0
        for column in table.T:
            near = 1e-7 * max(abs(column))
            below = -math.log(sum(value <= column[i] + near for value in column) / n)
            above = -math.log(sum(value >= column[i] - near for value in column) / n)
            third = ((column - column.mean()) ** 3).mean()
            left, right = left + below, right + above
            leaning += below if max(column) - min(column) > near and third < 0 else above
        found.append(max(left, right, leaning))
    return found


def instance(shape: tuple[int, int, int], weighed: bool) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Rows, the sample counts of their clients if they are weighed, and their prior."""
    n, d, f = shape
    samples = np.random.default_rng(1).integers(10, 50, n) if weighed else None
    return INSTANCES["plain"](np.random.default_rng(n), n, d, f), samples, capped_prior(samples, n)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [[], [Clip()]], ids=["alone", "clipped"])
@pytest.mark.parametrize("rule", [ASMR(), DOS()], ids=lambda rule: rule.name)
def test_the_promises_of_every_rule(rule, stages):
    check_rule(rule, stages=stages)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weighed", [False, True])
def test_asmr_cuts_at_the_largest_gap(shape, weighed):
    rows, samples, prior = instance(shape, weighed)
    n, angles = len(rows), distances(rows)[0]
    support = [1.0 / np.mean(np.delete(angles[i], i)) for i in range(n)]
    order = sorted(range(n), key=lambda i: support[i])
    gaps = [support[order[k + 1]] - support[order[k]] for k in range(n - 1)]
    kept = order[gaps.index(max(gaps)) + 1 :]
    expected = prior[kept] @ rows[kept] / prior[kept].sum()
    np.testing.assert_allclose(Pipeline([ASMR()]).aggregate(rows, samples=samples), expected, rtol=1e-9, atol=1e-9)


def test_asmr_keeps_all_rows_of_equal_support_and_leaves_out_one_that_points_elsewhere():
    assert np.allclose(Pipeline([ASMR()]).combination(np.eye(4)).weights, 0.25)
    rows = np.ones((8, 50)) + 0.3 * np.random.default_rng(2).standard_normal((8, 50))
    rows[3] *= -1
    weights = Pipeline([ASMR()]).combination(rows).weights
    assert weights[3] == 0 and np.allclose(np.delete(weights, 3), 1 / 7)


def test_asmr_lets_a_dense_minority_win():
    tight = np.concatenate([np.eye(6, 50), -np.ones((4, 50))])
    assert np.allclose(Pipeline([ASMR()]).combination(tight).weights, [0] * 6 + [0.25] * 4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weighed", [False, True])
def test_dos_is_the_softmax_of_the_two_scores(shape, weighed):
    rows, samples, prior = instance(shape, weighed)
    angles, lengths = distances(rows)
    scores = np.mean([tails(angles), tails(lengths)], axis=0)
    weights = prior * np.exp(-scores) / (prior * np.exp(-scores)).sum()
    np.testing.assert_allclose(Pipeline([DOS()]).aggregate(rows, samples=samples), weights @ rows, rtol=1e-6, atol=1e-9)


def test_copod_of_a_column_by_hand():
    table = np.array([[1.0], [2.0], [3.0], [10.0]])  # leans to the right
    expected = [math.log(4), math.log(2), math.log(2), math.log(4)]
    np.testing.assert_allclose(copod(table), expected)
    np.testing.assert_allclose(copod(np.ones((4, 3))), 0.0)


def test_dos_gives_a_row_far_away_little_weight():
    rows = np.ones((8, 50)) + 0.3 * np.random.default_rng(2).standard_normal((8, 50))
    rows[3] *= -5
    weights = Pipeline([DOS()]).combination(rows).weights
    assert weights[3] < 1e-3 * weights.max()
