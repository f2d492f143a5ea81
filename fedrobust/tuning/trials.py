"""The trials of one batch under way: their runs go on side by side, and how a trial ends does not depend on the order.

The pruner is told of a round when all runs of the trial have reached it, or of a run when those before it have ended.
Of runs that fail, the one counts that came least far, or is first; what the pruner says of rounds, or runs, before that
counts more. So where a run fails, the others go on until they are past it: a trial whose run fails in round 7 is pruned
if its runs are bad enough in round 5, even if the others reach that round only later.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.failures import ends_all, reason
from fedrobust.naming import Part
from fedrobust.parallel import Stopped, Store, Teams, failure
from fedrobust.runner import Result
from fedrobust.tracking import Tracker
from fedrobust.tuning.objectives import NOT_FINITE, SCORE, Curves, Objective, Results, reduced
from fedrobust.tuning.study import Asked, Completed, Failed, Outcome, Pruned, SweepStudy, Trial
from fedrobust.tuning.sweep import OWN, Plan

Heard = Callable[[int, Mapping[str, float] | None], None]
"""Told of every round that a run has made, without metrics, and then of every round that is evaluated, once."""
Score = Callable[[Result], float]
"""What a run is worth, as a caller's own function says."""


@dataclass(frozen=True)
class Run:
    """What a run gave: its metrics, or why there are none."""

    digest: str
    """That of its experiment; none of a run that failed, which is not kept."""
    label: str
    run_id: str = ""
    rounds: dict[str, dict[str, float]] = field(default_factory=dict)
    """Round, as a text → name → metric, of the evaluated rounds."""
    seconds: float = math.nan
    failed: str = ""

    @property
    def curves(self) -> Curves:
        """The metrics by round."""
        return {int(round): metrics for round, metrics in self.rounds.items()}


@dataclass(frozen=True)
class Place:
    """A run to be made: one attack and seed of a trial."""

    trial: int
    attack: str
    seed: int
    experiment: Experiment
    phase: str = "trial"

    @property
    def tags(self) -> dict[str, str]:
        """What a person filters runs by in MLflow."""
        own = {"trial": str(self.trial), "seed": str(self.seed), "phase": self.phase}
        return own | ({} if self.attack == OWN else {"attack": self.attack})


class Runs:
    """Makes the runs of a sweep on leased teams, each experiment once."""

    def __init__(self, store: Store[Run], teams: Teams, tracker: Tracker, score: Score | None = None) -> None:
        self._store, self._teams, self._tracker, self._score = store, teams, tracker, score

    def make(self, place: Place, heard: Heard) -> Run:
        """One run, or what the store has of it; `heard` is told how far it is, and may raise.

        What a run dies of is its result, whatever it is; see `fedrobust.errors.ends_all`.
        """
        start, listener, part = time.perf_counter(), _Listener(heard), Part(self._tracker.run_id, place.tags)
        label = place.experiment.tracking.run_name or ""
        try:
            digest = place.experiment.digest()
            if (known := self._store.finished(digest)) is not None:
                for number, metrics in known.curves.items():
                    heard(number, metrics)
                return known
            result = self._teams.run(place.experiment, part, [listener])
            rounds = {str(number): metrics for number, metrics in sorted(listener.evaluated.items())}
            last = rounds[str(max(listener.evaluated))]
            if self._score is not None:
                last[SCORE] = float(self._score(result))
        except (Exception, SystemExit) as error:
            return Run("", label, failed=failure(error, part, label, self._tracker))
        self._tracker.figures(last, result.run_id)
        return Run(digest, label, result.run_id, rounds, round(time.perf_counter() - start, 3))

    def batch(self, asked: Sequence[Asked], plan: Plan, study: SweepStudy) -> dict[int, Outcome]:
        """Run the trials of a batch to their ends; what is finished is kept, whatever ends the batch."""
        under_way = [_UnderWay(trial, plan, study) for trial in asked]
        for trial in under_way:
            if trial.refused:
                name, tags = f"trial {trial.number} | {plan.sweep.name}", {"trial": str(trial.number), "phase": "trial"}
                self._tracker.failed(trial.refused, [], name, tags)
        if tasks := [partial(trial.run, place, self) for trial in under_way for place in trial.places]:
            self._teams.each(plan.samples[0], tasks, self.keep)
        return {trial.number: trial.outcome() for trial in under_way}

    def all(self, places: Sequence[Place]) -> list[Run]:
        """The runs at these places, in order."""
        made = [self._store.finished(place.experiment.digest()) for place in places]

        def one(index: int) -> Run:
            made[index] = run = self.make(places[index], lambda round, metrics: None)
            return run

        if missing := [index for index, run in enumerate(made) if run is None]:
            self._teams.each(places[missing[0]].experiment, [partial(one, index) for index in missing], self.keep)
        return [run for run in made if run is not None]

    def kept(self, place: Place) -> Run | None:
        """What is on disk of the run at this place."""
        return self._store.finished(place.experiment.digest())

    def known(self, plan: Plan, trial: Trial) -> Results:
        """What is on disk of the runs of a trial."""
        found: dict[tuple[str, int], Curves] = {}
        for attack, seed in plan.runs:
            run = self._store.finished(plan.experiment(trial.values, attack, seed).digest())
            if run is not None:
                found[attack, seed] = run.curves
        return found

    def keep(self, run: Run | None) -> None:
        """Have a run on disk, unless it is there, or was ended early."""
        if run is not None and run.run_id and self._store.finished(run.digest) is None:
            self._store.add(run)


