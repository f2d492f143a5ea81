"""Sweeps whose federations are played: what a run gives is a formula, so that hundreds of trials take a second."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fedrobust.preparation as preparation
import fedrobust.studies.study as study_room
import fedrobust.studies.teams as teams_room
import fedrobust.tuning.running as running
from fedrobust.errors import FederationError
from fedrobust.experiment import Experiment
from fedrobust.records import EvaluationRecord, Record, RecordedRun, RoundRecord, RunStart
from fedrobust.result import Result, figures_so_far
from fedrobust.tracking import StepFigures
from fedrobust.tuning.files import write_trials
from fedrobust.tuning.running import SweepResult, TrialDone, run_sweep
from fedrobust.tuning.study import SweepStudy, Trial
from fedrobust.tuning.sweep import SweepPlan, load_sweep
from fedrobust.tuning.views import SweepView

BASE = """
name: base
data: {source: {name: histology, patients: 20}}
federation: {clients: 10, rounds: 8}
"""
SWEEP = """
name: played
experiment: base.yaml
space:
  learning.local.optimizer.lr: {log: [0.001, 1.0]}
  aggregation:
    choice:
      clipping: {rule: {name: centered_clipping, tau: {log: [0.1, 10.0]}}}
      median: {rule: median}
objectives: [{metric: test/balanced_accuracy}]
sampler: {name: tpe, startup: 4}
trials: 12
parallel: 3
"""


def accuracy(experiment: Experiment, round: int) -> float:
    """Best with a learning rate of 0.03 and a median; rises with the rounds; attacks cost, and seeds differ."""
    settings = experiment.resolved()
    rate = settings["learning"]["local"]["optimizer"]["lr"]
    missed = abs(math.log10(rate / 0.03)) / 4 + 0.05 * (settings["aggregation"]["rule"]["name"] != "median")
    harm = {"sign_flip": 0.2, "ipm": 0.1}.get(settings["attacks"][0]["name"], 0.0) if settings["attacks"] else 0.0
    return (0.9 - missed - harm - 0.01 * (experiment.seed % 3)) * (1 - 0.5**round)


class Played:
    """Stands in for Ray and MLflow; remembers what was run, and what the sweep's own MLflow run was told."""

    run_id = "parent"

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.rounds: dict[str, int] = {}
        self.told: list[StepFigures] = []
        self.figured: dict[str, float] = {}
        """What the sweep's own MLflow run was told of no round."""
        self.stops = list[str]()
        self.tagged: dict[str, str] = {}
        """The tags of the sweep's own MLflow run."""
        self.confusion: list[list[int]] = []
        """That of every evaluation; empty: the number of labels, and so chance, is unknown."""
        self.failures: dict[str, str] = {}
        """Name of a run that is said to have failed → why."""
        self.tags: dict[str, dict[str, str]] = {}
        self.lock = threading.Lock()
        self.free: dict[int, tuple[Any, threading.Semaphore]] = {}
        """The free teams of each pool, by its id; the pool is kept, so that no other gets that id."""
        self.wait: Callable[[Experiment], float] = lambda experiment: 0.0
        self.fails: Callable[[Experiment], bool] = lambda experiment: False
        self.fails_in: Callable[[Experiment], int] = lambda experiment: 0
        """The round in which it fails; 0: in none."""
        self.dies: Callable[[Experiment], BaseException | None] = lambda experiment: None
        """What a run dies of at its beginning, whatever it may be; None: it does not."""
        self.accuracy: Callable[[Experiment, int], float] = accuracy

    def run(
        self, experiment: Experiment, hooks: Sequence[Callable[[Any], None]], part: Any, pool: Any = None, **_: Any
    ) -> Any:
        """As the real one, it waits for a team, and is then asked whether it is still wanted."""
        with self.lock:
            _, free = self.free.setdefault(id(pool), (pool, threading.Semaphore(getattr(pool, "teams", 1000))))
        with free:
            part.go_on()
            return self._run(experiment, hooks, part)

    def _run(self, experiment: Experiment, hooks: Sequence[Callable[[Any], None]], part: Any) -> Any:
        name = experiment.tracking.run_name or ""
        with self.lock:
            self.begun[name] += 1
            self.tags[name] = {**part.tags, "parent": part.parent}
        if (death := self.dies(experiment)) is not None:
            raise death
        if self.fails(experiment):
            raise FederationError("round 1: no update arrived")
        start = RunStart.of(
            {
                "run": f"run of {name}",
                "name": name,
                "experiment": experiment.resolved(),
                "clients": experiment.federation.clients,
                "label_names": ["a", "b"],
                "attackers": experiment.attackers.names,
                "hospital_labels": [[1, 1]] * experiment.federation.clients,
                "parameters": 2,
                "digest": "",
            }
        )
        records: list[Record] = [start]
        for hook in hooks:
            hook(start)
        for round in range(1, experiment.federation.rounds + 1):
            time.sleep(self.wait(experiment))
            if round == self.fails_in(experiment):
                raise FederationError(f"round {round}: no update arrived from seed {experiment.seed}")
            metrics = {"test/balanced_accuracy": self.accuracy(experiment, round), "test/auroc": None}
            made = RoundRecord.of({"round": round, "participants": [], "detection": {"defense/recall": 0.5}})
            evaluated = EvaluationRecord.of({"round": round, "metrics": metrics, "confusion": self.confusion})
            records += [made, evaluated]
            with self.lock:
                self.rounds[name] = round
            for record in (made, evaluated):
                for hook in hooks:
                    hook(record)
        with self.lock:
            self.finished[name] += 1
        recorded = RecordedRun.of(records)
        final = figures_so_far(recorded)
        folder, weight = Path("mlruns/runs/x"), {"weight": 1}
        return Result(start.run, name, folder, recorded, final, recorded.attackers, [], tensors=lambda: weight)

    def log(self, record: StepFigures) -> None:
        self.told.append(record)

    def figures(self, figures: dict[str, float], run_id: str | None = None) -> None:
        with self.lock:
            self.figured |= figures if run_id is None else {}

    def last(self, journal: Sequence[Record], run_id: str) -> None:
        pass

    def stopped(self, reason: str, begun: Sequence[str]) -> None:
        with self.lock:
            self.stops.append(reason)

    def tag(self, tags: Mapping[str, str]) -> None:
        self.tagged |= tags

    def failed(self, reason: str, begun: Sequence[str], name: str, tags: Mapping[str, str]) -> None:
        with self.lock:
            self.failures[name] = reason
            self.tags.setdefault(name, dict(tags))

    def upload(self, folder: Path, again: bool = False) -> None:
        pass


