"""What a trial dies of is its result, and the search goes on; only what concerns all of them ends it."""

from __future__ import annotations

import csv
import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from played import Played, sweep, two_teams

import fedrobust
import fedrobust.preparation as preparation
import fedrobust.studies.teams as teams_room
from fedrobust import cli
from fedrobust.audit.signing import AuditError
from fedrobust.data.histology import Histology
from fedrobust.errors import (
    DataError,
    ExperimentError,
    FederationError,
    FedRobustError,
    NoPlaceError,
    StorageError,
    TrackingError,
)
from fedrobust.experiment import Experiment
from fedrobust.federation.actors import ActorDied
from fedrobust.tuning.pruners import MedianPruner
from fedrobust.tuning.running import STORAGE
from fedrobust.tuning.samplers import Tpe
from fedrobust.tuning.study import Failed, Trial, study_of
from fedrobust.tuning.sweep import load_sweep


def recursion() -> RecursionError:
    def again() -> None:
        again()

    try:
        again()
    except RecursionError as error:
        return error
    raise AssertionError


OWN: dict[str, tuple[Callable[[], BaseException], str]] = {
    "data that do not fit": (lambda: DataError("data: 96 patches for 400 hospitals"), "data: 96 patches for 400"),
    "an attack that does not fit": (
        lambda: ExperimentError("attacks.0: no label 9", "attacks.1: 3"),
        "no label 9; att",
    ),
    "a federation that ends": (lambda: FederationError("round 1: no update arrived"), "round 1: no update arrived"),
    "an actor that always dies": (lambda: ActorDied("the actor died"), "the actor died"),
    "a log that does not hold": (lambda: AuditError("line 3: not signed"), "line 3: not signed"),
    "no memory": (MemoryError, "MemoryError (played.py, line "),
    "no end of calls": (recursion, "RecursionError: maximum recursion depth exceeded"),
    "a user's own class": (lambda: KeyError("layer"), "KeyError: 'layer' (played.py, line "),
    "a user's own way out": (lambda: SystemExit(3), "SystemExit: 3 (played.py"),
    "a file of its own": (lambda: FileNotFoundError(errno.ENOENT, "No such file", "mine.npz"), "mine.npz"),
    "odd words": (
        lambda: ValueError("\x1b[2J one\n\n two \udcff=" + "x" * 5000),
        r"ValueError: \x1b[2J one; two \udcff=xx",
    ),
}


def caused(error: FedRobustError, cause: BaseException) -> FedRobustError:
    error.__cause__ = cause
    return error


EVERYONES: dict[str, Callable[[], BaseException]] = {
    "no tracking server": lambda: TrackingError("no answer"),
    "no storage": lambda: StorageError("locked"),
    "no place": lambda: NoPlaceError("all teams have lost actors"),
    "a full disk": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "a full disk, told": lambda: caused(FederationError("round 2 could not be written"), OSError(errno.ENOSPC, "full")),
    "a Ctrl-C": KeyboardInterrupt,
}


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as table:
        return list(csv.DictReader(table))


def number(experiment: Experiment) -> int:
    """Of the trial whose run this is."""
    return int((experiment.tracking.run_name or "").split()[1])


def failures(trials: list[Trial]) -> dict[int, str]:
    return {trial.number: trial.outcome.reason for trial in trials if isinstance(trial.outcome, Failed)}


def test_what_a_trial_dies_of_is_its_result(played: Played) -> None:
    """In the study, in the table, in MLflow; and it is finished: no later sitting runs it again."""
    deaths = list(OWN.values())
    played.dies = lambda experiment: deaths[number(experiment)][0]() if number(experiment) < len(deaths) else None
    options = (f"trials={len(deaths) + 1}", "parallel=6")
    found = sweep(*options)
    why = failures(found.trials)
    assert list(why) == list(range(len(deaths)))
    for told, (_, expected) in zip(why.values(), deaths, strict=True):
        assert expected in told
        assert told.isprintable() and len(told) < 1100
    rows = lines(found.folder / "trials.csv")
    assert [row["state"] for row in rows] == ["failed"] * len(deaths) + ["completed"]
    assert [row["reason"] for row in rows] == [*why.values(), ""]
    told_of = {name.partition(":")[0]: told for name, told in played.failures.items()}
    assert told_of == {f"trial {trial} | seed 1 | played": told for trial, told in why.items()}
    assert played.figured["trials/failed"] == len(deaths)
    begun = played.begun.copy()
    assert sweep(*options).trials == found.trials
    assert played.begun == begun


