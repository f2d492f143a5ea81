from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refused import refused
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedrobust.errors import ExperimentError
from fedrobust.learning import SGD, Adam, AdamW, ClassWeighted, Cnn, CrossEntropy, LocalTraining, LogitAdjusted
from fedrobust.learning.training import LocalResult, LocalTrainer
from fedrobust.learning.vector import load_vector, parameters_to_vector

CLASSES, SIZE, STEPS = 3, 12, 4
COUNTS = np.array([20, 5, 0])
CNN = Cnn(channels=(8, 8), hidden=10)


def batches(steps: int = STEPS, seed: int = 0, batch: int = 6) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        labels = torch.randint(0, CLASSES, (batch,), generator=generator)
        images = torch.randn(batch, 3, SIZE, SIZE, generator=generator)
        images[torch.arange(batch), labels] += 1  # each label has its colour
        yield images, labels


def network(dropout: bool = False) -> nn.Module:
    model = CNN.build(CLASSES, SIZE, seed=0)
    return nn.Sequential(nn.Dropout(0.3), model) if dropout else model


WEIGHTS = parameters_to_vector(network())
WEIGHTS.flags.writeable = False


def trainer(dropout: bool = False, **options: Any) -> LocalTrainer:
    return LocalTrainer(network(dropout), LocalTraining(steps=STEPS, **options))


def train(client: LocalTrainer, data: int = 0, seed: int = 7, **options: Any) -> LocalResult:
    return client.train(WEIGHTS, batches(seed=data), STEPS, COUNTS, seed=seed, **options)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("options", "build"),
    [
        ({"optimizer": SGD(lr=0.1, momentum=0.0)}, lambda p: torch.optim.SGD(p, lr=0.1)),
        (
            {"optimizer": SGD(lr=0.1, momentum=0.9, weight_decay=0.01)},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        ),
        ({"optimizer": Adam(lr=0.01)}, lambda p: torch.optim.Adam(p, lr=0.01)),
        ({"optimizer": AdamW(lr=0.01)}, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01)),
        ({"optimizer": SGD(lr=0.1), "proximal": 2.0}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    ],
)
def test_lean_agrees_with_a_loop_written_out(options: dict[str, Any], build: Any) -> None:
    """Nothing fused, no channels-last: FedProx's gradient mu (w − w_global) is added by hand."""
    model = network()
    optimizer, start, losses = build(model.parameters()), [p.detach().clone() for p in model.parameters()], []
    for images, labels in batches():
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        for parameter, origin in zip(model.parameters(), start, strict=True):
            parameter.grad.add_(parameter.detach() - origin, alpha=options.get("proximal", 0.0))
        losses.append(loss.item())
        optimizer.step()
    result = train(trainer(**options))
    assert relative(result.update, parameters_to_vector(model) - WEIGHTS) < 1e-4
    if "proximal" not in options:
        assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_loss_knows_the_hospitals_counts() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prior = torch.tensor((COUNTS + 1) / (COUNTS + 1).sum(), dtype=torch.float32)
    for images, labels in batches():
        optimizer.zero_grad()
        cross_entropy(model(images) + prior.log(), labels).backward()
        optimizer.step()
    client = trainer(loss=LogitAdjusted(), optimizer=SGD(lr=0.1, momentum=0.0))
    client.train(WEIGHTS, batches(), STEPS, COUNTS[::-1], seed=7)  # another hospital's counts do not linger
    assert relative(train(client).update, parameters_to_vector(model) - WEIGHTS) < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": SGD(momentum=0.0)},
        {"optimizer": SGD(momentum=0.9)},
        {"optimizer": Adam()},
        {"optimizer": AdamW(), "channels_last": False},
        {"proximal": 1.5},
        {"loss": ClassWeighted()},
        {"loss": LogitAdjusted()},
        {"dropout": True},
    ],
)
def test_both_engines_give_the_same_update(options: dict[str, Any]) -> None:
    lean, slow = trainer(**options), trainer(engine="trainer", **options)
    expected, found = train(lean), train(slow)
    assert relative(found.update, expected.update) < 1e-5
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.parametrize("engine", ["lean", "trainer"])
@pytest.mark.parametrize("optimizer", [SGD(), Adam()])
def test_carried_state_makes_two_rounds_one(engine: str, optimizer: SGD | Adam) -> None:
    """With its state carried and the local weights as next global ones, two rounds of 4 steps are 8 steps."""
    options = {"engine": engine, "optimizer": optimizer, "carry_momentum": True}
    client = trainer(**options)
    whole = client.train(WEIGHTS, batches(8), 8, COUNTS, seed=1)
    halves = list(batches(8))
    first = client.train(WEIGHTS, iter(halves[:4]), 4, COUNTS, seed=1)
    client.train(WEIGHTS, batches(seed=9), STEPS, COUNTS, seed=2)  # another hospital in between
    assert first.state is not None
    first.state.flags.writeable = False
    second = client.train(WEIGHTS + first.update, iter(halves[4:]), 4, COUNTS, first.state, seed=1)
    assert relative(first.update + second.update, whole.update) < 1e-4
    assert second.state is not None
    assert relative(second.state, whole.state) < 1e-4
    k = 1 if optimizer.name == "sgd" else 2
    assert whole.state.shape == (k * len(WEIGHTS) + (k == 2),)
    assert whole.state.dtype == np.float32
    forgotten = client.train(WEIGHTS + first.update, iter(halves[4:]), 4, COUNTS, seed=1)
    assert relative(forgotten.update, second.update) > 1e-2


