from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedrobust.learning import Cnn
from fedrobust.learning.evaluation import evaluation_batch, predict
from fedrobust.metrics import Predictions, measured


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


@pytest.mark.parametrize(("size", "expected"), [(28, 64), (48, 64), (96, 16), (224, 8), (512, 8)])
def test_large_patches_are_predicted_in_small_batches(size: int, expected: int) -> None:
    """Unless a layer normalises by the batch: then the figures depend on it."""
    assert evaluation_batch(Cnn(channels=(4,)).build(2, size, seed=0), size) == expected
    by_batch = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert evaluation_batch(by_batch, size) == 256
    assert evaluation_batch(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), size) == expected


def test_a_ruined_model_knows_nothing() -> None:
    module = Cnn(channels=(4,)).build(4, 8, seed=0)
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    images, labels = some_images(40), np.arange(40) % 4
    probabilities = predict(module, images, to_tensor)
    assert np.allclose(probabilities, 0.25)
    found = measured(Predictions(probabilities, labels, np.zeros(40, dtype=np.int64)))
    assert found["balanced_accuracy"] == 0.25
    assert found["auroc"] == 0.5
    assert found["loss"] == pytest.approx(np.log(4))
