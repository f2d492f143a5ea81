"""Histories that protocols keep, and FoolsGold and AFA, against row-wise code with lists of past rows."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from refused import refused
from scipy.stats import beta as beta_distribution

from fedrobust.aggregation import AFA, Aggregation, Clip, Context, FoolsGold, Memory, Pipeline, capped_prior
from fedrobust.aggregation.testing import INSTANCES, check_rule
from fedrobust.updates import ClearUpdates, ShardedUpdates, shard_columns

SHAPES = [(1, 4, 0), (3, 1, 0), (4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 300, 2), (23, 17, 10)]


def norm(row):
    return np.sqrt((row**2).sum())


def cosine(a, b):
    return min(1.0, float(a @ b / (norm(a) * norm(b)))) if norm(a) > 0 and norm(b) > 0 else 0.0


def close(found, expected, tolerance=1e-8):
    return np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


# What protocols remember


def participation(rng, rounds=6, clients=9):
    """The ids of each round: any few, in any order; the last clients come late."""
    return [rng.permutation(max(3, clients - rounds + turn))[: rng.integers(2, 5)] for turn in range(rounds)]


def split(rows):
    """The same rows in two blocks of both kinds, and the order that undoes it."""
    return [rows[2:], torch.from_numpy(rows[:2].copy())], [*range(len(rows) - 2, len(rows)), *range(len(rows) - 2)]


@pytest.mark.parametrize("blocks", [lambda rows: ([rows], None), split])
def test_histories_follow_the_clients(blocks):
    rng = np.random.default_rng(0)
    histories, past = {}, {}
    for ids in participation(rng):
        rows = rng.standard_normal((len(ids), 700)).astype(np.float32)
        held, order = blocks(rows)
        clear = ClearUpdates(held, order, histories=histories, clients=ids)
        before = {name: history.copy() for name, history in histories.items()}
        gram = clear.gram({"root": rows[0] + 1}, ("last", "sum"))
        sums = np.array([np.sum(past.get(i, [np.zeros(700)]), axis=0) for i in ids])
        last = np.array([past.get(i, [np.zeros(700)])[-1] for i in ids])
        for name, expected in (("sum", sums), ("last", last)):
            found = gram.histories[name]
            assert np.allclose(found.matrix, expected @ expected.T, rtol=1e-5, atol=1e-4)
            assert np.allclose(found.cross, rows @ expected.T, rtol=1e-5, atol=1e-4)
            assert np.allclose(found.anchors["root"], expected @ (rows[0] + 1), rtol=1e-5, atol=1e-3)
        histories = clear.remembered(("sum", "last"))
        for client, row in zip(ids, rows, strict=True):
            past.setdefault(client, []).append(row)
        for client in range(max(past) + 1):
            expected = past.get(client, [np.zeros(700)])
            assert np.allclose(histories["sum"][client], np.sum(expected, axis=0), atol=1e-5)
            assert np.array_equal(histories["last"][client], expected[-1])
        assert histories["sum"].dtype == np.float32
        for name, history in before.items():
            assert np.array_equal(clear.histories[name], history)


def test_the_products_with_histories_are_exact():
    rng = np.random.default_rng(1)
    rows, ids = rng.standard_normal((5, 3000)), np.array([7, 0, 3, 9, 2])
    kept = rng.standard_normal((8, 3000)).astype(np.float32)  # client 9 is new
    past = np.array([kept[i] if i < 8 else np.zeros(3000) for i in ids], dtype=np.float64)
    vectors = {"a": rng.standard_normal(3000), "b": rng.standard_normal(3000)}
    gram = ClearUpdates([rows], histories={"last": kept, "other": kept}, clients=ids).gram(vectors, ("none", "last"))
    assert np.allclose(gram.histories["none"].matrix, 0.0, rtol=0, atol=1e-9)
    assert np.allclose(gram.matrix, rows @ rows.T, rtol=1e-12, atol=1e-9)
    for name, vector in vectors.items():
        assert np.allclose(gram.anchors[name].products, rows @ vector, rtol=0, atol=1e-9)
    for mixing in (np.eye(5), rng.standard_normal((5, 5)), rng.random((2, 5))):
        mixed, before = gram.mixed(mixing).histories["last"], mixing @ past
        assert np.allclose(mixed.matrix, before @ before.T, rtol=0, atol=1e-8)
        assert np.allclose(mixed.cross, (mixing @ rows) @ before.T, rtol=0, atol=1e-8)
        for name, vector in vectors.items():
            assert np.allclose(mixed.anchors[name], before @ vector, rtol=0, atol=1e-8)


def test_subsets_and_shards_keep_whose_history_is_whose():
    rng = np.random.default_rng(2)
    d, ids = 3 * 4096, np.array([4, 1, 6, 2])
    rows, kept = rng.standard_normal((4, d)).astype(np.float32), rng.standard_normal((6, d)).astype(np.float32)
    rows[2, 5] = np.nan
    whole = ClearUpdates([rows], histories={"last": kept}, clients=ids)
    left = whole.subset(whole.finite_rows())
    expected = ClearUpdates([rows[[0, 1, 3]]], histories={"last": kept}, clients=ids[[0, 1, 3]])
    vectors = {"root": rng.standard_normal(d)}
    found, wanted = left.gram(vectors, ("last",)), expected.gram(vectors, ("last",))
    assert np.array_equal(found.histories["last"].cross, wanted.histories["last"].cross)
    after = left.remembered(("last",))["last"]
    assert np.array_equal(after[[4, 1, 2]], rows[[0, 1, 3]])
    assert np.array_equal(after[[0, 3, 5]], kept[[0, 3, 5]])
    parts = []
    for cut in shard_columns(d, 3):
        own = {"last": kept[:, cut]}
        parts.append(ClearUpdates([rows[:, cut]], histories=own, clients=ids, columns=(cut.start, d)))
    split = ShardedUpdates(parts).subset(np.array([0, 1, 3])).gram(vectors, ("last",))
    for name in ("matrix", "cross"):
        assert np.array_equal(getattr(split.histories["last"], name), getattr(wanted.histories["last"], name))
    assert np.array_equal(split.histories["last"].anchors["root"], wanted.histories["last"].anchors["root"])


def test_the_average_forgets_and_takes_no_row_at_more_than_the_median_length():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]], dtype=np.float32)  # lengths 5, 0, 2
    first = ClearUpdates([rows]).remembered(("average",))["average"]
    assert np.allclose(first, 0.1 * np.array([[1.2, 1.6], [0, 0], [0, 2]]), rtol=1e-6)
    ids = np.array([4, 0])
    again = ClearUpdates([rows[:2]], histories={"average": first}, clients=ids).remembered(("average",))["average"]
    assert np.allclose(again[4], 0.1 * np.array([1.5, 2.0]), rtol=1e-6)  # the median of 5 and 0 is 2.5
    assert np.allclose(again[0], 0.9 * first[0], rtol=1e-6)
    assert np.array_equal(again[1:4], [*first[1:], [0, 0]])  # who is away keeps its own


def test_a_history_that_grows_without_end_stays_finite():
    rows = np.full((2, 10), 3e38, dtype=np.float32)
    histories = ClearUpdates([rows]).remembered(("sum",))
    again = ClearUpdates([rows], histories=histories).remembered(("sum",))["sum"]
    assert np.isfinite(again).all()
    assert np.isfinite(
        ClearUpdates([-rows], histories={"sum": again}).gram(histories=("sum",)).histories["sum"].cross
    ).all()


def test_a_memory_carries_them():
    rng = np.random.default_rng(3)
    memory, pipeline = Memory(), Pipeline([Clip(), FoolsGold()])
    rounds = rng.integers(-5, 6, (3, 4, 20)).astype(np.float64)
    for rows in rounds:
        pipeline.aggregate(rows, memory=memory)
    assert memory.round == 3
    assert np.array_equal(memory.histories["sum"], rounds.sum(axis=0))  # of the updates as they came, not as clipped
    before = memory.histories["sum"].copy()
    pipeline.combination(rounds[0], memory=memory)
    pipeline.explain(rounds[0], memory=memory)
    assert np.array_equal(memory.histories["sum"], before)


# FoolsGold


def foolsgold(rows, past, prior, kappa=1.0):
    """`past`: the sums of the clients' earlier rows."""
    n = len(rows)
    total = rows + past
    cs = np.array([[cosine(total[i], total[j]) if i != j else 0.0 for j in range(n)] for i in range(n)])
    v = cs.max(axis=1)  # 0 on the diagonal: no similarity is below that of nobody
    for i, j in product(range(n), range(n)):
        if v[j] > v[i]:
            cs[i, j] *= v[i] / v[j]
    alpha = 1 - cs.max(axis=1)
    if alpha.max() <= 1e-12:
        return prior @ rows
    alpha = alpha / alpha.max()
    with np.errstate(divide="ignore"):
        alpha = np.clip(kappa * (np.log(alpha / (1 - alpha)) + 0.5), 0, 1)
    return (prior * alpha) @ rows / (prior * alpha).sum()


