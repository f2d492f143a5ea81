"""The store that MLflow writes to: its address, the connection, and the messages if it cannot be used."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from fedrobust.databases import safe_url, sqlite_file, sqlite_url
from fedrobust.errors import TrackingError
from fedrobust.private import private_folder
from fedrobust.tracking.faults import fault, restoring
from fedrobust.tracking.places import BESIDE, mend_places
from fedrobust.tracking.tables import DATABASES, artifacts_beside, prepare

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment, so that the UI shows it as model training and not as work on language models."""
VIEW = "Accuracy and attack success"
"""Name of the saved view with which an experiment opens; MLflow's own list of runs shows no figures."""
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
"""The columns of that view, in the order of the UI, which does not depend on the order here."""


def tracking_uri() -> str:
    """Return `MLFLOW_TRACKING_URI`, or the address of the SQLite database `mlruns/mlflow.db` below the working folder.

    Raises `TrackingError` for a plain folder, to which MLflow no longer writes, and if it is not a valid address.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        if not uri:
            return sqlite_url(Path("mlruns/mlflow.db").absolute())
        if "://" in uri and not uri.startswith("file:"):
            return safe_url(uri)
    except ValueError as error:
        raise TrackingError(f"MLFLOW_TRACKING_URI: {error}" if uri else str(error)) from None
    raise TrackingError(
        f"MLFLOW_TRACKING_URI={uri} is a folder, which MLflow no longer writes to; "
        "unset it, or give a server (http://host:5000) or a database (sqlite:///mlruns/mlflow.db)"
    )


def import_mlflow() -> Any:
    """Import MLflow without telemetry, and with short timeouts for a server that is down, unless the user sets
    others."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # else a link for every cell of a matrix
    import mlflow

    for name in ("alembic", "mlflow.store.db"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its tracebacks are pages long
    return mlflow


def import_beside() -> None:
    """Begin to import MLflow, which takes seconds, in a thread of its own: whoever needs it waits for what is left."""

    def load() -> None:
        with suppress(Exception):  # it is raised again where MLflow is needed
            import_mlflow()
            if tracking_uri().startswith(DATABASES):
                import_module("mlflow.store.tracking.sqlalchemy_store")

    if "mlflow" not in sys.modules:
        Thread(target=load, name="import", daemon=True).start()


@contextmanager
def reaching(uri: str, run_id: str | None = None) -> Iterator[Any]:
    """Yield an MLflow client for `uri`; any error in the block becomes a `TrackingError` of one line.

    run_id: the run that is requested, for the messages.

    Before the block, the database is created if necessary, and its locations of artifacts are corrected.
    """
    try:
        mlflow = import_mlflow()
        if uri.startswith(DATABASES):
            prepare(uri)
        if (file := sqlite_file(uri)) is not None:
            mend_places(file)
        yield mlflow.MlflowClient(uri)
    except Exception as error:
        raise fault(error, uri, run_id) from error


def experiment_id(client: Any, name: str, uri: str) -> str:
    """Return the id of the MLflow experiment `name`; create it if necessary. Artifacts are stored beside a SQLite
    database.

    client: an MLflow client.
    uri: address of the store.

    Raises `TrackingError` if the experiment has been deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        file, location = sqlite_file(uri), None
        if file is not None:
            private_folder(artifacts := artifacts_beside(file))
            location = artifacts.as_uri()
        tags = KIND | _view() | ({} if file is None else BESIDE)
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException:  # another process has just created it
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment '{name}' has been deleted; "
            f"choose another tracking.experiment, or restore it: {restoring('experiments', found.experiment_id)}"
        )
    return str(found.experiment_id)


def _view() -> dict[str, str]:
    """Return the tag in which the UI keeps an experiment's saved view, in the format of MLflow 3.17."""
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
