"""Robustness, simultaneous intervals, paired differences, and which attacks are measured again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedrobust.intervals import Estimate, mean_interval
from fedrobust.matrices.statistics import (
    as_low,
    difference,
    greatest,
    harmless,
    least,
    lowest,
    robustness,
    worst_attacks,
)
from fedrobust.texts import enumerated


def test_robustness_is_one_at_the_oracle_and_zero_at_chance() -> None:
    assert robustness(0.8, 0.8, 2) == 1.0
    assert robustness(0.5, 0.8, 2) == 0.0
    assert robustness(0.74, 0.8, 2) == pytest.approx(0.8)
    assert robustness(0.25, 0.625, 4) == 0.0
    assert robustness(0.4, 0.8, 2) < 0
    assert robustness(0.5, 1.0, 2) == 0.0, "two of three labels occur in the test: one of them, guessed, gives a half"
    assert math.isnan(robustness(0.6, 0.51, 2)), "nothing can be said where the oracle learnt nothing"


def test_one_interval_is_that_of_students_t() -> None:
    values = [0.91, 0.88, 0.95, 0.90, 0.93]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = mean_interval(values)
    assert found == pytest.approx((np.mean(values), expected.low, expected.high))


def test_several_intervals_are_as_wide_as_bonferroni_has_them() -> None:
    values = [1.0, 2.0, 3.0]  # s = 1; t_{2, 1 - 0.05 / 8} = 8.860
    found = mean_interval(values, intervals=4)
    assert found.value == 2.0
    assert found.high - 2.0 == pytest.approx(8.860 / math.sqrt(3), abs=1e-3)
    assert found.low == pytest.approx(4.0 - found.high)


def test_few_seeds_give_no_interval_and_none_gives_nothing() -> None:
    for few in ([0.9], [0.8, 1.0]):
        found = mean_interval(few)
        assert found.value == pytest.approx(0.9)
        assert math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(mean_interval([]).value)


def test_the_headline_is_the_least_mean_between_the_least_ends() -> None:
    steady = {11: 0.90, 12: 0.91, 13: 0.92}
    wild = {11: 0.60, 12: 0.95, 13: 1.30}
    name, found = least({"steady": steady, "wild": wild})
    assert name == "steady"
    assert found.value == pytest.approx(0.91)
    assert found.low == pytest.approx(mean_interval(list(wild.values()), 2).low)
    assert found.high == pytest.approx(mean_interval(list(steady.values()), 2).high)
    name, top = greatest({"steady": steady, "wild": wild})
    assert (name, top.value) == ("wild", pytest.approx(0.95))
    assert top.high == pytest.approx(mean_interval(list(wild.values()), 2).high)
    assert top.low == pytest.approx(mean_interval(list(steady.values()), 2).low)
    assert math.isnan(least({})[1].value)


def test_intervals_hold_at_once_and_the_minimum_is_not_biased_out_of_them() -> None:
    """Of many equal attacks, the true minimum lies in the interval as often as it says."""
    draw = np.random.default_rng(0)
    truth, attacks, seeds = 0.95, 8, 5
    inside = 0
    for _ in range(400):
        table = draw.normal(truth, 0.03, (attacks, seeds))
        found = least({str(a): dict(enumerate(table[a])) for a in range(attacks)})[1]
        inside += found.low <= truth <= found.high
    assert inside >= 0.93 * 400


def test_a_difference_is_paired_by_seed() -> None:
    """What all cells of a seed share cancels out."""
    seeds = {11: 0.3, 12: -0.2, 13: 0.1}
    ours = {"a": {seed: 0.8 + shared for seed, shared in seeds.items()}}
    theirs = {"b": {seed: 0.9 + shared for seed, shared in seeds.items()}}
    found = difference(ours, theirs)
    assert found == pytest.approx((-0.1, -0.1, -0.1))
    assert difference(ours, ours) == pytest.approx((0.0, 0.0, 0.0))


def test_a_difference_of_one_attack_each_is_the_paired_t_test() -> None:
    x, y = [0.8, 0.7, 0.9, 0.75], [0.6, 0.65, 0.7, 0.7]
    expected = stats.ttest_rel(x, y).confidence_interval(0.95)
    found = difference({"a": dict(enumerate(x))}, {"b": dict(enumerate(y))})
    assert found == pytest.approx((np.mean(x) - np.mean(y), expected.low, expected.high))


values = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(lambda numbers: dict(enumerate(numbers)))
attacked = st.dictionaries(st.sampled_from("abcd"), values, min_size=1)


@settings(deadline=None, max_examples=50)
@given(attacked, attacked)
def test_a_difference_is_that_of_the_headlines_and_lies_in_its_interval(
    ours: dict[str, dict[int, float]], theirs: dict[str, dict[int, float]]
) -> None:
    found = difference(ours, theirs)
    assert found.value == pytest.approx(least(ours)[1].value - least(theirs)[1].value, abs=1e-12)
    assert found.low - 1e-12 <= found.value <= found.high + 1e-12


def test_the_worst_are_measured_again_and_the_backdoor_that_gains_the_most() -> None:
    left = {"ipm": 0.2, "flip": 0.5, "patch": 0.99, "dba": 0.98, "noise": 1.0}
    gains = {"patch": 0.9, "dba": 0.4}
    assert worst_attacks(left, gains, worst=2, backdoors=1) == ["ipm", "flip", "patch"]
    assert worst_attacks({**left, "patch": 0.0}, gains, worst=2, backdoors=1) == ["patch", "ipm", "dba"]
    assert worst_attacks(left, gains, worst=2, backdoors=0) == ["ipm", "flip"]
    assert worst_attacks({**left, "noise": math.nan}, gains, worst=1, backdoors=0) == ["ipm", "noise"], (
        "without a figure: not passed over, and in no other's place"
    )


def test_attacks_without_a_figure_are_all_measured_whatever_their_names() -> None:
    unknown = dict.fromkeys(["sign_flip", "patch", "alie", "ipm", "dba"], math.nan)
    gains = {"patch": math.nan, "dba": math.nan}
    assert set(worst_attacks(unknown, gains, worst=1, backdoors=1)) == set(unknown)
    left = {"flip": 0.1, "patch": 0.9, "dba": 0.8}
    assert worst_attacks(left, gains, worst=1, backdoors=1) == ["flip", "patch", "dba"]
    assert worst_attacks(left, gains, worst=1, backdoors=0) == ["flip"]


def test_equal_figures_are_named_and_not_hidden_behind_an_alphabet() -> None:
    left = {"b": 0.2, "a": 0.2, "c": 0.2, "d": 0.5, "e": math.nan}
    assert lowest(left) == ["b", "a", "c"]
    assert lowest({"e": math.nan}) == []
    assert as_low(left, ["a"], worst=1) == ["b", "c"]
    assert as_low(left, ["a", "b", "c"], worst=3) == []
    assert as_low({"e": math.nan}, [], worst=3) == []
    assert least({name: {1: value} for name, value in left.items()})[0] == "b, a, c"
    assert enumerated(list("abcde")) == "a, b, c and 2 more"
    assert enumerated(list("abcd")) == "a, b, c, d"


def test_a_bound_that_an_attack_lacks_is_none() -> None:
    """Where one attack has an interval and another has none, the minimum has none; so has a difference."""
    many, few = {11: 0.9, 12: 0.91, 13: 0.92}, {11: 0.5, 12: 0.7}
    found = least({"many": many, "few": few})[1]
    assert found.value == pytest.approx(0.6)
    assert math.isnan(found.low) and math.isnan(found.high)
    apart = difference({"a": many, "b": few}, {"c": {13: 0.9}})
    assert all(map(math.isnan, apart)), "b and c have no seed in common: the minimum of the rest is no minimum"


def test_harmless_is_what_the_undefended_hardly_notice() -> None:
    assert harmless(0.80, 0.79)
    assert not harmless(0.80, 0.77)
    assert not harmless(0.80, 0.80, gain=0.3)
    assert harmless(0.80, 0.80, gain=0.01)
    assert not harmless(0.80, math.nan)
    assert not harmless(math.nan, 0.80)
    assert not harmless(0.80, 0.80, gain=math.nan), "a backdoor of which nothing is known"
    assert isinstance(least({"a": {1: 0.5}})[1], Estimate)
