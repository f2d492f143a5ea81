"""The stacked engine computes what the lean one does, to rounding, for hospitals of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from refused import refused
from torch import nn

from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.federation.clients import ClientHost, Training
from fedrobust.federation.layout import Layout
from fedrobust.learning import Cnn, LocalTraining
from fedrobust.learning.stacked import StackedHospital, StackedTrainer
from fedrobust.learning.training import LocalTrainer
from fedrobust.learning.vector import parameters_to_vector

SIZES = (21, 16, 5, 40)
"""Patches of each hospital: its last batch is smaller, or its only one."""
CLASSES, SIDE = 3, 8


def updates(
    engine: str,
    model: Any,
    local: dict[str, Any],
    attacks: tuple[dict[str, Any], ...] = (),
    device: str = "cpu",
    rounds: int = 2,
    side: int = SIDE,
) -> tuple[np.ndarray, list[float]]:
    """The updates of all rounds, one after the other, and the losses."""
    options = {"batch_size": 8, **local, "engine": engine}
    experiment = Experiment.model_validate(
        {
            "federation": {"clients": len(SIZES)},
            "learning": {"model": model, "local": options},
            "attacks": list(attacks),
        }
    )
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (sum(SIZES), side, side, 3), dtype=np.uint8)
    images.flags.writeable = False  # as it comes from Ray
    indices = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    host = ClientHost(1, device)
    labels = np.arange(sum(SIZES)) % CLASSES
    host.setup(experiment, Layout(tuple(indices), np.arange(10), np.arange(10), CLASSES), labels, images)
    weights, states, found, losses = host.initial_weights(), {}, [], []
    d = len(weights)
    for round in range(1, rounds + 1):
        people = list(range(len(SIZES)))
        block, crafted, training = host.train(
            round, people[:2], people[2:], weights, states, people, None, [slice(0, d)]
        )
        assert isinstance(training, Training) and isinstance(block, np.ndarray) and isinstance(crafted, np.ndarray)
        states = training.states
        assert list(training.losses) == people
        found.append(np.concatenate([block, crafted]))
        losses += training.losses.values()
        weights = weights + found[-1].mean(0)
    return np.concatenate(found), losses


def agree(stacked: tuple[np.ndarray, list[float]], lean: tuple[np.ndarray, list[float]], limit: float = 1e-4) -> None:
    for found, expected in zip(stacked[0], lean[0], strict=True):
        assert np.linalg.norm(found - expected) <= limit * np.linalg.norm(expected)
    assert stacked[1] == pytest.approx(lean[1], rel=limit)


@pytest.mark.parametrize(
    "local",
    [
        {"steps": 3, "optimizer": {"name": "sgd", "momentum": 0.0}},
        {"epochs": 2, "optimizer": {"name": "sgd", "weight_decay": 0.01}, "carry_momentum": True},
        {"epochs": 1, "optimizer": "adam", "augment": False},
        {"steps": 4, "optimizer": {"name": "adamw", "lr": 1e-3}, "loss": "class_weighted"},
        {"epochs": 1, "proximal": 0.5, "loss": "logit_adjusted", "stack": 3},
    ],
)
def test_stacked_and_lean_give_the_same_updates(local: dict[str, Any]) -> None:
    model = {"name": "cnn", "channels": [4, 8], "hidden": 6}
    agree(updates("stacked", model, local), updates("lean", model, local))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "cnn"},
        {"name": "cnn", "channels": [8], "norm": "none", "pool": "flatten"},
        {"name": "timm", "model": "test_resnet"},
        {"name": "timm", "model": "test_vit"},
    ],
)
def test_every_kind_of_model(model: dict[str, Any]) -> None:
    side = 32 if model["name"] == "timm" else SIDE
    agree(*(updates(engine, model, {"steps": 2}, rounds=1, side=side) for engine in ("stacked", "lean")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    local = {"epochs": 1}
    agree(*(updates(engine, {"name": "cnn"}, local, device="cuda") for engine in ("stacked", "lean")))


def test_attackers_poison_their_batches_in_the_stack_and_constraints_hold() -> None:
    attacks = (
        {"name": "label_flip", "clients": [1]},
        {"name": "patch_backdoor", "clients": [2], "target": 0},
        {"name": "model_replacement", "clients": [3], "target": 0, "scale": 3.0},
    )
    model, local = {"name": "cnn", "channels": [4]}, {"epochs": 1}
    poisoned = updates("lean", model, local, attacks)
    agree(updates("stacked", model, local, attacks), poisoned)
    for sent, free in zip(poisoned[0][1:4], updates("lean", model, local)[0][1:4], strict=True):
        assert np.linalg.norm(sent - free) > 1e-2 * np.linalg.norm(free)


def test_a_ruined_hospital_ruins_no_other() -> None:
    client = LocalTrainer(Cnn(channels=(4,)).build(CLASSES, SIDE, 0), LocalTraining(steps=2, engine="stacked"))
    stacked = StackedTrainer(client, CLASSES, SIDE)
    weights, counts = parameters_to_vector(client.network), np.ones(CLASSES, dtype=np.int64)
    stacks = [(torch.randn(3, 4, 3, SIDE, SIDE), torch.randint(CLASSES, (3, 4))) for _ in range(2)]
    for images, _ in stacks:
        images[1] = float("nan")
    found = stacked.train(weights, [StackedHospital(2, counts)] * 3, stacks)
    assert [bool(np.isfinite(each.update).all()) for each in found] == [True, False, True]
    assert [bool(np.isfinite(each.loss)) for each in found] == [True, False, True]
    assert np.array_equal(parameters_to_vector(client.network), weights)
    with pytest.raises(ValueError, match=r"2 steps .* 1 stacks"):
        stacked.train(weights, [StackedHospital(2, counts)] * 3, stacks[:1])


class Mixing(nn.Module):
    """Subtracts the mean of the batch."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images - images.mean(dim=0)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm2d(3, track_running_stats=False), Mixing()])
def test_a_model_that_cannot_be_stacked_is_refused(layer: nn.Module) -> None:
    network = nn.Sequential(layer, Cnn(channels=(4,)).build(CLASSES, SIDE, 0))
    client = LocalTrainer(network, LocalTraining(steps=1, engine="stacked"))
    with pytest.raises(
        ExperimentError, match=r"learning.local.engine: stacked cannot train this model .*; use engine: lean"
    ):
        StackedTrainer(client, CLASSES, SIDE)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"precision": "bf16-mixed"}, {"path": "precision", "says": "stacked"}),
        (
            {"callbacks": [{"name": "pytorch_lightning.callbacks:LambdaCallback"}]},
            {"path": "callbacks", "says": "stacked"},
        ),
        ({"optimizer": "adam", "carry_momentum": True}, {"path": "carry_momentum", "says": "adam"}),
        ({"stack": 0}, {"path": "stack", "found": "0"}),
    ],
)
def test_options_that_it_does_not_have_are_refused(options: dict[str, Any], problem: dict[str, Any]) -> None:
    with refused(ValidationError, **problem):
        LocalTraining.model_validate({"engine": "stacked", **options})


def test_kept_batch_normalisation_is_refused_when_the_file_is_read() -> None:
    model = {"name": "timm", "model": "test_resnet", "batch_norm": "keep"}
    with refused(ValidationError, path="learning.local.engine", says="batch normalisation"):
        Experiment.model_validate({"learning": {"model": model, "local": {"engine": "stacked"}}})
    Experiment.model_validate({"learning": {"model": model, "local": {"engine": "lean"}}})
