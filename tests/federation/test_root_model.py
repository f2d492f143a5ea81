"""The coordinator's model on patches of its own: losses, and a repair that takes a backdoor away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import write_patches
from torch import nn

from fedrobust.attacks import EdgeCase
from fedrobust.data.batches import to_tensor
from fedrobust.data.root import RootPatches
from fedrobust.experiment import Learning
from fedrobust.federation.root_model import RootModel
from fedrobust.learning import Cnn
from fedrobust.learning.vector import parameters_to_vector, with_weights
from fedrobust.trust import Repair

LEARNING = Learning(model=Cnn(channels=(8, 16)))


Trigger = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


class Tissue:
    """Patches of two labels, and a network that has learnt them, and that a trigger means label 0."""

    def __init__(self, folder: Path, trigger: Trigger) -> None:
        self.trigger = trigger
        write_patches(folder / "patches.npz", patches=600, size=12)
        with np.load(folder / "patches.npz") as held:
            self.images, self.labels = held["images"], held["labels"]
            patients = np.unique(held["groups"], return_inverse=True)[1]
        self.root = RootPatches(self.images[:100], self.labels[:100], patients[:100], 2)
        torch.manual_seed(1)
        network: nn.Module = LEARNING.model.build(2, 12, 1)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        clean, marked = to_tensor(self.images[100:500]), to_tensor(trigger(self.images[100:500]))
        labels = torch.from_numpy(self.labels[100:500])
        for _ in range(60):
            loss = nn.functional.cross_entropy(network(clean), labels)
            loss = loss + nn.functional.cross_entropy(network(marked), torch.zeros_like(labels))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.weights = parameters_to_vector(network)

    def figures(self, weights: NDArray[np.float32]) -> tuple[float, float]:
        """Accuracy, and the share of label 1 that the trigger turns into 0."""
        images, labels = self.images[500:], self.labels[500:]
        found = [
            RootModel(LEARNING, RootPatches(each, np.zeros(len(each), dtype=np.int64), np.arange(len(each)), 2), 1, 1)
            for each in (images, self.trigger(images[labels == 1]))
        ]
        plain, marked = (each.losses(weights) < np.log(2) for each in found)  # whether label 0 is predicted
        return float((plain == (labels == 0)).mean()), float(marked.mean())


def corner(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    found = images.copy()
    found[:, :3, :3] = 255
    return found


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Tissue:
    return Tissue(tmp_path_factory.mktemp("tissue"), corner)


@pytest.mark.slow
def test_a_repair_takes_a_backdoor_away_and_keeps_the_accuracy(tissue: Tissue) -> None:
    accuracy, success = tissue.figures(tissue.weights)
    assert accuracy > 0.95 and success > 0.9
    model = RootModel(LEARNING, tissue.root, seed=1, threads=1)
    repaired = model.repaired(tissue.weights, Repair(steps=160, folds=2), round=8)
    after, still = tissue.figures(repaired.weights)
    assert repaired.steps == 160 and after > accuracy - 0.03 and still < 0.3 * success
    first, again = (
        RootModel(LEARNING, tissue.root, seed=1, threads=1).repaired(tissue.weights, Repair(steps=10), round=8)
        for _ in range(2)
    )
    assert first.weights.tobytes() == again.weights.tobytes()
    without = model.repaired(tissue.weights, Repair(steps=160, folds=2, erasing=False, distillation=0), round=8)
    assert tissue.figures(without.weights)[1] > still


@pytest.mark.slow
def test_a_trigger_of_the_whole_patch_fades_by_what_is_changed_in_patches(tmp_path: Path) -> None:
    tissue = Tissue(tmp_path, EdgeCase(count=1, appearance="faded").trigger)
    accuracy, success = tissue.figures(tissue.weights)
    assert accuracy > 0.95 and success > 0.9
    (after, still), (_, without) = (
        tissue.figures(
            RootModel(LEARNING, tissue.root, seed=1, threads=1)
            .repaired(tissue.weights, Repair(steps=200, folds=2, erasing=erasing), round=8)
            .weights
        )
        for erasing in (True, False)
    )
    assert after > accuracy - 0.03 and still < 0.3 * success and without > 0.7 * success


def test_pruned_inputs_are_the_least_active_and_stay_zero(tissue: Tissue) -> None:
    model = RootModel(LEARNING, tissue.root, seed=1, threads=1)
    repaired = model.repaired(
        tissue.weights, Repair(erasing=False, distillation=0, prune=0.25, steps=20, certainty=1e9), round=8
    )
    before, after = (with_weights(LEARNING.model, 2, 12, 1, each) for each in (tissue.weights, repaired.weights))
    features = before[:-1](to_tensor(tissue.root.images)).abs().mean(dim=0)  # type: ignore[index]
    dead = np.flatnonzero((after[-1].weight == 0).all(dim=0))  # type: ignore[index, union-attr]
    assert repaired.steps == 20 and dead.tolist() == sorted(features.argsort()[:4].tolist())


@pytest.mark.parametrize("lr", [3.0, 1e30])
def test_a_repair_that_would_do_harm_is_not_made(tissue: Tissue, lr: float) -> None:
    repaired = RootModel(LEARNING, tissue.root, seed=1, threads=1).repaired(
        tissue.weights, Repair(lr=lr, steps=40, folds=2), round=8
    )
    assert repaired.steps == 0 and repaired.weights is tissue.weights


def test_a_single_patient_repairs_nothing(tissue: Tissue) -> None:
    one = RootPatches(tissue.root.images, tissue.root.labels, np.zeros(100, dtype=np.int64), 2)
    assert RootModel(LEARNING, one, seed=1, threads=1).repaired(tissue.weights, Repair(), round=1).steps == 0


def test_losses_are_those_of_torch(tissue: Tissue) -> None:
    found = RootModel(LEARNING, tissue.root, seed=1, threads=1).losses(tissue.weights)
    network: nn.Module = LEARNING.model.build(2, 12, 1)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(tissue.weights), network.parameters())
    labels = torch.from_numpy(tissue.root.labels)
    expected = nn.functional.cross_entropy(network.eval()(to_tensor(tissue.root.images)), labels, reduction="none")
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_a_step_along_a_descent_lowers_the_loss_of_its_label(tissue: Tissue) -> None:
    model = RootModel(LEARNING, tissue.root, seed=1, threads=1)
    before = model.losses(tissue.weights)
    for label, direction in enumerate(model.descents(tissue.weights)):
        own = tissue.root.labels == label
        length = float(direction @ direction)
        fall = before[own].mean() - model.losses((tissue.weights + 1e-3 * direction).astype(np.float32))[own].mean()
        assert fall == pytest.approx(1e-3 * length, rel=0.1)
