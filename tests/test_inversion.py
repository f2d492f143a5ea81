"""docs/make/inversion.py: the smallest mask that gives images a label; docs/make/abstention.py: scores of images."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn

MAKE = Path(__file__).parents[1] / "docs" / "make"


class Planted(nn.Module):
    """Label 1 where the image is bright as a whole; label 0 wherever its first pixel is white."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean(dim=(1, 2, 3))
        trigger = images[:, :, 0, 0].mean(dim=1)
        return torch.stack([20 * trigger.clamp(min=0), 10 * bright], dim=1)


def test_a_backdoor_needs_a_smaller_mask_than_a_whole_image() -> None:
    mask_of = runpy.run_path(str(MAKE / "inversion.py"))["mask_of"]
    images = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    dark, bright = 0.5 * images, 0.6 + 0.2 * images
    bright[:, :, 0, 0] = 0.0
    target, other = mask_of(Planted(), bright, 0), mask_of(Planted(), dark, 1)
    assert target < 4 < 10 < other


@pytest.fixture(scope="module")
def scores() -> dict[str, Any]:
    return runpy.run_path(str(MAKE / "abstention.py"))


def test_scores_are_the_distances_that_they_are_named_after(scores: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 1], 400)
    train = draw.standard_normal((800, 3)) * [1.0, 2.0, 0.5] + 6 * labels[:, None]
    asked = draw.standard_normal((5, 3))
    (found,) = scores["mahalanobis"](train, labels, [asked])
    means = [train[labels == label].mean(axis=0) for label in (0, 1)]
    inverse = np.linalg.inv(np.cov((train - np.array(means)[labels]).T, bias=True))
    expected = np.min([cdist(asked, [mean], "mahalanobis", VI=inverse)[:, 0] ** 2 for mean in means], axis=0)
    assert found == pytest.approx(expected, rel=0.05)  # the covariance is shrunk a little
    (found,) = scores["nearest"](train, labels, [asked])
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (asked, train)]
    assert found == pytest.approx(np.sort(cdist(*unit), axis=1)[:, 9])