@pytest.mark.parametrize("optimizer", [SGD(), Adam()])
def test_engines_agree_on_the_carried_state(optimizer: SGD | Adam) -> None:
    states = []
    for engine in ("lean", "trainer"):
        client = trainer(engine=engine, optimizer=optimizer, carry_momentum=True)
        states.append(train(client, state=train(client).state).state)
    assert relative(states[1], states[0]) < 1e-5


@pytest.mark.parametrize("engine", ["lean", "trainer"])
@pytest.mark.parametrize("options", [{}, {"optimizer": Adam()}, {"proximal": 1.0}, {"carry_momentum": True}])
def test_bits_depend_on_the_arguments_alone(engine: str, options: dict[str, Any]) -> None:
    """Not on what the trainer trained before, nor on torch's global generator, which stays as it was."""
    alone = train(trainer(dropout=True, engine=engine, **options))
    busy = trainer(dropout=True, engine=engine, **options)
    for other in (3, 4):
        train(busy, data=other, seed=other)
    torch.manual_seed(99)
    torch.rand(5)
    before = torch.get_rng_state()
    again = train(busy)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(again.update, alone.update)
    assert again.loss == alone.loss
    assert not np.array_equal(train(busy, seed=8).update, alone.update)


def test_an_update_is_written_where_it_is_asked_for_and_aliases_nothing() -> None:
    client = trainer()
    block = np.full((3, len(WEIGHTS)), np.nan, dtype=np.float32)
    result = train(client, out=block[1])
    assert np.shares_memory(result.update, block)
    assert np.isfinite(block[1]).all()
    assert np.isnan(block[[0, 2]]).all()
    kept = block[1].copy()
    fresh = train(client)
    assert fresh.update.flags.c_contiguous
    assert fresh.update.dtype == np.float32
    train(client, data=5)
    assert np.array_equal(fresh.update, kept)
    assert np.array_equal(block[1], kept)


def test_update_is_local_minus_global() -> None:
    client = trainer()
    result = train(client)
    local = parameters_to_vector(client.network)
    assert np.array_equal(result.update, local - WEIGHTS)
    client.load(WEIGHTS)
    assert np.array_equal(parameters_to_vector(client.network), WEIGHTS)


def test_training_learns() -> None:
    options = LocalTraining(epochs=1, optimizer=SGD(lr=0.05))
    result = LocalTrainer(network(), options).train(WEIGHTS, batches(200), 200, COUNTS, seed=0)
    model = network()
    load_vector(model, WEIGHTS + result.update)
    images, labels = next(batches(1, seed=77, batch=200))
    assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.8


