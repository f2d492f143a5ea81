"""The trials of one batch under way: their runs go on side by side, and the pruner hears of them in a fixed order."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedrobust.errors import FederationError
from fedrobust.experiment import Experiment
from fedrobust.parallel import Stopped, Store, Teams
from fedrobust.runner import Part, Result
from fedrobust.tracking import Tracker
from fedrobust.tuning.objectives import Curves, Objective, Results, reduced
from fedrobust.tuning.study import Asked, Completed, Failed, Outcome, Pruned, SweepStudy, Trial
from fedrobust.tuning.sweep import OWN, Plan

Score = Callable[[Result], float]
"""What a run is worth, as a caller's own function says."""
SCORE = "score"
"""The metric that this makes."""


@dataclass(frozen=True)
class Run:
    """What a run gave: its metrics, or why there are none."""

    digest: str
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

    def make(self, place: Place, heard: Callable[[int, Mapping[str, float]], None]) -> Run:
        """One run, or what the store has of it; `heard` is told of every evaluated round, once, and may raise."""
        digest, start = place.experiment.digest(), time.perf_counter()
        label = place.experiment.tracking.run_name or ""
        if (known := self._store.finished(digest)) is not None:
            for number, metrics in known.curves.items():
                heard(number, metrics)
            return known
        listener = _Listener(heard)
        part = Part(self._tracker.run_id, place.tags)
        try:
            result = self._teams.run(place.experiment, part, [listener])
        except FederationError as error:
            return Run(digest, label, failed=str(error))
        rounds = {str(number): metrics for number, metrics in sorted(listener.evaluated.items())}
        last = rounds[str(max(listener.evaluated))]
        if self._score is not None:
            last[SCORE] = float(self._score(result))
        self._tracker.figures(last, result.run_id)
        return Run(digest, label, result.run_id, rounds, round(time.perf_counter() - start, 3))

    def batch(self, asked: Sequence[Asked], plan: Plan, study: SweepStudy) -> dict[int, Outcome]:
        """Run the trials of a batch to their ends; what is finished is kept, whatever ends the batch."""
        under_way = [_UnderWay(trial, plan, study) for trial in asked]
        tasks = [partial(trial.run, place, self) for trial in under_way for place in trial.places]
        self._teams.each(under_way[0].places[0].experiment, tasks, self.keep)
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
    """Hook of a run: tells of each evaluated round, with what was detected in it.

    The figures of a round are committed beside the next one, so its detection is known by then. A run that is begun
    again tells each round again; it is heard once.
    """

    def __init__(self, heard: Callable[[int, Mapping[str, float]], None]) -> None:
        self._heard, self._detection = heard, dict[int, Mapping[str, Any]]()
        self.evaluated: dict[int, dict[str, float]] = {}

    def __call__(self, record: dict[str, Any]) -> None:
        if record["kind"] == "round":
            self._detection[record["round"]] = record.get("detection") or {}
        elif record["kind"] == "evaluation" and record["round"] not in self.evaluated:
            found = {**record["metrics"], **self._detection.get(record["round"], {})}
            metrics = {name: math.nan if value is None else float(value) for name, value in found.items()}
            self.evaluated[record["round"]] = metrics
            self._heard(record["round"], metrics)


class _UnderWay:
    """A trial whose runs are under way, in any order of time."""

    def __init__(self, asked: Asked, plan: Plan, study: SweepStudy) -> None:
        self.number = asked.number
        self.places = [
            Place(asked.number, attack, seed, plan.experiment(asked.values, attack, seed, asked.number))
            for attack, seed in plan.runs
        ]
        self._objectives: Sequence[Objective] = plan.sweep.objectives
        self._per = plan.sweep.pruner.per if plan.prunes else None
        self._study = study
        self._lock = threading.Lock()
        self._curves: dict[tuple[str, int], dict[int, Mapping[str, float]]] = {
            (place.attack, place.seed): {} for place in self.places
        }
        self._finished: set[tuple[str, int]] = set()
        self._told: set[int] = set()
        self._failure, self._pruned = "", False

    def run(self, place: Place, runs: Runs) -> Run | None:
        """One of its runs; None if the trial is over before."""
        key = place.attack, place.seed
        try:
            self._go_on()
            run = runs.make(place, partial(self._heard, key))
        except _OverError:
            return None
        with self._lock:
            if run.failed:
                self._failure = self._failure or run.failed
            else:
                self._curves[key] = dict(run.curves)  # what a caller's own function made of it, too
                self._finished.add(key)
                if self._per == "run":
                    self._report_runs()
        return run

    def outcome(self) -> Outcome:
        """How it ended, when all its runs have."""
        if self._pruned:
            return Pruned()
        if self._failure:
            return Failed(self._failure)
        values = reduced(self._objectives, self._curves)
        return Failed("an objective is not a finite number") if values is None else Completed(values)

    def _heard(self, key: tuple[str, int], round: int, metrics: Mapping[str, float]) -> None:
        with self._lock:
            self._curves[key][round] = metrics
            if self._per == "round" and all(round in curves for curves in self._curves.values()):
                self._report(round, self._objectives[0].reduced(self._curves, round))
        self._go_on()

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

    def _go_on(self) -> None:
        """End the run that asks where the trial is over."""
        if self._pruned or self._failure:
            raise _OverError


class _OverError(Stopped):
    """The trial of this run is over."""
