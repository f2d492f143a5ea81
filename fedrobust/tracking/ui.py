"""MLflow's own UI over the runs of the working folder."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

from fedrobust.databases import sqlite_file, without_password
from fedrobust.errors import ExperimentError
from fedrobust.tracking.store import reaching, tracking_uri
from fedrobust.tracking.tables import DATABASES

HOST = "127.0.0.1"
"""The UI is reachable only from this machine, because MLflow has no passwords."""


def address(port: int) -> str:
    """Return the address of the list of runs; MLflow's start page is its view for language models."""
    return f"http://{HOST}:{port}/#/experiments?workflowType=machine_learning"


def ui_server(port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of MLflow's UI on `port`, after preparing the database.

    Raises `ExperimentError` if nothing is recorded yet, if the runs are on a server, which has its own UI, and if the
    port is taken; `TrackingError` if the database cannot be used.
    """
    uri = tracking_uri()
    if not uri.startswith(DATABASES):
        raise ExperimentError(f"MLFLOW_TRACKING_URI names a server: open {without_password(uri)} in a browser")
    file = sqlite_file(uri)
    if file is not None and not Path(file).exists():
        raise ExperimentError(f"{file} is not there: run an experiment first, or go to the folder where you did")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ExperimentError(f"port {port}: {error.strerror}; choose another one with --port") from None
    with reaching(uri):
        pass
    spec = find_spec("mlflow")
    assert spec is not None and spec.origin is not None
    packages = Path(spec.origin).parent.parent  # else uvicorn would search the working folder first
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1"]
    environment = dict(os.environ) | {
        "MLFLOW_BACKEND_STORE_URI": uri,  # command lines are public, and a password may be in it
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONSAFEPATH": "1",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    return [*command, "--uvicorn-opts", f"--app-dir {shlex.quote(str(packages))}"], environment
