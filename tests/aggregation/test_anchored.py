"""The rules that trust an update of the server's own, against their papers' formulas on the rows."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from refused import refused

from fedrobust.aggregation import NNM, Aggregation, Clip, Context, FLTrust, Pipeline, ZenoPlusPlus, capped_prior
from fedrobust.aggregation.testing import INSTANCES, check_rule
from fedrobust.updates import ClearUpdates

SHAPES = [(1, 4, 0), (3, 1, 0), (4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 700, 2), (23, 17, 10)]


def norm(row):
    return np.sqrt((row**2).sum())


def fltrust(rows, root, prior):
    total, trusted = np.zeros_like(root), 0.0
    for p, row in zip(prior, rows, strict=True):
        if norm(row) > 0 and norm(root) > 0:
            trust = max(0.0, row @ root / (norm(row) * norm(root)))
            total, trusted = total + p * trust * norm(root) / norm(row) * row, trusted + p * trust
    return total / trusted if trusted > 1e-12 else np.zeros_like(root)


def zeno_pp(rows, root, prior, gamma=0.1, rho=0.001, epsilon=0.0):
    total, accepted = np.zeros_like(root), 0.0
    for p, row in zip(prior, rows, strict=True):
        if norm(row) > 0:
            candidate = row * norm(root) / norm(row)
            if gamma * (root @ candidate) - rho * norm(candidate) ** 2 >= -gamma * epsilon:
                total, accepted = total + p * candidate, accepted + p
    return total / accepted if accepted > 0 else total


RULES = {
    "fltrust": (FLTrust(), fltrust),
    "zeno_pp": (ZenoPlusPlus(), zeno_pp),
    "zeno_pp, strict": (
        ZenoPlusPlus(gamma=0.5, rho=0.1),
        lambda u, g, p: zeno_pp(u, g, p, gamma=0.5, rho=0.1),
    ),
    "zeno_pp, forgiving": (
        ZenoPlusPlus(gamma=0.3, rho=0.05, epsilon=2.0),
        lambda u, g, p: zeno_pp(u, g, p, gamma=0.3, rho=0.05, epsilon=2.0),
    ),
}


def roots(rng, rows):
    """The server's update: of its own, like the clients', and like those of the first of them."""
    own = rng.standard_normal(rows.shape[1])
    return [own, np.median(rows, axis=0) + 0.3 * own, rows[-1] + 0.0]


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize("name", RULES)
def test_follows_its_formula(name, kind):
    rule, reference = RULES[name]
    for n, d, f in SHAPES:
        rng = np.random.default_rng(n)
        rows = INSTANCES[kind](rng, n, d, f)
        for root in roots(rng, rows):
            found = Pipeline([rule]).aggregate(rows, f=f, root=root)
            expected = reference(rows, root, np.full(n, 1 / n))
            assert np.abs(found - expected).max() <= 1e-8 * max(1.0, np.abs(expected).max()), (n, d, f)


@pytest.mark.parametrize("name", RULES)
def test_weighs_by_samples(name):
    rule, reference = RULES[name]
    rng = np.random.default_rng(5)
    samples, rows, root = rng.integers(1, 100, 11), rng.standard_normal((11, 30)), rng.standard_normal(30)
    found = Pipeline([rule]).aggregate(rows, samples=samples, f=3, root=root)
    assert np.allclose(found, reference(rows, root, capped_prior(samples, 11)), rtol=0, atol=1e-8)
    assert not np.allclose(found, reference(rows, root, np.full(11, 1 / 11)))


@pytest.mark.parametrize("name", RULES)
def test_follows_its_formula_after_stages(name):
    rule, reference = RULES[name]
    rng = np.random.default_rng(6)
    rows, root = rng.standard_normal((9, 30)), rng.standard_normal(30)
    mixing = np.zeros((9, 9))
    for i in range(9):
        nearest = np.argsort(((rows - rows[i]) ** 2).sum(axis=1))[:7]
        mixing[i, nearest] = 1 / 7
    found = Pipeline([NNM(), rule]).aggregate(rows, f=2, root=root)
    assert np.allclose(found, reference(mixing @ rows, root, np.full(9, 1 / 9)), rtol=0, atol=1e-10)
    clipped = Pipeline([Clip(radius=0.1), rule]).aggregate(rows, f=2, root=root)
    assert np.allclose(clipped, reference(rows, root, np.full(9, 1 / 9)), rtol=0, atol=1e-10)  # directions decide


@pytest.mark.parametrize("name", RULES)
def test_any_number_of_rows_of_any_size_cannot_carry_it_away(name):
    rng = np.random.default_rng(7)
    root = rng.standard_normal(50)
    rows = root + 0.1 * rng.standard_normal((10, 50))
    for bad in (3, 9, 10):
        rows[:bad] = -(10.0 ** rng.uniform(-6, 6, (bad, 1))) * root
        found = Pipeline([RULES[name][0]]).aggregate(rows, f=0, root=root)
        assert norm(found) <= norm(root) * (1 + 1e-9)
        if name != "zeno_pp, forgiving":
            assert np.allclose(found, 0.0) if bad == 10 else found @ root > 0.9 * norm(root) ** 2


@pytest.mark.parametrize("name", ["zeno_pp, strict", "zeno_pp, forgiving"])
def test_keeps_its_promises(name):
    check_rule(RULES[name][0])


def test_a_server_that_is_agreed_with_by_nobody_makes_no_step():
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    for rule in (FLTrust(), ZenoPlusPlus()):
        for root in ([0.0, -1.0], [0.0, 0.0]):  # also where it is zero itself
            result = Pipeline([rule]).run(ClearUpdates([rows]), Context(f=0, root=np.array(root)))
            assert result.aggregate.tolist() == [0.0, 0.0]
            assert result.notes == (f"{rule.name}: no update agrees with the server's: no step",)


def test_cosines_that_are_rounding_count_as_none():
    rng = np.random.default_rng(8)
    root = rng.standard_normal(1000)
    rows = rng.standard_normal((7, 1000))
    rows -= np.outer(rows @ root, root) / (root @ root)
    assert not np.any(Pipeline([FLTrust()]).aggregate(rows, f=0, root=root))
    for rho, accepted in ((0.0, True), (1e-9, False)):
        found = Pipeline([ZenoPlusPlus(rho=rho)]).aggregate(rows, f=0, root=root)
        assert np.any(found) == accepted


def test_what_rows_are_judged_by():
    rng = np.random.default_rng(9)
    rows, root = rng.standard_normal((6, 20)), rng.standard_normal(20)
    rows[2] = 0.0
    lengths = np.array([norm(row) for row in rows])
    similar = np.divide(rows @ root, lengths * norm(root), out=np.zeros(6), where=lengths > 0)
    (step,) = Pipeline([FLTrust()]).explain(rows, root=root)
    assert np.allclose(step.scores, 1 - similar, atol=1e-12)
    (step,) = Pipeline([ZenoPlusPlus()]).explain(rows, root=root)
    assert np.allclose(step.scores, norm(root) ** 2 * (0.001 - 0.1 * similar), atol=1e-10)
    assert np.array_equal(step.weights > 0, (step.scores <= 0) & (lengths > 0))


@pytest.mark.parametrize("rule", [FLTrust(), ZenoPlusPlus()])
def test_without_the_servers_update_it_says_so(rule):
    with refused(path="root", says=rule.name):
        Pipeline([rule]).aggregate(np.ones((3, 2)))


def test_f_plays_no_part():
    rng = np.random.default_rng(10)
    rows, root = rng.standard_normal((9, 20)), rng.standard_normal(20)
    for rule in (FLTrust(), ZenoPlusPlus()):
        assert rule.bound(3, 2) is None
        assert np.array_equal(*(Pipeline([rule]).aggregate(rows, f=f, root=root) for f in (0, 4)))


def test_options():
    read = Aggregation.model_validate({"rule": {"name": "zeno_pp", "rho": 0.01}, "weighting": "samples"})
    assert read.rule == ZenoPlusPlus(rho=0.01)
    assert Aggregation.model_validate({"rule": "fltrust"}).rule == FLTrust()
    for values in ({"gamma": 0.0}, {"rho": -1.0}, {"epsilon": -1.0}):
        with refused(ValidationError, path=f"rule.zeno_pp.{next(iter(values))}"):
            Aggregation.model_validate({"rule": {"name": "zeno_pp", **values}})
