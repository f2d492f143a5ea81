"""A sweep from start to end: batches of trials, the best again on fresh seeds, tables, pictures, `best.yaml`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedrobust.errors import ExperimentError
from fedrobust.federation.pool import Pool
from fedrobust.parallel import Store, Teams, parent_run, refuse_fruitless, writable, written_in_any_case
from fedrobust.private import private_files
from fedrobust.texts import file_name
from fedrobust.tracking import flatten
from fedrobust.tuning.again import Fresh, measure_again, measured_again, write_best, write_fresh
from fedrobust.tuning.files import write_study
from fedrobust.tuning.objectives import SCORE
from fedrobust.tuning.study import Completed, Failed, Pruned, SweepStudy, Trial, study_of
from fedrobust.tuning.sweep import Plan
from fedrobust.tuning.trials import Run, Runs, Score

SWEEPS = Path("mlruns/sweeps")
"""Where each sweep keeps its folder, below the working folder."""
STORAGE = "sqlite:///mlruns/optuna.db"
"""Where the studies are, unless an Optuna storage is given."""

GO_ON = "go on with the same command and --resume"
"""What is told behind an error that ends a sweep."""


class Watch(Protocol):
    """Is told how far a sweep is."""

    def plan(self, trials: int, finished: int) -> None:
        """There are so many trials, so many of them finished before."""

    def trial(self, trial: Trial, best: Sequence[Trial]) -> None:
        """A trial has been finished; `best` are the best up to now."""

    def say(self, what: str) -> None:
        """What is being done now."""


@dataclass(frozen=True)
class Findings:
    """What a sweep leaves."""

    folder: Path
    plan: Plan
    trials: list[Trial]
    best: list[Trial]
    """The best completed trial, or with several objectives all that no other beats."""
    fresh: list[Fresh] = field(default_factory=list)
    """The best again, on seeds that the search has not seen."""


@private_files()
def run_sweep(
    plan: Plan,
    watch: Watch | None = None,
    *,
    resume: bool = False,
    storage: str = STORAGE,
    teams: int | None = None,
    out: Path | None = None,
    pool: Pool | None = None,
    score: Score | None = None,
    parent: str | None = None,
) -> Findings:
    """Run what is missing of a sweep, and write its tables and pictures.

    The study is in the Optuna storage; runs that are finished are in `runs.jsonl` of the folder, under the digests of
    their experiments, and are not made again. With the same file the trials are the same, however often the driver
    died, and on however many teams they ran.

    resume: go on with a sweep that is there already.
    teams: runs at a time, each on one client actor; by default as many as the cluster has cores.
    out: the folder, instead of one named after the sweep.
    pool: leases teams that are there already; `teams` then says nothing.
    score: makes the metric `score` of a finished run.
    parent: id of the MLflow run that the sweep's own is nested below.

    A trial that cannot be run, whatever its runs die of, has failed, and is finished. What would end all others, too,
    ends the sweep: `DataError` where there are no data, `AuditError`, `TrackingError`, `StorageError`, `NoPlaceError`,
    a full disk, and a Ctrl-C; what is finished stays. Raises `FederationError` where every trial has failed, when all
    is written, and `ExperimentError` where the sweep is not the one that is there.
    """
    watch = watch or _Silent()
    folder = out or SWEEPS / file_name(plan.sweep.name)
    if score is None and SCORE in [objective.metric for objective in plan.sweep.objectives]:
        raise ExperimentError(f"no function is given that makes the metric '{SCORE}'; see fedrobust.sweep")
    began = time.monotonic()
    with ExitStack() as stack:
        leased = stack.enter_context(Teams(watch.say, teams, pool))
        leased.check(plan.samples)
        store = stack.enter_context(closing(Store(folder / "runs.jsonl", Run)))
        study = study_of(plan, storage, resume=resume)
        settings = plan.sweep.model_dump(mode="json", serialize_as_any=True)
        with writable(folder):
            (folder / "sweep.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        watch.say("opening MLflow")
        told = _Told(plan)
        journal = [told.line(trial) for trial in study.trials()]
        name = plan.sweep.name
        opened = parent_run(folder, plan.tracking, flatten(settings), {"sweep": name}, f"sweep {name}", journal, parent)
        tracker = stack.enter_context(opened)
        runs = Runs(store, leased, tracker, score)
        watch.plan(plan.trials, len(journal))
        fresh: list[Fresh] = []

        def write(complete: bool) -> None:
            watch.say("writing tables and pictures")
            found = fresh or measured_again(plan, study.best(plan.sweep.again), runs)
            write_fresh(folder, plan, found)
            write_best(folder, plan, study.best(), runs)
            write_study(folder, plan, study, found)
            tracker.figures({f"fresh/{name}": value for name, value in _first(plan, fresh).items()} | _counts(study))
            tracker.upload(folder, again=True)

        with written_in_any_case(write, "" if parent else GO_ON):
            while not _late(plan, began) and (asked := study.ask()):
                outcomes = runs.batch(asked, plan, study)
                study.tell(outcomes)
                finished = {trial.number: trial for trial in study.trials()}
                for number in sorted(outcomes):
                    tracker.log(told.line(finished[number]))
                    watch.trial(finished[number], study.best())
            if plan.sweep.fresh:
                watch.say("measuring the best again on fresh seeds")
            fresh += measure_again(plan, study.best(plan.sweep.again), runs)
        trials = study.trials()
        reasons = [trial.outcome.reason for trial in trials if isinstance(trial.outcome, Failed)]
        refuse_fruitless(reasons, len(trials), "trials", folder / "trials.csv")
        return Findings(folder, plan, trials, study.best(), fresh)


class _Told:
    """The sweep's own run in MLflow: a line for each trial, as a journal has one for each round."""

    def __init__(self, plan: Plan) -> None:
        self._objectives = plan.sweep.objectives
        self._best: float | None = None

    def line(self, trial: Trial) -> dict[str, Any]:
        """The next trial's objectives and, of a single one, the best up to then; the step is the trial's number."""
        figures: dict[str, float] = {}
        if isinstance(trial.outcome, Completed):
            for objective, value in zip(self._objectives, trial.outcome.values, strict=True):
                figures[f"objective/{objective.metric}"] = value
            if len(self._objectives) == 1:
                value, choose = trial.outcome.values[0], max if self._objectives[0].direction == "maximize" else min
                self._best = value if self._best is None else choose(self._best, value)
                figures[f"best/{self._objectives[0].metric}"] = self._best
        return {"kind": "trial", "round": trial.number, "metrics": figures}


def _counts(study: SweepStudy) -> dict[str, float]:
    """How many trials have ended in which way, under the names that MLflow shows."""
    found = Counter(type(trial.outcome) for trial in study.trials())
    return {f"trials/{kind.__name__.lower()}": found[kind] for kind in (Completed, Pruned, Failed)}


def _late(plan: Plan, began: float) -> bool:
    return plan.sweep.hours is not None and time.monotonic() - began > 3600 * plan.sweep.hours


def _first(plan: Plan, fresh: Sequence[Fresh]) -> dict[str, float]:
    """The objectives of the best trial on the fresh seeds."""
    if not fresh or fresh[0].values is None:
        return {}
    return {each.metric: value for each, value in zip(plan.sweep.objectives, fresh[0].values, strict=True)}


class _Silent:
    def plan(self, trials: int, finished: int) -> None:
        pass

    def trial(self, trial: Trial, best: Sequence[Trial]) -> None:
        pass

    def say(self, what: str) -> None:
        pass
