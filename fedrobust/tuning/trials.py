"""The trials of a running batch: their runs go on side by side, and a trial's outcome does not depend on their order.

The pruner gets a value for a round when all runs of the trial have reached it, or for a run when all runs before it
have ended. If several runs fail, the one that got least far counts, or the first of these. A decision to prune at an
earlier round, or run, has priority. So if a run fails, the others continue past that point: a trial whose run fails in
round 7 is pruned if its results are bad enough in round 5, even if the others reach that round only later.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import optuna

from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.failures import ends_all, reason
from fedrobust.records import EvaluationRecord, Record, RoundRecord, RunStart
from fedrobust.result import Result
from fedrobust.runner import RUNS
from fedrobust.studies.finished import FinishedRun
from fedrobust.studies.planned import PlannedRun
from fedrobust.studies.study import Measured, Study
from fedrobust.studies.teams import Stopped
from fedrobust.tuning.objectives import NOT_FINITE, SCORE, Objective, Results, reduced
from fedrobust.tuning.study import Asked, Completed, Failed, Outcome, Pruned, SweepStudy, Trial
from fedrobust.tuning.sweep import OWN, SweepPlan

LABELS = "classes"
"""The figure of a run that says how many labels occur in the test."""
Heard = Callable[[int, Mapping[str, float] | None], None]
"""Called after every round of a run, without metrics, and then once for every round that is evaluated, with metrics."""
Score = Callable[[Result], float]
"""A caller's own function that rates a run."""


@dataclass(frozen=True, kw_only=True)
class TrialRun(PlannedRun):
    """A run that is judged by its curves: one attack and seed of a trial."""

    attack: str
    seed: int

    @classmethod
    def of(cls, experiment: Experiment, attack: str, seed: int, phase: str, score: str = "", **tags: str) -> TrialRun:
        """Make a run; `tags` are added to its tags in MLflow.

        experiment: the experiment of the run.
        attack, seed: those of the run.
        phase: a tag, e.g. `fresh`.
        score: see `SweepPlan.score`.
        """
        all_tags = {**tags, "seed": str(seed), "phase": phase, **({} if attack == OWN else {"attack": attack})}
        label = experiment.tracking.run_name or ""
        return cls(experiment=experiment, label=label, tags=all_tags, score=score, attack=attack, seed=seed)


