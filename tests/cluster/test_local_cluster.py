"""The local cluster for real: three nodes and MLflow; jobs submitted, followed and stopped, a node that dies."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedrobust.cluster.local_state import kept

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parent.parent.parent / "cluster" / "local.py"
EXPERIMENT = """
name: small
seed: 3
data:
  source: {name: histology, patients: 24, patches_per_patient: 16, size: 16}
  partition: {name: dirichlet, alpha: 10.0}
federation: {clients: 6, rounds: 3}
learning:
  model: {name: cnn, channels: [8, 16]}
  local: {steps: 2, batch_size: 16, optimizer: {name: sgd, lr: 0.05}}
aggregation: {rule: "mine:Mine"}
"""
RULE = '''
from fedrobust.aggregation import Combination, Rule

class Mine(Rule):
    """The rows, weighed by their priors."""

    name: str = "mine:Mine"

    def combine(self, gram, context):
        return Combination(gram.prior)
'''


def local(folder: Path, *words: str) -> str:
    command = [sys.executable, str(SCRIPT), "--folder", str(folder / "mlruns" / "cluster"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def state(folder: Path) -> dict[str, Any]:
    return dict(json.loads((kept(folder / "mlruns" / "cluster") / "state.json").read_text()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a cluster that `fedrobust submit` finds; jobs keep what they write below `home/`."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "small.yaml").write_text(EXPERIMENT, encoding="utf-8")
    (folder / "experiments" / "mine.py").write_text(RULE, encoding="utf-8")
    local(folder, "up", "--workplace", str(folder / "home"))  # where it fails, it ends what it has started
    temporary = state(folder)["temporary"]
    try:
        yield folder
    finally:
        local(folder, "down")
        left = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert temporary not in left
        assert not Path(temporary).exists()


def fedrobust(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    command = [sys.executable, "-m", "fedrobust.cli", *words]
    return subprocess.run(command, cwd=folder, env=kept | variables, capture_output=True, text=True, check=False)


def test_a_run_on_the_cluster(folder: Path) -> None:
    done = fedrobust(folder, "submit", "--", "run", "experiments/small.yaml", "workers.count=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 3/3: balanced accuracy" in done.stdout
    assert "FEDROBUST_SHIPPED" not in done.stdout and "fedrobust job: " not in done.stdout, "no shell text"
    assert "_ray_pkg_" not in done.stdout and "your code: mine:Mine from experiments/mine.py" in done.stdout
    (run,) = (folder / "home" / "mlruns" / "runs").iterdir()
    assert (run / "report.html").exists()
    assert not (folder / "mlruns" / "runs").exists()
    uri = state(folder)["mlflow"]
    with urllib.request.urlopen(f"{uri}/api/2.0/mlflow/runs/get?run_id={run.name}", timeout=30) as answer:
        assert json.load(answer)["run"]["info"]["status"] == "FINISHED"
    assert f"MLflow: {uri}/#/experiments" in done.stdout
    fetched = fedrobust(folder, "fetch", "small", "--to", "results")
    assert fetched.returncode == 0, fetched.stderr
    assert (folder / "results" / "report.html").read_bytes() == (run / "report.html").read_bytes()
    assert not (folder / "results" / "checkpoint.npz").exists()
    listed = fedrobust(folder, "jobs", COLUMNS="200").stdout
    assert "run-small-" in listed and "fetch-" not in listed
    missing = fedrobust(
        folder, "submit", "--", "run", "experiments/small.yaml", "data.source={name: npz, path: no.npz}"
    )
    assert missing.returncode == 2
    assert "is the one that reads the data: put it there" in missing.stdout


def test_a_stopped_run_goes_on_after_a_node_has_died(folder: Path) -> None:
    words = ["run", "experiments/small.yaml", "federation.rounds=60", "workers.count=2"]
    job = fedrobust(folder, "submit", "--no-follow", "--", *words).stdout.split()[1]
    for _ in range(240):
        shown = re.search(r"(\d+)/60 rounds", fedrobust(folder, "jobs", COLUMNS="250").stdout)
        if shown is not None and int(shown[1]) > 1:
            break
        time.sleep(0.5)
    stopped = fedrobust(folder, "stop", job)
    assert stopped.stdout == f"job {job}: STOPPED\n"
    assert fedrobust(folder, "fetch", job).returncode == 0
    there = {path.name for path in (folder / "mlruns" / "jobs" / job).iterdir()}
    assert "journal.jsonl" in there and "checkpoint.npz" not in there, "what there is so far"
    (run,) = (
        place for place in (folder / "home" / "mlruns" / "runs").iterdir() if not (place / "report.html").exists()
    )
    local(folder, "kill", "worker-1")
    assert "worker-1   dead" in local(folder, "status")
    done = fedrobust(folder, "submit", "--", *words, "--resume", run.name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run / "report.html").exists()
    local(folder, "revive", "worker-1")
    shown = fedrobust(folder, "jobs").stdout
    assert "stopped" in shown
    assert "succeeded" in shown


def test_nothing_secret_is_open_to_others(folder: Path) -> None:
    cluster = folder / "mlruns" / "cluster"
    token = (kept(cluster) / "token").read_text()
    shown = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(cluster / "artifacts") in shown
    secrets = (token, str(cluster / "mlflow.db"))
    assert not [line for line in shown.splitlines() if any(secret in line for secret in secrets)]
    for path in (cluster, *cluster.rglob("*"), *kept(cluster).rglob("*"), Path(state(folder)["temporary"])):
        assert not path.stat().st_mode & 0o077, path


def test_who_has_no_token_is_kept_out(folder: Path, tmp_path: Path) -> None:
    address = state(folder)["address"]
    wrong = fedrobust(tmp_path, "jobs", "--address", address, RAY_AUTH_TOKEN="wrong")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == f"error: the cluster at {address} does not accept the token from RAY_AUTH_TOKEN\n"
    none = fedrobust(tmp_path, "jobs", "--address", address, HOME=str(tmp_path))
    assert none.stderr.startswith(f"error: the cluster at {address} wants a token")
