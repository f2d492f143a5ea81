"""`fedrobust ui`: what it starts, and what it says where there is nothing to show. A real one: test_folders.py."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fedrobust.cli import main
from fedrobust.databases import sqlite_url
from fedrobust.tracking import ui
from fedrobust.tracking.store import reaching

PORT = 54321


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and what would be started in its place."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.argv", ["fedrobust", "ui", "--port", str(port)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_it_shows_the_database_of_this_folder_to_this_machine_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mlruns").mkdir()
    (folder / "mlruns" / "mlflow.db").touch()
    started: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    monkeypatch.setattr("sys.argv", ["fedrobust", "ui", "--port", str(PORT)])
    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    ((_, command, environment),) = started
    assert command[1:8] == ["-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(PORT)]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == sqlite_url(folder / "mlruns" / "mlflow.db")
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"] == "false"
    assert f"http://127.0.0.1:{PORT}/" in capsys.readouterr().out
    assert (folder / "mlruns" / "mlflow.db").stat().st_size  # it has tables now


def test_where_nothing_is_recorded_nothing_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "mlruns/mlflow.db is not there" in refused(PORT, monkeypatch, capsys)
    assert not list(folder.iterdir())


def test_a_server_has_a_ui_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@example.org:5000")
    line = refused(PORT, monkeypatch, capsys)
    assert "example.org:5000 in a browser" in line
    assert "secret" not in line


def test_a_port_that_is_taken_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with reaching(sqlite_url(folder / "mlruns" / "mlflow.db")):
        pass
    with socket.create_server((ui.HOST, 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port}: Address already in use; choose another one with --port" in refused(
            port, monkeypatch, capsys
        )
