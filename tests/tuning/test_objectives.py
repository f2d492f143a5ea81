"""Objectives: hand-computed numbers, and runs that have none."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError
from refused import refused

from fedrobust.tuning.objectives import Objective, reduced

RESULTS = {
    ("nobody", 1): {4: {"accuracy": 0.9, "loss": 0.2}},
    ("nobody", 2): {4: {"accuracy": 0.8, "loss": 0.3}},
    ("nobody", 3): {4: {"accuracy": 0.4, "loss": 0.4}},
    ("ipm", 1): {4: {"accuracy": 0.5, "loss": 1.0}},
    ("ipm", 2): {4: {"accuracy": 0.6, "loss": 3.0}},
    ("ipm", 3): {4: {"accuracy": 0.7, "loss": 2.0}},
}


@pytest.mark.parametrize(
    ("seeds", "attacks", "number"),
    [
        ("mean", "worst", 0.6),  # of 0.7 and 0.6
        ("mean", "mean", 0.65),
        ("min", "min", 0.4),
        ("min", "max", 0.5),
        ("max", "min", 0.7),
        ("median", "min", 0.6),  # of 0.8 and 0.6
        ("worst", "max", 0.5),  # of 0.4 and 0.5
    ],
)
def test_seeds_are_reduced_before_attacks(seeds: str, attacks: str, number: float) -> None:
    objective = Objective.model_validate({"metric": "accuracy", "seeds": seeds, "attacks": attacks})
    assert objective.reduced(RESULTS) == pytest.approx(number)


def test_the_worst_is_the_largest_of_what_is_minimized() -> None:
    assert Objective(metric="loss", direction="minimize").reduced(RESULTS) == pytest.approx(2.0)
    assert Objective(metric="loss", direction="maximize").reduced(RESULTS) == pytest.approx(0.3)


def test_several_objectives_make_several_numbers() -> None:
    many = [Objective(metric="accuracy"), Objective(metric="loss", direction="minimize", attacks="mean")]
    assert reduced(many, RESULTS) == pytest.approx((0.6, 1.15))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reduction", ["mean", "min", "max", "median", "worst"])
def test_a_run_without_a_number_makes_the_trial_fail(bad: float, reduction: str) -> None:
    objective = Objective.model_validate({"metric": "accuracy", "seeds": "mean", "attacks": reduction})
    for run in RESULTS:
        assert reduced([objective], {**RESULTS, run: {4: {"accuracy": bad}}}) is None
    assert reduced([objective], RESULTS) is not None
    assert reduced([objective], {}) is None


def test_a_metric_that_is_not_there_is_told() -> None:
    with refused(path="metric", found="'accurracy'", hint="did you mean 'accuracy'?", says="attack nobody, seed 1"):
        Objective(metric="accurracy").reduced(RESULTS)
    with refused(path="metric", found="'zzz'", allowed=("accuracy", "loss"), hint=""):
        Objective(metric="zzz").reduced(RESULTS)
    with refused(path="metric", allowed=(), says="attack ipm, seed 3"):
        reduced([Objective(metric="accuracy")], {**RESULTS, ("ipm", 3): {}})


def test_what_is_no_direction_or_reduction_is_refused() -> None:
    for wrong in ({"direction": "up"}, {"seeds": "sum"}, {"attacks": "best"}, {"metrics": "x"}):
        with pytest.raises(ValidationError):
            Objective.model_validate({"metric": "accuracy", **wrong})


def test_the_value_of_a_run_is_the_mean_of_its_last_rounds() -> None:
    run = {2: {"accuracy": 0.2}, 10: {"accuracy": 0.9}, 4: {"accuracy": 0.6}, 6: {"accuracy": math.nan}}
    last = Objective(metric="accuracy")
    assert last.reduced({("own", 1): run}) == 0.9
    assert last.reduced({("own", 1): run}, until=5) == 0.6
    assert Objective(metric="accuracy", rounds=2).reduced({("own", 1): run}, until=4) == pytest.approx(0.4)
    assert Objective(metric="accuracy", rounds=3).reduced({("own", 1): run}, until=2) == pytest.approx(0.2)
    assert math.isnan(Objective(metric="accuracy", rounds=2).reduced({("own", 1): run}))
    assert math.isnan(last.reduced({("own", 1): run}, until=1))
