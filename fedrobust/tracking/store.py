"""The store that MLflow writes to: where it is, how it is reached, and what is said when it cannot be."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedrobust.errors import TrackingError
from fedrobust.private import private_file, private_folder

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment, so that the UI shows it as one about training and not about language models."""
VIEW = "Accuracy and attack success"
"""Name of the saved view that an experiment begins with; MLflow's own list of runs shows no figures."""
COLUMNS = (
    "attributes.`Duration`",
    "metrics.`attack/success_rate`",
    "metrics.`defense/auroc`",
    "metrics.`test/balanced_accuracy`",
    "tags.`attack`",
    "tags.`defence`",
    "tags.`partition`",
    "tags.`seed`",
)
"""The columns of that view, in the order in which the UI shows them whatever the order here."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the sqlite database `mlruns/mlflow.db` below the working folder.

    Raises `TrackingError` for a plain folder: MLflow has given that kind of store up.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlruns/mlflow.db').absolute()}"
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={uri} is a folder, which MLflow no longer writes to; "
            "unset it, or give a server (http://host:5000) or a database (sqlite:///mlruns/mlflow.db)"
        )
    return uri


def import_mlflow() -> Any:
    """Import MLflow: no telemetry, and no minutes of patience with a server that is down, unless the user says so."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a link for every cell of a matrix
    import mlflow

    for name in ("alembic", "mlflow.store.db", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


@contextmanager
def reaching(uri: str, run_id: str | None = None) -> Iterator[Any]:
    """An MLflow client for `uri`; whatever fails in the block becomes a `TrackingError` of one line."""
    try:
        mlflow = import_mlflow()
        if (database := database_of(uri)) is not None:
            private_folder(database.parent)
            private_file(database)
        yield mlflow.MlflowClient(uri)
    except TrackingError:
        raise
    except Exception as error:
        if run_id and getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            raise TrackingError(
                f"run {run_id} is not in {without_password(uri)}; "
                "set MLFLOW_TRACKING_URI to the store that the run was started with"
            ) from error
        raise TrackingError(
            f"MLflow at {without_password(uri)} cannot be used: {first_line(error)}; "
            "start the server, or unset MLFLOW_TRACKING_URI to track in mlruns/mlflow.db"
        ) from error


def database_of(uri: str) -> Path | None:
    """The file of a sqlite database; None for a server, and for other databases."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path) if uri.startswith("sqlite:///") and path not in ("", ":memory:") else None


def experiment_id(client: Any, name: str, uri: str) -> str:
    """The id of the MLflow experiment, made if need be; artifacts lie beside a sqlite database."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database, location = database_of(uri), None
        if database is not None:
            private_folder(artifacts := database.absolute().parent / "artifacts")
            location = artifacts.as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=KIND | _view()))
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment '{name}' has been deleted; "
            f"choose another tracking.experiment, or: mlflow experiments restore -x {found.experiment_id}"
        )
    return str(found.experiment_id)


def _view() -> dict[str, str]:
    """The tag of an experiment that the UI keeps a saved view in, as MLflow 3.17 writes it."""
    shown = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": COLUMNS,
        "compareRunsMode": "TABLE",
    }
    now = int(time.time() * 1000)
    view = {"name": VIEW, "createdAt": now, "updatedAt": now, "state": json.dumps(shown)}
    return {"mlflow.sharedViewState.fedrobust": json.dumps(view)}


def first_line(error: Exception) -> str:
    """What an error says in one line, without passwords."""
    lines = str(error).strip().splitlines()
    return without_password(lines[0]) if lines else type(error).__name__


def without_password(text: str) -> str:
    """`text` without the user name and password of an address."""
    return re.sub(r"://[^/@\s]*@", "://", text)
