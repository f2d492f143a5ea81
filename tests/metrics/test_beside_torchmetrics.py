"""The metrics of every run beside torchmetrics, which no run imports for them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import classification as reference

from fedrobust.metrics import Predictions, measured


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 80), classes=st.integers(2, 5), digits=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_metrics_are_those_of_torchmetrics(n: int, classes: int, digits: int, seed: int) -> None:
    """`digits` of the scores: with few of them there are ties."""
    draw = np.random.default_rng(seed)
    probabilities = np.round(draw.dirichlet(np.full(classes, 0.5), n), digits).astype(np.float32) + np.float32(1e-4)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = draw.integers(0, classes, n)
    found = measured(predictions := Predictions(probabilities, labels, np.zeros_like(labels)))
    scores, truth = torch.from_numpy(predictions.probabilities), torch.from_numpy(labels)
    if predictions.occurring.size > 1:
        areas = [float(reference.binary_auroc(scores[:, label], truth == label)) for label in predictions.occurring]
        assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-6)
    expected = {
        "accuracy": reference.multiclass_accuracy(scores, truth, classes, average="micro"),
        "macro_f1": reference.multiclass_f1_score(scores, truth, classes, average="macro"),
        "ece": reference.multiclass_calibration_error(scores, truth, classes, n_bins=15),
    }
    assert {name: found[name] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, abs=1e-6
    )
    confusion = reference.multiclass_confusion_matrix(scores, truth, classes)
    assert np.array_equal(predictions.confusion, confusion.numpy())


def test_metrics_are_measured_without_torch() -> None:
    code = (
        "import sys, numpy as np; from fedrobust.metrics import Predictions, measured\n"
        "rows = np.full((4, 2), 0.5, dtype=np.float32); some = np.array([0, 1, 0, 1])\n"
        "measured(Predictions(rows, some, some))\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sklearn', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
