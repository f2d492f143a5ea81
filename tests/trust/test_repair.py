"""When the coordinator repairs, and how many steps it makes."""

from __future__ import annotations

import numpy as np
import pytest

from fedrobust.trust import Repair

LABELS, PATIENTS = np.arange(60) % 2, np.arange(60) // 3


@pytest.mark.parametrize(("every", "rounds"), [(None, [10]), (4, [4, 8, 10]), (5, [5, 10]), (30, [10])])
def test_a_repair_is_due_every_so_many_rounds_and_at_the_end(every: int | None, rounds: list[int]) -> None:
    assert [round for round in range(1, 11) if Repair(every=every).due(round, 10)] == rounds


@pytest.mark.parametrize(("steps", "tried"), [(100, [10, 30, 60, 100]), (3, [1, 2, 3]), (1, [1])])
def test_fewer_steps_are_tried_too(steps: int, tried: list[int]) -> None:
    assert Repair(steps=steps).tried() == tried


def marks(loss: float, wrong: int, seed: int = 0) -> np.ndarray:
    """Loss and error of each patch, of which so many are `wrong`."""
    draw = np.random.default_rng(seed)
    return np.stack([loss + 0.01 * draw.standard_normal(60), (np.arange(60) % 20 < wrong // 3).astype(float)])


@pytest.mark.parametrize(
    ("after", "chosen"),
    [
        ({10: marks(0.4, 6, 1), 30: marks(0.3, 6, 2), 60: marks(0.3, 3, 3)}, 60),  # all better
        ({10: marks(0.4, 6, 1), 30: marks(0.6, 6, 2), 60: marks(0.9, 6, 3)}, 10),  # the loss rises
        ({10: marks(0.4, 30, 1), 30: marks(0.4, 30, 2)}, 0),  # the loss falls, and more are wrong
        ({10: np.full((2, 60), np.nan), 30: marks(0.4, 6, 2)}, 30),  # not finite
        ({}, 0),
    ],
)
def test_the_most_steps_that_do_no_harm_are_made(after: dict[int, np.ndarray], chosen: int) -> None:
    assert Repair().chosen(marks(0.5, 6), after, LABELS, PATIENTS) == chosen
