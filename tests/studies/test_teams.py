"""Many runs at once: whatever ends them, what finished is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fedrobust.preparation as preparation
import fedrobust.studies.teams as teams_room
from fedrobust.ending import tracked
from fedrobust.errors import DataError, FederationError, TrackingError
from fedrobust.experiment_file import load
from fedrobust.naming import Part
from fedrobust.studies.planned import PlannedRun
from fedrobust.studies.study import Measured, Study
from fedrobust.studies.teams import Stopped, Teams

EXPERIMENT: Any = None


def on(threads: int) -> Teams:
    """With so many tasks at once: one more than teams, as the last one waits for a team."""
    return Teams(lambda what: None, pool=SimpleNamespace(teams=threads - 1))  # type: ignore[arg-type]


class Stage:
    """Three tasks that are under way at once: the first fails, the others are told to end, and end as they like."""

    def __init__(self, teams: Teams) -> None:
        self.teams, self.kept = teams, list[str]()
        self.under_way = threading.Barrier(3)

    def fail(self, error: BaseException) -> str:
        self.under_way.wait(20)
        raise error

    def finish(self, name: str) -> str:
        """A run that is past its last round when it is told to stop."""
        self.under_way.wait(20)
        assert self.teams._stopping.wait(20)
        return name

    def stop(self) -> str:
        self.under_way.wait(20)
        assert self.teams._stopping.wait(20)
        raise Stopped

    def never(self) -> str:
        raise AssertionError("what waits never begins")

    def keep(self, name: str) -> None:
        self.kept.append(name)


def test_what_finishes_while_others_are_ended_is_kept() -> None:
    with on(3) as teams:
        stage = Stage(teams)
        tasks: list[Callable[[], str]] = [
            partial(stage.fail, TrackingError("gone")),
            partial(stage.finish, "late"),
            stage.stop,
            stage.never,
        ]
        with pytest.raises(TrackingError, match="gone"):
            teams.each(EXPERIMENT, tasks, stage.keep)
    assert stage.kept == ["late"]


def test_an_error_of_keeping_costs_no_other_and_hides_no_first() -> None:
    """Whether it comes before the runs are told to stop, or after."""
    with on(3) as teams:
        stage = Stage(teams)

        def keep(name: str) -> None:
            stage.keep(name)
            if name == "one":
                raise OSError("the disk is full")

        tasks = [
            partial(stage.fail, TrackingError("gone")),
            partial(stage.finish, "one"),
            partial(stage.finish, "two"),
        ]
        with pytest.raises(TrackingError, match="gone"):
            teams.each(EXPERIMENT, tasks, keep)
    assert sorted(stage.kept) == ["one", "two"]
    with on(3) as teams:
        stage = Stage(teams)

        def early() -> str:
            stage.under_way.wait(20)
            return "one"

        with pytest.raises(OSError, match="full"):
            teams.each(EXPERIMENT, [early, partial(stage.finish, "two"), partial(stage.finish, "three")], keep)
    assert sorted(stage.kept) == ["one", "three", "two"]


def test_a_ctrl_c_and_a_second_one_cost_nothing_that_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, go_on, kept = [threading.Event(), threading.Event()], threading.Event(), list[str]()

    def waiting(*options: Any) -> Any:
        waits[len(options) == 2].set()
        return wait(*options)

    def interrupt() -> str:
        for each in waits:  # for the runs, and for their end
            assert each.wait(20)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return "one"

    def finish() -> str:
        assert go_on.wait(20)
        return "two"

    monkeypatch.setattr(teams_room, "wait", waiting)
    with on(2) as teams:
        with pytest.raises(KeyboardInterrupt):
            teams.each(EXPERIMENT, [interrupt, finish], kept.append)
        go_on.set()
    assert sorted(kept) == ["one", "two"]


def test_nothing_is_begun_after_an_error_and_what_was_stopped_hides_it_never() -> None:
    """Even where a thread is free before anybody has seen the error."""
    begun = list[int]()

    def then(number: int) -> None:
        if number == 3:
            raise TrackingError("gone")

    def task(number: int) -> int:
        begun.append(number)
        return number

    for _ in range(20):
        begun.clear()
        with on(1) as teams:
            with pytest.raises(TrackingError, match="gone"):
                teams.each(EXPERIMENT, [partial(task, number) for number in range(50)], then)
            assert begun == [0, 1, 2, 3]
            with pytest.raises(Stopped):
                teams.each(EXPERIMENT, [partial(task, 4)], then)
        assert begun == [0, 1, 2, 3]


def test_results_are_handed_on_one_at_a_time() -> None:
    inside, most = [0], [0]

    def then(number: int) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.001)
        inside[0] -= 1

    with on(8) as teams:
        teams.each(EXPERIMENT, [partial(int, number) for number in range(64)], then)
    assert most == [1]


def test_what_takes_long_before_the_first_round_is_told_and_ends_with_the_study(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding patches, say: for as long as an hour a run has no round at which it could be stopped."""
    told, rounds = list[str](), list[str]()

    def run(experiment: Any, part: Part, **_: Any) -> Any:
        part.say("encoding patches: 1 % of 10,000")
        teams._stopping.set()
        part.say("encoding patches: 2 % of 10,000")
        rounds.append("one")

    monkeypatch.setattr(teams_room, "run", run)
    with Teams(told.append, pool=SimpleNamespace(teams=1)) as teams:  # type: ignore[arg-type]
        monkeypatch.setattr(teams, "hospitals", lambda experiment: None)
        with pytest.raises(Stopped):
            teams.run(EXPERIMENT, Part("all", {}))
    assert told == ["encoding patches: 1 % of 10,000"] and not rounds


