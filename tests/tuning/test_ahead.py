"""Trials that are certain to come are begun while a batch ends: the same trials, and each run made once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from played import Played, sweep

from fedrobust.errors import TrackingError, UnlearntError
from fedrobust.studies.teams import Stopped, Teams
from fedrobust.tuning.pruners import MedianPruner, NoPruner, Pruner
from fedrobust.tuning.samplers import CmaEs, Grid, NsgaII, Qmc, Random, Sampler, Tpe
from fedrobust.tuning.space import Space, parsed
from fedrobust.tuning.study import Completed, Failed, Outcome, Pruned, SweepStudy

NUMBERS = {"lr": {"log": [0.001, 1.0]}, "share": {"float": [0.0, 1.0], "step": 0.125}}
CHOICES = {"rule": {"choice": {"mean": "mean", "krum": {"f": {"int": [1, 4]}}}}, "acts": {"choice": [True, False]}}
SAMPLERS: list[tuple[Sampler, dict[str, Any], int]] = [
    (Random(), NUMBERS | CHOICES, 3),
    (Qmc(), NUMBERS | CHOICES, 3),
    (Grid(), CHOICES, 3),
    (Tpe(startup=5), NUMBERS | CHOICES, 1),
    (Tpe(startup=3), NUMBERS | CHOICES, 0),
    (CmaEs(), NUMBERS, 0),
    (NsgaII(population=3), NUMBERS | CHOICES, 0),
]
"""With how many of the three later batches are certain before their turn."""


LEARNT = [[9, 1], [1, 9]]
"""A confusion of two labels: it is known what chance would be, and as a rule the runs are better."""


def opened(sampler: Sampler, space: dict[str, Any], pruner: Pruner) -> SweepStudy:
    options: dict[str, Any] = {
        "space": Space({path: parsed(path, template) for path, template in space.items()}),
        "sampler": sampler,
        "pruner": pruner,
        "directions": ("maximize",),
        "seed": 3,
        "trials": 10,
        "batch": 3,
        "rounds": 4,
    }
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="tune", directions=["maximize"])
    return SweepStudy(storage, "tune", **options)


def good(number: int) -> Outcome:
    return Completed((1.0 - number / 10,))


def mixed(number: int) -> Outcome:
    return Failed("lost") if number % 3 == 1 else Completed((number / 10,))


def every(number: int) -> Outcome:
    return Failed("lost")


@pytest.mark.parametrize("outcome", [good, mixed, every])
@pytest.mark.parametrize(("sampler", "space", "batches"), SAMPLERS, ids=lambda given: getattr(given, "name", None))
def test_what_is_certain_to_come_is_what_comes(
    sampler: Sampler, space: dict[str, Any], batches: int, outcome: Callable[[int], Outcome]
) -> None:
    study, certain = opened(sampler, space, NoPruner()), 0
    expected = study.ask()
    while expected:
        ahead = study.certain()
        assert study.certain() == ahead, "looking changes nothing"
        study.tell({trial.number: outcome(trial.number) for trial in expected})
        expected = study.ask()
        if ahead:
            certain += 1
            assert ahead == expected
    assert certain == batches


def test_with_a_pruner_nothing_is_certain() -> None:
    """It compares a trial with those of earlier batches."""
    study = opened(Random(), NUMBERS, MedianPruner())
    assert study.ask()
    assert study.certain() == []


def test_a_team_without_work_begins_what_comes_next(played: Played) -> None:
    """The first trial waits until one of the next batch is under way: it would wait in vain for the batch's end."""
    begun = threading.Event()

    def wait(experiment: Any) -> float:
        name = experiment.tracking.run_name.split(" |")[0]
        if name == "trial 3":
            begun.set()
        assert name != "trial 0" or begun.wait(20)
        return 0.0

    played.wait, played.confusion = wait, LEARNT
    options = ("sampler=random", "trials=7", "parallel=3")
    early = sweep(*options, teams=2, storage="sqlite:///two.db", out=Path("two"))
    assert set(played.finished.values()) == {1}
    assert sum(played.begun.values()) == 7
    played.wait = lambda experiment: 0.0
    played.finished.clear()
    assert sweep(*options, teams=1, storage="sqlite:///one.db", out=Path("one")).trials == early.trials


