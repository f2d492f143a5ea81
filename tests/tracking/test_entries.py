"""What a record and settings are called in MLflow."""

from __future__ import annotations

import math

import pytest
from nasty import NAMES
from tracked import journal

from fedrobust.records import RoundRecord
from fedrobust.tracking import StepFigures, flatten, metrics
from fedrobust.tracking.entries import LONGEST, allowed


def test_metrics_have_the_documented_names() -> None:
    record = journal(clients=3)[1]
    assert metrics(record) == {
        **{f"weight/0{i}": pytest.approx(1 / 3) for i in range(3)},
        **{f"anomaly/0{i}": pytest.approx(0.1 * i) for i in range(3)},
        **{f"reputation/0{i}": 0.5 for i in range(3)},
        "defense/precision": 1.0,
        "train/loss": 1.0,
        "round/seconds": 0.75,
        "round/train_seconds": 0.5,
        "round/aggregate_seconds": 0.125,
        "round/upload_bytes": 120.0,
        "round/skipped": 0.0,
        "round/rejected": 0.0,
        "defense/quarantined": 0.0,
    }
    skipped = {"skipped": "below the quorum", "rejected": {1: "not finite", 2: "truncated"}}
    failed = metrics(record.model_copy(update=skipped))
    assert (failed["round/skipped"], failed["round/rejected"]) == (1.0, 2.0)


def test_parts_quarantine_and_the_truth_are_metrics_of_every_participant() -> None:
    fields = {
        "round": 1,
        "participants": [0, 2],
        "attacking": [2],
        "quarantined": [1, 2],  # 1 is absent
        "anomaly_parts": {"0": {"norm": 0.25, "average_cosine": None}, "2": {"norm": 0.5, "average_cosine": 0.75}},
    }
    assert metrics(RoundRecord.of(fields)) == {
        "anomaly_norm/00": 0.25,
        "anomaly_norm/02": 0.5,
        "anomaly_average_cosine/02": 0.75,
        "defense/quarantined": 2.0,
        "quarantined/00": 0.0,
        "quarantined/02": 1.0,
        "attacking/00": 0.0,
        "attacking/02": 1.0,
        "round/skipped": 0.0,
        "round/rejected": 0.0,
    }
    freed = metrics(RoundRecord.of(fields | {"quarantined": []}))
    assert (freed["defense/quarantined"], freed["quarantined/02"]) == (0.0, 0.0)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_figures_that_are_not_finite_are_left_out_live_as_in_the_journal(value: float | None) -> None:
    fields = {"round": 1, "participants": [], "anomaly": {1: value}, "train_loss": {0: 2.0, 1: value}}
    found = metrics(RoundRecord.of(fields | {"weights": None}))
    assert found == {"train/loss": 2.0, "round/skipped": 0.0, "round/rejected": 0.0, "defense/quarantined": 0.0}
    assert metrics(StepFigures(1, {"value": math.nan if value is None else value, "other": 1.0})) == {"other": 1.0}


def test_client_ids_sort() -> None:
    reputation = dict.fromkeys(range(120), 1.0)
    names = list(metrics(RoundRecord.of({"round": 1, "participants": [], "reputation": reputation}), width=3))
    clients = [name for name in names if name.startswith("reputation")]
    assert len(clients) == 120 and clients == sorted(clients)


def test_flatten_gives_dotted_paths_and_short_texts() -> None:
    nested = {
        "a": {"b": 1.5, "c": None, "d": True},
        "list": [1, 2],
        "attacks": [{"name": "alie"}],
        "none": [],
        "s": "x",
    }
    assert flatten(nested) == {
        "a.b": "1.5",
        "a.c": "null",
        "a.d": "true",
        "list": "[1, 2]",
        "attacks.0.name": "alie",
        "none": "[]",
        "s": "x",
    }
    assert len(flatten({"long": "é" * 9000})["long"]) == LONGEST


def test_settings_that_mlflow_cannot_tell_apart_keep_their_values() -> None:
    made = flatten({"a+b": {"x": 1}, "a_b": {"x": 2}, "a|b": {"x": [3, "良"]}})
    assert made == {"a_b.x": "1", "a_b.x 2": "2", "a_b.x 3": '[3, "良"]'}


@pytest.mark.parametrize("name", [*NAMES, "a//b", "a/", "./a", "a/../b", "良" * 200, "x" * 251])
def test_every_name_and_value_is_one_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric, _validate_param

    for key, value in flatten({name: name, "list": [name], "below": {name: {"": name}}}).items():
        _validate_param(key, value)
        value.encode()
    _validate_metric(allowed(name), 0.5, 1, 1)


def test_names_that_are_too_long_are_told_apart() -> None:
    assert allowed("x" * 250) == "x" * 250
    assert allowed("x" * 251) != allowed("x" * 252) and len(allowed("x" * 252)) == 250
