"""Sweeps in Python with a function of one's own: it may be pruned by rounds, and may prune by itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from played import BASE, Played, accuracy, two_teams
from refused import refused

import fedrobust
import fedrobust.studies.teams as teams_room
from fedrobust.tuning.study import Completed, Failed, Pruned

SPACE = {"learning.local.optimizer.lr": {"log": [0.001, 1.0]}}
METRIC = "test/balanced_accuracy"


@pytest.fixture(autouse=True)
def teams(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)


def test_pruning_by_rounds_with_a_score_is_that_with_the_metric_of_the_same_value(played: Played) -> None:
    seen = Counter[int]()

    def score(result: fedrobust.Result) -> float:
        seen[len(result.recorded.rounds)] += 1
        assert result.final[METRIC] == result.recorded.evaluations[-1].metrics[METRIC]
        return float(result.final[METRIC])

    options: dict[str, Any] = {"space": SPACE, "trials": 12, "seeds": [1, 2], "sampler": "random",
                               "pruner": {"name": "median", "startup": 3, "warmup": 1}}  # fmt: skip
    by_metric = fedrobust.sweep("base.yaml", objective=METRIC, name="metric", **options)
    by_score = fedrobust.sweep("base.yaml", objective=score, name="score", **options)
    assert any(isinstance(trial.outcome, Pruned) for trial in by_metric.trials)
    assert by_score.trials == by_metric.trials
    assert set(seen) == set(range(1, 9)), "after every round"


def test_a_sweep_with_a_score_goes_on_as_if_it_had_not_been_stopped(played: Played) -> None:
    def score(result: fedrobust.Result) -> float:
        if stops and len(played.finished) == 5:
            raise KeyboardInterrupt
        return float(result.final[METRIC])

    options: dict[str, Any] = {"space": SPACE, "trials": 9, "seeds": [1, 2], "objective": score,
                               "pruner": {"name": "median", "startup": 3, "warmup": 1}}  # fmt: skip
    stops: list[bool] = []  # a list is no plain value: the function stays the same
    whole = fedrobust.sweep("base.yaml", name="whole", **options)
    played.finished.clear()
    stops.append(True)
    with pytest.raises(KeyboardInterrupt):
        fedrobust.sweep("base.yaml", name="parts", **options)
    stops.clear()
    assert fedrobust.sweep("base.yaml", name="parts", **options).trials == whole.trials


def test_a_score_may_prune_its_trial(played: Played) -> None:
    def score(result: fedrobust.Result) -> float:
        if result.final[METRIC] < 0.6:
            raise optuna.TrialPruned
        return float(result.final[METRIC])

    found = fedrobust.sweep("base.yaml", space=SPACE, objective=score, trials=10, seeds=[1, 2])
    for trial in found.trials:
        worst = min(accuracy(found.plan.experiment(trial.values, seed=seed), 8) for seed in (1, 2))
        assert isinstance(trial.outcome, Pruned if worst < 0.6 else Completed)
    assert {type(trial.outcome) for trial in found.trials} == {Pruned, Completed}
    assert played.failures == {}


def test_the_result_so_far_has_no_model(played: Played) -> None:
    found = fedrobust.sweep(
        "base.yaml", space=SPACE, objective=lambda result: result.state_dict["weight"], trials=2, name="last"
    )
    assert [trial.outcome for trial in found.trials] == [Completed((1.0,))] * 2
    with pytest.raises(fedrobust.FedRobustError, match="weight"):
        fedrobust.sweep(
            "base.yaml",
            space=SPACE,
            objective=lambda result: result.state_dict["weight"],
            trials=2,
            name="each",
            pruner="median",
        )


def test_tables_and_the_study(played: Played) -> None:
    played.fails = lambda experiment: "trial 1 " in (experiment.tracking.run_name or "")
    found = fedrobust.sweep("base.yaml", {"federation.rounds": 3}, space=SPACE, trials=4, progress=False)
    table = found.frame()
    assert list(table.columns) == ["state", METRIC, *SPACE, "reason"]
    assert list(table["state"]) == ["completed", "failed", "completed", "completed"]
    assert table.loc[1, "reason"] and pd.isna(table.loc[1, METRIC])
    assert isinstance(found.trials[1].outcome, Failed)
    assert found.study.best_value == table[METRIC].max()
    assert found.study.best_trial.number == found.best[0].number
    assert str(found.folder) in repr(found) and "3 completed" in repr(found) and len(repr(found)) < 400


def test_files_mappings_and_experiments_make_the_same_sweep(played: Played) -> None:
    experiment = fedrobust.load("base.yaml")
    given: dict[str, Any] = {"space": SPACE, "trials": 3, "objectives": [{"metric": METRIC}]}
    ways = [
        fedrobust.sweep(experiment, {"name": "other"}, space=SPACE, trials=3, name="a"),
        fedrobust.sweep("base.yaml", ["name=other"], space=SPACE, trials=3, name="b"),
        fedrobust.sweep({"experiment": experiment.changed({"name": "other"}), "name": "c", **given}),
        fedrobust.sweep({"experiment": "base.yaml", "name": "d", **given}, {"changes": {"name": "other"}}),
    ]
    assert all(found.trials == ways[0].trials for found in ways)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"experiment": "sweep.yaml", "objective": METRIC}, {"path": "objective"}),
        ({"experiment": "sweep.yaml", "trials": 3}, {"path": "trials"}),
        ({"experiment": "sweep.yaml", "direction": "minimize"}, {"path": "direction"}),
        ({"experiment": {"experiment": "base.yaml"}, "space": SPACE}, {"path": "space"}),
        ({"experiment": "nowhere.yaml", "space": SPACE}, {"file": "nowhere.yaml"}),
        ({"experiment": "base.yaml", "space": {"seed": 3}}, {"file": "fedrobust.sweep"}),
        ({"experiment": "base.yaml", "space": SPACE, "trails": 3}, {"file": "fedrobust.sweep", "path": "trails"}),
        ({"experiment": "base.yaml", "overrides": {"seed": "x"}, "space": SPACE}, {"path": "seed"}),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], problem: dict[str, Any], played: Played) -> None:
    with refused(**problem):
        fedrobust.sweep(**arguments)
    assert not Path("mlruns").exists()


def test_an_experiment_alone_is_no_sweep(played: Played, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    with refused(path="space"):
        fedrobust.sweep(fedrobust.load("base.yaml"))
