"""ROP against its formula, written out as the authors do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedrobust.attacks import Rop, View

OWN = np.float32(np.random.default_rng(5).normal(size=(2, 30)))
OTHERS = np.float32(np.random.default_rng(6).normal(size=(6, 30)) + 0.5)
STEP = np.float32(np.random.default_rng(7).normal(size=30))


def view(own: Any = OWN, others: Any = OTHERS, step: Any = STEP) -> View:
    return View(own, others, len(own) + len(OTHERS), 3, np.random.default_rng(0), None, step)


def written_out(
    rows: np.ndarray, step: np.ndarray, z: float, reference: float, relocation: float, angle: float
) -> np.ndarray:
    mean = rows.astype(np.float64).mean(axis=0)
    ud = reference * step + (1 - reference) * mean
    pert = np.ones_like(mean)
    pert -= ud * (pert @ ud) / (ud @ ud)
    pert /= np.linalg.norm(pert)
    pert = pert * np.sin(np.radians(angle)) + ud / np.linalg.norm(ud) * np.cos(np.radians(angle))
    spread = np.sqrt(((rows - mean) ** 2).sum(axis=1).mean())
    return np.asarray(relocation * step + (1 - relocation) * mean + z * spread * pert)


@pytest.mark.parametrize("angle", [0, 90, 180, 225, 270])
@pytest.mark.parametrize(("reference", "relocation", "z"), [(0.9, 1, 1), (0.5, 0.3, 2), (1, 0, 0.1), (0, 0.5, 1)])
def test_the_formula(angle: float, reference: float, relocation: float, z: float) -> None:
    attack = Rop(count=2, z=z, reference=reference, relocation=relocation, angle=angle)
    expected = written_out(OTHERS, STEP.astype(np.float64), z, reference, relocation, angle)
    np.testing.assert_allclose(attack.craft(view()), [expected] * 2, rtol=1e-5, atol=1e-5)
    own = Rop(count=2, z=z, reference=reference, relocation=relocation, angle=angle, knowledge="own")
    expected = written_out(OWN, STEP.astype(np.float64), z, reference, relocation, angle)
    np.testing.assert_allclose(own.craft(view(others=None)), [expected] * 2, rtol=1e-5, atol=1e-5)


def test_the_perturbation_is_at_a_right_angle_to_the_momentum() -> None:
    row = Rop(count=2, reference=1).craft(view())[0].astype(np.float64)
    assert abs((row - STEP) @ STEP) < 1e-4
    spread = np.sqrt(((OTHERS - OTHERS.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert np.linalg.norm(row - STEP) == pytest.approx(spread, rel=1e-5)


def test_in_the_first_round_the_mean_stands_for_the_momentum() -> None:
    mean = OTHERS.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(
        Rop(count=2).craft(view(step=None))[0], written_out(OTHERS, mean, 1, 0.9, 1, 90), rtol=1e-5, atol=1e-5
    )


def test_degenerate_rounds() -> None:
    zeros, ones = np.zeros((3, 4), dtype=np.float32), np.ones((3, 4), dtype=np.float32)
    np.testing.assert_array_equal(Rop(count=1).craft(view(zeros[:1], zeros, zeros[0])), zeros[:1])
    # All ones: nothing is left at a right angle, and rows that are equal leave no room.
    np.testing.assert_array_equal(Rop(count=1).craft(view(ones[:1], ones, ones[0])), ones[:1])
    alone = Rop(count=1, knowledge="own").craft(view(np.float32([[3, 4, 0, 0]]), None, np.float32([3, 4, 0, 0])))
    assert np.linalg.norm(alone[0] - [3, 4, 0, 0]) == pytest.approx(5, rel=1e-6)  # δ is the row's norm
