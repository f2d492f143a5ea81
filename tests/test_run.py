"""Whole runs: the same bits whatever the workers and the crashes, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from tiny import ended_again, journal_without_seconds, run, write_patches

import fedrobust
from fedrobust.audit.log import check
from fedrobust.audit.signing import read_public
from fedrobust.audit.verification import verify_all
from fedrobust.errors import DataError, ExperimentError, FederationError, TrackingError
from fedrobust.federation import journal
from fedrobust.federation.pool import Pool
from fedrobust.federation.rounds import FederatedTraining
from fedrobust.records import Checkpoint, LineFile, Record, read_run, write_checkpoint
from fedrobust.runner import KEY, find_run

pytestmark = pytest.mark.usefixtures("in_place")

ROUNDS = 8
LONG = pytest.mark.long


@pytest.fixture(scope="module")
def reference(place: Path, pool: Pool) -> fedrobust.Result:
    """A whole run. In `frozen/` lies what a driver leaves that is killed in round 5: trained, and not committed."""
    aggregate = FederatedTraining._aggregate

    def freezing(self: FederatedTraining, round: int, *rest: Any) -> Any:
        if round == 5:
            shutil.copytree("mlruns", "frozen/mlruns", ignore=shutil.ignore_patterns("mlflow.db*", "*.lock"))
            with sqlite3.connect("mlruns/mlflow.db") as live, sqlite3.connect("frozen/mlruns/mlflow.db") as copy:
                live.backup(copy)
        return aggregate(self, round, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(FederatedTraining, "_aggregate", freezing)
        return run("tracking.model=true", pool=pool)


def test_the_federation_learns_and_tells_everything(reference: fedrobust.Result) -> None:
    assert reference.final["test/balanced_accuracy"] > 0.8
    assert [record["round"] for record in reference.rounds] == list(range(1, ROUNDS + 1))
    for record in reference.rounds:
        assert 0 < sum(record["weights"].values()) <= 1 + 1e-9  # clipping takes some away
        assert set(record["metrics"]) >= {
            "test/accuracy",
            "test/auroc",
            "test/macro_f1",
            "test/ece",
            "attack/success_rate",
        }
        assert len(record["reputation"]) == 8
    attackers = {int(client) for client in reference.attackers}
    assert [len(record["attacking"]) for record in reference.rounds] == [1, 1] + [2] * 6
    assert {client for record in reference.rounds for client in record["attacking"]} == attackers
    assert set(reference.state_dict)


def test_the_folder_and_mlflow_hold_the_run(reference: fedrobust.Result) -> None:
    import mlflow

    names = {path.name for path in reference.folder.iterdir()}
    assert names >= {"experiment.yaml", "journal.jsonl", "checkpoint.npz", "partition.png", "report.html"}
    assert names >= {"audit.jsonl", "audit.pub", "audit.seal"}
    client = mlflow.MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")
    found = client.get_run(reference.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["aggregation.rule.name"] == "geometric_median"
    assert found.data.tags["attack"] == "patch_backdoor 1/8 + sign_flip 1/8"
    assert found.data.tags["defence"] == "clip + nnm + geometric_median"
    for metric in (
        "test/balanced_accuracy",
        "attack/success_rate",
        "reputation/03",
        "weight/00",
        "anomaly/07",
        "round/seconds",
    ):
        history = client.get_metric_history(reference.run_id, metric)
        assert [point.step for point in history] == list(range(1, ROUNDS + 1)), metric
    assert found.data.metrics["test/balanced_accuracy"] == pytest.approx(reference.final["test/balanced_accuracy"])
    artifacts = {artifact.path for artifact in client.list_artifacts(reference.run_id)}
    assert artifacts >= {"experiment.yaml", "journal.jsonl", "partition.png", "report.html"}
    assert artifacts >= {"audit.jsonl", "audit.pub", "audit.seal"}
    assert len(found.outputs.model_outputs) == 1


def test_the_recorded_experiment_runs_as_it_is(reference: fedrobust.Result) -> None:
    assert fedrobust.load(reference.folder / "experiment.yaml").digest() == fedrobust.load("tiny.yaml").digest()


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 4])
def test_the_same_bits_with_any_number_of_workers(reference: fedrobust.Result, workers: int) -> None:
    again = run(f"workers.count={workers}")
    assert again.final["model_sha256"] == reference.final["model_sha256"]
    assert [record["model"] for record in again.rounds] == [record["model"] for record in reference.rounds]
    assert [record["metrics"] for record in again.rounds] == [record["metrics"] for record in reference.rounds]


def test_another_seed_gives_another_model(reference: fedrobust.Result, pool: Pool) -> None:
    other = run("seed=6", "federation.rounds=1", pool=pool)
    assert other.rounds[0]["model"] != reference.rounds[0]["model"]


def test_killed_in_round_5_and_resumed_with_the_same_bits(
    reference: fedrobust.Result, place: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tiny.yaml", "patches.npz"):
        shutil.copy(place / name, "frozen")
    monkeypatch.chdir("frozen")
    folder = Path("mlruns/runs", reference.run_id)
    assert [record.round for record in read_run(folder).rounds] == [1, 2, 3, 4]
    with (folder / "journal.jsonl").open("a") as file:  # a line that was written, and not committed
        file.write('{"kind":"round","round":5}\n')
    resumed = run("tracking.model=true", resume=folder.name[:12], pool=pool)
    assert resumed.final["model_sha256"] == reference.final["model_sha256"]
    assert [r["metrics"] for r in resumed.rounds] == [r["metrics"] for r in reference.rounds]
    whole, stopped = (check((each / "audit.jsonl").read_bytes()).entries for each in (reference.folder, folder))
    assert stopped == whole
    assert len(whole) == len(read_run(reference.folder).records)

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")
    assert client.get_run(folder.name).info.status == "FINISHED"
    history = client.get_metric_history(folder.name, "test/balanced_accuracy")
    assert sorted(point.step for point in history) == list(range(1, ROUNDS + 1))


@pytest.mark.long
def test_killed_from_outside_at_any_moment(reference: fedrobust.Result, place: Path, pool: Pool) -> None:
    before = set(Path("mlruns/runs").iterdir())
    command = [sys.executable, "-m", "fedrobust.cli", "run", "tiny.yaml", "tracking.model=false"]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            new = set(Path("mlruns/runs").iterdir()) - before
            if new and (next(iter(new)) / "checkpoint.npz").exists():
                break
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    (folder,) = set(Path("mlruns/runs").iterdir()) - before
    if read_run(folder).end is not None:
        pytest.fail("the run ended before it could be killed")
    assert run(resume=folder.name, pool=pool).final["model_sha256"] == reference.final["model_sha256"]


@pytest.mark.slow
def test_a_dead_client_actor_is_replaced_and_changes_nothing(reference: fedrobust.Result, pool: Pool) -> None:
    with pool.lease() as team:
        pass

    def kill(record: Record) -> None:
        if record.kind == "round" and record.round == 3:
            ray.kill(team.workers[0])

    survived = run(hooks=[kill], pool=pool)
    assert survived.final["model_sha256"] == reference.final["model_sha256"]
    assert [r["metrics"] for r in survived.rounds] == [r["metrics"] for r in reference.rounds]


def test_resume_refuses_another_experiment_and_other_data(reference: fedrobust.Result, place: Path) -> None:
    with pytest.raises(ExperimentError, match=r"learning\.local\.steps was 3, is 4") as refused:
        run("learning.local.steps=4", resume=reference.run_id)
    assert refused.value.__traceback__ is not None  # whoever keeps the error does not keep the run locked
    LineFile(reference.folder / "journal.jsonl").close()
    with pytest.raises(ExperimentError, match="no such run"):
        run(resume="nosuchrun")
    patches = (place / "patches.npz").read_bytes()
    write_patches(place / "patches.npz", seed=4)
    try:
        with pytest.raises(ExperimentError, match="npz changed"):
            run(resume=reference.run_id)
    finally:
        (place / "patches.npz").write_bytes(patches)


def test_the_audit_log_vouches_for_the_run(reference: fedrobust.Result) -> None:
    key = read_public(KEY.with_suffix(".pub"))
    found = verify_all(reference.folder, key, reference.run_id)
    assert (found.broken, found.rounds, found.missing) == ("", ROUNDS, ())
    there = {path.relative_to(reference.folder).as_posix() for path in reference.folder.rglob("*") if path.is_file()}
    assert set(found.files) == there - {"audit.seal"} and "model/data/model.pt2" in there
    assert found.uncovered == ("model/MLmodel: model_id, artifact_path",)
    assert f"run_id: {reference.run_id}\n" in (reference.folder / "model" / "MLmodel").read_text()  # it was uploaded
    entries = check((reference.folder / "audit.jsonl").read_bytes(), key).entries
    experiment = fedrobust.load(reference.folder / "experiment.yaml")
    assert entries[0]["configuration"] == experiment.digest()
    rounds = [entry for entry in entries if entry["kind"] == "round"]
    assert [entry["model"]["after"] for entry in rounds] == [record["model"] for record in reference.rounds]
    befores = [entries[0]["model"], *(entry["model"]["after"] for entry in rounds[:-1])]
    assert [entry["model"]["before"] for entry in rounds] == befores
    assert f"audit log unbroken: {len(entries)} lines" in (reference.folder / "report.html").read_text()


def test_a_run_whose_journal_was_edited_is_not_resumed(reference: fedrobust.Result) -> None:
    journal = reference.folder / "journal.jsonl"
    honest = journal.read_bytes()
    journal.write_bytes(honest.replace(b'"kind":"round","round":1,', b'"kind":"round","round":9,'))
    try:
        with pytest.raises(ExperimentError, match=r"audit\.jsonl: line 2: .*\(round\)"):
            run(resume=reference.run_id)
    finally:
        journal.write_bytes(honest)


def test_a_model_that_was_exchanged_is_made_again(reference: fedrobust.Result, pool: Pool) -> None:
    model = reference.folder / "model" / "data" / "model.pt2"
    honest = model.read_bytes()
    model.write_bytes(b"another model")
    assert "model.pt2: was changed" in verify_all(reference.folder).broken
    run("tracking.model=true", resume=reference.run_id, pool=pool)
    assert model.read_bytes() == honest
    assert not verify_all(reference.folder).broken


def test_a_run_that_another_process_holds_is_refused(reference: fedrobust.Result) -> None:
    with (
        LineFile(reference.folder / "journal.jsonl"),
        pytest.raises(ExperimentError, match="another process"),
    ):
        run(resume=reference.run_id)


@pytest.mark.slow
def test_crashes_around_the_end_lose_nothing(
    reference: fedrobust.Result, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["federation.rounds=2"]
    before = set(Path("mlruns/runs").iterdir())

    def crash(folder: Path, checkpoint: Checkpoint) -> None:
        if checkpoint.round == 2 and checkpoint.pending is None:  # the end's lines are there, its commit is not
            raise OSError("crash")
        write_checkpoint(folder, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_checkpoint", crash)
        with pytest.raises(FederationError, match=r"crash; .*--resume"):
            run(*short, pool=pool)
    first = ended_again(short, before, pool)

    before = set(Path("mlruns/runs").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("fedrobust.report.write_report", lambda *_: (_ for _ in ()).throw(RuntimeError("crash")))
        with pytest.raises(RuntimeError):
            run(*short, pool=pool)
    assert ended_again(short, before, pool).final["model_sha256"] == first.final["model_sha256"]


@pytest.mark.slow
def test_a_resumed_run_keeps_what_absent_hospitals_carry(reference: fedrobust.Result, pool: Pool) -> None:
    options = ["federation.participation=0.5", "federation.rounds=5", "learning.server=fedadam"]
    whole = run(*options, pool=pool)
    before = set(Path("mlruns/runs").iterdir())

    def stop(record: Record) -> None:
        if record.kind == "round" and record.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*options, hooks=[stop], pool=pool)
    assert ended_again(options, before, pool).final["model_sha256"] == whole.final["model_sha256"]


def test_part_of_the_hospitals_and_evaluation_now_and_then(reference: fedrobust.Result, pool: Pool) -> None:
    options = ["federation.participation=0.5", "evaluation.every=3", "aggregation.rule=mean", "learning.server=fedadam"]
    found = run(*options, pool=pool)
    assert all(len(record["participants"]) == 4 for record in found.rounds)
    assert len({tuple(record["participants"]) for record in found.rounds}) > 1
    assert [record["round"] for record in found.rounds if "metrics" in record] == [3, 6, 8]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["trainer", "stacked"])
def test_another_engine_runs_a_federation(engine: str, reference: fedrobust.Result, pool: Pool) -> None:
    options = [f"learning.local.engine={engine}", "learning.local.channels_last=false", "federation.rounds=2"]
    found = run(*options, pool=pool)
    lean = run("learning.local.channels_last=false", "federation.rounds=2", pool=pool)
    a, b = (np.concatenate([v.numpy().ravel() for v in result.state_dict.values()]) for result in (found, lean))
    np.testing.assert_allclose(a, b, atol=1e-5)


SLOW = """
import time
from collections.abc import Iterator
from fedrobust.attacks import DataAttack

