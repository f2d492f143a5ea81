"""Reputations on hand-computed numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrobust.options import members
from fedrobust.trust import BetaReputation, ExponentialAverage, Reputation, SubjectiveLogic, Trust

EVERY = [BetaReputation(), SubjectiveLogic(), ExponentialAverage()]
CLASSIC = BetaReputation(harshness=1, tolerance=0)


def after(reputation: Reputation, scores: Iterator[float] | list[float]) -> float:
    """The standing of one client after these scores."""
    state = reputation.start(1)
    for score in scores:
        state = reputation.update(state, {0: score})
    return float(reputation.value(state)[0])


def test_beta_on_hand_computed_numbers() -> None:
    beta = BetaReputation(forgetting=0.5, tolerance=0.5, harshness=4)
    state = beta.start(4)
    np.testing.assert_array_equal(beta.value(state), [0.5] * 4)
    # Client 1 scores 0.2, no bad evidence; client 2 is rejected; clients 0 and 3 are absent.
    state = beta.update(state, {1: 0.2, 2: 1.0})
    np.testing.assert_allclose(state["good"], [0, 1, 0, 0])
    np.testing.assert_allclose(state["bad"], [0, 0, 4, 0])
    np.testing.assert_allclose(beta.value(state), [0.5, 2 / 3, 1 / 6, 0.5])
    # Then client 1 scores 0.75, bad evidence one half, and client 3 scores 0.
    state = beta.update(state, {3: 0.0, 1: 0.75})
    np.testing.assert_allclose(state["good"], [0, 0.5 + 0.5, 0, 1])
    np.testing.assert_allclose(state["bad"], [0, 4 * 0.5, 4, 0])
    np.testing.assert_allclose(beta.value(state), [0.5, 2 / 5, 1 / 6, 2 / 3])


def test_subjective_logic_on_hand_computed_numbers() -> None:
    logic = SubjectiveLogic(forgetting=0.5, tolerance=0, kappa=0.3, uncertainty=2, base=0.5)
    state = logic.start(3)
    np.testing.assert_array_equal(logic.value(state), [0.5] * 3)
    # P = 0.3 · 0.8, N = 0.7 · 0.2: b = 0.24 / 2.38, u = 2 / 2.38. A rejected client: N = 0.7.
    state = logic.update(state, {0: 0.2, 1: 1.0})
    np.testing.assert_allclose(logic.value(state), [0.24 / 2.38 + 0.5 * 2 / 2.38, 0.5 * 2 / 2.7, 0.5])
    # P = 0.12, N = 0.07 + 0.7.
    state = logic.update(state, {0: 1.0})
    np.testing.assert_allclose(logic.value(state), [1.12 / 2.89, 1 / 2.7, 0.5])
    # All of the uncertainty counts as trust: a stranger has 1.
    assert SubjectiveLogic(base=1.0).value(logic.start(1))[0] == 1


def test_exponential_average_on_hand_computed_numbers() -> None:
    average = ExponentialAverage(forgetting=0.75, tolerance=0)
    state = average.update(average.start(3), {0: 0.2, 1: 1.0})
    np.testing.assert_allclose(average.value(state), [0.375 + 0.25 * 0.8, 0.375, 0.5])
    state = average.update(state, {0: 1.0})
    np.testing.assert_allclose(average.value(state), [0.75 * 0.575, 0.375, 0.5])
    # With a tolerance of one half, 0.2 is no bad evidence and 0.75 half of it.
    tolerant = ExponentialAverage(forgetting=0.75, tolerance=0.5)
    state = tolerant.update(tolerant.start(2), {0: 0.2, 1: 0.75})
    np.testing.assert_allclose(tolerant.value(state), [0.625, 0.5])


@pytest.mark.parametrize("reputation", EVERY)
def test_reputations_are_read_by_name(reputation: Reputation) -> None:
    assert Trust.model_validate({"reputation": reputation.name}).reputation == reputation
    written = {"name": reputation.name, "tolerance": 0.3}
    assert Trust.model_validate({"reputation": written}).reputation == type(reputation)(**written)  # type: ignore[arg-type]


def test_suspected_are_those_below_the_threshold() -> None:
    beta = BetaReputation(threshold=0.4)
    state = {"good": np.array([2.0, 1.0, 0.0, 0.0]), "bad": np.array([2.0, 2.0, 0.0, 3.0])}  # 0.5, 0.4, 0.5, 0.2
    assert beta.suspected(state) == [3]
    assert beta.suspected(beta.start(4)) == []
    assert all(isinstance(client, int) for client in beta.suspected(state))


@pytest.mark.parametrize("reputation", EVERY)
def test_updating_is_pure(reputation: Reputation) -> None:
    state = reputation.update(reputation.start(3), {0: 0.7})
    for values in state.values():
        values.flags.writeable = False
    later = reputation.update(state, {0: 0.9, 2: 0.1})
    again = reputation.update(state, {2: 0.1, 0: 0.9})
    for name in state:
        np.testing.assert_array_equal(later[name], again[name])
        assert later[name].dtype == np.float64 and later[name].shape == (3,)
        assert later[name][1] == reputation.start(3)[name][1]  # absent
        np.testing.assert_array_equal(reputation.update(state, {})[name], state[name])
    # What others keep in the same place is theirs.
    assert set(reputation.update(state | {"quarantined": np.zeros(3)}, {0: 0.5})) == set(state)


@given(score=st.floats(0, 1), rounds=st.integers(1, 5))
def test_without_forgetting_evidence_adds_up(score: float, rounds: int) -> None:
    classic = BetaReputation(forgetting=1.0, harshness=1, tolerance=0)
    assert after(classic, [score] * rounds) == pytest.approx((rounds * (1 - score) + 1) / (rounds + 2))
    logic = SubjectiveLogic(forgetting=1.0, tolerance=0)
    good, bad = 0.3 * rounds * (1 - score), 0.7 * rounds * score
    assert after(logic, [score] * rounds) == pytest.approx((good + 1) / (good + bad + 2))


@given(score=st.floats(0, 1))
def test_the_standing_of_a_constant_score_is_as_documented(score: float) -> None:
    bad = max(0.0, 2 * score - 1)
    assert after(BetaReputation(), [score] * 300) == pytest.approx((11 - 10 * bad) / (12 + 40 * bad), abs=1e-9)
    assert after(SubjectiveLogic(), [score] * 300) == pytest.approx((4 - 3 * bad) / (5 + 4 * bad), abs=1e-9)
    assert after(ExponentialAverage(), [score] * 300) == pytest.approx(1 - bad, abs=1e-9)


@pytest.mark.parametrize("reputation", [*EVERY, CLASSIC])
@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=30), better=st.floats(0, 1))
def test_reputation_stays_in_range_and_a_lower_score_never_harms(
    reputation: Reputation, scores: list[float], better: float
) -> None:
    first, second = after(reputation, scores), after(reputation, [score * better for score in scores])
    assert 0 <= first <= 1 and 0 <= second <= 1 and second >= first - 1e-12


def bad_rounds(reputation: Reputation, score: float, good_rounds_between: int) -> int | None:
    """How many rounds of malice it takes until who was honest for ten rounds is suspected; None: it never is."""
    state = reputation.start(1)
    for _ in range(10):
        state = reputation.update(state, {0: 0.1})
    for count in range(1, 60):
        state = reputation.update(state, {0: score})
        if reputation.suspected(state):
            return count
        for _ in range(good_rounds_between):
            state = reputation.update(state, {0: 0.1})
    return None


def test_a_betrayer_is_suspected_soon_even_if_it_behaves_in_every_second_round() -> None:
    # α = 10 (1 − 0.9¹⁰) = 6.51, β = 0. A score of 0.9 is e = 0.8: α ← 0.9 α + 0.2, β ← 0.9 β + 4.
    # 6.06, 4.00: 0.585; 5.66, 7.60: 0.436; 5.29, 10.84: 0.348.
    assert bad_rounds(BetaReputation(), 0.9, 0) == 3
    # With α ← 0.9 α + 1, β ← 0.9 β after each: 6.06, 4.00: 0.585; 6.01, 7.24: 0.460; 5.97, 9.86: 0.391.
    assert bad_rounds(BetaReputation(), 0.9, 1) == 3
    assert bad_rounds(BetaReputation(), 0.85, 1) == 4
    # The classic form: α = 9 (1 − 0.9¹⁰) = 5.86, β = 0.65; a score of 1 leaves 0.405 at k = 6 and 0.37 at k = 7.
    assert bad_rounds(CLASSIC, 1.0, 0) == 7
    assert bad_rounds(CLASSIC, 0.9, 0) == 8 and bad_rounds(CLASSIC, 1.0, 1) is None


def test_a_penitent_regains_its_standing() -> None:
    # From the bottom, α = 2, β = 40, after k good rounds α = 10 − 8 · 0.9ᵏ, β = 40 · 0.9ᵏ: equal at k = 14.9.
    malice = [0.9] * 200
    assert after(BetaReputation(), [*malice, *[0.1] * 14]) < 0.5 < after(BetaReputation(), [*malice, *[0.1] * 15])


def test_an_honest_client_with_rare_spikes_is_hardly_ever_suspected_and_never_for_long() -> None:
    rng, beta, clients = np.random.default_rng(0), BetaReputation(), 200
    state, suspected = beta.start(clients), []
    for _ in range(300):
        scores = np.where(
            rng.random(clients) < 0.1, rng.uniform(0.7, 1, size=clients), rng.uniform(0.2, 0.4, size=clients)
        )
        state = beta.update(state, dict(enumerate(scores.tolist())))
        suspected.append(beta.value(state) < beta.threshold)
    rounds = np.array(suspected[10:])
    assert rounds.mean() < 0.01
    assert not rounds.all(axis=0).any() and rounds.mean(axis=0).max() < 0.1


@pytest.mark.parametrize("name", sorted(members(Reputation)))
def test_who_is_forgiven_is_a_stranger_and_nobody_else_changes(name: str) -> None:
    reputation = members(Reputation)[name]()
    assert isinstance(reputation, Reputation)
    state = reputation.start(4)
    for _ in range(5):
        state = reputation.update(state, {0: 0.9, 1: 0.9, 2: 0.1, 3: 0.0})
    before = {key: values.copy() for key, values in state.items()}
    after = reputation.forgiven(state | {"other": np.ones(4)}, [1, 3])
    value, start = reputation.value(after), reputation.value(reputation.start(4))
    assert value[[1, 3]].tolist() == start[[1, 3]].tolist()
    assert value[[0, 2]].tolist() == reputation.value(state)[[0, 2]].tolist()
    assert set(after) == set(reputation.start(0))
    assert all(np.array_equal(values, state[key]) for key, values in before.items())
