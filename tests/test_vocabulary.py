"""What MLflow holds has the same names everywhere, and the guide has all of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fedrobust.errors import FedRobustError, TrackingError, UnlearntError
from fedrobust.experiment import Experiment
from fedrobust.matrices.measures import baselines, detection, performance
from fedrobust.naming import tags
from fedrobust.records import RecordedRun, read_run
from fedrobust.studies import study
from fedrobust.tracking import metrics, store

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "mlflow.md").read_text(encoding="utf-8")
NAMES = {name for line in GUIDE.splitlines() for name in re.findall(r"`([^` ]+)`", line.split(" | ")[0])}
"""What stands in the first columns of its tables."""


@pytest.fixture(scope="module")
def run() -> RecordedRun:
    (folder,) = (ROOT / "tests" / "recorded" / "runs").iterdir()
    return read_run(folder)


def general(name: str) -> str:
    """A name as the guide has it: NN for a hospital, PART for a part of its score."""
    return re.sub(r"^anomaly_\w+/NN", "anomaly_PART/NN", re.sub(r"/\d+$", "/NN", name)).replace("validation/", "test/")


def test_the_guide_has_every_metric_of_a_run(run: RecordedRun) -> None:
    found = {general(name) for record in run.records for name in metrics(record)}
    assert {"reputation/NN", "attack/success_rate", "round/seconds", "train/loss"} <= found
    assert found <= NAMES


def test_the_guide_has_every_figure_of_a_cell(run: RecordedRun) -> None:
    labels = np.array(run.start.hospital_labels)
    found = detection(run.rounds, run.attackers, labels) | {"classes": 2.0}
    shown = {name.removeprefix("cell/") for name in NAMES if name.startswith("cell/")}
    assert found.keys() <= shown
    assert {name for name in performance(run.evaluations) if f"test/{name}" not in NAMES} <= shown
    assert all(name.startswith("baseline/") for name in baselines(run.evaluations))
    assert "cell/baseline/ATTACK" in NAMES


def test_the_saved_view_shows_names_that_every_run_has(run: RecordedRun) -> None:
    last = {name for record in run.records for name in metrics(record, hospitals=False)}
    for column in store.COLUMNS:
        kind, _, name = column.replace("`", "").partition(".")
        assert kind == "attributes" or name in (last if kind == "metrics" else tags(Experiment()))


def test_the_guide_has_every_tag() -> None:
    shared = Experiment.model_validate({"privacy": {"name": "shares"}, "federation": {"clients": 10}})
    assert tags(shared).keys() | {"failed", "stopped"} <= NAMES


@pytest.mark.parametrize(
    ("error", "status", "why"),
    [
        (None, "FINISHED", ""),
        (KeyboardInterrupt(), "KILLED", "a Ctrl-C or a signal; the same command goes on with it"),
        (UnlearntError("the oracle is at chance"), "KILLED", "the oracle is at chance"),
        (TrackingError("no answer"), "FAILED", "no answer"),
    ],
)
def test_a_study_that_is_stopped_is_killed_and_says_why(
    error: BaseException | None, status: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = list[tuple[str, str]]()

    class Opened:
        run_id = "parent"

        def close(self, status: str, reason: str) -> bool:
            ended.append((status, reason))
            return True

    monkeypatch.setattr("fedrobust.studies.study.Tracker.open", lambda *_: Opened())
    try:
        with study.parent_run(tmp_path, "experiment", {}, {}, "name", []):
            if error is not None:
                raise error
    except (KeyboardInterrupt, FedRobustError) as raised:
        assert raised is error
    assert ended == [(status, why)]