class Runs:
    """Makes the runs of trials, and keeps their curves."""

    def __init__(self, study: Study, score: Score | None = None, by_round: bool = False) -> None:
        """`score`: a caller's own function; `by_round`: it is called after every evaluated round, for the pruner."""
        self._study, self._score = study, None if score is None else partial(_scored, score)
        self._by_round = self._score if by_round else None
        self._early: dict[str, Future[FinishedRun]] = {}
        """Runs of the next batch that were begun, by digest."""

    def make(self, run: TrialRun, heard: Heard) -> FinishedRun:
        """Make a run, or read it from disk; `heard` is called with its progress, and may raise."""
        early = self._early.get(run.digest)
        finished = self.kept(run) if early is None else early.result()
        if finished is None:
            return self._study.make(run, self._measured, [_Listener(heard, self._by_round)])
        for number, metrics in finished.curves.items():
            heard(number, metrics)
        return finished

    def batch(
        self,
        asked: Sequence[Asked],
        plan: SweepPlan,
        sweep: SweepStudy,
        goes_on: Callable[[Iterable[FinishedRun]], bool] = lambda made: False,
    ) -> dict[int, Outcome]:
        """Run the trials of a batch to their ends; return number → outcome. Finished runs are kept if the batch is
        stopped.

        asked: the trials of the batch.
        plan: the sweep.
        sweep: the study, for the pruner.
        goes_on: by the finished runs of the batch, whether there will be another one for sure. Then teams that have
            nothing to do begin with those of its trials that are certain.
        """
        under_way = [_UnderWay(trial, plan, sweep) for trial in asked]
        for trial in under_way:
            if trial.refused:
                name, tags = f"trial {trial.number} | {plan.sweep.name}", {"trial": str(trial.number), "phase": "trial"}
                self._study.tracker.failed(trial.refused, [], name, tags)
        pairs = [(trial, run) for trial in under_way for run in trial.runs]

        def sure() -> bool:
            return goes_on(made for _, run in pairs if (made := self.kept(run)) is not None)

        pairs.sort(key=lambda pair: pair[1].digest in self._early)  # what is under way already is waited for last
        if tasks := [partial(trial.run, run, self) for trial, run in pairs]:
            self._study.teams.each(plan.samples[0], tasks, self._keep, self._ahead(plan, sweep, sure))
        return {trial.number: trial.outcome() for trial in under_way}

    def _ahead(
        self, plan: SweepPlan, sweep: SweepStudy, sure: Callable[[], bool]
    ) -> list[Callable[[], FinishedRun | None]]:
        """Tasks for teams that have nothing else to do."""
        runs = [run for trial in sweep.certain() for run in _UnderWay(trial, plan, sweep).runs]
        return [partial(self._make_early, run, sure) for run in runs if self.kept(run) is None]

    def _make_early(self, run: TrialRun, sure: Callable[[], bool]) -> FinishedRun | None:
        if not sure():
            return None
        made = self._early[run.digest] = Future[FinishedRun]()
        try:
            made.set_result(self._study.make(run, self._measured))
        except _PrunedByScoreError as pruned:
            made.set_exception(pruned)  # for its trial
            return None
        except BaseException as error:
            made.set_exception(error)
            raise
        return made.result()

    def all(self, runs: Sequence[TrialRun]) -> list[FinishedRun]:
        """Return these runs, in order; missing ones are made."""
        return self._study.make_all(runs, self._measured)

    def kept(self, run: TrialRun) -> FinishedRun | None:
        """Return the run that is on disk, or None."""
        return self._study.finished.get(run.digest)

    def results(self, plan: SweepPlan, trial: Trial) -> Results:
        """Return the curves of a trial that are on disk."""
        return {key: run.curves for key, run in self.of(plan, trial).items()}

    def of(self, plan: SweepPlan, trial: Trial) -> dict[tuple[str, int], FinishedRun]:
        """Return the runs of a trial that are on disk, by attack and seed."""
        runs = [trial_run(plan, trial, attack, seed) for attack, seed in plan.runs]
        kept = {(run.attack, run.seed): self.kept(run) for run in runs}
        return {key: run for key, run in kept.items() if run is not None}

    def control(self, plan: SweepPlan, make: bool) -> FinishedRun | None:
        """Return the sweep's control, see `SweepPlan.control`; None if it has failed or cannot be made.

        make: whether to make it if it is not on disk.
        """
        try:
            experiment = plan.control()
        except ExperimentError:
            return None
        run = TrialRun.of(experiment, OWN, experiment.seed, "control", plan.score)
        if make:
            self.all([run])
        return self.kept(run)

    def _measured(self, run: TrialRun, result: Result) -> Measured:
        detected = {record.round: record.detection for record in result.recorded.rounds}
        rounds = {
            str(record.round): _metrics(record.metrics, detected.get(record.round, {}))
            for record in result.recorded.evaluations
        }
        if self._by_round is not None:  # again, so that a run that is read from disk tells the pruner the same
            records = result.recorded.records
            for index, record in enumerate(records):
                if isinstance(record, EvaluationRecord):
                    so_far = Result.so_far(records[: index + 1], result.folder)
                    rounds[str(record.round)][SCORE] = self._by_round(so_far)
        own: dict[str, float] = {}
        if self._score is not None:
            own[SCORE] = rounds[max(rounds, key=int)][SCORE] = self._score(result)
        labels = sum(any(row) for row in result.recorded.evaluations[-1].confusion)
        return Measured(own, {LABELS: labels} if labels else {}, rounds)

    def _keep(self, run: FinishedRun | None) -> None:
        if run is not None:
            self._study.keep(run)


def trial_run(plan: SweepPlan, trial: Asked | Trial, attack: str, seed: int, phase: str = "trial") -> TrialRun:
    """Return a run of a trial.

    plan: the sweep.
    attack, seed: those of the run.
    phase: `trial`, or `fresh` for a run on a fresh seed.

    Raises `ExperimentError` if its values do not fit together.
    """
    experiment = plan.experiment(trial.values, attack, seed, trial.number)
    return TrialRun.of(experiment, attack, seed, phase, plan.score, trial=str(trial.number))


def _metrics(evaluated: Mapping[str, float | None], detected: Mapping[str, float | None]) -> dict[str, float]:
    """Return the metrics of a round, together with those of the detection."""
    return {name: math.nan if value is None else value for name, value in {**evaluated, **detected}.items()}


class _Listener:
    """Hook of a run: passes on each round, and each evaluated round with the metrics of the detection.

    The evaluation of a round comes after its record, so its detection is available by then. If a run is restarted, it
    evaluates the same rounds again; each evaluation is passed on only once.
    """

    def __init__(self, heard: Heard, score: Score | None) -> None:
        """`score`: rates the run after each evaluated round."""
        self._heard, self._detection = heard, dict[int, Mapping[str, float | None]]()
        self._evaluated: set[int] = set()
        self._score, self._records, self._run = score, list[Record](), ""

    def __call__(self, record: Record) -> None:
        if isinstance(record, RunStart):
            self._records.clear()
            self._run = record.run
        self._records.append(record)
        if isinstance(record, RoundRecord):
            self._detection[record.round] = record.detection
            self._heard(record.round, None)
        elif isinstance(record, EvaluationRecord) and record.round not in self._evaluated:
            self._evaluated.add(record.round)
            metrics = _metrics(record.metrics, self._detection.get(record.round, {}))
            if self._score is not None:
                metrics[SCORE] = self._score(Result.so_far(self._records, RUNS / self._run))
            self._heard(record.round, metrics)


