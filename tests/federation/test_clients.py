"""What a malicious hospital is told when it trains, and what becomes of its update."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest

from fedrobust.attacks import DataAttack, LocalAttack, LocalView
from fedrobust.experiment import Experiment
from fedrobust.federation.clients import ClientHost, Layout
from fedrobust.learning.constraint import Constraint


class Recording(DataAttack):
    """Keeps what it is told, and sends its update fourfold."""

    name: Literal["recording"] = "recording"
    curious: bool = True
    seen: ClassVar[list[LocalView]] = []

    @property
    def needs_step(self) -> bool:
        return self.curious

    def poison(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        return images, labels

    def local(self, view: LocalView) -> LocalAttack:
        Recording.seen.append(view)
        return LocalAttack(self.poison, Constraint(scale=4))


def host(*attacks: DataAttack) -> tuple[ClientHost, int]:
    """A client actor of eight hospitals, and the number of the model's parameters."""
    experiment = Experiment.model_validate(
        {
            "federation": {"clients": 8},
            "learning": {"model": {"name": "cnn", "channels": [4]}, "local": {"steps": 1}, "server": {"lr": 0.5}},
            "attacks": list(attacks),
        }
    )
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
    layout = Layout(tuple(np.arange(80).reshape(8, 10)), np.arange(10), np.arange(10), 2)
    made = ClientHost(1, "cpu")
    made.setup(experiment, layout, np.arange(80) % 2, images)
    return made, len(made.initial_weights())


def train(made: ClientHost, d: int, round: int, participants: list[int], previous: np.ndarray | None) -> np.ndarray:
    weights = made.initial_weights()
    block, _, training = made.train(round, participants, [], weights, {}, participants, previous, [slice(0, d)])
    assert set(training.losses) == set(participants)  # type: ignore[union-attr]
    return np.asarray(block)


@pytest.fixture(autouse=True)
def _forget() -> None:
    Recording.seen.clear()


def test_an_attacker_knows_the_round_its_friends_and_the_last_step() -> None:
    schedule = {"name": "sleeper", "rounds": 1}
    made, d = host(Recording.model_validate({"clients": [1, 4, 6], "schedule": schedule}))
    weights = made.initial_weights()
    honest = train(made, d, 1, [0, 1, 4, 5], None)
    assert not Recording.seen  # not active yet
    step = np.full(d, 0.25, dtype=np.float32)
    sent = train(made, d, 2, [0, 1, 4, 5], weights - step)
    first = LocalView(round=2, n=4, attackers=2, rank=0, hospitals=3, server_lr=0.5)
    assert [replace(view, step=None) for view in Recording.seen] == [first, replace(first, rank=1)]
    for view in Recording.seen:
        assert view.step is not None and view.step.dtype == np.float32
        np.testing.assert_allclose(view.step, step, atol=1e-6)
    free, _ = host()
    expected = train(free, d, 2, [0, 1, 4, 5], None)
    np.testing.assert_array_equal(sent[[0, 3]], expected[[0, 3]])
    np.testing.assert_array_equal(sent[[1, 2]], np.float32(4) * expected[[1, 2]])
    np.testing.assert_array_equal(honest, train(free, d, 1, [0, 1, 4, 5], None))


def test_only_those_who_ask_are_told_the_last_step() -> None:
    made, d = host(Recording(clients=(2,), curious=False), Recording(clients=(3,)))
    train(made, d, 1, [2, 3], made.initial_weights())
    assert [view.step is None for view in Recording.seen] == [True, False]
    assert [(view.rank, view.attackers, view.hospitals) for view in Recording.seen] == [(0, 1, 1)] * 2


@pytest.mark.parametrize(
    ("device", "memory", "bounded"), [("cuda", 0.25, [0.25]), ("cuda", 1.0, []), ("cpu", 0.25, [])]
)
def test_an_actor_that_shares_a_gpu_has_its_share_of_the_memory(
    device: str, memory: float, bounded: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    told: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", told.append)
    ClientHost(1, device, memory)
    assert told == bounded