@pytest.mark.parametrize("engine", ["lean", "trainer"])
def test_a_ruined_hospital_gives_a_ruined_update_and_the_next_a_sound_one(engine: str) -> None:
    client = trainer(engine=engine, carry_momentum=True)
    sound = train(client)
    ruined = client.train(
        WEIGHTS, ((images * float("nan"), labels) for images, labels in batches()), STEPS, COUNTS, seed=7
    )
    assert not np.isfinite(ruined.update).any()
    assert np.isnan(ruined.loss)
    assert np.array_equal(train(client).update, sound.update)


@pytest.mark.parametrize("engine", ["lean", "trainer"])
def test_steps_are_counted(engine: str) -> None:
    client = trainer(engine=engine)
    endless = itertools.cycle(list(batches()))
    assert np.array_equal(client.train(WEIGHTS, endless, STEPS, COUNTS, seed=7).update, train(client).update)
    with pytest.raises(ValueError, match=r"4 steps .* 2 batches"):
        client.train(WEIGHTS, batches(2), STEPS, COUNTS, seed=7)


def test_arrays_that_do_not_fit_are_refused() -> None:
    client = trainer(carry_momentum=True)
    with pytest.raises(ValueError, match="shape"):
        client.train(WEIGHTS[:-1], batches(), STEPS, COUNTS, seed=0)
    with pytest.raises(ValueError, match="shape"):
        train(client, state=WEIGHTS[:-1])


def test_the_trainer_engine_leaves_no_files_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # the process may run inside a Slurm job
    monkeypatch.setenv("SLURM_JOB_NAME", "grid")
    train(trainer(engine="trainer"))
    captured = capfd.readouterr()
    assert not list(tmp_path.iterdir())
    assert captured.out == captured.err == ""
    assert not recwarn.list


def test_bfloat16_is_close_to_float32() -> None:
    expected = train(trainer())
    found = train(trainer(engine="trainer", precision="bf16-mixed"))
    assert found.update.dtype == np.float32
    assert 0 < relative(found.update, expected.update) < 0.2


def test_frozen_parameters_stay() -> None:
    model = network()
    first = next(model.parameters()).requires_grad_(False)
    before = first.detach().clone()
    weights = parameters_to_vector(model)
    client = LocalTrainer(model, LocalTraining(steps=STEPS))
    result = client.train(weights, batches(), STEPS, COUNTS, seed=0)
    assert len(result.update) == len(WEIGHTS) - first.numel()
    assert result.update.any()
    assert torch.equal(first, before)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"steps": 2, "epochs": 1}, {"path": "steps", "says": "(2) and epochs (1)"}),
        ({"steps": None, "epochs": None}, {"path": "steps", "says": "null"}),
        ({"steps": 0}, {"path": "steps", "found": "0"}),
        ({"carry_momentum": True, "optimizer": SGD(momentum=0.0)}, {"path": "carry_momentum", "says": "sgd"}),
        ({"precision": "bf16-mixed"}, {"path": "precision", "says": "bf16-mixed"}),
        ({"engine": "trainer", "precision": "64"}, {"path": "precision", "found": "'64'"}),
        ({"optimizer": {"name": "sgd", "momentum": 1.0}}, {"path": "optimizer.momentum", "found": "1.0"}),
        ({"optimizer": "adamm"}, {"path": "optimizer", "hint": "did you mean 'adam'?"}),
        ({"optimiser": "adam"}, {"path": "optimiser", "hint": "did you mean 'optimizer'?"}),
        ({"proximal": -1.0}, {"path": "proximal", "found": "-1.0"}),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], problem: dict[str, Any]) -> None:
    with refused(**problem):
        LocalTraining(**options)


def test_half_precision_needs_a_gpu() -> None:
    with pytest.raises(ExperimentError, match="needs a GPU"):
        trainer(engine="trainer", precision="16-mixed")


def test_steps_for_a_hospital() -> None:
    assert LocalTraining().epochs == 1
    assert LocalTraining(epochs=2, batch_size=32).steps_for(65) == 6
    assert LocalTraining(epochs=2, batch_size=32).steps_for(5) == 2
    assert LocalTraining(steps=7).steps_for(1000) == 7
    assert LocalTraining.model_validate(LocalTraining().model_dump()) == LocalTraining()
    assert LocalTraining(loss=CrossEntropy()) == LocalTraining(loss={"name": "cross_entropy"})