Key = tuple[str, int]
"""Identifies a run of a trial: its attack and seed."""


class _UnderWay:
    """A trial whose runs are under way, in any order."""

    def __init__(self, asked: Asked, plan: SweepPlan, study: SweepStudy) -> None:
        self.number = asked.number
        self.runs: list[TrialRun] = []
        self.refused = ""
        """Why it has no runs: the chosen values do not fit together."""
        try:
            self.runs = [trial_run(plan, asked, attack, seed) for attack, seed in plan.runs]
            for run in self.runs:
                run.digest  # noqa: B018
        except (Exception, SystemExit) as error:  # a validator of a user's own class may raise anything
            if ends_all(error):
                raise
            self.runs, self.refused = [], reason(error)
        self._objectives: Sequence[Objective] = plan.sweep.objectives
        self._per = plan.sweep.pruner.per if plan.prunes else None
        self._study = study
        self._lock = threading.Lock()
        self._order = {(run.attack, run.seed): index for index, run in enumerate(self.runs)}
        self._curves: dict[Key, dict[int, Mapping[str, float]]] = {key: {} for key in self._order}
        self._reached = dict.fromkeys(self._order, (0, 0))  # the last round that was made, and that was evaluated
        self._finished: set[Key] = set()
        self._told: set[int] = set()
        self._failure: tuple[tuple[int, ...], str] | None = None
        self._pruned = ""
        """Why the pruner ended the trial; empty if it did not."""

    def run(self, planned: TrialRun, runs: Runs) -> FinishedRun | None:
        """Make one of its runs; return None if the run can no longer affect the outcome."""
        key = planned.attack, planned.seed
        try:
            self._go_on(key)
            run = runs.make(planned, partial(self._heard, key))
        except _PrunedByScoreError:
            with self._lock:
                pruned = self._how_far(key), _BY_SCORE
                self._failure = pruned if self._failure is None else min(self._failure, pruned)
            return None
        except _OverError:
            return None
        with self._lock:
            if run.failed:
                failure = self._how_far(key), run.failed
                self._failure = failure if self._failure is None else min(self._failure, failure)
            else:
                self._curves[key] = dict(run.curves)  # includes the metric of a caller's own function
                self._finished.add(key)
                if self._per == "run":
                    self._report_runs()
        return run

    def outcome(self) -> Outcome:
        """Return the outcome, after all runs have ended."""
        if self.refused:
            return Failed(self.refused)
        if self._pruned or (self._failure is not None and self._failure[1] == _BY_SCORE):
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
        """Report the finished runs up to the first unfinished one: the pruner pairs runs by their position."""
        for step, key in enumerate(self._curves):
            if key not in self._finished:
                return
            self._report(step, self._objectives[0].reduced({key: self._curves[key]}))

    def _report(self, step: int, value: float) -> None:
        if step not in self._told and not self._pruned and math.isfinite(value):
            self._told.add(step)
            if self._study.report(self.number, step, value):
                reached = f"round {step}" if self._per == "round" else f"run {step + 1}"
                self._pruned = (
                    f"trial {self.number} was pruned: {self._objectives[0].metric} {value:.4g} after {reached}"
                )

    def _how_far(self, key: Key) -> tuple[int, ...]:
        """Return a sort key for failed runs: the smallest decides. Every run reports its rounds in the same order."""
        place = self._order[key]
        return (place,) if self._per == "run" else (*self._reached[key], place)

    def _go_on(self, key: Key) -> None:
        """End a run that can no longer affect the outcome: the trial is pruned, or another run has failed earlier."""
        if self._pruned:
            raise _OverError(self._pruned)
        if self._failure is not None and self._how_far(key) > self._failure[0]:
            raise _OverError(f"another run of trial {self.number} failed: {self._failure[1]}")


class _OverError(Stopped):
    """This run can no longer affect the outcome."""


class _PrunedByScoreError(_OverError):
    """The caller's own function has raised Optuna's `TrialPruned`."""


_BY_SCORE = "pruned by the caller's own function"


def _scored(score: Score, result: Result) -> float:
    try:
        return float(score(result))
    except optuna.TrialPruned as error:
        raise _PrunedByScoreError from error
