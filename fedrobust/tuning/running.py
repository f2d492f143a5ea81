"""A sweep from start to end: batches of trials, the best again on fresh seeds, tables, pictures, `best.yaml`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrobust.errors import ExperimentError, UnlearntError
from fedrobust.federation.pool import Pool
from fedrobust.private import private_files
from fedrobust.studies.finished import FinishedRun
from fedrobust.studies.study import Unwatched, Watch, open_study
from fedrobust.studies.writing import GO_ON, GO_ON_ANYWAY, refuse_fruitless, written_in_any_case
from fedrobust.tracking import StepFigures
from fedrobust.tuning.again import Fresh, measure_again, measured_again, write_best, write_fresh
from fedrobust.tuning.chance import BestReached, unlearnt
from fedrobust.tuning.files import write_study
from fedrobust.tuning.functions import digest_of
from fedrobust.tuning.objectives import SCORE
from fedrobust.tuning.study import Completed, Failed, Pruned, SweepStudy, Trial, study_of
from fedrobust.tuning.sweep import STORAGE, SweepPlan
from fedrobust.tuning.trials import Runs, Score
from fedrobust.tuning.views import labels

if TYPE_CHECKING:
    import optuna
    import pandas as pd

TrialDone = tuple[Trial, Sequence[Trial]]
"""What a sweep's `Watch` receives: a trial that is finished, and the best trials up to then."""


@dataclass(frozen=True, repr=False)
class SweepResult:
    """The result of a sweep."""

    folder: Path
    """The folder with tables, `sweep.html` and `best.yaml`."""
    plan: SweepPlan
    trials: list[Trial]
    """The finished trials, in order."""
    best: list[Trial]
    """The best completed trial; with several objectives, all that no other beats."""
    study: optuna.Study
    """Optuna's study in the storage: `study.best_value`, `optuna.visualization`, …"""
    fresh: list[Fresh] = field(default_factory=list)
    """The best again, on seeds that the search has not used."""
    unlearnt: str = ""
    """One sentence if no run is better than chance."""

    def frame(self) -> pd.DataFrame:
        """Return a pandas table with one row for each trial, and its number as the index.

        The columns are `state`, the objectives (NaN unless the trial is completed), the searched values by dotted path
        (NaN where the trial had none), and `reason`, why it failed.
        """
        import pandas as pd

        names, searched = labels(self.plan.sweep.objectives), self.plan.space.searched
        params = {each.number: each.params for each in self.study.get_trials(deepcopy=False)}
        rows = list[dict[str, Any]]()
        for trial in self.trials:
            row = {"trial": trial.number, "state": type(trial.outcome).__name__.lower(), "reason": ""}
            if isinstance(trial.outcome, Completed):
                row |= dict(zip(names, trial.outcome.values, strict=True))
            elif isinstance(trial.outcome, Failed):
                row["reason"] = trial.outcome.reason
            chosen = params.get(trial.number, {})
            rows.append(row | {name: searched[name].tidied(value) for name, value in chosen.items()})
        columns = ["trial", "state", *names, *searched, "reason"]
        return pd.DataFrame(rows, columns=columns).set_index("trial")

    def __repr__(self) -> str:
        """Return a few lines: how the trials ended, the best ones, and the folder."""
        counts = Counter(type(trial.outcome).__name__.lower() for trial in self.trials)
        ended = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
        best = [f"trial {trial.number}: {trial.outcome} with {dict(trial.values)}" for trial in self.best[:3]]
        return "\n  ".join([f"SweepResult of {self.plan.sweep.name}: trials: {ended}", *best, str(self.folder)])


