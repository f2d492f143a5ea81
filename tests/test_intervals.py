"""Intervals over seeds and over patches, and how many more seeds a difference needs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrobust.intervals import MOST, POWER, further_seeds, mean_interval, paired_patches, share_uncertainty


@pytest.mark.parametrize(("mean", "deviation", "intervals"), [(0.05, 0.05, 1), (0.05, 0.1, 3), (0.02, 0.03, 10)])
def test_so_many_more_seeds_do_show_the_difference_as_often_as_they_should(
    mean: float, deviation: float, intervals: int
) -> None:
    few = mean + deviation * np.array([-1.0, 0.0, 1.0])
    more = further_seeds(few, intervals)
    assert more is not None
    drawn = np.random.default_rng(0).normal(mean, deviation, (400, len(few) + more))
    shown = np.mean([mean_interval(list(values), intervals).low > 0 for values in drawn])
    assert shown == pytest.approx(POWER, abs=0.08)


def test_further_seeds_at_the_ends() -> None:
    assert further_seeds([0.1, 0.1]) == 1, "an interval needs three seeds"
    assert further_seeds([0.1, 0.1, 0.1]) == 0
    assert further_seeds([0.1, -0.1]) is None, "there is no difference to show"
    assert further_seeds([0.001, 0.2, -0.19]) is None, f"not even {MOST} would"


def test_an_interval_over_paired_patches_is_that_of_agresti_and_min() -> None:
    # Of 100 patches of one label, 20 are read only by the first model and 10 only by the second.
    found = paired_patches(np.array([20]), np.array([10]), np.array([100]))
    half = 1.959964 * math.sqrt(20.5 + 10.5 - 10**2 / 102) / 102
    assert found == pytest.approx((0.1, 10 / 102 - half, 10 / 102 + half), abs=1e-6)


def test_labels_count_the_same_whatever_their_number_of_patches() -> None:
    found = paired_patches(np.array([5, 0]), np.array([0, 0]), np.array([10, 1000]))
    assert found.value == pytest.approx(0.25)
    assert found.low < 0.25 < found.high <= 1.0


def test_models_that_read_alike_have_an_interval_all_the_same() -> None:
    found = paired_patches(np.array([0, 0]), np.array([0, 0]), np.array([10, 10]))
    assert found.value == 0 and found.low < 0 < found.high
    wider = paired_patches(np.array([0, 0]), np.array([0, 0]), np.array([10, 10]), intervals=10)
    assert wider.low < found.low


@pytest.mark.parametrize(
    ("patches", "half"), [([20], 0.219), ([10, 10], 0.219), ([1000, 1000], 0.0219), ([2, 18], 0.365)]
)
def test_the_uncertainty_of_a_share_comes_from_the_number_of_patches(patches: list[int], half: float) -> None:
    assert share_uncertainty(np.array(patches)) == pytest.approx(half, abs=1e-3)