class Slow(DataAttack):
    def poison(self, images, labels, generator, classes):
        time.sleep(4)
        return images, labels
"""


@pytest.mark.long
def test_stragglers_are_left_out_after_the_deadline(reference: fedrobust.Result, place: Path) -> None:
    (place / "slow.py").write_text(SLOW)  # a user's class beside the file reaches the actors, too
    options = ["federation.rounds=1", "federation.deadline=5", "workers.count=2", "tracking.model=false"]
    command = [sys.executable, "-m", "fedrobust.cli", "run", "tiny.yaml", *options, "--json", "slow.json"]
    slow = "attacks=[{name: 'slow:Slow', clients: [7]}]"
    done = subprocess.run([*command, slow], cwd=place, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = read_run(find_run(json.loads(Path("slow.json").read_text())["run_id"])).rounds
    for word in ("balanced accuracy", "attack success", "suspected", "fedrobust ui"):
        assert word in done.stdout
    assert record.late == (7,)
    assert record.participants == tuple(range(7))
    assert record.weights is not None and set(record.weights) == set(range(7))


def test_without_a_single_update_the_run_stops(reference: fedrobust.Result, pool: Pool) -> None:
    with pytest.raises(FederationError, match=r"round \d: .*deadline"):
        # With three steps a hospital may be back before the last one has been asked.
        run("federation.deadline=1e-6", "learning.local.steps=100", pool=pool)


def test_a_cluster_that_is_too_small_ends_the_mlflow_run(reference: fedrobust.Result) -> None:
    import mlflow

    with pytest.raises(FederationError, match="the cluster has 8"):
        run("workers.count=3", "workers.cpus=4.0", "tracking.experiment=too small")
    client = mlflow.MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name("too small")
    assert [found.info.status for found in client.search_runs([experiment.experiment_id])] == ["FAILED"]


def test_a_tracking_server_that_is_down_is_an_error_at_the_start(
    reference: fedrobust.Result, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(Path("mlruns/runs").iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9"):
        run(pool=pool)
    assert set(Path("mlruns/runs").iterdir()) == before


def test_targets_that_the_data_does_not_have_are_refused(reference: fedrobust.Result) -> None:
    before = set(Path("mlruns/runs").iterdir())
    with pytest.raises((ExperimentError, DataError), match="target"):
        run("attacks.0.target=7")
    assert set(Path("mlruns/runs").iterdir()) == before


LARGE = ["learning.model.channels=[32,64]", "federation.rounds=4", "learning.local.steps=2"]
"""A model of 20,000 parameters: both shards have columns to hold."""


@pytest.mark.parametrize(
    "defence",
    [
        pytest.param(["aggregation.stages=[clip,nnm]", "aggregation.rule=geometric_median"], marks=LONG),
        pytest.param(["aggregation.stages=[nnm]", "aggregation.rule=trimmed_mean"], marks=LONG),
        pytest.param(["aggregation.rule=fltrust"], marks=LONG),
        pytest.param(["aggregation.rule=foolsgold"], marks=LONG),
        pytest.param(["aggregation.rule=lasa"], marks=LONG),
    ],
    ids=lambda defence: defence[-1].split("=")[1],
)
def test_shards_change_no_bit(reference: fedrobust.Result, pool: Pool, sharded: Pool, defence: list[str]) -> None:
    """Updates of whole rows, trained by two actors; and updates whose columns no actor holds all of, trained by one."""
    whole, parts = run(*LARGE, *defence, pool=pool), run(*LARGE, *defence, "workers.shards=2", pool=sharded)
    assert parts.final["model_sha256"] == whole.final["model_sha256"]
    assert journal_without_seconds(parts) == journal_without_seconds(whole)


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=LONG) for rule in ("foolsgold", "fldetector", "afa", "clipped_clustering")]
)
def test_what_a_rule_remembers_survives_a_crash_other_shards_and_workers(
    reference: fedrobust.Result, pool: Pool, sharded: Pool, rule: str
) -> None:
    """Two rounds of one actor, whose updates lie in two shards; then two rounds of two actors."""
    options = [*LARGE, "aggregation.stages=[]", f"aggregation.rule={rule}", "federation.participation=0.75"]
    whole = run(*options, pool=pool)
    before = set(Path("mlruns/runs").iterdir())

    def stop(record: Record) -> None:
        if record.kind == "round" and record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*options, "workers.shards=2", hooks=[stop], pool=sharded)
    again = ended_again(options, before, pool)
    assert again.final["model_sha256"] == whole.final["model_sha256"]
    assert journal_without_seconds(again) == journal_without_seconds(whole)


def test_the_server_trains_on_a_data_set_of_its_own(reference: fedrobust.Result, pool: Pool) -> None:
    options = ["aggregation.stages=[]", "aggregation.rule=fltrust", "federation.rounds=4"]
    found = run(*options, pool=pool)
    for record in found.rounds:
        assert len(record["participants"]) == len(record["train_loss"]) == 8  # the server is no hospital
    flipped = {str(client) for client, name in found.attackers.items() if name == "sign_flip"}
    assert all(found.rounds[-1]["weights"][client] == 0.0 for client in flipped)
    assert found.final["test/balanced_accuracy"] > 0.6
    other = run(*options, "data.root=20", pool=pool)
    assert other.final["model_sha256"] != found.final["model_sha256"]


@pytest.mark.long
def test_the_server_trains_to_the_same_bits_with_any_number_of_workers(reference: fedrobust.Result, pool: Pool) -> None:
    options = ["aggregation.stages=[]", "aggregation.rule=fltrust", "federation.rounds=4"]
    alone = run(*options, "workers.count=1")
    assert alone.final["model_sha256"] == run(*options, pool=pool).final["model_sha256"]


def test_the_record_tells_what_each_step_made_of_each_hospital(reference: fedrobust.Result) -> None:
    for record in reference.rounds:
        assert [step["name"] for step in record["stages"]] == ["clip", "nnm", "geometric_median"]
        clip, nnm, rule = record["stages"]
        assert set(clip["scores"]) == set(map(str, range(8))) == set(nnm["scores"])
        assert rule["weights"] == record["weights"]
        assert sum(nnm["weights"].values()) == pytest.approx(sum(clip["weights"].values()), rel=0.5)
    page = (reference.folder / "report.html").read_text()
    assert "step by step" in page
    assert "<th>nnm: weight</th>" in page
