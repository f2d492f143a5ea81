"""FLDetector against row-wise code with lists of past rows, and what it is made of."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from pydantic import ValidationError
from refused import refused

from fedrobust.aggregation import Aggregation, Context, FLDetector, Memory, Pipeline
from fedrobust.aggregation.rules.histories import greater_cluster, hessian_product, within
from fedrobust.aggregation.testing import INSTANCES, check_rule
from fedrobust.seeds import generator
from fedrobust.updates import ClearUpdates


def norm(row):
    return np.sqrt((row**2).sum())


def close(found, expected, tolerance=1e-8):
    return np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


def quasi_newton(steps, changes, v):
    """H v by the updates of BFGS, one after the other; without pairs that have no step."""
    pairs = [(s, y) for s, y in zip(steps, changes, strict=True) if s.any()]
    if not pairs:
        return np.zeros(len(v))
    s, y = pairs[-1]
    hessian = (y @ s) / (s @ s) * np.eye(len(v))
    for s, y in pairs:
        hs = hessian @ s
        hessian = hessian - np.outer(hs, hs) / (s @ hs) + np.outer(y, y) / (y @ s)
    return hessian @ v


def sum_of_squares(values):
    return sum((value - np.mean(values)) ** 2 for value in values)


def best_split(values):
    """The least sum of squares of two clusters over all ways to part the values, and the lower cluster."""
    values = list(values)
    ways = [way for way in product([0, 1], repeat=len(values)) if 0 < sum(way) < len(values)]
    parts = [[[v for v, side in zip(values, way, strict=True) if side == k] for k in (0, 1)] for way in ways]
    least = min(parts, key=lambda part: sum(map(sum_of_squares, part)))
    return sum(map(sum_of_squares, least)), min(least, key=np.mean)


def intervals(values):
    """The same over all ways to cut the sorted values."""
    ordered = np.sort(values)
    sums = [sum_of_squares(ordered[:k]) + sum_of_squares(ordered[k:]) for k in range(1, len(ordered))]
    return min(sums), ordered[: 1 + int(np.argmin(sums))]


def more_than_one(values, samples):
    """The gap statistic: whether there is more than one cluster."""
    values = (values - values.min()) / (values.max() - values.min())
    tiny = np.finfo(float).tiny
    logs = np.array([[np.log(sum_of_squares(s)), np.log(intervals(s)[0])] for s in samples])
    gap_one = logs[:, 0].mean() - np.log(sum_of_squares(values))
    gap_two = logs[:, 1].mean() - np.log(max(intervals(values)[0], tiny))
    return gap_one < gap_two - np.sqrt(1 + 1 / len(samples)) * logs[:, 1].std()


class Detector:
    """FLDetector with everything of the past in lists."""

    def __init__(self, window):
        self.window = window
        self.last, self.errors, self.present = {}, {}, set()
        self.aggregates, self.steps = [], []

    def scores(self, ids):
        return [np.mean(errors[-self.window :]) if (errors := self.errors.get(i)) else 1.0 for i in ids]

    def decide(self, ids, rows, prior, rng):
        """The rows that count, as a mask."""
        here = [k for k, client in enumerate(ids) if client in self.present]
        if len(self.steps) >= 2 and here:
            first = max(0, len(self.steps) - 1 - self.window)
            changes = [b - a for a, b in zip(self.aggregates[first:-1], self.aggregates[first + 1 :], strict=True)]
            moved = quasi_newton(self.steps[first:-1], changes, self.steps[-1])
            distances = np.array([norm(self.last[ids[k]] + moved - rows[k]) for k in here])
            for k, distance in zip(here, distances, strict=True):
                self.errors.setdefault(ids[k], []).append(distance / distances.mean())
        judged = [k for k, client in enumerate(ids) if len(self.errors.get(client, [])) >= self.window]
        keep = np.ones(len(ids), dtype=bool)
        if len(judged) >= 3:
            values = np.array(self.scores([ids[k] for k in judged]))
            if np.ptp(values) > 1e-12 and more_than_one(values, rng.random((20, len(judged)))):
                keep[judged] = values <= intervals(values)[1].max()
        return keep

    def close(self, ids, rows, aggregate, step=None):
        self.last |= {client: row.astype(np.float32).astype(np.float64) for client, row in zip(ids, rows, strict=True)}
        self.present = set(ids)
        self.aggregates.append(aggregate.astype(np.float32).astype(np.float64))
        self.steps.append(self.aggregates[-1] if step is None else step.astype(np.float32).astype(np.float64))


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("kind", [kind for kind in INSTANCES if kind != "all_equal"])
def test_fldetector_follows_its_formula(kind, window):
    left_out = 0
    for n, d, f in [(2, 4, 0), (4, 9, 0), (5, 13, 1), (9, 40, 3), (10, 300, 2), (23, 17, 10)]:
        rng, memory, expected = np.random.default_rng(n), Memory(), Detector(window)
        pipeline, prior = Pipeline([FLDetector(window=window)]), np.full(n, 1 / n)
        for turn in range(window + 5):
            rows = INSTANCES[kind](rng, n, d, f).astype(np.float32).astype(np.float64)
            keep = expected.decide(range(n), rows, prior, generator(0, "aggregation", turn))
            (step,) = pipeline.explain(rows, f=f, memory=memory)
            assert (step.scores is None) == (turn < 2)
            if step.scores is not None:
                assert np.allclose(step.scores, expected.scores(range(n)), rtol=1e-4), (n, d, f, turn)
            found = pipeline.aggregate(rows, f=f, memory=memory)
            assert close(found, rows[keep].mean(axis=0)), (n, d, f, turn)
            expected.close(range(n), rows, found)
            left_out += (~keep).sum()
    assert left_out > 0 or kind in ("plain", "duplicated", "with_common_part")


def quadratic(rng, clients, d):
    """Clients that take a gradient step on quadratics of their own: weights (d,) → updates (clients, d)."""
    basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
    hessian = basis @ np.diag(rng.uniform(0.5, 2.0, d)) @ basis.T
    optima = rng.standard_normal((clients, d))
    return lambda weights: -0.1 * (weights - optima) @ hessian


def test_fldetector_finds_the_unpredictable_with_few_participants_of_a_round():
    rng = np.random.default_rng(9)
    clients, d, window = 14, 12, 3
    train, weights = quadratic(rng, clients, d), np.zeros(d)
    pipeline, expected = Pipeline([FLDetector(window=window)]), Detector(window)
    histories, state, previous, step = {}, {}, None, None
    left_out = []
    for turn in range(16):
        ids = rng.permutation(clients)[: 11 if turn > 0 else 5]
        rows = train(weights)[ids] + 1e-3 * rng.standard_normal((len(ids), d))
        rows[ids < 3] = norm(rows[0]) / np.sqrt(d) * rng.standard_normal(((ids < 3).sum(), d))
        rows = rows.astype(np.float32).astype(np.float64)
        samples = rng.integers(1, 9, len(ids))
        prior = samples / samples.sum()
        keep = expected.decide(ids.tolist(), rows, prior, np.random.default_rng(turn))
        protocol = ClearUpdates([rows], prior=samples, histories=histories, clients=ids)
        context = Context(
            f=0, generator=np.random.default_rng(turn), clients=ids, previous=previous, step=step, state=state
        )
        result = pipeline.run(protocol, context)
        assert np.allclose(result.weights, prior * keep / (prior * keep).sum(), rtol=0, atol=1e-12)
        if result.steps[0].scores is not None:
            assert np.allclose(result.steps[0].scores, expected.scores(ids.tolist()), rtol=1e-4)
        histories, state, previous = protocol.remembered(pipeline.histories), result.state, result.aggregate
        step = (0.7 * previous + 0.01 * rng.standard_normal(d)).astype(np.float32)  # a server with ideas of its own
        weights = weights + step
        expected.close(ids.tolist(), rows, previous, step)
        left_out.append(ids[~keep].tolist())
    assert not any(left_out[: window + 1])
    assert all(set(ids) <= {0, 1, 2} for ids in left_out)
    assert sum(map(len, left_out)) > 10


def test_fldetector_remembers_no_more_than_its_window():
    rng = np.random.default_rng(10)
    memory, pipeline = Memory(), Pipeline([FLDetector(window=2)])
    for _ in range(6):
        pipeline.aggregate(rng.standard_normal((3, 50)), memory=memory)
    assert {name for name in memory.state if name.startswith("step")} == {"step0", "step1"}
    assert {name for name in memory.state if name.startswith("aggregate")} == {"aggregate0", "aggregate1"}
    assert {name for name in memory.state if name.startswith("error")} == {"error0", "error1"}
    assert all(array.dtype != object for array in memory.state.values())


def test_fldetector_copies_no_step():
    rng, memory, pipeline = np.random.default_rng(12), Memory(), Pipeline([FLDetector()])
    for _ in range(4):
        before = dict(memory.state)
        pipeline.aggregate(rng.standard_normal((3, 50)), memory=memory)
    assert memory.state["step1"] is before["step0"]
    assert memory.state["step0"] is memory.state["aggregate0"]  # the step of the global model is the aggregate
    memory.step = 2 * memory.previous
    pipeline.aggregate(rng.standard_normal((3, 50)), memory=memory)
    assert np.array_equal(memory.state["step0"], 2 * memory.state["aggregate0"])


def test_fldetector_of_what_never_changes_leaves_nobody_out():
    rows, memory = np.tile(np.random.default_rng(11).standard_normal((7, 1)), 20), Memory()
    for turn in range(8):
        pipeline = Pipeline([FLDetector(window=2)])
        (step,) = pipeline.explain(rows, memory=memory)
        assert turn < 2 or step.scores.tolist() == [1.0] * 7  # all are as predicted
        assert np.allclose(pipeline.aggregate(rows, memory=memory), rows.mean(axis=0))


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_hessian_product_is_that_of_bfgs(pairs):
    rng = np.random.default_rng(pairs)
    d = 30
    basis = rng.standard_normal((d, d))
    hessian = basis @ basis.T / d + np.eye(d)
    steps = rng.standard_normal((pairs + 1, d)).astype(np.float32)
    changes = -steps[:-1] @ hessian  # updates go down the gradient
    aggregates = np.vstack([np.zeros(d), np.cumsum(changes, axis=0)]).astype(np.float32)
    found = hessian_product(steps, aggregates)
    exact = np.diff(aggregates.astype(np.float64), axis=0)
    assert close(found, quasi_newton(steps[:-1].astype(np.float64), exact, steps[-1].astype(np.float64)), 1e-5)
    again = np.vstack([steps[:-1], 2.0 * steps[-2:-1]])  # the last step again: its change is known
    assert close(hessian_product(again, aggregates), 2.0 * exact[-1], 1e-5)


def test_hessian_product_of_steps_that_say_nothing():
    rng = np.random.default_rng(12)
    steps, aggregates = rng.standard_normal((4, 20)).astype(np.float32), rng.standard_normal((4, 20)).astype(np.float32)
    still = steps.copy()
    still[1] = 0.0
    others = np.delete(np.diff(aggregates, axis=0), 1, axis=0)
    known = np.vstack([np.zeros(20), np.cumsum(others, axis=0)]).astype(np.float32)
    assert close(hessian_product(still, aggregates), hessian_product(still[[0, 2, 3]], known), 1e-5)
    assert not hessian_product(np.zeros((4, 20), dtype=np.float32), aggregates).any()
    assert not hessian_product(steps, np.tile(aggregates[0], (4, 1))).any()  # no change: no curvature
    assert np.isfinite(hessian_product(np.tile(steps[0], (4, 1)), aggregates)).all()
    steps[1, 3] = np.inf
    assert hessian_product(steps, aggregates) is None


def test_two_means_are_exact():
    rng = np.random.default_rng(13)
    for n in (2, 3, 4, 7, 10):
        for values in (rng.standard_normal(n), rng.random(n) ** 4, rng.integers(0, 3, n) + 0.0, np.ones(n)):
            one, two, cut = within(np.sort(values))
            least, lower = best_split(values)
            assert one == pytest.approx(sum_of_squares(values), abs=1e-12)
            assert two == pytest.approx(least, abs=1e-12)
            if len(set(values)) == n and n > 2:
                assert np.allclose(np.sort(values)[:cut], np.sort(lower))
    assert within(np.array([0.0, 1.0, 2.0]))[2] == 2  # of equals, that which leaves out fewer


def test_the_gap_statistic_finds_what_is_there():
    rng = np.random.default_rng(14)
    for _ in range(20):
        honest = 1 + 0.05 * rng.standard_normal(15)
        values = rng.permutation(np.concatenate([honest, 1.6 + 0.05 * rng.standard_normal(5)]))
        assert np.array_equal(np.sort(greater_cluster(values, 20, rng)), np.flatnonzero(values > 1.3))
    for turn in range(100):
        some, references = rng.random(6), 2 + turn % 3
        samples = np.random.default_rng(turn).random((references, 6))
        found = greater_cluster(some, references, np.random.default_rng(turn))
        assert bool(len(found)) == more_than_one(some, samples)
    alone = [len(greater_cluster(rng.standard_normal(20), 20, rng)) > 0 for _ in range(100)]
    assert np.mean(alone) < 0.1
    for few in ([], [1.0], [1.0, 2.0], [3.0, 3.0, 3.0], [3.0, 3.0, 3.0 + 1e-15]):
        assert len(greater_cluster(np.array(few), 20, rng)) == 0
    assert greater_cluster(np.array([5.0, 1.0, 1.0, 1.0]), 20, rng).tolist() == [0]


def test_keeps_its_promises():
    check_rule(FLDetector(window=1))


def test_options():
    rule = Aggregation.model_validate({"rule": {"name": "fldetector", "window": 3}, "weighting": "samples"}).rule
    assert rule == FLDetector(window=3)
    assert rule.bound(3, 2) is None
    for values in ({"window": 0}, {"references": 1}):
        with refused(ValidationError, path=f"rule.fldetector.{next(iter(values))}"):
            Aggregation.model_validate({"rule": {"name": "fldetector", **values}})
