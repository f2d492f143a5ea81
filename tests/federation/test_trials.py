"""Which model the coordinator goes on with where the referee sees all hypotheses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedrobust.aggregation.outcome import Aggregated
from fedrobust.data.root import RootPatches
from fedrobust.experiment import Experiment
from fedrobust.federation.trials import Trials
from fedrobust.trust.referee import REPAIRED
from fedrobust.updates import ClearUpdates

DRAW = np.random.default_rng(1)
ROOT = RootPatches(DRAW.integers(0, 255, (8, 12, 12, 3)).astype(np.uint8), np.arange(8) % 2, np.arange(8), 2)
EXPERIMENT = {
    "federation": {"clients": 5},
    "learning": {"model": {"name": "cnn", "channels": [4, 4]}},
    "aggregation": {"rule": "mean"},
    "trust": {"referee": {"hypotheses": []}},
    "data": {"root": {"patches": 8, "set_aside": 0.1}},
}


def losses(weights: np.ndarray) -> np.ndarray:
    """The first weight says how large the loss is; at some patches it is a little larger."""
    return np.asarray(weights[0] + 0.1 * np.linspace(-1, 1, 8) * weights[1])


def model(loss: float, spread: float) -> np.ndarray:
    return np.array([loss, spread], dtype=np.float32)


def test_the_last_good_model_comes_back_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment.model_validate(EXPERIMENT)
    trials, defence = Trials(experiment, ROOT, {}, {}), experiment.defence()
    monkeypatch.setattr(trials, "_model", SimpleNamespace(losses=losses))
    updates = ClearUpdates([np.eye(5, dtype=np.float32)])
    judgement = defence.judge(defence.start(5), updates, np.arange(5), 1)

    def tried(before: np.ndarray, after: np.ndarray) -> Any:
        own = Aggregated(after, np.full(5, 0.2), {}, None)
        found, ruling = trials.chosen(own, judgement, updates, before, lambda aggregate: aggregate)
        assert ruling is not None and found is own
        return ruling.refused

    start, good, doubtful, bad = model(1.0, 1), model(0.5, 1), model(0.51, -1), model(2.0, 1)
    assert tried(start, bad)
    assert trials.after_refusal(start) is start
    assert not tried(start, good)
    assert trials.after_refusal(good) is good
    for _ in range(40):  # until the average over the rounds is as low
        assert not tried(good, good)
    assert not tried(good, doubtful)  # a little worse, within doubt
    assert tried(doubtful, bad)
    assert trials.after_refusal(doubtful) is good
    again = Trials(experiment, ROOT, trials.evidence, trials.opened, trials.good)
    assert again.after_refusal(doubtful) is good
    trials.evidence = {**trials.evidence, REPAIRED: np.ones(())}
    assert trials.after_refusal(doubtful) is doubtful


@pytest.mark.parametrize(("privacy", "refuses"), [("clear", True), ("grouped", False)])
def test_groups_do_not_train_one_model_again(privacy: str, refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn anew, and from enough sums of nearly the same updates follow single ones."""
    given = {**EXPERIMENT, "privacy": privacy, "federation": {"clients": 15}}
    experiment = Experiment.model_validate(given)
    trials, defence = Trials(experiment, ROOT, {}, {}), experiment.defence()
    monkeypatch.setattr(trials, "_model", SimpleNamespace(losses=losses))
    updates = ClearUpdates([np.eye(5, dtype=np.float32)])
    judgement = defence.judge(defence.start(5), updates, np.arange(5), 1)
    own = Aggregated(model(5.0, 1), np.full(5, 0.2), {}, None)
    _, ruling = trials.chosen(own, judgement, updates, model(1.0, 1), lambda aggregate: aggregate)
    assert ruling is not None and ruling.refused == refuses
