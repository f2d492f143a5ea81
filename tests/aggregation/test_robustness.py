"""The measured robustness coefficient: above what no rule can be below, and below what theorems allow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from refused import refused

from fedrobust.aggregation import NNM, Combination, GeometricMedian, Krum, Mean, Median, RowRule, Rule, TrimmedMean
from fedrobust.aggregation.testing.robustness import robustness
from fedrobust.options import members

RULES = {name: rule() for name, rule in members(Rule, RowRule).items()}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Bad(Rule):
    """A rule for the tests: the mean, spoiled."""

    name: str = "bad"

    def combine(self, gram, context):
        return Combination(np.full(gram.n, 1.0 / gram.n))


class ByPosition(Bad):
    """The first row."""

    def combine(self, gram, context):
        return Combination(np.eye(gram.n)[0])


class SortsWrongly(Bad):
    """Keeps the rows that Krum would drop."""

    def combine(self, gram, context):
        scores = gram.distances_squared().sum(axis=1)
        weights = np.zeros(gram.n)
        weights[np.argsort(-scores, kind="stable")[: gram.n - context.f]] = 1.0 / (gram.n - context.f)
        return Combination(weights)


def lowest(n, f):
    """No rule has a smaller coefficient (Allouah et al., 2023, proposition 6)."""
    return f / (n - 2 * f)


ANCHORED = {name for name, rule in RULES.items() if isinstance(rule, Rule) and rule.anchors}


@pytest.mark.parametrize("name", [name for name in RULES if name not in ANCHORED])
def test_no_rule_is_more_robust_than_can_be(name):
    n, f = 12, 2
    found = robustness(RULES[name], n, f, d=(4,), restarts=1, seconds=0.15)
    assert found >= lowest(n, f) * (1 - 1e-6)


def test_the_mean_has_no_robustness():
    assert robustness(Mean(), 10, 2) == math.inf
    assert robustness(Mean(), 10, 2, stages=[NNM()]) == math.inf


# Table 1 of Allouah et al. (AISTATS 2023), with ρ = 1 + f / (n − 2f).
UPPER = {
    "krum": (Krum(), lambda n, f: 6 * (1 + lowest(n, f))),
    "geometric_median": (GeometricMedian(nu=1e-12), lambda n, f: 4 * (1 + lowest(n, f)) ** 2),
    "median": (Median(), lambda n, f: 4 * (1 + lowest(n, f)) ** 2),
    "trimmed_mean": (TrimmedMean(), lambda n, f: 6 * lowest(n, f) * (1 + lowest(n, f))),
}


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True], ids=["", "nnm"])
@pytest.mark.parametrize("name", UPPER)
def test_measured_robustness_lies_between_the_theorems(name, mixed):
    rule, upper = UPPER[name]
    for n, f in [(10, 2), (9, 4)] if name != "krum" else [(10, 2), (11, 4)]:
        found = robustness(rule, n, f, stages=[NNM()] if mixed else [], seconds=0.25)
        most = 8 * f / (n - f) * (1 + upper(n, f)) if mixed else upper(n, f)
        assert lowest(n, f) * (1 - 1e-6) <= found <= most


def test_the_trimmed_mean_is_no_worse_than_it_must_be_in_one_dimension():
    """A regression test of the search, too: it finds the lower bound, and nothing beyond."""
    for n, f in [(10, 2), (9, 4)]:
        assert robustness(TrimmedMean(), n, f, d=(1,), seconds=0.5) == pytest.approx(lowest(n, f), rel=1e-3)


def test_the_search_sees_a_fixed_pivot():
    assert robustness(ByPosition(), 10, 2, seconds=1.0) > 50
    assert robustness(SortsWrongly(), 10, 2) == math.inf


def test_the_same_seed_finds_the_same():
    first, second = (robustness(Krum(), 5, 1, d=(1,), restarts=1, seconds=60.0) for _ in range(2))
    assert first == second


def test_robustness_refuses_what_the_rule_refuses():
    with refused(says="n ≥ 2f + 3"):
        robustness(Krum(), 6, 2)
    with refused(says="f ≥ 1"):
        robustness(Krum(), 6, 0)
