"""Attacks that try the defence: against a dense search, ByzFL's line search, and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import byzfl
import numpy as np
import pytest

from fedrobust.aggregation import NNM, GeometricMedian, Mean, Median, MultiKrum, Pipeline, TrimmedMean
from fedrobust.attacks import Ipm, OptimalAlie, OptimalIpm, SearchedAttack, View
from fedrobust.attacks.searched import worst

PIPELINES: dict[str, list[Any]] = {
    "trimmed mean": [TrimmedMean()],
    "median": [Median()],
    "multi-Krum": [MultiKrum()],
    "NNM, geometric median": [NNM(), GeometricMedian()],
}
KINDS = [OptimalIpm(count=4), OptimalAlie(count=4), OptimalAlie(count=4, direction="minus")]


def updates(seed: int = 0, n: int = 15, d: int = 60) -> np.ndarray:
    draw = np.random.default_rng(seed)
    spread = np.exp(0.5 * draw.normal(size=d))
    return np.float32(0.5 * draw.normal(size=d) + spread * draw.normal(size=(n, d)))


def row(attack: SearchedAttack, x: float, others: np.ndarray) -> np.ndarray:
    mean, deviation = others.astype(np.float64).mean(axis=0), others.astype(np.float64).std(axis=0)
    if isinstance(attack, OptimalAlie):
        return np.asarray(mean + (x if attack.direction == "plus" else -x) * deviation)
    return -x * mean


def damage(parts: list[Any], crafted: np.ndarray, others: np.ndarray) -> float:
    aggregate = Pipeline(parts).aggregate(np.concatenate([crafted, others.astype(np.float64)]), f=len(crafted))
    return float(np.linalg.norm(aggregate - others.astype(np.float64).mean(axis=0)))


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("attack", KINDS, ids=str)
def test_no_row_of_a_dense_search_does_much_more_damage(
    name: str, attack: SearchedAttack, aware: Callable[..., View]
) -> None:
    parts, rows = PIPELINES[name], updates()
    sent = attack.craft(aware(rows[:4], rows[4:], parts))
    assert sent.dtype == np.float32 and len(np.unique(sent, axis=0)) == 1
    most = max(damage(parts, np.tile(row(attack, x, rows[4:]), (4, 1)), rows[4:]) for x in np.geomspace(0.02, 10, 50))
    assert damage(parts, sent.astype(np.float64), rows[4:]) >= 0.97 * most
    # It lies on the line.
    unit = row(attack, 1, rows[4:]) - row(attack, 0, rows[4:])
    x = (sent[0] - row(attack, 0, rows[4:])) @ unit / (unit @ unit)
    assert 0 < x <= 10
    np.testing.assert_allclose(sent[0], row(attack, x, rows[4:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attack", KINDS, ids=str)
def test_the_mean_is_moved_furthest_by_the_end_of_the_range(attack: SearchedAttack, aware: Callable[..., View]) -> None:
    rows = updates()
    np.testing.assert_allclose(
        attack.craft(aware(rows[:4], rows[4:], [Mean()])), [row(attack, 10, rows[4:])] * 4, rtol=1e-4, atol=1e-4
    )
    ends = type(attack).model_validate({"count": 4, "largest": 3.0}).craft(aware(rows[:4], rows[4:], [Mean()]))
    np.testing.assert_allclose(ends, [row(type(attack)(count=4), 3, rows[4:])] * 4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("theirs", "parts"),
    [(byzfl.TrMean(4), [TrimmedMean()]), (byzfl.Median(), [Median()])],
    ids=["trimmed mean", "median"],
)
def test_as_harmful_as_what_byzfl_finds(theirs: Any, parts: list[Any], aware: Callable[..., View]) -> None:
    rows = updates(seed=1)
    honest = rows[4:].astype(np.float64)
    # ByzFL's search has no end: it finds factors of some hundreds.
    pairs = [
        (byzfl.Optimal_InnerProductManipulation, OptimalIpm(count=4, largest=1000)),
        (byzfl.Optimal_ALittleIsEnough, OptimalAlie(count=4, largest=1000)),
    ]
    for search, attack in pairs:
        found = search(agg=theirs, pre_agg_list=[], f=4)(honest)
        ours = attack.craft(aware(rows[:4], rows[4:], parts)).astype(np.float64)
        assert damage(parts, ours, rows[4:]) >= 0.99 * damage(parts, np.tile(found, (4, 1)), rows[4:])


def test_the_best_ipm_is_better_than_a_usual_one(aware: Callable[..., View]) -> None:
    rows, parts = updates(), PIPELINES["NNM, geometric median"]
    seen = aware(rows[:4], rows[4:], parts)
    usual, best = (attack.craft(seen).astype(np.float64) for attack in (Ipm(count=4), OptimalIpm(count=4)))
    assert damage(parts, best, rows[4:]) > 1.1 * damage(parts, usual, rows[4:])


def test_the_defence_is_asked_for_the_rows_that_are_sent(aware: Callable[..., View]) -> None:
    rows = updates(d=400)
    for attack in (OptimalIpm(count=4, noise=0.4), OptimalAlie(count=4, noise=0.4), OptimalIpm(count=4)):
        seen = aware(rows[:4], rows[4:], PIPELINES["NNM, geometric median"])
        sent, preview = attack.craft(seen), seen.preview
        asked = max(preview.asked, key=lambda pair: pair[1])[0]
        lines = np.concatenate([rows, preview.extra])
        np.testing.assert_allclose(sent, asked @ lines, rtol=1e-4, atol=1e-4)
        assert len(np.unique(sent, axis=0)) == (4 if attack.noise else 1)
        assert len(preview.asked) <= attack.evaluations + 1


def test_noise_has_the_length_it_should(aware: Callable[..., View]) -> None:
    rows = updates(d=10_000)
    plain, noisy = (OptimalIpm(count=4, noise=noise).craft(aware(rows[:4], rows[4:], [Mean()])) for noise in (0.0, 0.3))
    added = noisy - plain
    np.testing.assert_allclose(np.linalg.norm(added, axis=1) / np.linalg.norm(plain, axis=1), 0.3, rtol=0.05)
    assert np.abs(np.corrcoef(added) - np.eye(4)).max() < 0.06


def test_it_is_deterministic(aware: Callable[..., View]) -> None:
    rows = updates()
    first, second, other = (
        OptimalAlie(count=4, noise=0.1).craft(aware(rows[:4], rows[4:], [Median()], seed=seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_the_search() -> None:
    assert worst(lambda x: -((x - 2.5) ** 2), 10, 30) == pytest.approx(2.5, abs=0.01)
    assert worst(lambda x: x, 10, 12) == 10
    assert worst(lambda x: 0.0, 10, 12) == 0.1  # nothing does damage: the first of equals
    # A cliff: the defence throws out everything beyond it.
    cliff = worst(lambda x: x if x < 1.7 else 0.0, 10, 30)
    assert 1.5 < cliff < 1.7


def test_a_search_that_finds_no_number_ends(aware: Callable[..., View]) -> None:
    rows = updates()
    seen = aware(rows[:4], rows[4:], [Mean()])
    seen.preview.damage = lambda crafted: float("nan")
    assert np.isfinite(OptimalIpm(count=4).craft(seen)).all()


@pytest.mark.parametrize("attack", KINDS, ids=str)
@pytest.mark.parametrize("others", [np.zeros((5, 3)), np.ones((3, 3)), [[1, 2, 3]]])
def test_degenerate_rounds(attack: SearchedAttack, others: Any, aware: Callable[..., View]) -> None:
    assert np.isfinite(attack.craft(aware([[1, 0, 2]], others, [Mean()]))).all()


def test_where_nobody_else_takes_part_they_send_what_they_trained(aware: Callable[..., View]) -> None:
    own = np.float32([[1, 2], [3, 4]])
    seen = aware(own, np.empty((0, 2)), [Mean()])
    np.testing.assert_array_equal(OptimalIpm(count=2).craft(seen), own)