class _Listener:
    """Hook of a run: tells of each round, and of each evaluated round with what was detected in it.

    The figures of a round are committed beside the next one, so its detection is known by then. A run that is begun
    again tells each evaluated round again; it is heard once.
    """

    def __init__(self, heard: Heard) -> None:
        self._heard, self._detection = heard, dict[int, Mapping[str, Any]]()
        self.evaluated: dict[int, dict[str, float]] = {}

    def __call__(self, record: dict[str, Any]) -> None:
        if record["kind"] == "round":
            self._detection[record["round"]] = record.get("detection") or {}
            self._heard(record["round"], None)
        elif record["kind"] == "evaluation" and record["round"] not in self.evaluated:
            found = {**record["metrics"], **self._detection.get(record["round"], {})}
            metrics = {name: math.nan if value is None else float(value) for name, value in found.items()}
            self.evaluated[record["round"]] = metrics
            self._heard(record["round"], metrics)


Key = tuple[str, int]
"""A run of a trial: its attack and seed."""


class _UnderWay:
    """A trial whose runs are under way, in any order of time."""

    def __init__(self, asked: Asked, plan: Plan, study: SweepStudy) -> None:
        self.number = asked.number
        self.places: list[Place] = []
        self.refused = ""
        """Why it has no runs: the values that were chosen do not go together."""
        try:
            for attack, seed in plan.runs:
                composed = plan.experiment(asked.values, attack, seed, asked.number)
                self.places.append(Place(asked.number, attack, seed, composed))
        except (Exception, SystemExit) as error:  # a validator of a user's own class may raise anything
            if ends_all(error):
                raise
            self.places, self.refused = [], reason(error)
        self._objectives: Sequence[Objective] = plan.sweep.objectives
        self._per = plan.sweep.pruner.per if plan.prunes else None
        self._study = study
        self._lock = threading.Lock()
        self._order = {(place.attack, place.seed): index for index, place in enumerate(self.places)}
        self._curves: dict[Key, dict[int, Mapping[str, float]]] = {key: {} for key in self._order}
        self._reached = dict.fromkeys(self._order, (0, 0))  # the last round that was made, and that was evaluated
        self._finished: set[Key] = set()
        self._told: set[int] = set()
        self._failure: tuple[tuple[int, ...], str] | None = None
        self._pruned = False

    def run(self, place: Place, runs: Runs) -> Run | None:
        """One of its runs; None if it can change nothing any more."""
        key = place.attack, place.seed
        try:
            self._go_on(key)
            run = runs.make(place, partial(self._heard, key))
        except _OverError:
            return None
        with self._lock:
            if run.failed:
                failure = self._how_far(key), run.failed
                self._failure = failure if self._failure is None else min(self._failure, failure)
            else:
                self._curves[key] = dict(run.curves)  # what a caller's own function made of it, too
                self._finished.add(key)
                if self._per == "run":
                    self._report_runs()
        return run

    def outcome(self) -> Outcome:
        """How it ended, when all its runs have."""
        if self.refused:
            return Failed(self.refused)
        if self._pruned:
            return Pruned()
        if self._failure is not None:
            return Failed(self._failure[1])
        try:
            values = reduced(self._objectives, self._curves)
        except ExperimentError as error:
            return Failed(reason(error))
        return Failed(NOT_FINITE) if values is None else Completed(values)

    def _heard(self, key: Key, round: int, metrics: Mapping[str, float] | None) -> None:
        with self._lock:
            made, evaluated = self._reached[key]
            self._reached[key] = max(made, round), evaluated if metrics is None else max(evaluated, round)
            if metrics is not None:
                self._curves[key][round] = metrics
                if self._per == "round" and all(round in curves for curves in self._curves.values()):
                    self._report(round, self._objectives[0].reduced(self._curves, round))
        self._go_on(key)

    def _report_runs(self) -> None:
        """Tell of the finished runs, as far as all before them are finished: the pruner pairs them by their place."""
        for step, key in enumerate(self._curves):
            if key not in self._finished:
                return
            self._report(step, self._objectives[0].reduced({key: self._curves[key]}))

    def _report(self, step: int, value: float) -> None:
        if step not in self._told and not self._pruned and math.isfinite(value):
            self._told.add(step)
            self._pruned = self._study.report(self.number, step, value)

    def _how_far(self, key: Key) -> tuple[int, ...]:
        """What runs are compared by: the least of those that fail decides. Every run tells its rounds in one order."""
        place = self._order[key]
        return (place,) if self._per == "run" else (*self._reached[key], place)

    def _go_on(self, key: Key) -> None:
        """End a run that can change nothing any more: the trial is pruned, or another run has failed before it."""
        if self._pruned or (self._failure is not None and self._how_far(key) > self._failure[0]):
            raise _OverError


class _OverError(Stopped):
    """This run can change nothing any more."""
