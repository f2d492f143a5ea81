"""Metrics of a model's predictions, beside those of scikit-learn; and a user's own, wherever figures are shown."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from fedrobust.errors import ExperimentError, FederationError
from fedrobust.experiment import Experiment
from fedrobust.experiment_file import load
from fedrobust.federation.measures import evaluation_record
from fedrobust.matrices.measures import performance
from fedrobust.metrics import (
    Metric,
    Predictions,
    WorstHospitalAccuracy,
    attack_success,
    in_tables,
    measured,
    own,
)
from fedrobust.options import members
from fedrobust.records import EvaluationRecord
from fedrobust.report.titles import titles
from fedrobust.tuning.objectives import unknown
from fedrobust.tuning.sweep import load_sweep


def some_probabilities(n: int, classes: int, seed: int) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(n, classes))
    found: np.ndarray = (np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def figures(probabilities: np.ndarray, labels: np.ndarray, hospitals: np.ndarray) -> dict[str, float]:
    return measured(Predictions(probabilities, labels, hospitals))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 60), classes=st.integers(2, 5), seed=st.integers(0, 10_000), data=st.data())
def test_metrics_are_finite_and_agree_with_scikit_learn(n: int, classes: int, seed: int, data: st.DataObject) -> None:
    present = data.draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    labels = np.random.default_rng(seed).choice(present, n).astype(np.int64)
    probabilities = some_probabilities(n, classes, seed)
    hospitals = np.random.default_rng(seed + 1).integers(0, 3, n)
    found = figures(probabilities, labels, hospitals)
    assert all(np.isfinite(value) for value in found.values())
    predicted = probabilities.argmax(axis=1)
    occurring = np.unique(labels)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    recall = reference.recall_score(labels, predicted, labels=occurring, average="macro")
    assert found["balanced_accuracy"] == pytest.approx(recall)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, predicted, average="macro"), abs=1e-6)
    assert np.array_equal(
        Predictions(probabilities, labels, np.zeros_like(labels)).confusion,
        reference.confusion_matrix(labels, predicted, labels=np.arange(classes)),
    )
    if len(occurring) > 1:
        areas = [reference.roc_auc_score(labels == label, probabilities[:, label]) for label in occurring]
        assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-5)
    truth = np.maximum(probabilities[np.arange(n), labels].astype(np.float64), 1e-12)
    assert found["loss"] == pytest.approx(-np.log(truth).mean())


def test_expected_calibration_error_by_hand() -> None:
    # Confidence 0.9, right in 1 of 2; confidence 0.6, right in 2 of 2: (2·|0.9 − 0.5| + 2·|0.6 − 1|) / 4.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]], dtype=np.float32)
    labels = np.array([0, 1, 1, 1])
    assert figures(probabilities, labels, np.zeros(4, dtype=np.int64))["ece"] == pytest.approx(0.4, abs=1e-6)


def test_rows_that_are_not_finite_count_as_uniform() -> None:
    probabilities = some_probabilities(30, 3, 0)
    probabilities[4, 1], probabilities[7, 0] = np.nan, np.inf
    uniform = probabilities.copy()
    uniform[[4, 7]] = np.float32(1 / 3)
    labels, hospitals = np.arange(30) % 3, np.arange(30) % 2
    assert figures(probabilities, labels, hospitals) == figures(uniform, labels, hospitals)
    assert Predictions(probabilities, labels, np.zeros_like(labels)).confusion.sum() == 30
    assert np.isnan(probabilities[4, 1])


def test_one_label_only() -> None:
    found = figures(some_probabilities(12, 3, 1), np.full(12, 2), np.zeros(12, dtype=np.int64))
    assert found["auroc"] == 0.5
    assert found["balanced_accuracy"] == found["accuracy"]


def test_no_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="one patch"):
        figures(np.empty((0, 2), dtype=np.float32), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def test_the_worst_hospital_is_one_with_enough_patches() -> None:
    probabilities = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (9, 1))
    labels = np.array([0, 0, 0, 1, 0, 0, 1, 1, 1])
    hospitals = np.array([2, 2, 2, 2, 5, 5, 5, 7, 7])
    assert Predictions(probabilities, labels, hospitals).by_hospital == {2: 0.75, 5: pytest.approx(2 / 3), 7: 0.0}

    def worst(minimum: int) -> float:
        return WorstHospitalAccuracy(minimum=minimum).of(Predictions(probabilities, labels, hospitals))

    assert worst(4) == 0.75
    assert worst(3) == pytest.approx(2 / 3)
    assert worst(1) == 0.0
    assert worst(5) == 0.0  # nobody has as many: over all


def test_attack_success_counts_what_the_trigger_turned() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    clean = np.array([0, 0, 0, 2, 1, 0, 2, 2])
    triggered = np.array([2, 2, 0, 2, 1, 2, 2, 0])
    # Other labels: the first six; right without the trigger: 0, 1, 2, 4; of these 0 and 1 become the target.
    found = attack_success(clean, triggered, labels, target=2)
    assert found == {"success_rate": 0.5, "raw_rate": pytest.approx(4 / 6)}


def test_attack_success_without_any_image_to_turn() -> None:
    zeros = np.zeros(3, dtype=np.int64)
    assert attack_success(zeros, zeros, zeros, target=0) == {"success_rate": 0.0, "raw_rate": 0.0}
    assert attack_success(zeros + 1, zeros + 1, zeros, target=1) == {"success_rate": 0.0, "raw_rate": 1.0}


OWN = """
import numpy as np
from fedrobust.metrics import Metric, Predictions