def staged(monkeypatch: pytest.MonkeyPatch) -> Played:
    """A stage without Ray, MLflow and data, whose sweeps draw no pictures: those take a second."""
    stage = Played()

    @contextmanager
    def parent(folder: Path, *told: Any) -> Iterator[Played]:
        journal = told[4]
        stage.told += journal[len(stage.told) :]
        yield stage

    def table(folder: Path, plan: SweepPlan, study: SweepStudy, *_: object) -> None:
        write_trials(folder / "trials.csv", SweepView.of(plan, study))

    monkeypatch.setattr(running, "write_study", table)
    monkeypatch.setattr(teams_room, "run", stage.run)
    monkeypatch.setattr(preparation, "hospitals_of", lambda experiment: None)
    monkeypatch.setattr(study_room, "parent_run", parent)
    return stage


@contextmanager
def two_teams(experiment: Experiment, say: object, teams: int | None = None) -> Iterator[Any]:
    """Stands in for `leased_pool`."""
    yield SimpleNamespace(teams=teams or 2)


class Watching:
    """Watches a sweep; may stop it after so many trials."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.trials: list[Trial] = []
        self.best: list[list[Trial]] = []
        self.plans: list[tuple[int, int]] = []
        self._stop_after = stop_after

    def plan(self, items: int, finished: int) -> None:
        self.plans.append((items, finished))

    def done(self, item: TrialDone) -> None:
        trial, best = item
        self.trials.append(trial)
        self.best.append(list(best))
        if len(self.trials) == self._stop_after:
            raise KeyboardInterrupt

    def say(self, what: str) -> None:
        pass


def sweep(*overrides: str, teams: int = 2, **options: Any) -> SweepResult:
    """Run `sweep.yaml` on so many threads."""
    return run_sweep(load_sweep("sweep.yaml", overrides), pool=SimpleNamespace(teams=teams), **options)  # type: ignore[arg-type]
