"""What binds an attacker's training: masks, balls, anomaly terms and scales, in both engines."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from fedrobust.learning import SGD, Adam, AdamW, Cnn, LocalTraining
from fedrobust.learning.constraint import Constraint
from fedrobust.learning.training import LocalResult, LocalTrainer
from fedrobust.learning.vector import parameters_to_vector

STEPS, COUNTS = 4, np.array([3, 3])
CNN = Cnn(channels=(8, 8), hidden=10)
WEIGHTS = parameters_to_vector(CNN.build(2, 12, seed=0))
WEIGHTS.flags.writeable = False
MASK = np.random.default_rng(0).random(len(WEIGHTS)) < 0.5


def batches(steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield torch.randn(6, 3, 12, 12, generator=generator), torch.arange(6) % 2


def train(constraint: Constraint | None, client: LocalTrainer | None = None, **options: Any) -> LocalResult:
    client = client or LocalTrainer(CNN.build(2, 12, seed=0), LocalTraining(steps=STEPS, **options))
    return client.train(WEIGHTS, batches(), STEPS, COUNTS, seed=7, constraint=constraint)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def norm(update: np.ndarray) -> float:
    return float(np.linalg.norm(update.astype(np.float64)))


def test_what_is_sent_by_hand() -> None:
    update = np.array([3.0, 100.0, 4.0], dtype=np.float32)
    Constraint(mask=np.array([True, False, True]), radius=2.5, scale=4, norm_bound=5).finish(update)
    np.testing.assert_allclose(update, [3, 0, 4], rtol=1e-6)  # (3, 0, 4) → (1.5, 0, 2) → (6, 0, 8) → (3, 0, 4)
    assert norm(update) <= 5
    kept = np.array([3.0, 4.0], dtype=np.float32)
    Constraint(radius=5, norm_bound=5).finish(kept)
    np.testing.assert_array_equal(kept, [3, 4])
    ruined = np.array([np.nan, 1.0], dtype=np.float32)
    Constraint(radius=1, scale=2).finish(ruined)
    np.testing.assert_array_equal(ruined, [np.nan, 2])


@pytest.mark.parametrize("engine", ["lean", "trainer"])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, weight_decay=0.1), AdamW()])
def test_masked_coordinates_do_not_move_at_all(engine: str, optimizer: Any) -> None:
    update = train(Constraint(mask=MASK), engine=engine, optimizer=optimizer).update
    assert not update[~MASK].any()
    assert (update[MASK] != 0).mean() > 0.9
    assert not np.signbit(update[~MASK]).any()


def test_the_mask_is_a_projection_of_the_gradients() -> None:
    model = CNN.build(2, 12, seed=0)
    pieces = torch.split(torch.tensor(MASK), [p.numel() for p in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, labels in batches():
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        for parameter, piece in zip(model.parameters(), pieces, strict=True):
            parameter.grad.mul_(piece.view(parameter.shape))
        optimizer.step()
    found = train(Constraint(mask=MASK), optimizer=SGD(lr=0.1)).update
    assert relative(found, parameters_to_vector(model) - WEIGHTS) < 1e-4


@pytest.mark.parametrize("engine", ["lean", "trainer"])
def test_the_ball_holds_after_every_step(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = norm(train(None, optimizer=SGD(lr=0.1)).update)
    client = LocalTrainer(CNN.build(2, 12, seed=0), LocalTraining(steps=STEPS, engine=engine, optimizer=SGD(lr=0.1)))
    lengths, project = [], client.module.project

    def spy() -> None:
        project()
        lengths.append(norm(parameters_to_vector(client.network) - WEIGHTS))

    monkeypatch.setattr(client.module, "project", spy)
    update = train(Constraint(radius=free / 5), client).update
    assert len(lengths) == STEPS
    assert max(lengths) <= free / 5 * (1 + 1e-5)
    assert free / 5 * (1 - 1e-5) < norm(update) <= free / 5


def test_projected_descent_by_hand() -> None:
    model = CNN.build(2, 12, seed=0)
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in batches():
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        with torch.no_grad():
            moved = [p - s for p, s in zip(model.parameters(), start, strict=True)]
            factor = min(1.0, 0.02 / torch.cat([m.flatten() for m in moved]).norm().item())
            for p, s, m in zip(model.parameters(), start, moved, strict=True):
                p.copy_(s + factor * m)
    found = train(Constraint(radius=0.02), optimizer=SGD(lr=0.1, momentum=0.0)).update
    assert relative(found, parameters_to_vector(model) - WEIGHTS) < 1e-3


def test_the_scale_is_exact() -> None:
    plain = train(None).update
    np.testing.assert_array_equal(train(Constraint(scale=5)).update, np.float32(5) * plain)
    bounded = train(Constraint(scale=5, norm_bound=2 * norm(plain))).update
    assert relative(bounded, 2 * plain) < 1e-6


def test_half_the_loss_and_half_the_squared_norm() -> None:
    """½ L + ½ ‖u‖² with the rate 2η is L + ‖u‖², FedProx with mu = 2, with the rate η."""
    expected = train(None, proximal=2.0, optimizer=SGD(lr=0.05, momentum=0.0)).update
    constraint = Constraint(alpha=0.5, distance="squared_norm")
    assert relative(train(constraint, optimizer=SGD(lr=0.1, momentum=0.0)).update, expected) < 1e-4


@pytest.mark.parametrize("distance", ["norm", "cosine"])
def test_the_anomaly_term_by_hand(distance: Any) -> None:
    model = CNN.build(2, 12, seed=0)
    start = torch.tensor(WEIGHTS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for images, labels in batches():
        optimizer.zero_grad()
        weights = torch.cat([p.flatten() for p in model.parameters()])
        anomaly = (weights - start).square().sum().add(1e-30).sqrt()
        if distance == "cosine":
            anomaly = 1 - cosine_similarity(start + 3 * (weights - start), start, dim=0)
        loss = 0.6 * cross_entropy(model(images), labels) + 0.4 * anomaly
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    constraint = Constraint(alpha=0.6, distance=distance, scale=3)
    found = train(constraint, optimizer=SGD(lr=0.1, momentum=0.0))
    assert relative(found.update, 3 * (parameters_to_vector(model) - WEIGHTS)) < 1e-4
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("distance", ["norm", "squared_norm", "cosine"])
def test_an_anomaly_term_keeps_the_model_near_the_global_one(distance: Any) -> None:
    free = train(None, optimizer=SGD(lr=0.1))
    bound = train(Constraint(alpha=0.3, distance=distance), optimizer=SGD(lr=0.1))
    assert norm(bound.update) < 0.8 * norm(free.update)


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(mask=MASK),
        Constraint(radius=0.05),
        Constraint(alpha=0.5),
        Constraint(alpha=0.5, distance="cosine", scale=10, norm_bound=1.0),
        Constraint(mask=MASK, radius=0.05, alpha=0.7, distance="squared_norm", scale=3),
    ],
)
@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), Adam()])
def test_both_engines_agree(constraint: Constraint, optimizer: Any) -> None:
    lean, slow = (train(constraint, engine=engine, optimizer=optimizer) for engine in ("lean", "trainer"))
    assert relative(slow.update, lean.update) < 1e-5
    assert slow.loss == pytest.approx(lean.loss, rel=1e-5)


@pytest.mark.parametrize("engine", ["lean", "trainer"])
def test_an_attacker_leaves_no_trace_for_the_next_hospital(engine: str) -> None:
    client = LocalTrainer(CNN.build(2, 12, seed=0), LocalTraining(steps=STEPS, engine=engine))
    before = train(None, client).update
    attacked = train(Constraint(mask=MASK, radius=0.1, alpha=0.5, scale=9), client).update
    assert not np.array_equal(attacked, before)
    np.testing.assert_array_equal(train(None, client).update, before)
    np.testing.assert_array_equal(train(Constraint(mask=MASK, radius=0.1, alpha=0.5, scale=9), client).update, attacked)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_mask_and_ball_hold_in_every_precision(precision: str) -> None:
    constraint = Constraint(mask=MASK, radius=0.01)
    update = train(constraint, engine="trainer", precision=precision, optimizer=SGD(lr=0.1)).update
    assert not update[~MASK].any()
    assert 0 < norm(update) <= 0.01


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        train(Constraint(mask=MASK[:-1]))


def test_an_update_that_is_not_finite_stays_so() -> None:
    client = LocalTrainer(CNN.build(2, 12, seed=0), LocalTraining(steps=STEPS))
    data = [(torch.full((2, 3, 12, 12), float("nan")), torch.tensor([0, 1]))]
    constraint = Constraint(radius=1.0, scale=2.0, norm_bound=1.0)
    result = client.train(WEIGHTS, itertools.cycle(data), STEPS, COUNTS, seed=7, constraint=constraint)
    assert not np.isfinite(result.update).any()
