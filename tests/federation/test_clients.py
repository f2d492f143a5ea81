"""What a malicious hospital is told when it trains, and what becomes of its update."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch

from fedrobust.attacks import DataAttack, LocalAttack, LocalView
from fedrobust.data.batches import to_tensor
from fedrobust.experiment import Experiment
from fedrobust.federation.clients import ClientHost
from fedrobust.federation.layout import Layout
from fedrobust.federation.voting import ballot
from fedrobust.learning.constraint import Constraint
from fedrobust.learning.vector import with_weights


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


@pytest.fixture(scope="module")
def juror() -> tuple[ClientHost, np.ndarray, np.ndarray]:
    """A client actor of three hospitals with 30, 60 and 10 patches; the images and labels of all."""
    experiment = Experiment.model_validate(
        {
            "federation": {"clients": 3},
            "learning": {"model": {"name": "cnn", "channels": [4]}},
            "trust": {"jury": {"patches": 25}},
        }
    )
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8), np.arange(120) % 2
    labels[:30] = 1
    layout = Layout((np.arange(30), np.arange(30, 90), np.arange(90, 100)), np.arange(100, 120), np.arange(100, 120), 2)
    made = ClientHost(1, "cpu")
    made.setup(experiment, layout, labels, images)
    return made, images, labels


def test_hospitals_vote_by_their_own_losses_about_labels_that_they_know(
    juror: tuple[ClientHost, np.ndarray, np.ndarray],
) -> None:
    made, images, labels = juror
    first = made.initial_weights()
    models = np.stack([first, first + np.random.default_rng(1).normal(0, 0.05, first.shape).astype(np.float32)])
    votes = made.votes([0, 1, 2], models)
    assert [np.isfinite(votes[client]).tolist() for client in range(3)] == [
        [[False, True]],
        [[True, True]],
        [[False] * 2],
    ]
    own = ballot(np.arange(30), labels, 25, made._experiment.seed, 0)
    assert len(own) == 25
    losses = []
    for model in models:
        module = with_weights(made._experiment.learning.model, 2, 8, made._experiment.seed, model).eval()
        with torch.inference_mode():
            logits = module(to_tensor(images[own]))
        losses.append(float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[own]))))
    assert votes[0][0, 1] == pytest.approx(losses[0] - losses[1], abs=1e-5)


def test_votes_do_not_depend_on_who_else_is_on_the_actor(juror: tuple[ClientHost, np.ndarray, np.ndarray]) -> None:
    made, *_ = juror
    models = np.stack([made.initial_weights(), made.initial_weights() * np.float32(1.1)])
    together = made.votes([0, 1, 2], models)
    for client in range(3):
        np.testing.assert_array_equal(made.votes([client], models)[client], together[client])
