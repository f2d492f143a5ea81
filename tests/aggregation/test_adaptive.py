"""The rule `adaptive`: what it makes of copies, of patient lies, of betrayers, and of who comes and goes."""

from __future__ import annotations

import numpy as np
import pytest

from fedrobust.aggregation import Adaptive, Context, Gram, History, Memory, Pipeline
from fedrobust.aggregation.rules.adaptive import alike, consensus, moving_averages, neighbours, told_apart

N, F, D = 20, 8, 300


def honest(rng, part, rows=N - F):
    """`rows` updates: `part`, what is peculiar to each hospital, and the noise of a round."""
    common = np.zeros(D)
    common[0] = 1.0
    return common + part[:rows] + 0.5 * rng.standard_normal((rows, D)) / np.sqrt(D)


def peculiar(rng):
    """(N, D) what sets the hospitals apart in every round, half as long as what they share."""
    return 0.5 * rng.standard_normal((N, D)) / np.sqrt(D)


def played(attack, rounds, rng, **options):
    """The weights (rounds, N), the attackers last; `attack(good, own, round)` makes their rows."""
    pipeline, memory, part, found = Pipeline([Adaptive(**options)]), Memory(), peculiar(rng), []
    for number in range(1, rounds + 1):
        good = honest(rng, part)
        own = honest(rng, part[N - F :], F)
        rows = np.vstack([good, attack(good, own, number)])
        found.append(pipeline.combination(rows, memory=memory).weights)
        pipeline.aggregate(rows, memory=memory)
    return np.array(found)


def share(weights):
    """The part of the weight (rounds,) that attackers have."""
    return weights[:, N - F :].sum(axis=1) / weights.sum(axis=1)


def test_averages_are_those_of_the_rows_themselves():
    rng = np.random.default_rng(0)
    rows, past = rng.standard_normal((5, 7)), rng.standard_normal((5, 7))
    past[3], rounds = 0.0, np.array([2.0, 3.0, 9.0, 1.0, 2.0])
    norms = np.linalg.norm(rows, axis=1)
    cut = rows * np.minimum(1.0, np.median(norms) / norms)[:, None]
    expected = (0.9 * past + 0.1 * cut) / (1.0 - 0.9 ** rounds[:, None])
    gram = Gram(rows @ rows.T, np.full(5, 0.2), histories={"average": History(past @ past.T, rows @ past.T)})
    np.testing.assert_allclose(moving_averages(gram, rounds).matrix, expected @ expected.T, atol=1e-12)
    np.testing.assert_allclose(expected[3], cut[3])  # a newcomer's average is its update


def test_rows_within_a_part_of_the_longer_norm_are_alike():
    rows = np.array([[10.0, 0.0], [10.0, 1.1], [10.0, 1.9], [0.0, 1.0]])
    near = alike(Gram(rows @ rows.T, np.full(4, 0.25)), 0.1)
    assert np.argwhere(near).tolist() == [[1, 2], [2, 1]]  # 0.8 ≤ 0.1 · 10.18, but 1.1 > 0.1 · 10.06


@pytest.mark.parametrize(
    ("groups", "left", "f"),
    [
        ([], 9, 4),
        ([[0, 1, 2]], 6, 2),  # two of the three are malicious at least: of 4 there are 2 left
        ([[0, 1], [2, 3]], 5, 2),
        ([[0, 1, 2, 3]], 5, 1),
        ([[0, 1, 2, 3, 4]], 9, 4),  # a majority: nobody can tell
    ],
)
def test_copies_are_told_apart_while_they_are_a_minority(groups, left, f):
    near = np.zeros((9, 9), dtype=bool)
    for group in groups:
        for one in group:
            near[one, [other for other in group if other != one]] = True
    kept, liars = told_apart(near)
    assert (kept.sum(), liars) == (left, f)