def test_what_concerns_all_ends_the_sweep_which_goes_on_afterwards(played: Played) -> None:
    """Each sitting dies of something else, one trial further."""
    options = (f"trials={len(EVERYONES)}", "parallel=2")
    straight = sweep(*options, out=Path("straight"), storage="sqlite:///straight.db").trials
    for last, death in enumerate(EVERYONES.values()):
        played.dies = lambda experiment, last=last, death=death: death() if number(experiment) == last else None
        with pytest.raises(BaseException) as caught:
            sweep(*options)
        assert type(caught.value) is (FedRobustError if isinstance(death(), OSError) else type(death()))
        table = lines(Path("mlruns/sweeps/played/trials.csv"))
        assert [row["state"] for row in table] == ["completed"] * (last - last % 2)
    played.dies = lambda experiment: None
    assert sweep(*options).trials == straight
    assert played.failures == {}


IMPOSSIBLE = """
name: grid
experiment: base.yaml
space:
  federation.clients: {choice: [10, 4]}
  aggregation.f: {choice: [1, 3]}
objectives: [{metric: test/balanced_accuracy}]
sampler: grid
trials: 4
parallel: 3
"""


def test_values_that_do_not_go_together_fail_their_trial(played: Played) -> None:
    """Each is right with the first of the other's; four hospitals with three malicious ones are not."""
    Path("sweep.yaml").write_text(IMPOSSIBLE)
    found = sweep()
    ((trial, why),) = failures(found.trials).items()
    assert found.trials[trial].values == {"federation.clients": 4, "aggregation.f": 3}
    assert "sweep.yaml:6: space.aggregation.f: " in why
    row = lines(found.folder / "trials.csv")[trial]
    assert (row["state"], row["federation.clients"], row["aggregation.f"], row["reason"]) == ("failed", "4", "3", why)
    assert played.failures == {f"trial {trial} | grid": why}, "a run in MLflow stands for it"
    assert played.tags[f"trial {trial} | grid"] == {"trial": str(trial), "phase": "trial"}
    assert sum(played.begun.values()) == 3


