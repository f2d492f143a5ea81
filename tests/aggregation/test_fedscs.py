"""FedSCS against row-wise code with everything of the past in a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from refused import refused

from fedrobust.aggregation import Aggregation, Context, FedSCS
from fedrobust.aggregation.testing import check_rule
from fedrobust.updates import ClearUpdates


def cosine(a, b):
    lengths = np.sqrt((a**2).sum() * (b**2).sum())
    return float(a @ b / lengths) if lengths > 0 else 0.0


class Similar:
    """FedSCS with everything of the past in a dictionary."""

    def __init__(self, beta=0.9):
        self.beta, self.past = beta, {}

    def weights(self, rows, ids, prior):
        corrected = []
        for i, client in enumerate(ids):
            now = max(0.0, cosine(rows[i], np.delete(rows, i, axis=0).sum(axis=0)))
            before = self.past.get(client)
            score = now if before is None else self.beta * before + (1 - self.beta) * now
            changed = 0.0 if before is None else abs(score - before) / (before + 1e-6)
            self.past[client] = score
            corrected.append(score / (1 + changed))
        found = prior * np.array(corrected)
        return found / found.sum() if sum(corrected) > 1e-6 else prior


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_fedscs_follows_its_formula_with_clients_that_come_and_go(beta):
    rng = np.random.default_rng(31)
    rule, reference, state = FedSCS(beta=beta), Similar(beta), {}
    common = rng.standard_normal(60)
    for turn in range(8):  # the last clients come late
        ids = rng.permutation(4 + turn)[: rng.integers(2, 5)]
        rows = rng.standard_normal((len(ids), 60)) * rng.exponential(1.0, (len(ids), 1)) + common
        rows[:1] *= -1  # one of them against the others
        prior = rng.random(len(ids))
        prior /= prior.sum()
        context = Context(f=0, clients=np.array(ids), state=state)
        combination = rule.combine(ClearUpdates([rows], prior=prior).gram(), context)
        state = combination.state
        assert np.allclose(combination.weights, reference.weights(rows, list(ids), prior), rtol=0, atol=1e-9)


def test_fedscs_gives_the_priors_where_nobody_agrees_and_nothing_to_who_opposes():
    rows = np.array([[1.0, 0.0], [-1.0, 0.0]])
    combination = FedSCS().combine(ClearUpdates([rows]).gram(), Context(f=0))
    assert np.array_equal(combination.weights, [0.5, 0.5])
    assert combination.notes
    assert np.array_equal(FedSCS().combine(ClearUpdates([rows[:1]]).gram(), Context(f=0)).weights, [1.0])
    zero = np.zeros((3, 4))
    assert np.allclose(FedSCS().combine(ClearUpdates([zero]).gram(), Context(f=0)).weights, 1 / 3)
    rng = np.random.default_rng(32)
    many = rng.standard_normal((9, 50)) * 0.3 + 1.0
    many[4] *= -1
    weights = FedSCS().combine(ClearUpdates([many]).gram(), Context(f=0)).weights
    assert weights[4] == 0.0
    assert np.delete(weights, 4).min() > 0.1


def test_fedscs_one_long_row_is_the_peer_of_all_others():
    """A limit that its docstring names."""
    rng = np.random.default_rng(33)
    rows = rng.standard_normal((10, 50)) * 0.3 + 1.0
    rows[:4] = -1000.0 * rows[:4]
    weights = FedSCS().combine(ClearUpdates([rows]).gram(), Context(f=0)).weights
    assert weights[4:].max() == 0.0


def test_fedscs_keeps_its_word():
    check_rule(FedSCS())
    for beta in (-0.1, 1.0, float("nan")):
        with refused(ValidationError, path="rule.fedscs.beta"):
            Aggregation.model_validate({"rule": {"name": "fedscs", "beta": beta}})
