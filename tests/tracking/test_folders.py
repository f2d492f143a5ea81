"""Working folders with odd names, and folders that are moved or copied."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine
from tracked import journal, rows, sync, write

from fedrobust import tracking
from fedrobust.databases import safe_url, sqlite_file, sqlite_url
from fedrobust.errors import TrackingError
from fedrobust.tracking import StepFigures, Tracker
from fedrobust.tracking.artifacts import stored_files
from fedrobust.tracking.store import reaching

ODD = [
    "what?1",
    "a#b;c&d=e",
    "50%",
    "50%41",
    " a b@c:d+",
    "'q' \"r\" {s} [t]",
    "münchen 東京",
    "b\\s\nl|",
    "n" * 200,
    "~",
]
"""Names of folders, with all the characters that an address knows."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as a run leaves it in its folder."""
    from torch import nn

    folder = tmp_path_factory.mktemp("saved") / "model"
    tracking.save_model(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), 4, folder)
    return folder


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for those that a test works in."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "start").mkdir()
    return tmp_path / "start"


def work_in(folder: Path, bare: Path) -> Path:
    """Make a folder to work in, with a new database in it."""
    (folder / "mlruns").mkdir(parents=True)
    shutil.copy(bare, folder / "mlruns" / "mlflow.db")
    return folder


def record(folder: Path, model: Path) -> str:
    """A run in the folder: a metric, a file and a registered model."""
    os.chdir(folder)
    tracker = Tracker.open("fedrobust", {}, {})
    run = folder / "mlruns" / "runs" / tracker.run_id
    write(run, journal())
    shutil.copytree(model, run / "model")
    tracker.log(StepFigures(1, {"test/accuracy": 0.5}))
    tracker.upload(run, register="tumour")
    assert tracker.close()
    return tracker.run_id


def check(folder: Path, run_id: str) -> None:
    """What the run has written lies below the folder, and MLflow reads it back."""
    import mlflow

    os.chdir(folder)
    assert [row[:3] for row in rows(folder / "mlruns" / "mlflow.db", run_id)] == [("test/accuracy", 1, 0.5)]
    assert (folder / "mlruns" / "artifacts" / run_id / "artifacts" / "journal.jsonl").exists()
    with reaching(tracking.tracking_uri()) as client:
        assert dict(stored_files(client, run_id)).keys() == {"journal.jsonl"}
        (output,) = client.get_run(run_id).outputs.model_outputs
        (version,) = (each for each in client.search_model_versions("name = 'tumour'") if each.run_id == run_id)
        places = [client.get_logged_model(output.model_id).artifact_location, version.source]
        assert client.get_model_version_download_uri("tumour", version.version) in places
    for place in places:
        assert place.startswith((folder / "mlruns" / "artifacts" / "models").as_uri())
        if "%41" in folder.name:  # MLflow takes a part of any local path for the code of a letter when it loads a model
            continue
        loaded = mlflow.pyfunc.load_model(place)
        assert loaded.predict(np.zeros((3, 3, 4, 4), dtype=np.float32)).shape == (3, 2)


@pytest.mark.parametrize("name", ODD)
def test_each_folder_has_its_own_database(name: str, start: Path, bare: Path, model: Path) -> None:
    folder = work_in(start / name, bare)
    check(folder, record(folder, model))
    assert [path.name for path in start.iterdir()] == [name]
    assert [path.name for path in folder.iterdir()] == ["mlruns"]


def test_two_folders_whose_names_begin_alike_share_nothing(start: Path, bare: Path, model: Path) -> None:
    first, second = (work_in(start / name, bare) for name in ("what?1", "what?2"))
    ids = [record(folder, model) for folder in (first, second, first)]
    for folder, others in ((first, ids[1:2]), (second, ids[::2])):
        for run_id in others:
            os.chdir(folder)
            with pytest.raises(TrackingError, match="is not in"):
                Tracker.resume(run_id, [])
    assert {path.name for path in start.iterdir()} == {"what?1", "what?2"}


@pytest.mark.parametrize("name", ODD)
def test_the_address_of_a_database_names_its_file(name: str, tmp_path: Path) -> None:
    for file in (tmp_path / name / "mlflow.db", Path(name) / name):
        url = sqlite_url(file)
        assert sqlite_file(url) == file and safe_url(url) == url
        made = create_engine(url)
        assert made.url.database == str(file) and not made.url.query


@pytest.mark.parametrize(
    "url", ["sqlite:////home/what?1/mlflow.db", "sqlite:///what?a=b/c&d", "sqlite:///a?b", "sqlite://a b c:d"]
)
def test_an_address_that_a_mark_in_a_path_cuts_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_URI.*(written %3F|is no address)"):
        Tracker.open("x", {}, {})