@pytest.mark.parametrize("kappa", [1.0, 0.3])
@pytest.mark.parametrize("kind", INSTANCES)
def test_foolsgold_follows_its_formula(kind, kappa):
    for n, d, f in SHAPES:
        rng, memory, past = np.random.default_rng(n), Memory(), np.zeros((n, d), dtype=np.float32)
        for _ in range(4):
            rows = INSTANCES[kind](rng, n, d, f)
            found = Pipeline([FoolsGold(kappa=kappa)]).aggregate(rows, f=f, memory=memory)
            assert close(found, foolsgold(rows, past, np.full(n, 1 / n), kappa)), (n, d, f)
            past = (past + rows).astype(np.float32)


@pytest.mark.parametrize("stages", [[], [Clip(radius=2.0)]])
def test_foolsgold_with_few_participants_of_a_round(stages):
    rng = np.random.default_rng(5)
    histories, past, pipeline = {}, {}, Pipeline([*stages, FoolsGold()])
    for ids in participation(rng, rounds=8):
        rows = np.round(rng.standard_normal((len(ids), 15)) * 64) / 64 + 0.5  # their sums are exact
        samples = rng.integers(1, 9, len(ids))
        protocol = ClearUpdates([rows], prior=samples, histories=histories, clients=ids)
        result = pipeline.run(protocol, Context(f=0, clients=ids))
        histories = protocol.remembered(pipeline.histories)
        before = np.array([np.sum(past.get(i, [np.zeros(15)]), axis=0) for i in ids])
        factors = np.array([[min(1.0, 2.0 / norm(row)) if stages else 1.0] for row in rows])
        expected = foolsgold(factors * rows, factors * before, samples / samples.sum())
        assert np.allclose(result.aggregate, expected, rtol=1e-5, atol=1e-6)
        assert np.allclose(result.weights @ rows, expected, rtol=0, atol=1e-9)
        for client, row in zip(ids, rows, strict=True):
            past.setdefault(client, []).append(row)


