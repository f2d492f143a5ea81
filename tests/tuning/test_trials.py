"""How a trial ends, and what its pruner is told, whichever of its runs is quicker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrobust.studies.finished import FinishedRun
from fedrobust.tuning.objectives import Objective
from fedrobust.tuning.study import Asked, Completed, Failed, Outcome, Pruned
from fedrobust.tuning.trials import TrialRun, _OverError, _UnderWay

ROUNDS = 4
NAMES = ("one", "two", "three")
Per = Literal["round", "run"]
EXPERIMENT: Any = SimpleNamespace(tracking=SimpleNamespace(run_name=""), digest=lambda: "")


@dataclass(frozen=True)
class Course:
    """What a run does: its metric after each round, and the round after which it fails, if it does."""

    values: Sequence[float]
    fails_after: int | None = None


@dataclass
class Ended:
    outcome: Outcome
    told: list[tuple[int, float]] = field(default_factory=list)
    """What the pruner was told, in order."""


class Turns:
    """Lets runs that go on side by side take their steps in a given order; those that are over are passed by."""

    def __init__(self, order: Sequence[str]) -> None:
        self._order, self._free = list(order), True
        self._over: set[str] = set()
        self._changed = threading.Condition()
        self._mine: str | None = None

    def take(self, name: str) -> None:
        with self._changed:
            self._done(name)
            assert self._changed.wait_for(lambda: self._mine is None and self._next() == name, timeout=20)
            self._order.remove(name)
            self._mine = name

    def over(self, name: str) -> None:
        with self._changed:
            self._over.add(name)
            self._done(name)

    def _done(self, name: str) -> None:
        if self._mine == name:
            self._mine = None
        self._changed.notify_all()

    def _next(self) -> str:
        return next(name for name in [*self._order, *NAMES] if name not in self._over)


def ended(courses: Mapping[str, Course], order: Sequence[str], per: Per, prunes: bool = True) -> Ended:
    """A trial with these runs, whose steps are taken in this order. Its pruner ends what is below one half."""
    told: list[tuple[int, float]] = []

    def report(number: int, step: int, value: float) -> bool:
        told.append((step, value))
        return value < 0.5

    sweep = SimpleNamespace(objectives=[Objective(metric="m", attacks="min")], pruner=SimpleNamespace(per=per))
    runs = [(name, 1) for name in courses]
    plan: Any = SimpleNamespace(experiment=lambda *_: EXPERIMENT, runs=runs, sweep=sweep, prunes=prunes, score="")
    trial, turns = _UnderWay(Asked(0, {}), plan, SimpleNamespace(report=report)), Turns(order)  # type: ignore[arg-type]
    wrong: list[BaseException] = []

    def make(run: TrialRun, heard: Callable[[int, Mapping[str, float] | None], None]) -> FinishedRun:
        """As a federation does it: the figures of a round are there when the next one is made."""
        course = courses[run.attack]
        for round in range(1, ROUNDS + 2):
            turns.take(run.attack)
            if course.fails_after == round - 1:
                return FinishedRun("", "", failed=f"{run.attack} is lost")
            if round <= ROUNDS:
                heard(round, None)
            if round > 1:
                heard(round - 1, {"m": course.values[round - 2]})
        return FinishedRun(
            "", "", "id", rounds={str(i): {"m": value} for i, value in enumerate(course.values, start=1)}
        )

    def one(run: TrialRun) -> None:
        try:
            trial.run(run, SimpleNamespace(make=make))  # type: ignore[arg-type]
        except BaseException as error:
            wrong.append(error)
        finally:
            turns.over(run.attack)

    threads = [threading.Thread(target=one, args=(run,)) for run in trial.runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    return Ended(trial.outcome(), told)


def expected(courses: Mapping[str, Course], per: Per, prunes: bool = True) -> Ended:
    """By the rule: round by round, or run by run, the pruner first, then the failures."""
    told: list[tuple[int, float]] = []
    failed = [(course.fails_after, place, name) for place, (name, course) in enumerate(courses.items())]
    lost = [(after, place, name) for after, place, name in failed if after is not None]
    if per == "run" and prunes:
        for place, (name, course) in enumerate(courses.items()):
            if course.fails_after is not None:
                return Ended(Failed(f"{name} is lost"), told)
            told.append((place, course.values[-1]))
            if course.values[-1] < 0.5:
                return Ended(Pruned(), told)
    elif prunes:
        known = min((max(after - 1, 0) for after, _, _ in lost), default=ROUNDS)
        for round in range(1, known + 1):
            told.append((round, min(course.values[round - 1] for course in courses.values())))
            if told[-1][1] < 0.5:
                return Ended(Pruned(), told)
    if lost:
        return Ended(Failed(f"{min(lost)[2]} is lost"), told)
    return Ended(Completed((min(course.values[-1] for course in courses.values()),)), told)


GOOD, LATE = (0.9, 0.9, 0.9, 0.9), (0.9, 0.9, 0.4, 0.9)
BOTH = ["one"] * 6 + ["two"] * 6


@pytest.mark.parametrize("order", [BOTH, BOTH[::-1], ["one", "two"] * 6], ids=["one first", "two first", "in turn"])
@pytest.mark.parametrize(
    ("fails_after", "outcome"), [(4, Pruned()), (3, Failed("one is lost")), (0, Failed("one is lost"))]
)
def test_a_trial_that_fails_and_is_pruned_ends_as_the_rounds_say(
    order: list[str], fails_after: int, outcome: Outcome
) -> None:
    """The pruner ends it in round 3: a run that fails after round 4 has figures of it, and after 3 not yet."""
    found = ended({"one": Course(GOOD, fails_after), "two": Course(LATE)}, order, "round")
    assert found.outcome == outcome
    assert [step for step, _ in found.told] == list(range(1, max(fails_after, 1)))


@pytest.mark.parametrize("order", [BOTH, BOTH[::-1]], ids=["one first", "two first"])
def test_of_two_runs_that_fail_the_one_that_came_least_far_is_told_of(order: list[str]) -> None:
    assert ended({"one": Course(GOOD, 3), "two": Course(GOOD, 2)}, order, "round").outcome == Failed("two is lost")
    assert ended({"one": Course(GOOD, 2), "two": Course(GOOD, 2)}, order, "round").outcome == Failed("one is lost")
    assert ended({"one": Course(GOOD, 3), "two": Course(GOOD, 2)}, order, "run").outcome == Failed("one is lost")


def test_a_run_goes_no_further_than_it_takes() -> None:
    """The others end when they are past the one that failed, or where they come after it."""
    seen: dict[str, int] = dict.fromkeys(NAMES, 0)
    courses = {"one": Course(GOOD), "two": Course(GOOD, 2), "three": Course(GOOD)}
    order = ["two"] * 3 + ["one", "three"] * 6
    trial = _UnderWay.run

    def counting(self: _UnderWay, run: TrialRun, runs: Any) -> FinishedRun | None:
        def make(run: TrialRun, heard: Any) -> Any:
            def counted(round: int, metrics: Any) -> None:
                seen[run.attack] = round if metrics is None else seen[run.attack]
                heard(round, metrics)

            return runs.make(run, counted)

        return trial(self, run, SimpleNamespace(make=make))  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_UnderWay, "run", counting)
        assert ended(courses, order, "round").outcome == Failed("two is lost")
        assert (seen["one"], seen["two"]) == (3, 2)
        assert seen["three"] <= 2
        seen["three"] = 0
        assert ended(courses, order, "run").outcome == Failed("two is lost")
        assert (seen["one"], seen["two"]) == (4, 2)
        assert seen["three"] <= 1


def test_a_run_that_can_change_nothing_is_not_begun() -> None:
    plan: Any = SimpleNamespace(
        score="",
        experiment=lambda *_: EXPERIMENT,
        runs=[("one", 1), ("two", 1)],
        sweep=SimpleNamespace(objectives=[], pruner=SimpleNamespace(per="round")),
        prunes=False,
    )
    trial = _UnderWay(Asked(0, {}), plan, SimpleNamespace())  # type: ignore[arg-type]
    made: list[str] = []

    def make(run: TrialRun, heard: Any) -> FinishedRun:
        made.append(run.attack)
        return FinishedRun("", "", failed="at once")

    for run in trial.runs:
        trial.run(run, SimpleNamespace(make=make))  # type: ignore[arg-type]
    assert made == ["one"]
    assert trial.outcome() == Failed("at once")
    with pytest.raises(_OverError, match=r"^another run of trial 0 failed: at once$"):
        trial._heard(("two", 1), 1, None)


@pytest.mark.parametrize(
    ("per", "why"),
    [
        ("round", "trial 0 was pruned: m 0.25 after round 2"),
        ("run", "trial 0 was pruned: m 0.25 after run 1"),
    ],
)
def test_a_run_of_a_pruned_trial_is_told_why_it_ends(per: Per, why: str) -> None:
    runs = [("one", 1), ("two", 1)]
    sweep = SimpleNamespace(objectives=[Objective(metric="m", attacks="min")], pruner=SimpleNamespace(per=per))
    plan: Any = SimpleNamespace(experiment=lambda *_: EXPERIMENT, runs=runs, sweep=sweep, prunes=True, score="")
    trial = _UnderWay(Asked(0, {}), plan, SimpleNamespace(report=lambda number, step, value: value < 0.5))  # type: ignore[arg-type]

    def make(run: TrialRun, heard: Any) -> FinishedRun:
        return FinishedRun("", "", "id", rounds={"2": {"m": 0.25}})

    if per == "round":
        trial._heard(("one", 1), 2, {"m": 0.25})
        with pytest.raises(_OverError, match=rf"^{why}$"):
            trial._heard(("two", 1), 2, {"m": 0.9})
    else:
        trial.run(trial.runs[0], SimpleNamespace(make=make))  # type: ignore[arg-type]
        with pytest.raises(_OverError, match=rf"^{why}$"):
            trial._heard(("two", 1), 1, None)


COURSE = st.builds(
    Course,
    st.lists(st.sampled_from([0.9, 0.9, 0.7, 0.4]), min_size=ROUNDS, max_size=ROUNDS),
    st.sampled_from([None, None, 0, 1, 2, 3, 4]),
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(COURSE, min_size=3, max_size=3),
    st.permutations([name for name in NAMES for _ in range(ROUNDS + 2)]),
    st.sampled_from(["round", "run"]),
    st.booleans(),
)
def test_how_a_trial_ends_does_not_depend_on_the_order_in_time(
    courses: list[Course], order: list[str], per: Per, prunes: bool
) -> None:
    named = dict(zip(NAMES, courses, strict=True))
    assert ended(named, order, per, prunes) == expected(named, per, prunes)
