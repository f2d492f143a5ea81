"""Whether the honest hospitals have the majority within each label, and what unequal labels do to any defence."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrobust.data import majorities
from fedrobust.data.majorities import VOTES, breakdown, dissimilarity, majority_share, safe_liars

ROW = st.lists(st.sampled_from([0, VOTES - 1, VOTES, 50]), min_size=3, max_size=3)


def won(counts: np.ndarray, liars: tuple[int, ...]) -> bool:
    """Counted one by one: does every label have more honest hospitals that can judge it than there are liars?"""
    honest = [row for client, row in enumerate(counts.tolist()) if client not in liars]
    return all(sum(row[label] >= VOTES for row in honest) > len(liars) for label in range(counts.shape[1]))


@settings(max_examples=25, deadline=None)
@given(st.lists(ROW, min_size=3, max_size=7))
def test_the_share_is_that_of_all_draws_counted_one_by_one(held: list[list[int]]) -> None:
    counts = np.array(held)
    for liars in range(1, len(counts)):
        draws = list(combinations(range(len(counts)), liars))
        exact = sum(won(counts, each) for each in draws) / len(draws)
        assert majority_share(counts, liars, seed=3) == pytest.approx(exact, abs=0.03)
        assert (liars <= safe_liars(counts)) == (exact == 1)


def test_with_one_label_that_few_hold_the_share_is_the_hypergeometric_one() -> None:
    """All twenty hold one label, nine the other: of four liars, at most four may be among the nine."""
    counts = np.full((20, 2), 30)
    counts[9:, 1] = 0
    for liars, most in ((3, 3), (4, 4), (5, 3), (6, 2), (8, 0)):
        exact = sum(comb(9, among) * comb(11, liars - among) for among in range(most + 1)) / comb(20, liars)
        assert majority_share(counts, liars, seed=1) == pytest.approx(exact, abs=0.02)
    assert safe_liars(counts) == 4


def test_the_share_is_the_same_in_small_blocks_and_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(0).integers(0, 60, (12, 3))
    whole = majority_share(counts, 4, seed=5)
    assert whole == majority_share(counts, 4, seed=5) and 0 < whole < 1
    monkeypatch.setattr(majorities, "BLOCK", 7)
    assert majority_share(counts, 4, seed=5) == pytest.approx(whole, abs=0.03)


def test_equal_hospitals_are_not_dissimilar_and_break_at_one_half() -> None:
    assert dissimilarity(np.array([[30, 10], [60, 20], [3, 1]])) == pytest.approx(0)
    assert breakdown(0.0) == 0.5


def test_a_label_that_nobody_trains_on_does_not_count() -> None:
    assert dissimilarity(np.array([[30, 0, 10], [10, 0, 30]])) == dissimilarity(np.array([[30, 10], [10, 30]]))


@pytest.mark.parametrize("holders", [3, 8, 15, 20])
def test_the_breakdown_is_where_the_holders_of_a_label_lose_the_majority(holders: int) -> None:
    """If a share s of the honest hospitals holds a label, in equal parts, 1/(2 + B²) is s/(1 + s): with n honest and f
    malicious hospitals, s · n = f."""
    counts = np.array([[80, 20]] * holders + [[100, 0]] * (20 - holders))
    assert breakdown(dissimilarity(counts)) == pytest.approx(holders / (20 + holders))


def test_gradients_of_a_model_that_errs_on_one_label_are_as_dissimilar_as_said() -> None:
    """Softmax regression on patches that look alike at all hospitals; label 2 has an own feature, unlearnt so far."""
    counts = np.array([[40, 40, 20], [60, 35, 5], [10, 30, 60], [90, 10, 0], [30, 30, 40]])
    features = np.eye(3)  # one for each label
    weights = np.diag([40.0, 40.0, 0.0])
    logits = features @ weights
    errors = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(3)
    of_label = np.array([np.outer(feature, error).ravel() for feature, error in zip(features, errors, strict=True)])
    gradients = counts / counts.sum(axis=1, keepdims=True) @ of_label
    mean = gradients.mean(axis=0)
    measured = ((gradients - mean) ** 2).sum(axis=1).mean() / (mean @ mean)
    assert measured == pytest.approx(dissimilarity(counts), rel=1e-6)
