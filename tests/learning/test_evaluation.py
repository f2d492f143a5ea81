from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from torch import nn

from fedrobust.learning import Cnn
from fedrobust.learning.evaluation import attack_success, confusion_matrix, hospital_accuracy, metrics, predict


def to_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def some_images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def some_probabilities(n: int, classes: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.dirichlet(np.full(classes, 0.5), n).astype(np.float32)


def test_predict_is_softmax_of_the_model_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.Dropout(0.5), Cnn(channels=(4,)).build(3, 8, seed=0))
    images = some_images(11)
    module.train()
    found = predict(module, images, to_tensor, batch=4)
    assert module.training
    module.eval()
    expected = torch.softmax(module(to_tensor(images)), dim=1).detach().numpy()
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-6)
    assert np.allclose(found.sum(axis=1), 1)


def test_shares_that_are_cut_between_batches_give_the_bits_of_the_whole() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(144, 2)
    )
    images = some_images(23)
    whole = predict(module, images, to_tensor, batch=4)
    shares = [predict(module, images[a:b], to_tensor, batch=4) for a, b in ((0, 8), (8, 8), (8, 20), (20, 23))]
    assert np.array_equal(np.concatenate(shares), whole)


def test_a_ruined_model_knows_nothing() -> None:
    module = Cnn(channels=(4,)).build(4, 8, seed=0)
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    images, labels = some_images(40), np.arange(40) % 4
    probabilities = predict(module, images, to_tensor)
    assert np.allclose(probabilities, 0.25)
    found = metrics(probabilities, labels, np.zeros(40, dtype=np.int64))
    assert found["balanced_accuracy"] == 0.25
    assert found["auroc"] == 0.5
    assert found["loss"] == pytest.approx(np.log(4))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 60), classes=st.integers(2, 5), seed=st.integers(0, 10_000), data=st.data())
def test_metrics_are_finite_and_agree_with_scikit_learn(n: int, classes: int, seed: int, data: st.DataObject) -> None:
    present = data.draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    labels = np.random.default_rng(seed).choice(present, n).astype(np.int64)
    probabilities = some_probabilities(n, classes, seed)
    hospitals = np.random.default_rng(seed + 1).integers(0, 3, n)
    found = metrics(probabilities, labels, hospitals)
    assert all(np.isfinite(value) for value in found.values())
    predicted = probabilities.argmax(axis=1)
    occurring = np.unique(labels)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    recall = reference.recall_score(labels, predicted, labels=occurring, average="macro")
    assert found["balanced_accuracy"] == pytest.approx(recall)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, predicted, average="macro"), abs=1e-6)
    assert np.array_equal(
        confusion_matrix(probabilities, labels),
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
    assert metrics(probabilities, labels, np.zeros(4, dtype=np.int64))["ece"] == pytest.approx(0.4, abs=1e-6)


def test_rows_that_are_not_finite_count_as_uniform() -> None:
    probabilities = some_probabilities(30, 3, 0)
    probabilities[4, 1], probabilities[7, 0] = np.nan, np.inf
    uniform = probabilities.copy()
    uniform[[4, 7]] = np.float32(1 / 3)
    labels, hospitals = np.arange(30) % 3, np.arange(30) % 2
    assert metrics(probabilities, labels, hospitals) == metrics(uniform, labels, hospitals)
    assert confusion_matrix(probabilities, labels).sum() == 30
    assert np.isnan(probabilities[4, 1])


def test_one_label_only() -> None:
    found = metrics(some_probabilities(12, 3, 1), np.full(12, 2), np.zeros(12, dtype=np.int64))
    assert found["auroc"] == 0.5
    assert found["balanced_accuracy"] == found["accuracy"]


def test_no_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="one patch"):
        metrics(np.empty((0, 2), dtype=np.float32), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def test_the_worst_hospital_is_one_with_enough_patches() -> None:
    probabilities = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (9, 1))
    labels = np.array([0, 0, 0, 1, 0, 0, 1, 1, 1])
    hospitals = np.array([2, 2, 2, 2, 5, 5, 5, 7, 7])
    assert hospital_accuracy(probabilities, labels, hospitals) == {2: 0.75, 5: pytest.approx(2 / 3), 7: 0.0}

    def worst(minimum: int) -> float:
        return metrics(probabilities, labels, hospitals, minimum)["worst_hospital_accuracy"]

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