class Sensitivity(Metric):
    \"\"\"The recall of label 1.\"\"\"

    title = "sensitivity"
    name: str = "mine:Sensitivity"

    def of(self, predictions: Predictions) -> float:
        sick = predictions.labels == 1
        return float((predictions.predicted[sick] == 1).mean())


class Broken(Sensitivity):
    def of(self, predictions: Predictions) -> float:
        raise ZeroDivisionError("nobody is ill")


class accuracy(Sensitivity):
    pass
"""
BASE = """
name: base
data: {source: {name: histology, patients: 20}}
federation: {clients: 8, rounds: 4}
evaluation: {metrics: ["mine:Sensitivity"]}
"""
SWEEP = """
name: search
experiment: base.yaml
space: {aggregation.f: {int: [1, 3]}}
objectives: [{metric: test/Sensitivity}]
"""


@pytest.fixture
def mine(workplace: Path) -> Experiment:
    """An experiment with a metric of the user's own."""
    Path("mine.py").write_text(OWN)
    Path("base.yaml").write_text(BASE)
    Path("sweep.yaml").write_text(SWEEP)
    return load("base.yaml")


def evaluated(experiment: Experiment) -> dict[str, float | None]:
    """The figures of a model that reads everything as label 1."""
    labels = np.arange(12) % 2
    hospitals: Any = SimpleNamespace(
        labels=labels, hospital=np.arange(12) % 3, indices={"validation": np.arange(4), "test": np.arange(4, 12)}
    )
    clean = np.tile(np.array([[0.25, 0.75]], dtype=np.float32), (12, 1))
    return evaluation_record(3, hospitals, experiment, {"clean": clean}).metrics


def test_a_metric_of_ones_own_is_one_class_and_stands_everywhere(mine: Experiment) -> None:
    """In MLflow, whose figures are those of the record; in reports and comparisons; in matrices; as an objective."""
    found = evaluated(mine)
    assert (found["test/Sensitivity"], found["validation/Sensitivity"], found["test/balanced_accuracy"]) == (1, 1, 0.5)
    assert titles(found)["test/Sensitivity"] == "Sensitivity"
    assert list(titles(found)) == [f"test/{key}" for key in in_tables([metric.key for metric in own()])] + [
        "test/Sensitivity"
    ]
    half = found | {"test/Sensitivity": 0.5}
    evaluations = [EvaluationRecord.of({"round": 1, "metrics": each}) for each in (found, half)]
    assert performance(evaluations)["Sensitivity"] == 0.75
    assert load_sweep("sweep.yaml").sweep.objectives[0].metric == "test/Sensitivity"
    with pytest.raises(ExperimentError) as refused:
        load_sweep("sweep.yaml", ["objectives.0.metric=test/Specificity"])
    assert refused.value.problems[0].hint == "did you mean 'test/Sensitivity'?"


def test_every_metric_of_the_room_is_measured_and_may_be_searched_for() -> None:
    predictions = Predictions(some_probabilities(30, 2, 1), np.arange(30) % 2, np.arange(30) % 3)
    assert list(measured(predictions)) == [metric.key for metric in own()] == list(members(Metric))
    for metric in own():
        assert unknown(f"test/{metric.key}") is None


def test_a_metric_that_cannot_be_computed_ends_the_run_with_its_name(mine: Experiment) -> None:
    broken = load("base.yaml", ["evaluation.metrics=['mine:Broken']"])
    with pytest.raises(FederationError, match=r"^evaluation\.metrics: ZeroDivisionError: nobody is ill \(mine\.py, "):
        evaluated(broken)


@pytest.mark.parametrize("other", ["mine:Sensitivity", "mine:accuracy"])
def test_two_metrics_of_one_name_are_refused(mine: Experiment, other: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        load("base.yaml", [f"evaluation.metrics=['mine:Sensitivity', '{other}']"])
    assert refused.value.problems[0].path == "evaluation.metrics"


def test_without_metrics_of_ones_own_an_experiment_is_what_it_was(mine: Experiment) -> None:
    """Runs from before there were this and later options go on, and cells of a matrix are not run again."""
    plain = load("base.yaml", ["evaluation.metrics=[]"])
    resolved = plain.resolved()
    del resolved["evaluation"]["metrics"], resolved["learning"]["local"]["stack"], resolved["aggregation"]["sketch"]
    del resolved["trust"]["referee"], resolved["trust"]["repair"], resolved["trust"]["jury"]
    del resolved["aggregation"]["cap"], resolved["data"]["partition"]["ratio"]
    for attack in resolved["attacks"]:
        del attack["chosen"], attack["claim"]
        attack.pop("pleasing", None)
    resolved["data"]["root"] = 100
    kept = {key: value for key, value in resolved.items() if key not in ("workers", "tracking")}
    assert plain.digest() == sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    assert plain.digest() != mine.digest()
