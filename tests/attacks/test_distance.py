"""Min-Max and Min-Sum against hand-computed numbers, the papers' halving search, and their own bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from refused import refused

from fedrobust.attacks import CollusiveAttack, MinMax, MinSum, SignFlip, View, draw_attackers

Direction = Literal["unit", "std", "sign"]
DIRECTIONS: tuple[Direction, ...] = ("unit", "std", "sign")


def view(others: Any, f: int = 2) -> View:
    others = np.asarray(others, dtype=np.float32)
    own = np.zeros((f, others.shape[1]), dtype=np.float32)
    return View(own, others, f + len(others), 1, np.random.default_rng(0))


def test_hand_computed_rows() -> None:
    others = [[0, 0], [2, 0], [4, 3]]  # mean 2 1, variances 8/3 2; squared distances 4 13 25, from the mean 5 1 8
    # Unit: (2, 1)/√5. Min-Sum: γ = √8. Min-Max: ‖μ + γp − u‖² = 25 for the third row, μ − u = (−2, −2):
    # γ² + 2γ · 6/√5 + 8 = 25.
    mean, unit = np.array([2, 1]), -np.array([2, 1]) / np.sqrt(5)
    (row, copy) = MinSum(count=2, direction="unit").craft(view(others))
    np.testing.assert_allclose(row, mean + np.sqrt(8) * unit, rtol=1e-6)
    np.testing.assert_array_equal(row, copy)
    gamma = -6 / np.sqrt(5) + np.sqrt(36 / 5 + 17)
    np.testing.assert_allclose(MinMax(count=2, direction="unit").craft(view(others))[0], mean + gamma * unit, atol=1e-6)
    std = -np.sqrt([8 / 3, 2])
    np.testing.assert_allclose(
        MinSum(count=2).craft(view(others))[0], mean + np.sqrt(8) * std / np.linalg.norm(std), rtol=1e-6
    )
    sign = -np.array([1, 1])
    np.testing.assert_allclose(MinSum(count=2, direction="sign").craft(view(others))[0], mean + 2.0 * sign, rtol=1e-6)


def halving(rows: np.ndarray, p: np.ndarray, allowed: Callable[[np.ndarray], bool]) -> np.ndarray:
    """The search of the paper: the step is halved, forward while it is allowed, backward where it is not."""
    mean = rows.mean(axis=0)
    gamma, step, best = 1e4, 1e4, 0.0
    for _ in range(80):
        step /= 2
        if allowed(mean + gamma * p):
            best = gamma
            gamma += step
        else:
            gamma -= step
    return np.asarray(mean + best * p)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_as_the_search_of_the_paper(direction: Direction, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(loc=0.3, size=(7, 40)).astype(np.float32).astype(np.float64)
    mean = rows.mean(axis=0)
    p = {"unit": -mean / np.linalg.norm(mean), "std": -rows.std(axis=0), "sign": -np.sign(mean)}[direction]
    between = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)

    def near(row: np.ndarray) -> bool:
        return bool(((rows - row) ** 2).sum(axis=1).max() <= between.max())

    def near_all(row: np.ndarray) -> bool:
        return bool(((rows - row) ** 2).sum() <= between.sum(axis=1).max())

    np.testing.assert_allclose(
        MinMax(count=2, direction=direction).craft(view(rows))[0], halving(rows, p, near), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        MinSum(count=2, direction=direction).craft(view(rows))[0], halving(rows, p, near_all), rtol=1e-5, atol=1e-6
    )


@given(
    rows=arrays(np.float32, (5, 6), elements=st.floats(-100, 100, width=32)),
    direction=st.sampled_from(DIRECTIONS),
)
def test_no_crafted_row_is_further_out_than_it_may(rows: np.ndarray, direction: Direction) -> None:
    between = ((rows[:, None].astype(np.float64) - rows[None]) ** 2).sum(axis=2)
    least = ((rows - rows.mean(axis=0, dtype=np.float64)) ** 2).sum()
    for attack, bound in (
        (MinMax(count=2, direction=direction), between.max()),
        (MinSum(count=2), between.sum(1).max()),
    ):
        row = attack.craft(view(rows))[0].astype(np.float64)
        squares = ((rows - row) ** 2).sum(axis=1)
        reached = squares.max() if isinstance(attack, MinMax) else squares.sum()
        assert reached <= bound + 1e-5 * max(1.0, float(np.abs(rows).max())) ** 2
        assert np.isfinite(row).all() and squares.sum() >= least - 1e-4 * max(1.0, float(least))


def test_distances_keep_their_digits_beside_a_large_common_part() -> None:
    deviations = np.float32(np.random.default_rng(0).integers(-8, 9, size=(6, 30)))
    for kind in (MinMax, MinSum):
        attack = kind(count=2, direction="std")  # no matter where the mean lies
        near, far = (attack.craft(view(deviations + common)) for common in (0, 4096))
        np.testing.assert_allclose(far - 4096, near, atol=2e-3)


@pytest.mark.parametrize("kind", [MinMax, MinSum])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_where_there_is_no_room_or_no_direction_the_mean_is_sent(
    kind: type[CollusiveAttack], direction: Direction
) -> None:
    attack = kind.model_validate({"count": 1, "direction": direction})
    equal = np.tile(np.float32([1, -2, 0]), (4, 1))
    np.testing.assert_array_equal(attack.craft(view(equal, 1)), equal[:1])
    np.testing.assert_array_equal(attack.craft(view(equal[:1], 1)), equal[:1])
    np.testing.assert_array_equal(attack.craft(view(np.zeros((3, 4)), 1)), np.zeros((1, 4)))


def test_a_mean_of_zero_has_no_direction() -> None:
    np.testing.assert_array_equal(MinMax(count=1, direction="unit").craft(view([[1, 2], [-1, -2]], 1)), [[0, 0]])


def test_with_the_knowledge_own_they_stay_within_their_own_spread() -> None:
    own = np.random.default_rng(1).normal(size=(4, 9)).astype(np.float32)
    seen = View(own, None, 10, 1, np.random.default_rng(0))
    for kind in (MinMax, MinSum):
        known = kind(count=4).craft(view(own))[0]
        np.testing.assert_array_equal(kind(count=4, knowledge="own").craft(seen)[0], known)
        with refused(path="attacks.1", says="2 attackers"):
            draw_attackers([SignFlip(count=1), kind(count=1, knowledge="own")], 8, 0)