def test_a_run_begun_early_that_fails_is_not_made_twice(played: Played) -> None:
    begun = threading.Event()

    def fails(experiment: Any) -> bool:
        name = experiment.tracking.run_name.split(" |")[0]
        assert name != "trial 0" or begun.wait(20)
        if name == "trial 3":
            begun.set()
        return bool(name == "trial 3")

    played.fails, played.confusion = fails, LEARNT
    found = sweep("sampler=random", "trials=6", "parallel=3", teams=2)
    assert [type(trial.outcome) for trial in found.trials] == [Completed] * 3 + [Failed] + [Completed] * 2
    assert set(played.begun.values()) == {1}


def test_nothing_is_begun_early_as_long_as_the_sweep_may_stop(played: Played) -> None:
    """As no run is better than chance."""
    played.confusion, played.accuracy = LEARNT, lambda experiment, round: 0.5
    with pytest.raises(UnlearntError):
        sweep("sampler=random", "trials=7", "parallel=3", teams=4)
    assert sum(played.begun.values()) == 3 + 1, "a batch and the control"
    played.begun.clear()
    sweep("sampler=random", "trials=7", "parallel=3", teams=4, anyway=True)
    assert sum(played.begun.values()) == 7 - 3


def test_a_run_begun_early_that_prunes_itself(played: Played) -> None:
    """By the caller's own function: its trial is pruned in its turn."""

    def score(result: Any) -> float:
        if result.name.startswith("trial 3"):
            raise optuna.TrialPruned
        return 0.5

    played.confusion = LEARNT
    options = ("sampler=random", "trials=6", "parallel=3", "objectives=[{metric: score}]")
    found = sweep(*options, teams=4, score=score)
    assert [type(trial.outcome) for trial in found.trials] == [Completed] * 3 + [Pruned] + [Completed] * 2


def two_at_once() -> Teams:
    return Teams(lambda what: None, pool=SimpleNamespace(teams=1))  # type: ignore[arg-type]


def test_what_was_begun_ahead_ends_with_the_teams_and_what_waits_makes_room() -> None:
    running, done = threading.Event(), list[str]()
    with two_at_once() as teams:

        def ahead() -> None:
            running.set()
            assert teams._stopping.wait(20)
            raise Stopped

        def first() -> None:
            assert running.wait(20)

        waiting = [lambda number=number: done.append(f"ahead {number}") for number in range(3)]
        teams.each(Any, [first], ahead=[ahead])  # type: ignore[arg-type]
        assert not teams._ahead[0].done()
        teams.each(Any, [lambda: done.append("second")], ahead=waiting)  # type: ignore[arg-type]
    assert done[0] == "second"


def test_results_are_passed_on_one_at_a_time_also_what_was_begun_ahead() -> None:
    running, go, both = threading.Event(), threading.Event(), threading.Barrier(2)
    inside, most = list[str](), list[int]()

    def then(done: str) -> None:
        inside.append(done)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # two results at once would meet here
        most.append(len(inside))
        inside.remove(done)

    with two_at_once() as teams:

        def ahead() -> str:
            running.set()
            assert go.wait(20)
            return "ahead"

        def last() -> str:
            go.set()
            return "last"

        teams.each(
            Any, [lambda: str(running.wait(20))], ahead=[ahead], then=lambda done: then(done) if go.is_set() else None
        )  # type: ignore[arg-type]
        teams.each(Any, [last], then)  # type: ignore[arg-type]
    assert most == [1, 1]


def test_an_error_ahead_ends_everything_and_is_raised() -> None:
    with two_at_once() as teams:

        def ahead() -> None:
            raise TrackingError("gone")

        def first() -> None:
            assert teams._stopping.wait(20)
            raise Stopped

        with pytest.raises(TrackingError, match="gone"):
            teams.each(Any, [first], ahead=[ahead])  # type: ignore[arg-type]
