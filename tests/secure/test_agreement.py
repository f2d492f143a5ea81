"""Every rule on the Gram matrix makes of secret shares what it makes of the same updates in the clear.

The updates are real: twenty hospitals train a small network for three rounds, on the IDC patches where they are there,
and four of them turn theirs around.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from conftest import IDC
from tiny import write_patches

from fedrobust.aggregation import Aggregation, Combination, Context, Rule
from fedrobust.aggregation.byzantine import resolve_f
from fedrobust.aggregation.outcome import Aggregated
from fedrobust.data import Root
from fedrobust.experiment import Experiment
from fedrobust.federation.clients import ClientHost
from fedrobust.federation.layout import Layout
from fedrobust.options import members
from fedrobust.preparation import hospitals_of
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import run_id
from fedrobust.secure.shared_updates import SharedUpdates
from fedrobust.secure.weights import OpeningError, support
from fedrobust.seeds import generator
from fedrobust.updates import ClearUpdates, Updates

CLIENTS, ROUNDS, F = 20, 3, 4
MALICIOUS = [2, 7, 11, 16]
TOLERANCE = 2e-5
COARSE = 5e-4
"""Of sums, whose weights have 12 bits."""
Name = Literal["shares", "replicated"]
STAGES = ("arc", "bucketing", "clip", "nnm")


class Real:
    """Updates (rounds, clients, d) float32, and the server's own (rounds, d)."""

    def __init__(self, updates: np.ndarray, roots: np.ndarray) -> None:
        self.updates, self.roots, self.d = updates, roots, updates.shape[2]
        self.clip = 1.2 * float(np.median(np.linalg.norm(updates, axis=2)))

    def clipped(self, round: int) -> np.ndarray:
        """What the hospitals share: a copy in float64, cut to the clip."""
        rows = self.updates[round].astype(np.float64)
        return np.asarray(rows * np.minimum(1.0, self.clip / np.linalg.norm(rows, axis=1))[:, None])


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    path = IDC
    if not path.exists():
        path = tmp_path_factory.mktemp("patches") / "patches.npz"
        write_patches(path, patches=960, size=24)
    experiment = Experiment.model_validate(
        {
            "seed": 1,
            "data": {
                "source": {"name": "npz", "path": str(path), "size": 24},
                "split": {"validation": 0.0, "test": 0.2},
                "partition": {"name": "dirichlet", "alpha": 0.5},
            },
            "federation": {"clients": CLIENTS},
            "learning": {
                "model": {"name": "cnn", "channels": [8, 16, 32], "norm": "none"},
                "local": {
                    "steps": 4,
                    "batch_size": 32,
                    "loss": "logit_adjusted",
                    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
                },
            },
        }
    )
    hospitals = hospitals_of(experiment)
    training = [*(hospitals.training(client) for client in range(CLIENTS)), hospitals.root(Root(patches=100), 1)]
    test = hospitals.indices["test"]
    host, everybody = ClientHost(1, "cpu"), list(range(CLIENTS + 1))
    layout = Layout(tuple(training), test, test, len(hospitals.label_names))
    host.setup(experiment, layout, hospitals.labels, hospitals.images)
    weights, found = host.initial_weights(), []
    d = len(weights)
    for round in range(1, ROUNDS + 1):
        block, *_ = host.train(round, everybody, [], weights, {}, everybody, None, [slice(0, d)])
        assert isinstance(block, np.ndarray)
        found.append(block.copy())
        weights = weights + block[:CLIENTS].mean(axis=0)
    updates = np.stack(found)
    roots = updates[:, CLIENTS].copy()
    updates = updates[:, :CLIENTS].copy()
    updates[:, MALICIOUS] *= -1.5
    return Real(updates, roots)