def test_foolsgold_turns_sybils_down_however_many_they_are():
    rng = np.random.default_rng(6)
    own, memory, pipeline = rng.standard_normal((4, 200)), Memory(), Pipeline([FoolsGold()])
    target = rng.standard_normal(200)
    for _ in range(5):
        honest = own + 0.3 * rng.standard_normal((4, 200))  # each hospital pulls its own way
        sybils = target + 0.1 * rng.standard_normal((8, 200))
        rows = np.vstack([honest, sybils])
        weights = pipeline.combination(rows, memory=memory).weights
        pipeline.aggregate(rows, memory=memory)
    assert np.allclose(weights, [0.25] * 4 + [0.0] * 8)


def test_foolsgold_on_iid_data_follows_who_points_elsewhere():
    rows = 5 + np.random.default_rng(7).standard_normal((10, 200))
    assert np.allclose(Pipeline([FoolsGold()]).combination(rows).weights, 0.1, atol=0.03)
    rows[3] = -rows[3]
    assert np.allclose(Pipeline([FoolsGold()]).combination(rows).weights, np.eye(10)[3])


def test_foolsgold_where_nobody_can_be_told_apart():
    row = np.random.default_rng(8).standard_normal(30)
    decided = Pipeline([FoolsGold()]).combination(np.outer([1.0, 2.0, 3.0], row), samples=[1, 2, 3])
    assert np.allclose(decided.weights, [1 / 6, 2 / 6, 3 / 6])
    assert decided.notes == ("foolsgold: all histories are parallel, so all count",)
    one = Pipeline([FoolsGold()]).combination(row[None])
    assert (one.weights.tolist(), one.notes) == ([1.0], ())


