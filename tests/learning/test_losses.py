from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrobust.learning import ClassWeighted, CrossEntropy, LogitAdjusted

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 1.0, 1.0], [0.0, 0.0, 4.0]])
LABELS = torch.tensor([0, 1, 1, 2])
COUNTS = torch.tensor([90.0, 9.0, 0.0])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def of_labels(logits: np.ndarray) -> np.ndarray:
    return -log_softmax(logits)[np.arange(len(LABELS)), LABELS.numpy()]


def test_cross_entropy() -> None:
    assert CrossEntropy().loss(LOGITS, LABELS, COUNTS).item() == pytest.approx(
        of_labels(LOGITS.numpy()).mean(), rel=1e-6
    )


def test_class_weighted_is_the_mean_under_inverse_frequencies() -> None:
    weights = (1 / np.array([91.0, 10.0, 1.0]))[LABELS.numpy()]
    expected = (weights * of_labels(LOGITS.numpy())).sum() / weights.sum()
    assert ClassWeighted().loss(LOGITS, LABELS, COUNTS).item() == pytest.approx(expected, rel=1e-6)


def test_logit_adjusted_adds_the_log_prior() -> None:
    prior = np.array([91.0, 10.0, 1.0]) / 102
    for tau in (0.5, 1.0):
        expected = of_labels(LOGITS.numpy() + tau * np.log(prior)).mean()
        assert LogitAdjusted(tau=tau).loss(LOGITS, LABELS, COUNTS).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [ClassWeighted(), LogitAdjusted()])
def test_equal_counts_change_nothing(loss: ClassWeighted | LogitAdjusted) -> None:
    plain = CrossEntropy().loss(LOGITS, LABELS, COUNTS)
    assert torch.allclose(loss.loss(LOGITS, LABELS, torch.full((3,), 7.0)), plain)


@pytest.mark.parametrize("loss", [ClassWeighted(), LogitAdjusted()])
def test_labels_that_the_hospital_lacks_are_finite(loss: ClassWeighted | LogitAdjusted) -> None:
    logits = LOGITS.clone().requires_grad_()
    value = loss.loss(logits, torch.full((4,), 2), torch.tensor([50.0, 0.0, 0.0]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
