"""Which sums the referee opens in its turn: never one that shows few updates, alone or with the one before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrobust.aggregation import Combination
from fedrobust.data.root import RootPatches
from fedrobust.experiment import Experiment
from fedrobust.federation.trials import Trials
from fedrobust.trust.referee import DEFENCE, REFERENCE
from fedrobust.updates import ClearUpdates

N = 10
DRAW = np.random.default_rng(1)
ROOT = RootPatches(DRAW.integers(0, 255, (8, 12, 12, 3)).astype(np.uint8), np.arange(8) % 2, np.arange(8), 2)
REFUSED = {REFERENCE: np.full(8, 0.7), DEFENCE: np.array(1.0)}


def opened(
    norms: NDArray[np.float64], own: NDArray[np.float64], *last: NDArray[np.float64], **options: Any
) -> NDArray[np.float64]:
    """The weights (n,) of the sum that is opened where the defence was refused in the round before.

    norms: (n,) of the updates.
    own: (n,) the weights of the defence.
    last: (clients,) the weights of each sum that was refused since the model last changed.
    """
    given = {
        "federation": {"clients": N + 2},
        "learning": {"model": {"name": "cnn", "channels": [4, 4]}},
        "aggregation": {"rule": "mean"},
        "trust": {"referee": {"openings": "in_turn"}},
        "data": {"root": {"patches": 8, "set_aside": 0.1}},
    }
    experiment = Experiment.model_validate(given | options)
    trials = Trials(experiment, ROOT, REFUSED, {"weights": np.array(last)} if last else {})
    rows = norms[:, None] * np.linalg.qr(np.random.default_rng(2).standard_normal((20, N)))[0].T
    updates, defence = ClearUpdates([rows.astype(np.float32)]), experiment.defence()
    judgement = defence.judge(defence.start(N + 2), updates, np.arange(2, N + 2), 1)
    assert judgement.decision is not None
    decided = trials.turn(judgement, replace(judgement.decision, decided=Combination(own)), updates).decided
    assert isinstance(decided, Combination)
    return decided.weights


UNEQUAL = np.array([1.0, 1, 1, 1, 1, 5, 5, 5, 5, 5])
CUT = np.where(UNEQUAL > 1, 3 / 5, 1.0) / N  # the mean of the updates, cut to their median norm
EQUAL = np.full(N, 1 / N)


def test_the_next_hypothesis_is_opened_after_a_refusal() -> None:
    np.testing.assert_allclose(opened(UNEQUAL, EQUAL), CUT)


@pytest.mark.parametrize(("least", "alone"), [(2.0, False), (2.5, False), (3.2, True)])
def test_a_hypothesis_on_too_few_updates_is_not_opened(least: float, alone: bool) -> None:
    """The rest are three updates, one of them twice as long: it lies on 2.25 of them, and never on less than three."""
    norms, own = np.array([1.0] * 9 + [2.0]), np.array([1.0] * 7 + [0.0] * 3) / 7
    trust = {"referee": {"hypotheses": ["rest"]}}
    found = opened(norms, own, privacy={"name": "shares", "min_support": least}, trust=trust)
    np.testing.assert_allclose(found, own)
    equal = opened(np.ones(N), own, privacy={"name": "shares", "min_support": least}, trust=trust)
    np.testing.assert_allclose(equal, own if alone else np.where(own > 0, 0, 1 / 3))


@pytest.mark.parametrize("without", [0, 1, 2, 3, 5])
def test_two_sums_of_the_same_model_do_not_show_few_updates_either(without: int) -> None:
    """The sum before, or the defence's, is the same but for so many updates."""
    part = np.where(np.arange(N) < without, 0, CUT)
    apart = without in (0, 3, 5)
    np.testing.assert_allclose(opened(UNEQUAL, part), CUT if apart else part)
    last = np.concatenate([np.zeros(2), part])
    np.testing.assert_allclose(opened(UNEQUAL, EQUAL, last), CUT if apart else EQUAL)


def test_who_is_away_had_an_update_in_the_sum_before() -> None:
    """Both sums together would show the update of hospital 1, which has dropped out since."""
    last = np.concatenate([[0, 0.1], CUT])
    np.testing.assert_allclose(opened(UNEQUAL, EQUAL, last), EQUAL)
    np.testing.assert_allclose(opened(UNEQUAL, EQUAL, last, privacy={"name": "shares"}), EQUAL)


def test_no_sum_of_several_rounds_shows_few_updates() -> None:
    """Each pair is far enough apart, but the two earlier sums and this one show a single update."""
    first, second = (np.where(np.isin(np.arange(N), some), CUT, 0) for some in (np.arange(5), np.arange(5, 9)))
    pairs = [opened(UNEQUAL, EQUAL, np.concatenate([[0, 0], each])) for each in (first, second)]
    np.testing.assert_allclose(pairs, [CUT, CUT])
    both = opened(UNEQUAL, EQUAL, *(np.concatenate([[0, 0], each]) for each in (first, second)))
    np.testing.assert_allclose(both, EQUAL)


def test_the_sums_of_a_model_are_remembered_until_it_changes() -> None:
    experiment = Experiment.model_validate(
        {
            "federation": {"clients": N},
            "learning": {"model": {"name": "cnn", "channels": [4, 4]}},
            "trust": {"referee": {"openings": "in_turn"}},
            "data": {"root": {"patches": 8, "set_aside": 0.1}},
        }
    )
    trials, defence = Trials(experiment, ROOT, {}, {}), experiment.defence()
    updates = ClearUpdates([np.eye(N, dtype=np.float32)])
    judgement = defence.judge(defence.start(N), updates, np.arange(N), 1)
    losses = iter([np.full(8, each) for each in (0.5, 9.0, 0.5, 9.0, 0.5, 0.4)])
    trials._model.losses = lambda _: next(losses)  # type: ignore[method-assign]
    assert judgement.decision is not None
    aggregated = defence.pipeline.carry_out(judgement.decision, updates)
    for held in (1, 2):
        assert trials.judged(aggregated, judgement, np.zeros(1), np.zeros(1)).refused
        assert trials.opened["weights"].shape == (held, N)
    assert not trials.judged(aggregated, judgement, np.zeros(1), np.zeros(1)).refused
    assert trials.opened == {}