def test_foolsgold_of_a_history_that_cancels_out():
    rng = np.random.default_rng(19)
    first = rng.standard_normal((30, 17)).astype(np.float32)
    second = rng.standard_normal((30, 17)).astype(np.float32)
    second[:15] = -first[:15]  # nothing is left of these clients' histories but rounding, and that is like nobody's
    memory, pipeline = Memory(), Pipeline([FoolsGold()])
    pipeline.aggregate(first, memory=memory)
    (step,) = pipeline.explain(second, memory=memory)
    assert not step.scores[:15].any()
    assert step.scores[15:].all()


def test_foolsgold_scores_are_pardoned_cosines():
    rows = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    (step,) = Pipeline([FoolsGold()]).explain(rows)
    half = np.sqrt(0.5)
    assert np.allclose(step.scores, [1.0, 1.0, half * half, 0.0])  # the third is pardoned once, by half / 1


# AFA


def afa(rows, prior, good, bad, alpha=3.0, beta=3.0, xi=2.0, xi_step=0.5, delta=0.95):
    """The aggregate, the rows that are kept and those that had been blocked; `good`, `bad`: counts of each client."""
    n = len(rows)
    a, b = alpha + np.asarray(good), beta + np.asarray(bad)
    blocked = [beta_distribution.cdf(0.5, a[k], b[k]) > delta for k in range(n)]
    left = [k for k in range(n) if not blocked[k]]
    total = np.zeros(rows.shape[1])
    while left:
        weight = [prior[k] * a[k] / (a[k] + b[k]) for k in left]
        total = np.array(weight) @ rows[left] / sum(weight)
        if norm(total) < 1e-7 * max(norm(row) for row in rows[left]):
            total = 0 * total
        similar = [cosine(rows[k], total) for k in left]
        m, s = np.median(similar), np.std(similar)
        if np.mean(similar) < m - 1e-12:
            worse = [k for k, c in zip(left, similar, strict=True) if c < m - xi * s - 1e-12]
        else:
            worse = [k for k, c in zip(left, similar, strict=True) if c > m + xi * s + 1e-12]
        if not worse:
            break
        left, xi = [k for k in left if k not in worse], xi + xi_step
    return total, left, blocked


AFA_OPTIONS = {
    "defaults": {},
    "strict": {"xi": 0.5, "xi_step": 0.1, "delta": 0.6},
    "no slack": {"xi": 0.0, "xi_step": 0.3},
    "prior of trust": {"alpha": 1.0, "beta": 0.5, "xi": 1.0, "xi_step": 0.0, "delta": 0.8},
}


@pytest.mark.parametrize("options", AFA_OPTIONS)
@pytest.mark.parametrize("kind", INSTANCES)
def test_afa_follows_its_formula(kind, options):
    given = AFA_OPTIONS[options]
    dropped = blocks = 0
    for n, d, f in SHAPES:
        rng, memory = np.random.default_rng(n), Memory()
        good, bad = np.zeros(n), np.zeros(n)
        for _ in range(7):
            rows = INSTANCES[kind](rng, n, d, f)
            samples = rng.integers(1, 9, n)
            expected, left, blocked = afa(rows, capped_prior(samples, n), good, bad, **given)
            found = Pipeline([AFA(**given)]).aggregate(rows, samples=samples, f=f, memory=memory)
            assert close(found, expected), (n, d, f)
            for k in range(n):
                good[k] += k in left
                bad[k] += k not in left and not blocked[k]
            assert np.array_equal(memory.state["good"], good)
            assert np.array_equal(memory.state["bad"], bad)
            dropped, blocks = dropped + bad.sum(), blocks + sum(blocked)
    assert dropped > 0 or kind == "all_equal"
    assert blocks > 0 or options in ("defaults", "no slack") or kind == "all_equal"


