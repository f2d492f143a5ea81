"""Who sends what others made: mimics against an eigenvector of the covariance itself, free riders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedrobust.attacks import FreeRider, Mimic, View
from fedrobust.attacks.copies import furthest


def view(others: Any, step: Any = None, f: int = 2, clients: list[int] | None = None) -> View:
    others = np.float32(others)
    own = np.full((f, others.shape[1]), 9, dtype=np.float32)
    step = None if step is None else np.float32(step)
    return View(own, others, f + len(others), 2, np.random.default_rng(0), clients, step)


def test_a_mimic_copies_who_lies_furthest_along_the_largest_variance() -> None:
    # The second coordinate varies most; the first row has the largest norm, the third is furthest out along it.
    others = [[9, 0, 0], [9.1, 2, 0], [9, -6, 0.1], [9, 3, 0]]
    np.testing.assert_array_equal(Mimic(count=2).craft(view(others)), np.float32([others[2]] * 2))


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_that_of_the_covariance(seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(9, 30)) * np.geomspace(1, 5, 30) + 50
    away = np.float32(rows) - np.float32(rows).mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(away.T @ away)
    assert furthest(np.float32(rows)) == int(np.argmax(np.abs(away @ vectors[:, -1])))


def test_a_mimic_may_keep_to_one_hospital() -> None:
    others = np.random.default_rng(0).normal(size=(4, 6))
    seen = view(others, clients=[0, 3, 5, 8])
    sent = Mimic(count=2, client=5).craft(seen)
    np.testing.assert_array_equal(sent, [np.float32(others[2])] * 2)
    # Where it does not take part, or is one of them, the usual choice.
    np.testing.assert_array_equal(Mimic(count=2, client=4).craft(seen), Mimic(count=2).craft(seen))


def test_of_equal_hospitals_the_first_is_copied() -> None:
    assert furthest(np.ones((3, 4), dtype=np.float32)) == 0
    assert furthest(np.float32([[1, 2]])) == 0
    assert furthest(np.float32([[0, 1], [0, -1]])) == 0
    np.testing.assert_array_equal(Mimic(count=1).craft(view(np.zeros((3, 2)), f=1)), [[0, 0]])


def test_free_riders() -> None:
    seen = view(np.ones((3, 4)), step=[1, -2, 0, 3])
    np.testing.assert_array_equal(FreeRider(count=2).craft(seen), [[1, -2, 0, 3]] * 2)
    np.testing.assert_array_equal(FreeRider(count=2, update="zero").craft(seen), np.zeros((2, 4)))
    np.testing.assert_array_equal(FreeRider(count=2).craft(view(np.ones((3, 4)))), np.zeros((2, 4)))  # the first round


def test_free_riders_may_hide_in_noise() -> None:
    step = np.random.default_rng(2).normal(size=20_000)
    sent = FreeRider(count=2, noise=0.5).craft(view(np.ones((1, 20_000)), step=step))
    added = sent - np.float32(step)
    np.testing.assert_allclose(np.linalg.norm(added, axis=1) / np.linalg.norm(step), 0.5, rtol=0.02)
    assert abs(np.corrcoef(added)[0, 1]) < 0.05
