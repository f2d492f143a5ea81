"""One sweep with real federations and real MLflow: stopped, resumed, pruned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny import write_patches

import fedrobust
from fedrobust.federation.pool import Pool
from fedrobust.records import RecordedRun, read_run
from fedrobust.runner import run as run_experiment
from fedrobust.tuning.running import SweepResult, TrialDone, run_sweep
from fedrobust.tuning.study import Completed, Pruned
from fedrobust.tuning.sweep import load_sweep

BASE = """
name: base
data: {source: {name: npz, path: patches.npz}, split: {validation: 0.0}, partition: {name: dirichlet, alpha: 10.0}}
federation: {clients: 6, rounds: 4}
learning: {model: {name: cnn, channels: [4]}, local: {steps: 4, batch_size: 16, optimizer: {name: sgd, lr: 0.1}}}
tracking: {model: false}
"""
SWEEP = """
name: real
experiment: base.yaml
space:
  learning.local.optimizer.lr: {choice: [0.01, 0.03, 1.0e-9]}
objectives: [{metric: test/loss, direction: minimize}]
sampler: grid
pruner: {name: median, startup: 2, warmup: 0}
seed: 1
seeds: [1]
fresh: [2]
again: 1
trials: 3
parallel: 1
"""


class Stopping:
    """Watches a sweep, and stops it after so many trials."""

    def __init__(self, after: int) -> None:
        self._left = after

    def plan(self, items: int, finished: int) -> None:
        pass

    def done(self, item: TrialDone) -> None:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt

    def say(self, what: str) -> None:
        pass


class Swept(NamedTuple):
    found: SweepResult
    parent: Any
    runs: list[Any]
    client: Any
    orphan: str
    place: Path


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> Any:
    """A sweep that was stopped after a trial, while the run of another driver that died is said to be running."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("sweep")
        patch.chdir(place)
        write_patches(Path("patches.npz"), patches=240)
        Path("base.yaml").write_text(BASE)
        Path("sweep.yaml").write_text(SWEEP)
        from mlflow import MlflowClient

        plan, folder = load_sweep("sweep.yaml"), Path("mlruns/sweeps/real")
        with pytest.raises(KeyboardInterrupt):
            run_sweep(plan, Stopping(1), pool=pool)
        client = MlflowClient(fedrobust.tracking.tracking_uri())
        run_id = (folder / "parent.txt").read_text().strip()
        parent = client.get_run(run_id)
        assert parent.info.status == "KILLED"
        tags = {"mlflow.parentRunId": run_id, "trial": "1"}
        orphan = client.create_run(parent.info.experiment_id, tags=tags).info.run_id
        found = run_sweep(plan, pool=pool)
        below = f"tags.`mlflow.parentRunId` = '{run_id}'"
        runs = client.search_runs([parent.info.experiment_id], below)
        yield Swept(found, client.get_run(run_id), runs, client, orphan, place)


def test_the_trial_that_learns_nothing_is_ended_in_its_first_rounds(swept: Swept) -> None:
    found = swept.found
    assert [type(trial.outcome) for trial in found.trials] == [Completed, Completed, Pruned]
    assert found.trials[2].values == {"learning.local.optimizer.lr": 1e-9}
    kinds = {number: [record.kind for record in journal_of(swept, number).records] for number in range(3)}
    assert kinds[0].count("round") == kinds[1].count("round") == 4
    assert kinds[2].count("round") < 4
    assert "end" not in kinds[2]


def journal_of(swept: Swept, number: int) -> RecordedRun:
    (run,) = [
        run for run in swept.runs if (run.data.tags["trial"], run.data.tags.get("phase")) == (str(number), "trial")
    ]
    return read_run(swept.place / "mlruns" / "runs" / run.info.run_id)


def test_mlflow_holds_the_sweep_and_below_it_each_run(swept: Swept) -> None:
    assert swept.parent.info.status == "FINISHED"
    values = {trial.number: trial.outcome.values[0] for trial in swept.found.trials[:2]}  # type: ignore[union-attr]
    assert curve(swept, "objective/test/loss") == values
    assert curve(swept, "best/test/loss") == {0: values[0], 1: min(values.values())}
    assert swept.parent.data.metrics["fresh/test/loss"] == swept.found.fresh[0].values[0]  # type: ignore[index]
    kept = {each.path for each in swept.client.list_artifacts(swept.parent.info.run_id)}
    assert {"trials.csv", "sweep.html", "best.yaml", "fresh.csv"} <= kept
    best = str(swept.found.best[0].number)
    names = ("trial", "seed", "phase")
    told = [
        (*(run.data.tags[name] for name in names), run.info.status) for run in swept.runs if "seed" in run.data.tags
    ]
    assert sorted(told) == sorted(
        [
            ("0", "1", "trial", "FINISHED"),
            ("1", "1", "trial", "FINISHED"),
            ("2", "1", "trial", "KILLED"),
            (best, "2", "fresh", "FINISHED"),
        ]
    )


def test_runs_of_trials_have_the_names_of_runs_and_say_why_they_ended(swept: Swept) -> None:
    for run in swept.runs:
        if run.info.status == "FINISHED":
            final = read_run(swept.place / "mlruns" / "runs" / run.info.run_id).final
            shown = {name: run.data.metrics.get(name) for name, value in final.items() if value is not None}
            assert shown == pytest.approx({name: value for name, value in final.items() if value is not None})
            assert not {"failed", "stopped"} & run.data.tags.keys()
        elif run.data.tags.get("trial") == "2":
            assert re.fullmatch(r"trial 2 was pruned: test/loss \S+ after round \d", run.data.tags["stopped"])
        else:
            assert run.data.tags["stopped"] == "the process that made it has died"


def curve(swept: Swept, name: str) -> dict[int, float]:
    return {point.step: point.value for point in swept.client.get_metric_history(swept.parent.info.run_id, name)}


def test_a_run_whose_driver_died_is_not_said_to_be_running(swept: Swept) -> None:
    assert swept.client.get_run(swept.orphan).info.status == "KILLED"
    assert len(swept.runs) == 5


def test_the_best_trial_is_an_experiment_file_that_gives_the_same_again(swept: Swept, pool: Pool) -> None:
    (best,) = swept.found.best
    result = run_experiment(fedrobust.load(swept.place / swept.found.folder / "best.yaml"), pool=pool)
    assert best.outcome == Completed((result.final["test/loss"],))
