"""A defence that attackers may know, and a small federation without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fedrobust.aggregation import Mean, Pipeline
from fedrobust.attacks import Attack, Attackers, View, craft


@dataclass
class PipelinePreview:
    """What a pipeline that is told the number of attackers would make of the rows; keeps what it was asked."""

    parts: Sequence[Any]
    own: np.ndarray
    others: np.ndarray

    def __post_init__(self) -> None:
        self.extra = np.zeros((0, self.own.shape[1]))
        # A mean allows any number of attackers that leaves a majority.
        self.f = min(len(self.own), (len(self.own) + len(self.others) - 1) // 2)
        self.asked: list[tuple[np.ndarray, float]] = []

    def lines(self, extra: Any) -> PipelinePreview:
        self.extra = np.array(list(extra), dtype=np.float64).reshape(-1, self.own.shape[1])
        return self

    def damage(self, crafted: np.ndarray) -> float:
        rows = np.concatenate([crafted @ np.concatenate([self.own, self.others, self.extra]), self.others])
        aggregate = Pipeline(self.parts).aggregate(rows, f=self.f)
        self.asked.append((crafted, float(np.linalg.norm(aggregate - self.others.mean(axis=0)))))
        return self.asked[-1][1]


@pytest.fixture
def aware() -> Callable[..., View]:
    """The view of attackers who know a pipeline: `aware(own, others, parts, step=None, seed=0)`."""

    def made(own: Any, others: Any, parts: Sequence[Any], step: Any = None, seed: int = 0) -> View:
        own, others = np.asarray(own, np.float32), np.asarray(others, np.float32)
        preview = PipelinePreview(parts, own, others)
        draws = np.random.default_rng(seed)
        return View(own, others, len(own) + len(others), 2, draws, list(range(len(others))), step, preview)

    return made


@pytest.fixture(scope="session")
def final_loss() -> Callable[[Attack | None], float]:
    """The loss after 20 rounds of logistic regression by 10 hospitals of unequal data, whose updates are averaged."""
    draw, clients, d = np.random.default_rng(4), 10, 12
    truth = draw.normal(size=d)
    images = draw.normal(size=(clients, 80, d)) + draw.normal(size=(clients, 1, d))
    labels = (images @ truth + draw.logistic(size=(clients, 80)) > 0).astype(np.float64)

    def loss(weights: np.ndarray) -> float:
        margins = (2 * labels - 1) * (images @ weights)
        with np.errstate(invalid="ignore"):
            return float(np.logaddexp(0, -margins).mean())

    def train(weights: np.ndarray, client: int) -> np.ndarray:
        local = weights.copy()
        for _ in range(4):
            errors = labels[client] - 1 / (1 + np.exp(-images[client] @ local))
            local += 0.1 * errors @ images[client] / len(errors)
        return np.asarray(local - weights, dtype=np.float32)

    def final(attack: Attack | None) -> float:
        attacks = [] if attack is None else [attack]
        attackers = Attackers.draw(attacks, clients, seed=1)
        weights, step = np.zeros(d), None
        for round in range(1, 21):
            trained = {client: train(weights, client) for client in range(clients)}

            def preview(group: list[int], trained: dict[int, np.ndarray] = trained) -> PipelinePreview:
                own = np.stack([trained[client] for client in group])
                others = np.stack([row for client, row in trained.items() if client not in group])
                return PipelinePreview([Mean()], own, others)

            sent = trained | craft(attackers, trained, trained, round, 0, step, preview)
            step = np.float32(np.stack(list(sent.values())).mean(axis=0))
            weights = weights + step
        return loss(weights)

    return final