@pytest.mark.slow
@pytest.mark.parametrize("what", ["moved", "moved to an odd name", "copied", "moved back"])
def test_artifacts_of_a_folder_that_was_moved_lie_below_its_new_place(
    what: str, start: Path, bare: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, now = work_in(start / "a #b", bare), start / ("50% c?" if what == "moved to an odd name" else "b")
    earlier = record(before, model)
    was = sorted(before.rglob("*"))
    os.chdir(start)
    if what == "copied":
        shutil.copytree(before, now)
    else:
        before.rename(now)
    if what == "moved back":
        later = record(now, model)
        os.chdir(start)
        now.rename(before)
        before, now, was = now, before, []
    else:
        later = earlier
    caplog.clear()
    run_id = record(now, model)
    assert [each.levelname for each in caplog.records if str(before) in each.getMessage()] == ["WARNING"]
    for each in (earlier, later, run_id):
        check(now, each)
    os.chdir(now)
    (now / "mlruns" / "runs" / earlier / "report.html").write_text("later")
    sync(now / "mlruns" / "runs" / earlier)
    assert (now / "mlruns" / "artifacts" / earlier / "artifacts" / "report.html").exists()
    assert sorted(before.rglob("*")) == was if what == "copied" else not before.exists()
    caplog.clear()
    record(now, model)
    assert not [each for each in caplog.records if str(before) in each.getMessage()]


def test_a_folder_by_another_name_and_artifacts_elsewhere_stay_as_they_are(
    start: Path, bare: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = work_in(start / "a", bare)
    with reaching(sqlite_url(folder / "mlruns" / "mlflow.db")) as client:
        client.create_experiment("elsewhere", (start / "b" / "artifacts").as_uri())
    run_id = record(folder, model)
    (start / "link").symlink_to(folder)
    uri = sqlite_url(start / "link" / "mlruns" / "mlflow.db")
    with reaching(uri) as client:
        assert client.get_run(run_id).info.artifact_uri.startswith(folder.as_uri())
    (start / "link").unlink()
    os.chdir(start)
    folder.rename(start / "moved")
    with reaching(sqlite_url(start / "moved" / "mlruns" / "mlflow.db")) as client:
        places = {each.name: each.artifact_location for each in client.search_experiments()}
    assert places["elsewhere"] == (start / "b" / "artifacts").as_uri()
    assert places["fedrobust"] == (start / "moved" / "mlruns" / "artifacts").as_uri()


def order(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make ui` does before it starts MLflow."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["fedrobust.tracking", url])
        runpy.run_module("fedrobust.tracking", run_name="__main__")


def test_a_database_is_put_in_order_before_mlflow_shows_it(
    start: Path, bare: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = work_in(start / "a", bare)
    run_id = record(folder, model)
    folder.rename(start / "b #")
    os.chdir(start / "b #")
    order("sqlite:///mlruns/mlflow.db", monkeypatch)
    check(start / "b #", run_id)
    (start / "b #" / "mlruns" / "mlflow.db").write_bytes(b"no database")
    with pytest.raises(SystemExit, match=r"^error: mlruns/mlflow\.db .*SQLite"):
        order("sqlite:///mlruns/mlflow.db", monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("name", ["what?1 #2;3&4", "50%41 münchen"])
def test_the_ui_shows_what_lies_in_an_odd_folder(name: str, start: Path, bare: Path, model: Path) -> None:
    folder = work_in(start / name, bare)
    run_id = record(folder, model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "fedrobust.cli", "ui", "--port", str(port)]
    (folder / "uvicorn.py").write_text("raise RuntimeError('a module of the working folder is imported')")
    with subprocess.Popen(command, cwd=folder, start_new_session=True) as server:
        try:
            for _ in range(240):
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                    if answer.status == 200:
                        break
                time.sleep(0.5)
            found = f"http://127.0.0.1:{port}/get-artifact?path=journal.jsonl&run_uuid={run_id}"
            with urllib.request.urlopen(found) as answer:
                assert answer.read() == (folder / "mlruns" / "runs" / run_id / "journal.jsonl").read_bytes()
            history = f"api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key=test/accuracy"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{history}") as answer:
                assert [each["value"] for each in json.load(answer)["metrics"]] == [0.5]
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/{history}", headers={"Host": "elsewhere.example"})
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(asked)
            assert not (folder / "mlruns" / "mlflow.db").stat().st_mode & 0o077
        finally:
            os.killpg(server.pid, signal.SIGTERM)
    assert [path.name for path in start.iterdir()] == [name]
