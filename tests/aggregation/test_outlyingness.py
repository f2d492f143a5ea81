"""How far rows lie from the others: on hand-computed numbers, against row-wise code, and what must not matter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedrobust.aggregation import Gram, History
from fedrobust.aggregation import outlyingness as far
from fedrobust.updates import ClearUpdates

Measure = Callable[[Gram], np.ndarray]

MEASURES: list[Measure] = [
    far.cosine_distances_to_centre,
    far.disagreements,
    far.neighbour_distances,
    far.spectral_deviations,
    far.closeness,
]
IN_UNITS = (far.neighbour_distances, far.spectral_deviations)
"""Measures in the unit of the updates; the others have none."""


def of(rows: np.ndarray) -> Gram:
    rows = np.asarray(rows, dtype=np.float64)
    return Gram(rows @ rows.T, np.full(len(rows), 1 / len(rows)))


def past(rows: np.ndarray, before: np.ndarray) -> History:
    return History(before @ before.T, rows @ before.T)


def directions(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    rows = rng.normal(size=(n, d))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_robust_z_on_hand_computed_numbers() -> None:
    values = np.array([1.0, 2, 3, 4, 100])  # median 3, MAD 1
    np.testing.assert_allclose(far.robust_z(values, 0.1), (values - 3) / 1.4826)
    np.testing.assert_allclose(far.robust_z(values, 2.0), (values - 3) / 2)
    np.testing.assert_allclose(far.robust_z(values, 0.1, centre=0.0), values / (1.4826 * 3))


def test_cosines_to_the_centre_on_hand_computed_numbers() -> None:
    # Six rows in one direction are the geometric median; then a right angle, the opposite, and no direction.
    rows = np.array([[1.0, 0]] * 6 + [[0, 1], [-7, 0], [0, 0]])
    np.testing.assert_allclose(far.cosine_distances_to_centre(of(rows)), [0] * 6 + [1, 2, 1], atol=1e-4)


def test_the_centre_is_the_geometric_median() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 3))
    weights = far.centre(of(rows))
    found = minimize(lambda z: np.linalg.norm(rows - z, axis=1).sum(), rows.mean(axis=0), tol=1e-12).x
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights @ rows, found, atol=1e-5)


def test_disagreements_on_hand_computed_numbers() -> None:
    # Cosines of the first with the others: 1, 0.6, 0, −1: the median is 0.3.
    rows = np.array([[1.0, 0], [5, 0], [3, 4], [0, 2], [-1, 0]])
    found = far.disagreements(of(rows))
    # Of the third: 0.6, 0.6, 0.8, −0.6; of the fourth: 0, 0, 0.8, 0; of the last: −1, −1, −0.6, 0.
    np.testing.assert_allclose(found, [0.7, 0.7, 0.4, 1, 1.8])
    np.testing.assert_allclose(far.disagreements(of(np.vstack([rows, np.zeros(2)])))[-1], 1)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_minority_of_copies_owns_the_centre_and_still_disagrees(noise: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        common = directions(rng, 1, 1000)
        rows = common + 2 * directions(rng, 20, 1000)
        rows[:8] = -common + noise * directions(rng, 8, 1000)
        assert far.disagreements(of(rows))[:8].min() > 1.3 > 1 > far.disagreements(of(rows))[8:].max()
        if noise == 0:
            assert far.cosine_distances_to_centre(of(rows))[:8].max() < 1e-3


def test_the_neighbour_that_counts_is_beyond_a_minority() -> None:
    # On a line: 0, 0, 1, 3, 10. With n = 5 it is the second nearest other row.
    found = far.neighbour_distances(of(np.array([[0.0], [0], [1], [3], [10]])))
    np.testing.assert_allclose(found, [1, 1, 1, 3, 9])


def test_spectral_deviations_of_rows_on_a_line() -> None:
    # Around a common part; the line is (3, 4) / 5, the median of the positions 0.
    rows = np.array([2.0, -1]) + np.outer([0.0, 0, 0, 1, 5], [0.6, 0.8])
    np.testing.assert_allclose(far.spectral_deviations(of(rows)), [0, 0, 0, 1, 5], atol=1e-5)


def test_spectral_deviations_against_a_decomposition_of_the_rows() -> None:
    rows = np.random.default_rng(1).normal(size=(9, 30)) + 2
    rows[:3] += 5 * directions(np.random.default_rng(2), 1, 30)
    around = rows - far.centre(of(rows)) @ rows
    signs = around / np.linalg.norm(around, axis=1, keepdims=True)
    first = np.linalg.svd(signs)[2][0]
    positions = around @ first
    np.testing.assert_allclose(far.spectral_deviations(of(rows)), np.abs(positions - np.median(positions)), rtol=1e-7)


def test_a_huge_row_does_not_hide_a_collusion_from_the_spectrum() -> None:
    rng = np.random.default_rng(3)
    rows = directions(rng, 20, 500)
    rows[:6] += 2 * directions(rng, 1, 500)
    rows[19] *= 1e6
    found = far.spectral_deviations(of(rows))
    assert found[:6].min() > 2 * found[6:19].max()


def test_no_direction_stands_out_where_all_vary_alike() -> None:
    np.testing.assert_array_equal(far.spectral_deviations(of(np.eye(4))), np.zeros(4))


def test_closeness_on_hand_computed_numbers() -> None:
    # Scaled to length 1, the second row is √(0.2² + 0.6²) = √0.4 from the first, and the others √2 from all.
    rows = np.diag([1.0, 1, 2, 3, 4])
    rows[1, :2] = [8, 6]
    half = np.log(np.sqrt(5))  # ln (√2 / √0.4)
    np.testing.assert_allclose(far.closeness(of(rows)), [half, half, 0, 0, 0], atol=1e-12)


def test_closeness_of_copies_has_a_limit_and_their_length_plays_no_part() -> None:
    rows = np.diag([1.0, 1, 2, 3, 4])
    rows[1] = 1000 * rows[0]
    np.testing.assert_allclose(far.closeness(of(rows)), [np.log(np.sqrt(2) * 1e6)] * 2 + [0] * 3, atol=1e-9)


def test_zero_rows_are_nobodys_copies() -> None:
    rows = np.diag([0.0, 0, 2, 3, 4, 5])
    np.testing.assert_allclose(far.closeness(of(rows)), np.zeros(6), atol=1e-12)


@pytest.mark.parametrize("f", [2, 4, 8])
@pytest.mark.parametrize("noise", [0.0, 0.3, 0.6])
def test_copies_behind_noise_are_closer_than_honest_rows(f: int, noise: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rows = directions(rng, 1, 2000) + directions(rng, 20, 2000)  # half of an update is what all share
        lie = -directions(rng, 1, 2000)
        rows[:f] = rng.uniform(0.5, 2, size=(f, 1)) * (lie + noise * directions(rng, f, 2000))
        found = far.closeness(of(rows))
        assert found[:f].min() > np.log(1.3) > found[f:].max() + np.log(1.2)


def test_who_is_copied_looks_like_a_copy() -> None:
    rows = directions(np.random.default_rng(0), 10, 300)
    rows[:3] = rows[9]
    found = far.closeness(of(rows))
    assert set(np.flatnonzero(found > 10)) == {0, 1, 2, 9}


def test_distances_keep_their_digits_beside_a_large_common_part() -> None:
    rng = np.random.default_rng(0)
    rows = (1000 * directions(rng, 1, 400) + directions(rng, 8, 400)).astype(np.float32)
    rows[1] = rows[0] + np.float32(0.1) * directions(rng, 1, 400)[0].astype(np.float32)
    exact = rows.astype(np.float64)
    unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    apart = np.linalg.norm(unit[:, None] - unit, axis=2) + 9 * np.eye(8)
    nearest = apart.min(axis=1)
    gram = ClearUpdates([rows]).gram()
    np.testing.assert_allclose(far.closeness(gram), np.log(np.median(nearest) / nearest), atol=1e-6)
    distances = np.sort(np.linalg.norm(exact[:, None] - exact, axis=2), axis=1)[:, 4]
    np.testing.assert_allclose(far.neighbour_distances(gram), distances, rtol=1e-8)


def test_the_past_on_hand_computed_numbers() -> None:
    rows = np.array([[3.0, 4], [1, 0], [0, 2]])
    before = np.array([[1.0, 0], [0, 0], [0, -1]])  # the second client is new
    gram, history = of(rows), past(rows, before)
    np.testing.assert_allclose(far.turns_from_past(gram, history), [0.4, (0.4 + 2) / 2, 2])
    averages, known = far.of_history(gram, history)
    np.testing.assert_array_equal(known, [True, False, True])
    np.testing.assert_array_equal(averages.matrix, [[1, 0], [0, 1]])


def test_where_nobody_has_a_past_nobody_is_strange() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 3))
    gram, history = of(rows), past(rows, np.zeros((4, 3)))
    np.testing.assert_array_equal(far.turns_from_past(gram, history), np.zeros(4))
    averages, known = far.of_history(gram, history)
    assert averages.n == 0 and not known.any()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_figures_are_finite_whatever_the_rows(n: int) -> None:
    lonely = np.zeros((n, 6))
    lonely[0] = 1e30
    for rows in (np.zeros((n, 6)), np.ones((n, 6)), np.eye(n, 6), lonely):
        gram = of(rows)
        found = [measure(gram) for measure in MEASURES]
        found.append(far.turns_from_past(gram, past(rows, rows / 2)))
        assert all(values.shape == (n,) and np.isfinite(values).all() for values in found)


@given(
    measure=st.sampled_from(MEASURES),
    n=st.integers(4, 12),
    exponent=st.integers(-10, 10),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_order_scale_and_translation(measure: Measure, n: int, exponent: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = 1 + rng.normal(size=(n, 20))
    found, scale, tolerance = measure(of(rows)), 10.0**exponent, 1e-3
    order = rng.permutation(n)
    np.testing.assert_allclose(measure(of(rows[order])), found[order], atol=tolerance)
    in_units = measure in IN_UNITS
    np.testing.assert_allclose(measure(of(scale * rows)) / (scale if in_units else 1), found, atol=tolerance)
    if in_units:
        np.testing.assert_allclose(measure(of(rows + 3)), found, atol=tolerance)