def test_a_validator_of_a_users_own_class_may_raise_anything(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def model_validate(values: Any, checked: Any = Experiment.model_validate) -> Experiment:
        found: Experiment = checked(values)
        if (found.tracking.run_name or "").startswith("trial 1 |"):
            raise LookupError("no such organ")
        return found

    monkeypatch.setattr(Experiment, "model_validate", model_validate)
    found = sweep("trials=3")
    assert list(failures(found.trials)) == [1]
    assert failures(found.trials)[1].startswith("LookupError: no such organ (test_impossible.py, line ")


SCORES: list[tuple[Callable[[], Any], str]] = [
    (lambda: 1 / 0, "ZeroDivisionError: division by zero (test_impossible.py"),
    (lambda: math.nan, "an objective is not a finite number"),
    (lambda: -math.inf, "an objective is not a finite number"),
    (lambda: "good", "ValueError: could not convert string to float: 'good'"),
    (lambda: None, "TypeError: float() argument"),
    (lambda: exec("raise SystemExit"), "SystemExit (<string>"),
]


def test_a_function_of_ones_own_fails_trials_one_by_one(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)

    def objective(result: Any) -> float:
        trial = int(result.run_id.split()[3])
        return SCORES[trial][0]() if trial < len(SCORES) else result.final["test/balanced_accuracy"]

    found = fedrobust.sweep(
        "base.yaml",
        space={"learning.local.optimizer.lr": {"log": [0.001, 1.0]}},
        objective=objective,
        trials=len(SCORES) + 1,
    )
    why = failures(found.trials)
    assert list(why) == list(range(len(SCORES)))
    for told, (_, expected) in zip(why.values(), SCORES, strict=True):
        assert expected in told


def test_a_pruner_that_fails_costs_the_trial_that_it_judges(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            if trial.number == 1:
                raise ArithmeticError("no median")
            return False

    monkeypatch.setattr(MedianPruner, "build", lambda *_: Broken())
    found = sweep("trials=4", "pruner=median")
    assert list(failures(found.trials)) == [1]
    assert failures(found.trials)[1].startswith("ArithmeticError: no median")


def test_where_a_sampler_fails_a_trial_is_drawn_at_random_and_the_same_again(
    played: Played, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before it chooses anything, while it chooses all at once, and when it has chosen some of it."""
    build = Tpe.build

    class AtOnce(optuna.samplers.RandomSampler):
        def sample_relative(self, *_: Any) -> Any:
            raise ArithmeticError("not positive definite")

    class Later(optuna.samplers.RandomSampler):
        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            if name == "aggregation":
                raise ArithmeticError("not positive definite")
            return super().sample_independent(study, trial, name, distribution)

    def broken(self: Tpe, seed: int, number: int, space: Any) -> Any:
        if number == 1:
            raise ArithmeticError("not positive definite")
        return AtOnce(seed=1) if number == 2 else Later(seed=1) if number == 4 else build(self, seed, number, space)

    monkeypatch.setattr(Tpe, "build", broken)
    found = sweep("trials=6")
    assert len(found.trials) == 6
    assert failures(found.trials) == {}
    for trial in range(6):
        told = f"trial {trial} is drawn at random, since the sampler tpe fails: ArithmeticError: not positive definite"
        assert (told in caplog.text) == (trial in (1, 2, 4))
    again = sweep("trials=6", storage="sqlite:///again.db", out=Path("again"))
    assert again.trials == found.trials


def test_where_every_trial_dies_the_end_says_of_what(
    played: Played, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played.dies = lambda experiment: DataError("data: too few patches") if number(experiment) else KeyError("one")
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)
    monkeypatch.setattr("sys.argv", ["fedrobust", "sweep", "sweep.yaml", "trials=4", "fresh=[9]"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == (
        "error: all 4 trials failed: 3 of them, data: too few patches; see mlruns/sweeps/played/trials.csv"
    )
    assert "trial 3 failed: data: too few patches" in shown.out
    assert [row["state"] for row in lines(Path("mlruns/sweeps/played/trials.csv"))] == ["failed"] * 4
    assert Path("mlruns/sweeps/played/sweep.json").exists()


def test_trials_that_an_earlier_fault_left_running_are_taken_up(played: Played) -> None:
    assert len(study_of(load_sweep("sweep.yaml", ["trials=4"]), STORAGE).ask()) == 3
    played.dies = lambda experiment: DataError("too few patches") if number(experiment) == 0 else None
    found = sweep("trials=4")
    assert failures(found.trials) == {0: "too few patches"}
    assert len(found.trials) == 4


def test_data_that_no_trial_can_have_end_it_before_the_first(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that are searched may be right for other trials."""
    monkeypatch.setattr(Histology, "load", lambda *_: None)
    deaths = [DataError("data: too few patches"), KeyError("patients"), MemoryError(), SystemExit(3)]
    told = [
        r"^data: too few patches$",
        r"^data: KeyError: 'patients' ",
        r"^data: MemoryError ",
        r"^data: SystemExit: 3 ",
    ]
    for death, text in zip(deaths, told, strict=True):

        def reading(experiment: Experiment, death: BaseException = death) -> None:
            if experiment.federation.clients > 9:
                raise death

        monkeypatch.setattr(preparation, "hospitals_of", reading)
        with pytest.raises(DataError, match=text):
            sweep("trials=4")
        assert not Path("mlruns").exists()
    Path("base.yaml").write_text(Path("base.yaml").read_text().replace("clients: 10", "clients: 9"))
    Path("sweep.yaml").write_text(IMPOSSIBLE)
    monkeypatch.setattr(preparation, "hospitals_of", reading)
    found = sweep("name=some")
    assert sorted(trial.values["federation.clients"] for trial in found.trials) == [4, 4, 10, 10]


def test_files_that_are_not_there_end_it_before_the_first_unless_they_are_searched(played: Played) -> None:
    with pytest.raises(DataError, match=r"nowhere\.npz"):
        sweep("changes={data.source: {name: npz, path: nowhere.npz}}")
    assert not Path("mlruns").exists()
    sources = "{choice: {none: {name: npz, path: nowhere.npz}, made: {name: histology, patients: 20}}}"
    assert len(sweep(f"space.data.source={sources}", "trials=3").trials) == 3


def test_a_key_that_cannot_be_used_ends_it_before_the_first(played: Played) -> None:
    sweep("trials=1")
    Path("mlruns/keys/coordinator.pem").write_text("nonsense")
    with pytest.raises(AuditError, match="no key in PEM format"):
        sweep("trials=4")
    assert sum(played.begun.values()) == 1


def test_a_metric_that_only_some_runs_have_fails_the_others(played: Played) -> None:
    run = teams_room.run

    def playing(experiment: Experiment, hooks: Any, **options: Any) -> Any:
        result = run(experiment, hooks=hooks, **options)
        for record in result.recorded.evaluations if number(experiment) else ():
            record.metrics["attack/success_rate"] = 0.5
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teams_room, "run", playing)
        found = sweep("objectives.0.metric=attack/success_rate", "trials=3")
    assert list(failures(found.trials)) == [0]
    assert "in the run of attack own, seed 1; found 'attack/success_rate'" in failures(found.trials)[0]


def test_runs_on_fresh_seeds_die_alone_too(played: Played) -> None:
    played.dies = lambda experiment: DataError("too few patches") if experiment.seed == 8 else None
    played.accuracy = lambda experiment, round: math.nan if experiment.seed == 9 else 0.5
    found = sweep("trials=3", "fresh=[7,8,9]", "again=1")
    assert found.fresh[0].failed == {8: "too few patches", 9: "an objective is not a finite number"}
    table = lines(found.folder / "fresh.csv")
    assert [row["reason"] for row in table] == ["", "too few patches", "an objective is not a finite number", ""]
    assert [row["test/balanced_accuracy"] for row in table] == ["0.5", "", "", ""]