@pytest.mark.parametrize(
    ("alone", "begun", "said"),
    [
        (True, True, "round 3: lost; go on with: --resume one"),
        (True, False, "round 3: lost"),  # before its first round
        (False, True, "round 3: lost"),
    ],
)
def test_a_run_that_is_a_part_is_not_said_to_go_on_alone(alone: bool, begun: bool, said: str) -> None:
    """What it is a part of is started again; a run of its own goes on where it stopped."""
    closed = list[str]()
    opened: Any = SimpleNamespace(run_id="one", close=lambda status, reason: closed.append(status) or True)
    with pytest.raises(FederationError) as caught, tracked(lambda: opened, alone, lambda run: begun):
        raise FederationError("round 3: lost")
    assert str(caught.value) == said and closed == ["FAILED"]


def test_a_part_is_told_which_runs_were_begun_for_it(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    """And what it dies of is told of all of them; what ends all is raised again."""
    import fedrobust.runner as runner

    Path("e.yaml").write_text("data: {source: {name: histology, patients: 20}}\n")
    experiment, ids = load("e.yaml"), iter(("one", "two", "three", "four"))
    monkeypatch.setattr(runner.Tracker, "open", lambda *_: SimpleNamespace(run_id=next(ids)))
    told = list[Any]()
    tracker: Any = SimpleNamespace(run_id="all", failed=lambda *given: told.append(given))
    teams = SimpleNamespace(run=lambda experiment, part, hooks: _begun_twice(part))
    study = Study(Path(), None, teams, tracker)  # type: ignore[arg-type]
    planned = PlannedRun(experiment=experiment, label="trial 3", tags={"trial": "3"})

    def _begun_twice(part: Part) -> Any:
        for _ in range(2):
            this: Any = SimpleNamespace(
                experiment=experiment, hospitals=SimpleNamespace(digest="d"), part=part, cautions=()
            )
            runner._open_tracker(this, None)
        raise deaths.pop()

    deaths = [TrackingError("gone"), DataError("too few")]
    assert study.make(planned, lambda run, result: Measured({})).failed == "too few"
    assert told == [("too few", ["one", "two"], "trial 3", {"trial": "3"})]
    with pytest.raises(TrackingError):
        study.make(planned, lambda run, result: Measured({}))
    assert len(told) == 1


def test_what_ends_a_part_that_is_not_its_own_fault_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    Path("e.yaml").write_text("data: {source: {name: histology, patients: 20}}\n")
    told, ends = list[Any](), list[Any]()

    def run(experiment: Any, part: Part, hooks: Any) -> Any:
        part.opened.extend(["one", "two"])
        if isinstance(end := ends.pop(), BaseException):
            raise end
        return end

    tracker: Any = SimpleNamespace(
        run_id="all",
        stopped=lambda *given: told.append(("stopped", *given)),
        last=lambda records, run_id: told.append(("last", run_id)),
        figures=lambda figures, run_id: told.append(("figures", figures, run_id)),
    )
    study = Study(Path(), None, SimpleNamespace(run=run), tracker)  # type: ignore[arg-type]

    def make(*overrides: str) -> None:
        planned = PlannedRun(experiment=load("e.yaml", overrides), label="trial 3", tags={})
        study.make(planned, lambda run, result: Measured({"cell/skipped": 1.0}))

    for stop, why in ((Stopped("trial 3 was pruned"), "trial 3 was pruned"), (Stopped(), "its study was stopped")):
        ends.append(stop)
        with pytest.raises(Stopped):
            make()
        assert told.pop() == ("stopped", why, ["one", "two"])
    for override, sent in (("tracking.curves=false", [("last", "two")]), ("tracking.curves=true", [])):
        ends.append(SimpleNamespace(run_id="two", recorded=SimpleNamespace(records=(), seconds=1.0)))
        make(override)
        figures, given_up = told[-2:]
        assert told[:-2] == sent and figures == ("figures", {"cell/skipped": 1.0}, "two")
        assert given_up == ("stopped", "an actor that it needed died; it was begun again as two", ["one"])
        told.clear()


def test_the_curves_of_a_part_are_sent_only_if_they_are_wanted(workplace: Path) -> None:
    import fedrobust.runner as runner

    Path("e.yaml").write_text("data: {source: {name: histology, patients: 20}}\n")
    for part, override, wanted in (
        (None, "tracking.curves=false", True),
        (Part("all", {}), "tracking.curves=false", False),
        (Part("all", {}), "tracking.curves=true", True),
    ):
        this: Any = SimpleNamespace(part=part, experiment=load("e.yaml", [override]))
        assert runner._Run.curves.fget(this) is wanted  # type: ignore[attr-defined]


def test_a_lack_of_memory_is_not_kept_on_the_shelf(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    """What is wrong with the data is: it would come again."""
    Path("e.yaml").write_text("data: {source: {name: histology, patients: 20}}\n")
    experiment, reads, deaths = load("e.yaml"), [0], [MemoryError(), DataError("too few"), DataError("again")]

    def reading(_: Any) -> Any:
        reads[0] += 1
        raise deaths[reads[0] - 1]

    monkeypatch.setattr(preparation, "hospitals_of", reading)
    with on(1) as teams:
        for death in (MemoryError, DataError, DataError):
            with pytest.raises(death):
                teams.hospitals(experiment)
    assert reads == [2]
