"""The attacks of Fang et al. against brute force, Krum itself, and hand-computed intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedrobust.aggregation import Krum, Median, Pipeline, TrimmedMean
from fedrobust.attacks import FangKrum, FangTrim, View


def view(own: Any, others: Any, seed: int = 0) -> View:
    own, others = np.float32(own), np.float32(others)
    return View(own, others, len(own) + len(others), 1, np.random.default_rng(seed))


def picks(row: np.ndarray, others: np.ndarray, f: int) -> bool:
    """Whether Krum, in loops, gives a copy of the row the strictly lowest score."""
    rows = [*others.astype(np.float64), *[row.astype(np.float64)] * f]
    scores = []
    for i, one in enumerate(rows):
        squares = sorted(float(((one - other) ** 2).sum()) for j, other in enumerate(rows) if j != i)
        scores.append(sum(squares[: len(rows) - f - 2]))
    return scores[-1] < min(scores[: len(others)])


def updates(seed: int, m: int, d: int = 25, common: float = 0.5) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.float32(common * draw.normal(size=d) + draw.normal(size=(m, d)))


@pytest.mark.parametrize(("m", "f"), [(7, 2), (9, 3), (12, 8), (16, 4), (6, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_factor_that_krum_picks(m: int, f: int, seed: int) -> None:
    others = updates(seed, m)
    sign = np.sign(others.mean(axis=0, dtype=np.float64))
    seen = view(np.zeros((f, 25)), others)
    rows = FangKrum(count=f).craft(seen)
    factor = FangKrum(count=f).reach(seen)
    assert factor > 0
    np.testing.assert_allclose(rows, np.tile(-factor * sign, (f, 1)), rtol=1e-6)
    assert picks(rows[0], others, f)
    assert not any(picks(-larger * sign, others, f) for larger in factor * np.linspace(1.001, 4, 100))


def test_krum_takes_the_crafted_row() -> None:
    others = updates(0, 14, d=3000)
    crafted = FangKrum(count=6).craft(view(np.zeros((6, 3000)), others))
    rows = np.concatenate([others, crafted])
    np.testing.assert_array_equal(Pipeline([Krum()]).aggregate(rows, f=6), crafted[0])
    noisy = FangKrum(count=6, noise=0.01).craft(view(np.zeros((6, 3000)), others))
    assert len(np.unique(noisy, axis=0)) == 6
    chosen = Pipeline([Krum()]).aggregate(np.concatenate([others, noisy]), f=6)
    assert (chosen == noisy).all(axis=1).any()


def test_where_krum_never_picks_it_they_send_what_they_trained() -> None:
    # Honest rows that agree, far from zero: whatever lies against their sign is far from all of them.
    own, others = np.full((1, 3), 7), np.float32(10 + np.eye(5)[:, :3] * 1e-3)
    assert FangKrum(count=1).reach(view(own, others)) == 0
    np.testing.assert_array_equal(FangKrum(count=1).craft(view(own, others)), own)


@pytest.mark.parametrize("others", [np.zeros((5, 3)), [[1, 2, 3]], [[1, 2, 3], [-1, -2, -3]], np.ones((4, 3))])
@pytest.mark.parametrize("f", [1, 2, 5])
def test_krum_degenerate_rounds(others: Any, f: int) -> None:
    assert np.isfinite(FangKrum(count=f).craft(view(np.ones((f, 3)), others))).all()
    assert np.isfinite(FangTrim(count=f).craft(view(np.ones((f, 3)), others))).all()


def test_trim_hand_computed_intervals() -> None:
    #        grows: least 1   grows: least −2   shrinks: most 3   shrinks: most −1   neither
    others = [[1, -2, 3, -1, 1], [4, 6, -8, -3, -1]]
    rows = FangTrim(count=2000).craft(view(np.zeros((2000, 5)), others))
    least, most = rows.min(axis=0), rows.max(axis=0)
    np.testing.assert_allclose(least, [0.5, -4, 3, -1, 0], atol=0.01)
    np.testing.assert_allclose(most, [1, -2, 6, -0.5, 0], atol=0.01)
    np.testing.assert_allclose(rows.mean(axis=0), [0.75, -3, 4.5, -0.75, 0], atol=0.05)  # uniform
    far = FangTrim(count=2000, b=10).craft(view(np.zeros((2000, 5)), others))
    np.testing.assert_allclose(far.min(axis=0), [0.1, -20, 3, -1, 0], atol=0.05)


@given(rows=arrays(np.float32, (8, 5), elements=st.floats(-1e3, 1e3, width=32)))
def test_trim_lies_beyond_every_honest_value_against_the_mean(rows: np.ndarray) -> None:
    own, others = rows[:3], rows[3:]
    crafted = FangTrim(count=3).craft(view(own, others))
    sign = np.sign(others.astype(np.float64).mean(axis=0))
    assert ((crafted <= others.min(axis=0)) | (sign <= 0)).all()
    assert ((crafted >= others.max(axis=0)) | (sign >= 0)).all()


def test_trim_moves_the_trimmed_mean_and_the_median_against_the_mean() -> None:
    others = updates(3, 8, d=400)
    crafted = FangTrim(count=3).craft(view(np.zeros((3, 400)), others))
    assert len(np.unique(crafted, axis=0)) == 3
    sign = np.sign(others.mean(axis=0))
    for rule in (TrimmedMean(), Median()):
        honest = Pipeline([rule]).aggregate(others, f=3)
        attacked = Pipeline([rule]).aggregate(np.concatenate([others, crafted]), f=3)
        assert ((attacked - honest) * sign <= 1e-6).all()
        assert ((attacked - honest) * sign).mean() < -0.2