def test_afa_with_clients_that_come_and_go():
    rng = np.random.default_rng(15)
    good, bad = np.zeros(9), np.zeros(9)
    state, pipeline = {}, Pipeline([AFA(xi=1.0, delta=0.7)])
    for turn in range(12):
        ids = rng.permutation(9 if turn > 5 else 6)[:5]
        rows = rng.standard_normal((5, 20)) + 1
        rows[ids == 4] *= -1
        expected, left, blocked = afa(rows, np.full(5, 0.2), good[ids], bad[ids], xi=1.0, delta=0.7)
        result = pipeline.run(ClearUpdates([rows], clients=ids), Context(f=0, clients=ids, state=state))
        assert np.allclose(result.aggregate, expected, rtol=0, atol=1e-6)
        assert np.allclose(result.weights @ rows, expected, rtol=0, atol=1e-10)
        state = result.state
        for k in range(5):
            good[ids[k]] += k in left
            bad[ids[k]] += k not in left and not blocked[k]
        known = len(state["good"])
        assert np.array_equal(state["good"], good[:known])
        assert np.array_equal(state["bad"], bad[:known])
        assert not good[known:].any()
    assert good[4] == 0


def test_afa_blocks_for_good_who_is_always_dropped():
    rng = np.random.default_rng(16)
    memory, pipeline = Memory(), Pipeline([AFA()])
    centre, notes = rng.standard_normal(100), []
    for turn in range(12):
        rows = centre + 0.3 * rng.standard_normal((10, 100))
        rows[7] = -rows[7] if turn < 8 else rows[7]  # too late
        decided = pipeline.combination(rows, memory=memory)
        notes += [(turn, note) for note in decided.notes]
        assert decided.weights[7] == 0
        pipeline.aggregate(rows, memory=memory)
    first = min(k for k in range(20) if beta_distribution.cdf(0.5, 3, 3 + k) > 0.95)
    assert notes == [(first - 1, "afa: blocked client 7")]
    assert memory.state["bad"][7] == first
    assert np.array_equal(memory.state["good"] > 9, np.arange(10) != 7)
    assert memory.state["good"][7] == 0


def test_afa_drops_the_more_similar_where_they_pull_the_mean():
    honest = [0.0, 1.0] + 0.02 * np.random.default_rng(17).standard_normal((9, 2))
    weights = Pipeline([AFA()]).combination(np.vstack([np.tile([100.0, 0.0], (2, 1)), honest]), f=2).weights
    assert weights[:2].tolist() == [0.0, 0.0]
    assert np.count_nonzero(weights) > 5


def test_afa_where_all_are_blocked_makes_no_step():
    state = {"good": np.zeros(3), "bad": np.full(3, 9.0)}
    result = Pipeline([AFA()]).run(ClearUpdates([np.ones((3, 4))]), Context(f=0, state=state))
    assert result.aggregate.tolist() == [0.0] * 4
    assert np.array_equal(result.state["bad"], state["bad"])


def test_afa_of_rows_that_cancel_drops_nobody():
    row = np.random.default_rng(18).standard_normal(50)
    decided = Pipeline([AFA()]).combination(np.array([row, -row, row, -row, 0 * row]))
    assert np.allclose(decided.weights, 0.2)


# All of them


@pytest.mark.parametrize("rule", [FoolsGold(kappa=0.3), AFA(xi=1.0, delta=0.6)])
def test_keeps_its_promises(rule):
    check_rule(rule)


def test_options():
    for values in ({"name": "foolsgold", "kappa": 2.0}, {"name": "afa", "xi": 1}):
        rule = Aggregation.model_validate({"rule": values, "weighting": "samples"}).rule
        assert rule.name == values["name"]
        assert rule.bound(3, 2) is None
    for values in (
        {"name": "foolsgold", "kappa": 0.0},
        {"name": "afa", "alpha": 0.0},
        {"name": "afa", "delta": 0.5},
        {"name": "afa", "xi": -1.0},
    ):
        with refused(ValidationError, path=".".join(["rule", values["name"], list(values)[1]])):
            Aggregation.model_validate({"rule": values})
