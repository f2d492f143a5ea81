"""Crafted updates against hand-computed numbers and direct formulas."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedrobust.attacks import Alie, CollusiveAttack, CraftedAttack, Gaussian, Ipm, NonFinite, SignFlip, View
from fedrobust.attacks.crafting import largest_hidden_shift

OWN = np.array([[1, 2, 3], [3, 2, -1]], dtype=np.float32)
OTHERS = np.array([[0, 4, 1], [2, 0, 1], [4, 2, 1]], dtype=np.float32)  # mean 2 2 1, deviation √(8/3) √(8/3) 0


def view(knowledge: str = "all", own: np.ndarray = OWN, others: np.ndarray = OTHERS, seed: int = 0) -> View:
    seen = others if knowledge == "all" else None
    return View(own, seen, len(own) + len(others), 1, np.random.default_rng(seed))


def test_sign_flip() -> None:
    own = SignFlip(count=2, scale=4).craft(view("own"))
    np.testing.assert_array_equal(own, [[-4, -8, -12], [-12, -8, 4]])
    everything = SignFlip(count=2, scale=4, knowledge="all").craft(view())
    np.testing.assert_array_equal(everything, [[-8, -8, -4]] * 2)


def test_ipm() -> None:
    np.testing.assert_array_equal(Ipm(count=2, epsilon=0.5).craft(view()), [[-1, -1, -0.5]] * 2)
    np.testing.assert_array_equal(Ipm(count=2, epsilon=0.5, knowledge="own").craft(view("own")), [[-1, -1, -0.5]] * 2)


def test_alie() -> None:
    deviation = np.sqrt(8 / 3)
    plus = [2 + 1.5 * deviation, 2 + 1.5 * deviation, 1]
    minus = [2 - 1.5 * deviation, 2 - 1.5 * deviation, 1]
    np.testing.assert_allclose(Alie(count=2, z=1.5).craft(view()), [plus] * 2, rtol=1e-6)
    np.testing.assert_allclose(Alie(count=2, z=1.5, direction="minus").craft(view()), [minus] * 2, rtol=1e-6)
    # From their own two rows: mean 2 2 1, deviation 1 0 2.
    np.testing.assert_allclose(Alie(count=2, z=1.5, knowledge="own").craft(view("own")), [[3.5, 2, 4]] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("n", "f", "z"),
    [
        (50, 12, 0.33604),  # s = 14: 24/38
        (20, 8, 0.67449),  # s = 3: 9/12, the upper quartile
        (20, 4, 0.15731),  # s = 7: 9/16
        (10, 2, 0.0),  # s = 4: 4/8
        (10, 4, 0.43073),  # s = 2: 4/6
        (10, 1, -0.13971),  # s = 5: 4/9
    ],
)
def test_alie_shift_of_the_paper(n: int, f: int, z: float) -> None:
    assert largest_hidden_shift(n, f) == pytest.approx(z, abs=1e-4)
    rows = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    honest = rows[f:].astype(np.float64)
    crafted = Alie(count=f).craft(view(own=rows[:f], others=rows[f:]))
    np.testing.assert_allclose(crafted[0], honest.mean(axis=0) + z * honest.std(axis=0), atol=1e-3)


def test_alie_shift_stays_finite_whoever_takes_part() -> None:
    shifts = [largest_hidden_shift(n, f) for n in range(1, 30) for f in range(1, n + 1)]
    assert np.isfinite(shifts).all()


def test_a_lone_alie_attacker_sends_what_it_trained() -> None:
    np.testing.assert_array_equal(Alie(count=2, z=1.5, knowledge="own").craft(view("own", own=OWN[:1])), OWN[:1])


def test_attackers_without_anyone_else_estimate_from_their_own_rows() -> None:
    alone = view(own=OWN, others=np.empty((0, 3), dtype=np.float32))
    np.testing.assert_array_equal(Ipm(count=2, epsilon=1).craft(alone), [[-2, -2, -1]] * 2)


def test_gaussian() -> None:
    own = np.zeros((2, 100_000), dtype=np.float32)
    rows = Gaussian(count=2, sigma=3).craft(view("own", own=own))
    assert rows.std(axis=1) == pytest.approx([3, 3], rel=0.02)
    assert np.abs(rows.mean(axis=1)).max() < 0.05  # five standard errors
    assert abs(np.corrcoef(rows)[0, 1]) < 0.02
    np.testing.assert_array_equal(rows, Gaussian(count=2, sigma=3).craft(view("own", own=own)))
    assert not np.array_equal(rows, Gaussian(count=2, sigma=3).craft(view("own", own=own, seed=1)))


@pytest.mark.parametrize(("kind", "value"), [("nan", np.nan), ("inf", np.inf), ("overflow", np.finfo(np.float32).max)])
def test_non_finite(kind: str, value: float) -> None:
    rows = NonFinite(count=2, kind=kind).craft(view("own"))
    changed = rows != OWN
    np.testing.assert_array_equal(changed.sum(axis=1), [1, 1])
    np.testing.assert_array_equal(rows[changed], np.float32([value, value]))


@pytest.mark.parametrize("kind", [Ipm, Alie, SignFlip])
def test_copies_may_differ_by_noise(kind: type[CollusiveAttack]) -> None:
    others = np.random.default_rng(1).normal(size=(4, 40_000)).astype(np.float32)
    own = np.ones((3, 40_000), dtype=np.float32)

    def sent(noise: float, seed: int = 0) -> np.ndarray:
        attack = kind.model_validate({"count": 3, "knowledge": "all", "noise": noise})
        return attack.craft(view(own=own, others=others, seed=seed)).astype(np.float64)

    plain, noisy = sent(0.0), sent(0.2)
    assert len(np.unique(plain, axis=0)) == 1
    added = noisy - plain
    np.testing.assert_allclose(np.linalg.norm(added, axis=1), 0.2 * np.linalg.norm(plain, axis=1), rtol=0.02)
    assert np.abs(np.corrcoef(np.vstack([added, plain[:1]])) - np.eye(4)).max() < 0.03
    np.testing.assert_array_equal(noisy, sent(0.2))
    assert not np.array_equal(noisy, sent(0.2, seed=1))


def test_noise_is_in_the_units_of_each_row() -> None:
    own = np.float32([[1], [100]]) * np.ones((2, 20_000), dtype=np.float32)
    added = SignFlip(count=2, noise=0.5).craft(view("own", own=own)) + own
    np.testing.assert_allclose(added.std(axis=1), [0.5, 50], rtol=0.02)
    zeros = np.zeros((2, 5), dtype=np.float32)
    np.testing.assert_array_equal(SignFlip(count=2, noise=0.5).craft(view("own", own=zeros)), zeros)


ROWS = arrays(np.float32, (7, 9), elements=st.floats(-1e3, 1e3, width=32))
EVERY = [
    *(kind(count=3, knowledge=knowledge) for kind in (SignFlip, Alie, Ipm) for knowledge in ("own", "all")),
    Ipm(count=3, noise=0.5),
    Gaussian(count=3),
    *(NonFinite(count=3, kind=kind) for kind in ("nan", "inf", "overflow")),
]


@given(rows=ROWS)
@pytest.mark.parametrize("attack", EVERY, ids=str)
def test_float32_rows_of_the_right_shape_and_nothing_changed(attack: CraftedAttack, rows: np.ndarray) -> None:
    before = rows.copy()
    crafted = attack.craft(view(attack.knowledge, own=rows[:3], others=rows[3:]))
    assert crafted.shape == (3, 9) and crafted.dtype == np.float32
    np.testing.assert_array_equal(rows, before)
    # A list of separate rows is as good as an array.
    listed = View(list(rows[:3]), list(rows[3:]) if attack.knowledge == "all" else None, 7, 1, np.random.default_rng(0))
    np.testing.assert_array_equal(attack.craft(listed), crafted)


@given(rows=ROWS, factor=st.sampled_from([0.25, 2.0, 64.0]))
@pytest.mark.parametrize("attack", [a for a in EVERY if isinstance(a, SignFlip | Alie | Ipm)], ids=str)
def test_attacks_scale_with_the_updates(attack: CraftedAttack, rows: np.ndarray, factor: float) -> None:
    small, large = (attack.craft(view(attack.knowledge, r[:3], r[3:])) for r in (rows, rows * np.float32(factor)))
    np.testing.assert_allclose(large, small * factor, rtol=1e-5, atol=1e-30)


def test_small_deviations_around_a_large_common_part_are_kept() -> None:
    rng = np.random.default_rng(0)
    rows = (1000 + rng.normal(size=(10, 50))).astype(np.float32)
    crafted = Alie(count=3, z=1.0).craft(view(own=rows[:3], others=rows[3:]))
    exact = rows[3:].astype(np.float64).std(axis=0)
    np.testing.assert_allclose(crafted[0] - rows[3:].astype(np.float64).mean(axis=0), exact, atol=1e-4)


@pytest.mark.parametrize("attack", [a for a in EVERY if isinstance(a, Alie | Ipm) and not a.noise], ids=str)
def test_memory_stays_far_below_a_copy_of_all_rows(attack: CraftedAttack) -> None:
    rows = np.ones((40, 400_000), dtype=np.float32)  # 64 MB; in float64 128 MB
    seen = view(attack.knowledge, own=rows[:16], others=rows[16:])
    attack.craft(seen)  # imports SciPy
    tracemalloc.start()
    attack.craft(seen)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_a_huge_factor_gives_infinity_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert np.isinf(SignFlip(count=2, scale=1e39).craft(view("own"))).all()
    assert np.isinf(Ipm(count=2, epsilon=1e39).craft(view())).all()
    assert not recwarn.list