class Defended:
    """A defence that meets the updates of one round after the other, by way of one protocol."""

    def __init__(self, aggregation: Aggregation, real: Real) -> None:
        self.pipeline, self.real = aggregation.pipeline(), real
        self.f = resolve_f(F, CLIENTS, aggregation.rule, aggregation.stages)
        self.previous: np.ndarray | None = None
        self.state: Any = {}
        self.histories: dict[str, np.ndarray] = {}

    def decided(self, protocol: Updates, round: int) -> Combination:
        """What goes into the sum of this round."""
        context = Context(
            f=self.f,
            round=round + 1,
            generator=generator(1, "agreement", round),
            previous=self.previous,
            step=self.previous,
            root=self.real.roots[round],
            state=self.state,
        )
        self._decision = self.pipeline.decide(protocol, context, self.pipeline.gram(protocol, context))
        self.histories = protocol.remembered(self.pipeline.histories)
        assert isinstance(self._decision.decided, Combination)
        return self._decision.decided

    def carried_out(self, protocol: Updates) -> Aggregated:
        result = self.pipeline.carry_out(self._decision, protocol)
        self.previous, self.state = result.aggregate, result.state
        return result


def agree(aggregation: Aggregation, name: Name, real: Real) -> int:
    """Hold the protocol to the clear, round for round; in how many rounds the sum was opened."""
    clear, secret = Defended(aggregation, real), Defended(aggregation, real)
    draw = np.random.default_rng(9).bytes
    parties = LocalParties(name, run_id("agreement"), real.d, draw, histories=clear.pipeline.histories)
    for round in range(ROUNDS):
        rows = ClearUpdates([real.clipped(round)], histories=clear.histories)
        opened: SharedUpdates = parties.play(real.updates[round], round, real.clip)
        expected, found = clear.decided(rows, round), secret.decided(opened, round)
        np.testing.assert_array_equal(found.weights != 0, expected.weights != 0)
        if support(expected.weights) < 3:
            with pytest.raises(OpeningError, match="min_support"):
                secret.carried_out(opened)
            return round
        theirs, ours = clear.carried_out(rows), secret.carried_out(opened)
        error = np.linalg.norm(ours.aggregate.astype(np.float64) - theirs.aggregate)
        assert error <= COARSE * np.linalg.norm(theirs.aggregate)
        assert ours.weights is not None and theirs.weights is not None
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=0, atol=TOLERANCE)
        assert opened.notes == ()
        assert not opened.dropped
    return ROUNDS


RULES = sorted(
    name for name, rule in members(Rule).items() if issubclass(rule, Rule) and rule.needs <= {"gram", "norms", "sum"}
)
NARROW = {"krum", "geometric_median", "fltrust", "foolsgold", "zeno_pp", "dos"}
"""Rules that may put nearly all weight on one or two of these updates, which is not opened."""


def test_the_updates_are_such_that_it_matters(real: Real) -> None:
    assert len(RULES) >= 20
    norms = np.linalg.norm(real.updates, axis=2)
    assert norms.min() > 0
    assert 0 < (norms > real.clip).sum() < norms.size / 2
    means = np.delete(real.updates, MALICIOUS, axis=1).mean(axis=1)
    assert all(means[round] @ real.updates[round, client] < 0 for round in range(ROUNDS) for client in MALICIOUS)


@pytest.mark.parametrize("name", ["shares", "replicated"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_alone(rule: str, name: Name, real: Real) -> None:
    opened = agree(Aggregation.model_validate({"rule": rule}), name, real)
    assert opened == ROUNDS or rule in NARROW


@pytest.mark.parametrize("name", ["shares", "replicated"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_behind_nearest_neighbour_mixing(rule: str, name: Name, real: Real) -> None:
    assert agree(Aggregation.model_validate({"rule": rule, "stages": ["nnm"]}), name, real) == ROUNDS


@pytest.mark.parametrize("name", ["shares", "replicated"])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "nnm"])
@pytest.mark.parametrize("rule", ["mean", "centered_clipping", "faba"])
def test_other_stages(stage: str, rule: str, name: Name, real: Real) -> None:
    assert agree(Aggregation.model_validate({"rule": rule, "stages": [stage]}), name, real) == ROUNDS


@pytest.mark.parametrize("name", ["shares", "replicated"])
def test_all_stages_one_after_the_other(name: Name, real: Real) -> None:
    stages = ["clip", "arc", "nnm", {"name": "bucketing", "s": 2}]
    assert agree(Aggregation.model_validate({"rule": "geometric_median", "stages": stages}), name, real) == ROUNDS
