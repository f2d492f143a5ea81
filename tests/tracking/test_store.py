"""Stores that cannot be used are refused in one line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from tracked import journal, sync, write

from fedrobust import tracking
from fedrobust.errors import TrackingError
from fedrobust.tracking import Tracker


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


def test_an_unknown_run_names_the_store(tmp_path: Path, database: Path) -> None:
    folder = tmp_path / ("0" * 32)
    write(folder, journal())
    for start in (lambda: sync(folder), lambda: Tracker.resume(folder.name, [])):
        with pytest.raises(TrackingError, match=f"{folder.name} .* {database}; .*MLFLOW_TRACKING_URI"):
            start()


def test_a_deleted_experiment_is_refused_with_the_remedy() -> None:
    from mlflow import MlflowClient

    Tracker.open("gone", {}, {}).close()
    client = MlflowClient(tracking.tracking_uri())
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(TrackingError, match=r"'gone' .*deleted"):
        Tracker.open("gone", {}, {})
