"""The page of MLflow that shows the runs of a job."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from fedrobust.cluster.address import LOCAL, Cluster, is_loopback
from fedrobust.cluster.local_state import read_state
from fedrobust.databases import without_password
from fedrobust.texts import visible

PATIENCE = 3.0
"""Seconds within which MLflow must answer; a link is not worth a longer wait."""
MOST = 1_000_000
"""Maximum size of an answer, in bytes."""
ALL = "#/experiments?workflowType=machine_learning"
"""The list of MLflow's experiments."""


def tracking_server(cluster: Cluster, variables: Mapping[str, str]) -> str:
    """Return the address of the MLflow server that a job on `cluster` uses, as far as it is known here; else an empty
    text.

    variables: those that are set for the job. Without MLFLOW_TRACKING_URI among them, that of this process counts, and
    then that of the cluster which `make cluster` started in this folder.
    """
    state = read_state(LOCAL)
    local = state.mlflow if state is not None and state.address == cluster.address else ""
    found = variables.get("MLFLOW_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI") or local
    return found if found.startswith(("http://", "https://")) else ""


def runs_page(server: str, experiment: str = "") -> str:
    """Return the address of the page that shows the runs of an experiment, without a password.

    server: the address of MLflow.
    experiment: the name in MLflow; by default the only one that has runs. If the server does not have it yet, or does
        not answer, the text has the list of all experiments, and the name to look for.
    """
    base = visible(without_password(server)).rstrip("/")
    number = _number(server.rstrip("/"), experiment)
    if number:
        return f"{base}/#/experiments/{number}/runs"
    return f"{base}/{ALL}" + (f" (experiment '{visible(experiment)}')" if experiment else "")


def _number(server: str, experiment: str) -> str:
    """Return the id of an experiment, or an empty text."""
    if urllib.parse.urlsplit(server).username is not None:  # the password would have to be sent
        return ""
    if experiment:
        query = urllib.parse.urlencode({"experiment_name": experiment})
        found = _asked(f"{server}/api/2.0/mlflow/experiments/get-by-name?{query}").get("experiment")
        numbers = [found.get("experiment_id")] if isinstance(found, dict) else []
    else:
        listed = _asked(f"{server}/api/2.0/mlflow/experiments/search?max_results=3").get("experiments")
        own = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        numbers = [each.get("experiment_id") for each in own if each.get("name") != "Default"]
    number = numbers[0] if len(numbers) == 1 else None
    return number if isinstance(number, str) and number.isascii() and number.isdigit() else ""


def _asked(url: str) -> dict[str, Any]:
    """Return the JSON object at `url`; an empty one if there is none."""
    direct = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
    try:
        with urllib.request.build_opener(*direct).open(url, timeout=PATIENCE) as answer:
            found = json.loads(answer.read(MOST))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
