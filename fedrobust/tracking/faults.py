"""Messages if MLflow cannot be used, and what to do about it: one line for each cause."""

from __future__ import annotations

import os
import re
from typing import Any

from fedrobust.databases import cause, shown, sqlite_file, without_password
from fedrobust.errors import TrackingError, UnknownRunError
from fedrobust.locks import WaitError

CAUSES = (
    (
        r"error code 40[13]|UNAUTHENTICATED|PERMISSION_DENIED",
        "it does not let you in: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    ),
    (r"error code 404", "what answers there is no MLflow server: MLFLOW_TRACKING_URI names another address"),
    (r"No module named '?(?P<module>\w+)", "install the driver of that database: pip install {module}"),
    (
        r"Max retries|refused|[Tt]imed? ?out|resolve|not known|unreachable|[Cc]ould not connect|Can't connect",
        "start the server, or unset MLFLOW_TRACKING_URI to track in mlruns/mlflow.db",
    ),
)
"""Patterns in errors of a server, and what to do about each."""


def fault(error: Exception, uri: str, run_id: str | None = None) -> TrackingError:
    """Return the error to raise for `error`, which came from MLflow, a database's driver or the network.

    uri: address of the store.
    run_id: the run that was requested, if any.
    """
    if isinstance(error, TrackingError):
        return error
    if isinstance(error, WaitError):
        return TrackingError(str(error.strerror))
    where, told = shown(uri), first_line(error)
    if run_id and run_id in told and getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
        return UnknownRunError(
            f"run {run_id} is not in {where}; set MLFLOW_TRACKING_URI to the store that the run was started with "
            "(one that mlflow gc has deleted does not come back; its record stays in its folder)"
        )
    if run_id and "must be in the 'active' state" in told:
        return TrackingError(f"run {run_id} has been deleted in {where}; restore it: {restoring('runs', run_id)}")
    if (file := sqlite_file(uri)) is not None and (why := cause(error, file)) is not None:
        return TrackingError(why)
    for words, remedy in CAUSES if file is None else ():
        if (found := re.search(words, str(error))) is not None:
            told = f"{told}; {remedy.format(**found.groupdict())}"
            break
    return TrackingError(f"MLflow at {where} cannot be used: {told}")


def refuse_deleted(client: Any, run: Any, uri: str) -> None:
    """Raise `TrackingError`, with how to restore it, if the run or its experiment has been deleted in MLflow.

    client: an MLflow client.
    run: MLflow's entity of the run.
    uri: address of the store, for the message.
    """
    if run.info.lifecycle_stage == "active":
        return
    experiment = client.get_experiment(run.info.experiment_id)
    told, what = f"run {run.info.run_id} has been deleted in {shown(uri)}", restoring("runs", run.info.run_id)
    if experiment.lifecycle_stage != "active":
        told = f"{told} with its experiment '{experiment.name}'"
        what = restoring("experiments", experiment.experiment_id)
    raise TrackingError(f"{told}; restore it: {what}")


def restoring(kind: str, name: str) -> str:
    """Return the command that restores `name`, an id; `kind` is `runs` or `experiments`."""
    store = "" if os.environ.get("MLFLOW_TRACKING_URI") else "MLFLOW_TRACKING_URI=sqlite:///mlruns/mlflow.db "
    option = {"runs": "--run-id", "experiments": "--experiment-id"}[kind]
    return f"{store}mlflow {kind} restore {option} {name}"


def first_line(error: Exception) -> str:
    """Return an error's message in one line, without passwords."""
    lines = str(error).strip().splitlines()
    return without_password(lines[0]) if lines else type(error).__name__