def test_neighbours_share_where_they_are_equally_far():
    line = np.array([0.0, 1.0, 2.0, 9.0])
    mixing = neighbours(np.subtract.outer(line, line) ** 2, 2, 0.0)
    third = np.array([[0.5, 0.5, 0, 0], [0.25, 0.5, 0.25, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(mixing, third)


def test_the_consensus_is_with_the_majority():
    rng = np.random.default_rng(1)
    rows = np.vstack([honest(rng, peculiar(rng)), -3.0 * honest(rng, peculiar(rng), F)])
    weights = consensus(rows @ rows.T, (N - 1) // 2)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[N - F :].sum() < 0.1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-161, 1e-160, 1e-150, 1.0, 1e140])
@pytest.mark.parametrize("rows", ["different", "equal", "on a line"])
def test_the_consensus_is_finite_at_every_scale(rows, scale):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        updates = scale * rng.standard_normal((5, 3))
        if rows == "equal":
            updates[:] = updates[0]
        if rows == "on a line":
            updates = np.outer(rng.uniform(0.5, 2, 5), updates[0])
        weights = consensus(updates @ updates.T, 2)
        assert np.isfinite(weights).all() and weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0])
def test_copies_have_no_weight(epsilon):
    rng = np.random.default_rng(2)
    weights = played(lambda good, own, _: np.tile(-epsilon * good.mean(axis=0), (F, 1)), 1, rng)
    assert (weights[:, N - F :] == 0).all()
    assert (weights[:, : N - F] > 0).sum() > 6


def test_a_lie_behind_fresh_noise_is_seen_over_rounds():
    rng = np.random.default_rng(3)

    def attack(good, own, number):
        noise = rng.standard_normal((F, D))
        return -0.5 * good.mean(axis=0) + 0.3 * noise / np.sqrt(D)

    assert share(played(attack, 15, rng))[5:].max() < 0.02


def test_a_betrayer_gains_little_by_its_good_name():
    rng = np.random.default_rng(4)
    weights = played(lambda good, own, number: own if number <= 10 else -4.0 * own, 14, rng)
    assert share(weights)[5:10].min() > 0.2  # while honest, it counts
    assert share(weights)[10:].max() < 0.05
    ignored = played(lambda good, own, number: own if number <= 10 else -4.0 * own, 11, rng, current=0.0)
    assert share(ignored)[10] > 0.2  # without the current round it would still count


def test_standing_fades_and_comes_back():
    rng = np.random.default_rng(5)
    rule, part, histories, state = Adaptive(), peculiar(rng), np.zeros((N, D)), {}
    course = []
    for number in range(1, 31):
        rows = honest(rng, part, N)
        if number <= 10:
            rows[-1] = -5.0 * rows[-1]
        matrix, cross, past = rows @ rows.T, rows @ histories.T, histories @ histories.T
        gram = Gram(matrix, np.full(N, 1 / N), histories={"average": History(past, cross)})
        decided = rule.combine(gram, Context(f=0, round=number, state=state))
        state = dict(decided.state)
        course.append(state["standing"][-1])
        norms = np.linalg.norm(rows, axis=1)
        histories = 0.9 * histories + 0.1 * rows * np.minimum(1.0, np.median(norms) / norms)[:, None]
    assert course[9] == pytest.approx(0.9**10, abs=0.05)
    assert course[29] > 0.6


def test_who_is_absent_keeps_its_standing():
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((4, 6))
    none = {"average": History(np.zeros((4, 4)), np.zeros((4, 4)))}
    gram = Gram(rows @ rows.T, np.full(4, 0.25), histories=none)
    state = {"standing": np.array([0.5, 0.25, 1.0]), "rounds": np.array([3.0, 4.0, 5.0])}
    decided = Adaptive().combine(gram, Context(f=0, clients=np.array([0, 2, 4, 5]), state=state))
    assert decided.state["standing"][1] == 0.25
    assert decided.state["rounds"].tolist() == [4.0, 4.0, 6.0, 0.0, 1.0, 1.0]


def test_priors_weigh():
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((6, 50))
    none = {"average": History(np.zeros((6, 6)), np.zeros((6, 6)))}
    uniform = Gram(rows @ rows.T, np.full(6, 1 / 6), histories=none)
    prior = np.array([1.0, 1e-9, 1.0, 1.0, 1.0, 1.0])
    assert Adaptive(reach=1.0).combine(uniform, Context(f=0)).weights[1] > 0.01
    assert Adaptive(reach=1.0).combine(uniform.weighted(prior), Context(f=0)).weights[1] < 1e-8


def test_the_longest_row_counts_five_medians():
    rows = np.diag([1.0, 1.0, 1.0, 100.0])
    none = {"average": History(np.zeros((4, 4)), np.zeros((4, 4)))}
    decided = Adaptive(reach=1.0).combine(Gram(rows @ rows.T, np.full(4, 0.25), histories=none), Context(f=0))
    assert np.linalg.norm(decided.weights[3] * rows[3]) <= 5.0