@private_files()
def run_sweep(
    plan: SweepPlan,
    watch: Watch[TrialDone] | None = None,
    *,
    storage: str = STORAGE,
    teams: int | None = None,
    out: Path | None = None,
    pool: Pool | None = None,
    score: Score | None = None,
    parent: str | None = None,
    anyway: bool = False,
) -> SweepResult:
    """Run what is missing of a sweep, and write its tables and pictures.

    The trials are in the Optuna storage. The same file gives the same trials, however often the driver died, and on
    however many teams they ran.

    plan: the sweep.
    storage: address of the Optuna storage.
    score: computes the metric `score` of a finished run.
    parent: id of the MLflow run that contains the sweep's own run.
    anyway: go on even if nothing is learnt. Otherwise, as long as no run is better than chance after a batch, one run
        without attackers is made, with the middle of all ranges; if it is not better either, the sweep stops.

    For watch, teams, out and pool, and for errors before the first run, see `fedrobust.studies.study.open_study`; for
    errors that end a sweep, see `Study.make_all`: finished runs are kept. A trial that cannot be run, whatever the
    error, counts as failed and finished. Raises `FederationError` if every trial has failed, after all files are
    written, `UnlearntError` if the sweep stops because nothing is learnt, `StorageError`, and `ExperimentError` if a
    different sweep has this name.
    """
    watch = watch or Unwatched()
    if score is None and SCORE in [objective.metric for objective in plan.sweep.objectives]:
        raise ExperimentError(f"no function is given that makes the metric '{SCORE}'; see fedrobust.sweep")
    began = time.monotonic()
    plan.score = "" if score is None else digest_of(score)
    trials: SweepStudy
    told = _Told(plan)

    def earlier() -> list[StepFigures]:
        nonlocal trials
        trials = study_of(plan, storage)
        return [told.line(trial) for trial in trials.trials()]

    opened = open_study(
        plan.sweep,
        plan.samples,
        mlflow_experiment=plan.mlflow_experiment,
        out=out,
        watch=watch,
        teams=teams,
        pool=pool,
        journal=earlier,
        parent=parent,
    )
    with opened as study:
        by_round = plan.prunes and plan.sweep.pruner.per == "round"
        folder, tracker, runs = study.folder, study.tracker, Runs(study, score, by_round)
        watch.plan(plan.trials, len(trials.trials()))
        fresh: list[Fresh] = []
        watched = _ChanceCheck(plan, runs, make=not anyway)
        stopped = False

        def write(complete: bool) -> None:
            watch.say("writing tables and pictures")
            found = fresh or measured_again(plan, trials.best(plan.sweep.again), runs)
            said = watched.unlearnt(trials.trials())
            write_fresh(folder, plan, found)
            write_best(folder, plan, trials.best(), runs, said)
            write_study(folder, plan, trials, found, said)
            tracker.tag({"unlearnt": said})
            tracker.figures({f"fresh/{name}": value for name, value in _first(plan, fresh).items()} | _counts(trials))
            tracker.upload(folder, again=True)

        with written_in_any_case(write, "" if parent else GO_ON):
            while not _late(plan, began):
                stopped = not anyway and trials.finished < plan.trials and watched.hopeless(trials.trials())
                if stopped or not (asked := trials.ask()):
                    break
                outcomes = runs.batch(asked, plan, trials, watched.goes_on)
                trials.tell(outcomes)
                finished = {trial.number: trial for trial in trials.trials()}
                for number in sorted(outcomes):
                    tracker.log(told.line(finished[number]))
                    watch.done((finished[number], trials.best()))
            if not stopped:
                if plan.sweep.fresh:
                    watch.say("measuring the best again on fresh seeds")
                fresh += measure_again(plan, trials.best(plan.sweep.again), runs)
        ended = trials.trials()
        said = watched.unlearnt(ended)
        if stopped:
            raise UnlearntError(f"{said}; finished runs are kept in {folder}; {GO_ON_ANYWAY}")
        reasons = [trial.outcome.reason for trial in ended if isinstance(trial.outcome, Failed)]
        refuse_fruitless(reasons, len(ended), "trials", folder / "trials.csv")
        return SweepResult(folder, plan, ended, trials.best(), trials.study, fresh, said)


class _ChanceCheck:
    """Follows whether the runs of a sweep learn anything, and makes its control if none does."""

    def __init__(self, plan: SweepPlan, runs: Runs, make: bool) -> None:
        self._plan, self._runs, self._make = plan, runs, make
        self._trials, self._control = self._new(), self._new()
        self._seen: set[int] = set()
        self._asked = False

    def hopeless(self, trials: Iterable[Trial]) -> bool:
        """Return whether neither the trials so far nor the control are better than chance."""
        self._see(trials)
        return self._trials.at_chance and self._controlled(self._make).at_chance

    def goes_on(self, made: Iterable[FinishedRun]) -> bool:
        """Return whether it is known that the sweep will not stop, from earlier trials or the runs `made` since."""
        if not self._make or self._trials.learnt:
            return True
        reached = self._new()
        reached.see(made)
        return reached.learnt

    def unlearnt(self, trials: Iterable[Trial]) -> str:
        """Return one sentence if no run is better than chance; the control is not made for it."""
        self._see(trials)
        if not self._trials.at_chance:
            return ""
        attacked = any(each.attacks for each in self._plan.samples)
        return unlearnt(self._trials, self._controlled(False), attacked)

    def _new(self) -> BestReached:
        return BestReached(self._plan.sweep.objectives, self._plan.samples[0].evaluation.metrics)

    def _see(self, trials: Iterable[Trial]) -> None:
        for trial in trials:
            if self._trials.learnt:
                return
            if trial.number not in self._seen and isinstance(trial.outcome, Completed):
                self._trials.see(self._runs.of(self._plan, trial).values())
            self._seen.add(trial.number)

    def _controlled(self, make: bool) -> BestReached:
        if self._control.best is None and not self._asked:
            self._asked = make
            if run := self._runs.control(self._plan, make):
                self._control.see([run])
        return self._control


class _Told:
    """The sweep's own run in MLflow: a line for each trial, as a journal has one for each round."""

    def __init__(self, plan: SweepPlan) -> None:
        self._objectives, self._names = plan.sweep.objectives, labels(plan.sweep.objectives)
        self._best: float | None = None

    def line(self, trial: Trial) -> StepFigures:
        """Return the next trial's objectives and, for a single one, the best up to then; the step is the trial's
        number."""
        figures: dict[str, float] = {}
        if isinstance(trial.outcome, Completed):
            for name, value in zip(self._names, trial.outcome.values, strict=True):
                figures[f"objective/{name}"] = value
            if len(self._objectives) == 1:
                value, choose = trial.outcome.values[0], max if self._objectives[0].direction == "maximize" else min
                self._best = value if self._best is None else choose(self._best, value)
                figures[f"best/{self._objectives[0].metric}"] = self._best
        return StepFigures(trial.number, figures)


def _counts(study: SweepStudy) -> dict[str, float]:
    """Return how many trials have ended in each way, under the names that MLflow shows."""
    found = Counter(type(trial.outcome) for trial in study.trials())
    return {f"trials/{kind.__name__.lower()}": found[kind] for kind in (Completed, Pruned, Failed)}


def _late(plan: SweepPlan, began: float) -> bool:
    return plan.sweep.hours is not None and time.monotonic() - began > 3600 * plan.sweep.hours


def _first(plan: SweepPlan, fresh: Sequence[Fresh]) -> dict[str, float]:
    """Return the objectives of the best trial on the fresh seeds."""
    if not fresh or fresh[0].values is None:
        return {}
    return dict(zip(labels(plan.sweep.objectives), fresh[0].values, strict=True))
