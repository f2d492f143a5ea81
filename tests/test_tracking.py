from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrobust import tracking
from fedrobust.errors import TrackingError
from fedrobust.tracking import SYNCED, Tracker, flatten, metrics

ROUNDS = 4


def sync(folder: Path) -> int:
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    return tracking.sync(folder, [json.loads(line) for line in lines if line.endswith("\n")])


@pytest.fixture(scope="module", autouse=True)
def database(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One sqlite store for the module (making one takes seconds), and no waiting between attempts."""
    folder = tmp_path_factory.mktemp("tracking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setattr(tracking, "PAUSES", (0.0, 0.0))
        yield folder / "mlflow.db"


def journal(rounds: int = ROUNDS, clients: int = 3) -> list[dict[str, Any]]:
    """A small journal in the order in which a run writes it: the evaluation of r follows round r + 1."""
    ids = range(clients)
    records: list[dict[str, Any]] = [{"kind": "start", "clients": clients}]
    for number in range(1, rounds + 1):
        records.append(
            {
                "kind": "round",
                "round": number,
                "weights": {str(i): 1 / clients for i in ids},
                "anomaly": {str(i): 0.1 * i for i in ids},
                "reputation": {str(i): 0.5 for i in ids},
                "train_loss": {str(i): 1.0 / number for i in ids},
                "upload_bytes": 120,
                "detection": {"defense/precision": 1.0},
                "seconds": {"round": 0.75, "train": 0.5, "aggregate": 0.125},
            }
        )
        if number > 1:
            records.append(evaluation(number - 1))
    return [*records, evaluation(rounds), {"kind": "end", "round": rounds, "final": {"test/accuracy": 0.99}}]


def evaluation(number: int) -> dict[str, Any]:
    return {"kind": "evaluation", "round": number, "metrics": {"test/accuracy": number / 10, "test/auroc": None}}


def write(folder: Path, records: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def rows(database: Path, run_id: str) -> list[tuple[str, int, float, int]]:
    """Every metric row that MLflow holds for the run, read past MLflow."""
    with sqlite3.connect(database) as connection:
        query = "select key, step, value, timestamp from metrics where run_uuid = ?"
        return sorted(connection.execute(query, [run_id]).fetchall())


def status(database: Path, run_id: str) -> str:
    with sqlite3.connect(database) as connection:
        return str(connection.execute("select status from runs where run_uuid = ?", [run_id]).fetchone()[0])


def expected(records: list[dict[str, Any]]) -> Counter[tuple[str, int]]:
    return Counter((name, record.get("round", 0)) for record in records for name in metrics(record))


def exactly_once(database: Path, run_id: str, records: list[dict[str, Any]]) -> None:
    assert Counter((key, step) for key, step, _, _ in rows(database, run_id)) == expected(records)
    assert set(expected(records).values()) == {1}


class Failing:
    """An MLflow client that fails in its `at`-th call, when the server has stored nothing, half, or all of it."""

    def __init__(self, client: Any, at: int, stored: str, once: bool = False) -> None:
        self._client, self._at, self._stored, self._once, self._calls = client, at, stored, once, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **options: Any) -> Any:
            self._calls += 1
            if self._calls < self._at or (self._once and self._calls > self._at):
                return method(*args, **options)
            if self._calls == self._at and self._stored == "all":
                method(*args, **options)
            elif self._calls == self._at and self._stored == "half" and name == "log_batch":
                method(*args, metrics=options["metrics"])  # the server stores tags after metrics
            raise ConnectionError("gone")

        return call


def break_client(monkeypatch: pytest.MonkeyPatch, at: int, stored: str, once: bool = False) -> None:
    """Let the client that a `Tracker` gets from now on fail; the start of the run itself still works."""
    init = Tracker.__init__

    def broken(self: Tracker, client: Any, run: Any, records: Any = ()) -> None:
        init(self, Failing(client, at, stored, once), run, records)

    monkeypatch.setattr(Tracker, "__init__", broken)


def test_metrics_have_the_documented_names() -> None:
    record = journal(clients=3)[1]
    assert metrics(record) == {
        **{f"weight/0{i}": pytest.approx(1 / 3) for i in range(3)},
        **{f"anomaly/0{i}": pytest.approx(0.1 * i) for i in range(3)},
        **{f"reputation/0{i}": 0.5 for i in range(3)},
        "defense/precision": 1.0,
        "train/loss": 1.0,
        "round/seconds": 0.75,
        "round/train_seconds": 0.5,
        "round/aggregate_seconds": 0.125,
        "round/upload_bytes": 120.0,
    }


def test_parts_quarantine_and_the_truth_are_metrics_of_every_participant() -> None:
    record = {
        "participants": [0, 2],
        "attacking": [2],
        "quarantined": [1, 2],  # 1 is absent
        "anomaly_parts": {"0": {"norm": 0.25, "average_cosine": None}, "2": {"norm": 0.5, "average_cosine": 0.75}},
    }
    assert metrics(record) == {
        "anomaly_norm/00": 0.25,
        "anomaly_norm/02": 0.5,
        "anomaly_average_cosine/02": 0.75,
        "defense/quarantined": 2.0,
        "quarantined/00": 0.0,
        "quarantined/02": 1.0,
        "attacking/00": 0.0,
        "attacking/02": 1.0,
    }
    freed = metrics(record | {"quarantined": []})
    assert (freed["defense/quarantined"], freed["quarantined/02"]) == (0.0, 0.0)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_figures_that_are_not_finite_are_left_out_live_as_in_the_journal(value: float | None) -> None:
    record = {"round": 1, "weights": None, "anomaly": {"1": value}, "train_loss": {0: 2.0, 1: value}}
    assert metrics(record) == {"train/loss": 2.0}


def test_client_ids_sort() -> None:
    names = list(metrics({"reputation": dict.fromkeys(range(120), 1.0)}, width=3))
    assert names == sorted(names)


def test_flatten_gives_dotted_paths_and_short_texts() -> None:
    nested = {
        "a": {"b": 1.5, "c": None, "d": True},
        "list": [1, 2],
        "attacks": [{"name": "alie"}],
        "none": [],
        "s": "x",
    }
    assert flatten(nested) == {
        "a.b": "1.5",
        "a.c": "null",
        "a.d": "true",
        "list": "[1, 2]",
        "attacks.0.name": "alie",
        "none": "[]",
        "s": "x",
    }
    assert len(flatten({"long": "é" * 9000})["long"]) == tracking.LONGEST


def test_a_run_arrives_whole(database: Path) -> None:
    params = {f"option.{i}": "v" * 900 for i in range(230)}
    tracker = Tracker.open("whole", params, {"attack": "sign_flip", "long": "x" * 9000}, "a run")
    records = journal()
    for record in records:
        tracker.log(record)
    assert tracker.close()
    exactly_once(database, tracker.run_id, records)
    from mlflow import MlflowClient

    client = MlflowClient(tracking.tracking_uri())
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "a run"
    assert run.data.params.keys() == params.keys()
    assert run.data.tags["attack"] == "sign_flip" and run.data.tags[SYNCED] == str(len(records))
    assert client.get_experiment_by_name("whole").artifact_location == (database.parent / "artifacts").as_uri()
    assert run.data.metrics["test/accuracy"] == ROUNDS / 10  # the `end` record repeats it and must not be sent
    times = [time for key, _, _, time in rows(database, tracker.run_id) if key == "train/loss"]
    assert times == [run.info.start_time + 750 * number for number in range(1, ROUNDS + 1)]


def test_more_metrics_than_one_request_may_hold(database: Path) -> None:
    records = journal(rounds=1, clients=400)
    tracker = Tracker.open("many", {}, {})
    for record in records:
        tracker.log(record)
    assert tracker.close()
    found = Counter((key, step) for key, step, _, _ in rows(database, tracker.run_id))
    assert len(found) == 3 * 400 + 7 and set(found.values()) == {1}


@pytest.mark.parametrize("stored", ["nothing", "half", "all"])
@pytest.mark.parametrize("at", [1, 2, 4, 7, 10])
def test_a_server_that_dies_costs_nothing(
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at: int,
    stored: str,
) -> None:
    records = journal()
    with monkeypatch.context() as patch:
        break_client(patch, at, stored)
        tracker = Tracker.open("dies", {}, {})
        for record in records:
            tracker.log(record)  # neither waits nor fails
        assert not tracker.close()
    assert tracker.behind
    assert [record.levelname for record in caplog.records if record.name == tracking.__name__] == ["WARNING"]
    assert f"fedrobust sync {tracker.run_id}" in caplog.text
    folder = tmp_path / tracker.run_id
    write(folder, records)
    assert sync(folder) == len(records) - (at if stored == "all" else at - 1)
    exactly_once(database, tracker.run_id, records)
    assert status(database, tracker.run_id) == "FINISHED"
    before = rows(database, tracker.run_id)
    assert sync(folder) == 0 and rows(database, tracker.run_id) == before


@pytest.mark.parametrize("stored", ["nothing", "half", "all"])
def test_a_request_that_fails_once_is_sent_again(
    database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stored: str
) -> None:
    records = journal()
    break_client(monkeypatch, 3, stored, once=True)
    tracker = Tracker.open("hiccup", {}, {})
    for record in records:
        tracker.log(record)
    assert tracker.close() and not caplog.records
    exactly_once(database, tracker.run_id, records)


@pytest.mark.parametrize("sent", [0, 3, 6])
def test_a_resumed_run_goes_on_without_repeating_a_step(database: Path, sent: int) -> None:
    """Six lines were committed when the run was killed; `sent` of them had reached MLflow."""
    records = journal()
    first = Tracker.open("resumed", {}, {})
    for record in records[:sent]:
        first.log(record)
    assert first.close("KILLED")
    again = Tracker.resume(first.run_id, records[:6])
    for record in records[6:]:
        again.log(record)
    assert again.close() and again.run_id == first.run_id
    exactly_once(database, first.run_id, records)
    assert status(database, first.run_id) == "FINISHED"


def test_lines_run_again_after_a_crash_are_not_sent_twice(database: Path, tmp_path: Path) -> None:
    """`sync` sent a line that was never committed; the resumed run repeats it, a little slower."""
    records = journal()
    tracker = Tracker.open("crashed", {}, {})
    tracker.close("FAILED")
    write(tmp_path / tracker.run_id, records[:6])
    assert sync(tmp_path / tracker.run_id) == 6
    slower = [record | {"seconds": {"round": 9.0}} if record["kind"] == "round" else record for record in records]
    again = Tracker.resume(tracker.run_id, records[:4])
    for record in slower[4:]:
        again.log(record)
    assert again.close()
    assert set(Counter((key, step) for key, step, _, _ in rows(database, tracker.run_id)).values()) == {1}


def test_sync_leaves_a_torn_line_and_a_run_without_end_alone(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracker = Tracker.open("torn", {}, {})
    tracker.close("KILLED")
    folder = tmp_path / tracker.run_id
    write(folder, journal()[:4])
    with (folder / "journal.jsonl").open("a") as out:
        out.write('{"kind":"round","round":99')
    assert sync(folder) == 4
    run = MlflowClient(tracking.tracking_uri()).get_run(tracker.run_id)
    assert run.info.status == "KILLED" and run.data.tags[SYNCED] == "4"


def test_artifacts_and_model_are_uploaded_once(tmp_path: Path) -> None:
    import mlflow
    import torch
    from torch import nn

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    tracker = Tracker.open("artifacts", {"seed": "1"}, {})
    folder = tmp_path / tracker.run_id
    write(folder, journal())
    (folder / "figures").mkdir()
    (folder / "figures" / "curves.png").write_bytes(b"png")
    (folder / "checkpoint.npz").write_bytes(b"large")
    tracking.save_model(module, np.zeros((2, 3, 8, 8), dtype=np.float32), folder / "model")
    tracker.upload(folder)
    assert tracker.close()
    (folder / "report.html").write_text("<p>later</p>")
    (folder / "figures" / "curves.png").write_bytes(b"another")
    sync(folder)

    uri = tracking.tracking_uri()
    client = mlflow.MlflowClient(uri)
    stored = dict(tracking._artifacts(client, tracker.run_id))
    assert set(stored) == {"journal.jsonl", "report.html", "figures/curves.png"}
    assert stored["figures/curves.png"] == len("another")
    run = client.get_run(tracker.run_id)
    assert len(run.outputs.model_outputs) == 1
    logged = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert str(logged.status) == "READY" and logged.source_run_id == tracker.run_id and logged.params == {"seed": "1"}
    address = f"runs:/{tracker.run_id}/model"
    described = mlflow.models.get_model_info(address)
    assert described.signature.inputs.inputs[0].shape == (-1, 3, 8, 8) and described.run_id == tracker.run_id
    images = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    loaded = mlflow.pytorch.load_model(address)
    with torch.no_grad():
        assert torch.equal(loaded(torch.from_numpy(images)), module(torch.from_numpy(images)))
        found = mlflow.pyfunc.load_model(f"models:/{logged.model_id}").predict(images)
        np.testing.assert_array_equal(found, module(torch.from_numpy(images)).numpy())


def test_a_server_that_is_down_at_the_start_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://anna:secret@127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = tmp_path / "0123"
    write(folder, journal())
    for start in (lambda: Tracker.open("x", {}, {}), lambda: Tracker.resume("0123", []), lambda: sync(folder)):
        with pytest.raises(TrackingError) as caught:
            start()
        message = str(caught.value)
        assert uri.replace("anna:secret@", "") in message and "secret" not in message and "\n" not in message
        assert "start the server" in message


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "./mlruns"])
def test_the_file_store_is_refused(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=r"folder.*sqlite:///"):
        Tracker.open("x", {}, {})


def test_without_a_setting_everything_lies_below_mlruns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


def test_an_unknown_run_names_the_store(tmp_path: Path) -> None:
    folder = tmp_path / ("0" * 32)
    write(folder, journal())
    for start in (lambda: sync(folder), lambda: Tracker.resume(folder.name, [])):
        with pytest.raises(TrackingError, match=f"run {folder.name} is not in sqlite"):
            start()


def test_a_deleted_experiment_is_refused_with_the_remedy() -> None:
    from mlflow import MlflowClient

    Tracker.open("gone", {}, {}).close()
    client = MlflowClient(tracking.tracking_uri())
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(TrackingError, match=r"'gone' has been deleted.*restore"):
        Tracker.open("gone", {}, {})


def test_mlflow_itself_is_left_as_it_was() -> None:
    import mlflow

    before = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    tracker = Tracker.open("quiet", {}, {})
    assert mlflow.active_run() is None
    tracker.close()
    assert (mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before


def test_the_module_is_imported_without_mlflow() -> None:
    import subprocess
    import sys

    code = "import sys, fedrobust.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_below_another_and_figures_of_no_round(tmp_path: Path, database: Path) -> None:
    import mlflow

    parent = Tracker.open("nested", {}, {})
    child = Tracker.open("nested", {}, {"attack": "ipm"}, parent=parent.run_id)
    assert child.close()
    parent.figures({"headline": 0.5, "unknown": math.nan, "never": math.inf})
    parent.figures({"cell/auroc": 0.75}, child.run_id)
    folder = tmp_path / "tables"
    folder.mkdir()
    for text in ("0.90", "0.80"):  # of the same size
        (folder / "table.md").write_text(text)
        parent.upload(folder, again=True)
    assert parent.close()
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert [row[:3] for row in rows(database, parent.run_id)] == [("headline", 0, 0.5)]
    assert [row[:3] for row in rows(database, child.run_id)] == [("cell/auroc", 0, 0.75)]
    assert Path(client.download_artifacts(parent.run_id, "table.md")).read_text() == "0.80"
