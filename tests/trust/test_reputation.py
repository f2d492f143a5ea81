"""Reputation on hand-computed numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrobust.trust import BetaReputation


def test_beta_on_hand_computed_numbers() -> None:
    beta = BetaReputation(forgetting=0.5)
    state = beta.start(4)
    np.testing.assert_array_equal(beta.value(state), [0.5] * 4)
    # Client 1 scores 0.2, client 2 is rejected, clients 0 and 3 are absent.
    state = beta.update(state, {1: 0.2, 2: 1.0})
    np.testing.assert_allclose(state["good"], [0, 0.8, 0, 0])
    np.testing.assert_allclose(state["bad"], [0, 0.2, 1, 0])
    np.testing.assert_allclose(beta.value(state), [0.5, 1.8 / 3, 1 / 3, 0.5])
    # Then client 1 scores 1 and client 3 scores 0: 0.4 + 0, 0.1 + 1.
    state = beta.update(state, {3: 0.0, 1: 1.0})
    np.testing.assert_allclose(state["good"], [0, 0.4, 0, 1])
    np.testing.assert_allclose(state["bad"], [0, 1.1, 1, 0])
    np.testing.assert_allclose(beta.value(state), [0.5, 1.4 / 3.5, 1 / 3, 2 / 3])


def test_suspected_are_those_below_the_threshold() -> None:
    beta = BetaReputation(threshold=0.4)
    state = {"good": np.array([2.0, 1.0, 0.0, 0.0]), "bad": np.array([2.0, 2.0, 0.0, 3.0])}  # 0.5, 0.4, 0.5, 0.2
    assert beta.suspected(state) == [3]
    assert beta.suspected(beta.start(4)) == []
    assert all(isinstance(client, int) for client in beta.suspected(state))


def test_updating_is_pure() -> None:
    beta = BetaReputation()
    state = beta.update(beta.start(3), {0: 0.5})
    for values in state.values():
        values.flags.writeable = False
    after = beta.update(state, {0: 0.9, 2: 0.1})
    again = beta.update(state, {2: 0.1, 0: 0.9})
    for name in state:
        np.testing.assert_array_equal(after[name], again[name])
        assert after[name].dtype == np.float64 and after[name].shape == (3,)
    np.testing.assert_array_equal(beta.update(state, {})["good"], state["good"])


@given(score=st.floats(0, 1), rounds=st.integers(1, 5))
def test_without_forgetting_evidence_adds_up(score: float, rounds: int) -> None:
    beta = BetaReputation(forgetting=1.0)
    state = beta.start(1)
    for _ in range(rounds):
        state = beta.update(state, {0: score})
    assert beta.value(state)[0] == pytest.approx((rounds * (1 - score) + 1) / (rounds + 2))


@given(score=st.floats(0, 1))
def test_the_standing_of_a_constant_score_is_as_documented(score: float) -> None:
    beta = BetaReputation()
    state = beta.start(1)
    for _ in range(300):
        state = beta.update(state, {0: score})
    assert beta.value(state)[0] == pytest.approx((11 - 10 * score) / 12, abs=1e-9)


@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=30), better=st.floats(0, 1))
def test_reputation_stays_in_range_and_a_lower_score_never_harms(scores: list[float], better: float) -> None:
    beta = BetaReputation()
    state = beta.start(2)
    for score in scores:
        state = beta.update(state, {0: score, 1: score * better})
    first, second = beta.value(state)
    assert 0 < first < 1 and second >= first - 1e-12


def test_a_betrayer_loses_its_standing_and_a_penitent_regains_it() -> None:
    beta = BetaReputation()
    state = beta.start(1)

    def rounds(score: float, suspected: bool) -> int:
        nonlocal state
        count = 0
        while bool(beta.suspected(state)) is not suspected:
            state = beta.update(state, {0: score})
            count += 1
        return count

    for _ in range(10):
        state = beta.update(state, {0: 0.1})
    # α = 9 (1 − 0.9¹⁰) = 5.86, β = 0.65. After k bad rounds α = 5.86 · 0.9ᵏ, β = 10 − 9.35 · 0.9ᵏ:
    # the reputation is 0.405 at k = 6 and 0.37 at k = 7.
    assert rounds(1.0, suspected=True) == 7
    assert rounds(0.1, suspected=False) == 1
