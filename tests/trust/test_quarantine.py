"""Quarantine: who goes in, who comes out, and that enough are left."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused

from fedrobust.trust import BetaReputation, Quarantine, ReputationState


def run(quarantine: Quarantine, *rounds: list[float], state: ReputationState | None = None) -> ReputationState:
    """The state after rounds in which all take part and have these reputations."""
    state = state or quarantine.start(len(rounds[0]))
    for reputation in rounds:
        state = quarantine.update(state, np.array(reputation), range(len(reputation)))
    return state


def test_hysteresis() -> None:
    quarantine = Quarantine(enter=0.4, leave=0.6, probation=0, quorum=0.2)
    inside = []
    state = quarantine.start(4)
    np.testing.assert_array_equal(state["quarantined"], np.zeros(4))
    for reputation in (0.4, 0.39, 0.5, 0.6, 0.61, 0.5, 0.4, 0.3):
        state = run(quarantine, [reputation, 1, 1, 0.4], state=state)
        inside.append(int(state["quarantined"][0]))
        assert state["quarantined"][1:].tolist() == [0, 0, 0]
    assert inside == [0, 1, 1, 1, 0, 0, 0, 1]
    assert all(values.dtype == np.int64 for values in state.values())


def test_probation_ends_after_its_rounds_or_sends_back() -> None:
    quarantine = Quarantine(enter=0.2, leave=0.5, probation=2, quorum=0.1)
    state = run(quarantine, [0.1, 0.1, 0.1, 1], [0.6, 0.6, 0.6, 1])
    assert state["quarantined"].tolist() == [0, 0, 0, 0] and state["probation"].tolist() == [2, 2, 2, 0]
    # Below `leave`, though above `enter`: back at once. Just at it: it stays.
    state = run(quarantine, [0.45, 0.5, 0.7, 1], state=state)
    assert state["quarantined"].tolist() == [1, 0, 0, 0] and state["probation"].tolist() == [0, 1, 1, 0]
    # The last round of it, then none is left: now `enter` counts again.
    state = run(quarantine, [0.45, 0.49, 0.7, 1], state=state)
    assert state["quarantined"].tolist() == [1, 1, 0, 0] and state["probation"].tolist() == [0, 0, 0, 0]
    state = run(quarantine, [0.45, 0.45, 0.45, 1], state=state)
    assert state["quarantined"].tolist() == [1, 1, 0, 0]


def test_who_is_absent_stays_as_it_is() -> None:
    quarantine = Quarantine(enter=0.4, leave=0.5, probation=3, quorum=0.1)
    state = run(quarantine, [0.1, 0.1, 0.9, 0.9], [0.1, 0.6, 0.9, 0.9])
    assert state["quarantined"].tolist() == [1, 0, 0, 0] and state["probation"].tolist() == [0, 3, 0, 0]
    later = quarantine.update(state, np.array([0.9, 0.1, 0.1, 0.1]), [2, 3])
    assert later["quarantined"].tolist() == [1, 0, 1, 0]  # of clients 2 and 3 one stays
    assert later["probation"].tolist() == [0, 3, 0, 3]
    unchanged = quarantine.update(state, np.zeros(4), [])
    for name in state:
        np.testing.assert_array_equal(unchanged[name], state[name])


def test_the_quorum_stays_those_of_highest_reputation_and_of_equals_the_higher_ids() -> None:
    quarantine = Quarantine(enter=0.5, leave=0.6, probation=2, quorum=0.5)
    state = run(quarantine, [0.3, 0.1, 0.2, 0.2, 0.2, 0.9])
    assert state["quarantined"].tolist() == [0, 1, 1, 1, 0, 0]
    # Who was spared is on probation: when there is room, a reputation below `leave` sends it in.
    assert state["probation"].tolist() == [2, 0, 0, 0, 2, 0]
    state = run(quarantine, [0.55, 0.9, 0.9, 0.1, 0.55, 0.9], state=state)
    assert state["quarantined"].tolist() == [1, 0, 0, 1, 1, 0]
    assert state["probation"].tolist() == [0, 2, 2, 0, 0, 0]


def test_a_reputation_between_the_thresholds_does_not_free_whom_the_quorum_spared() -> None:
    quarantine = Quarantine(enter=0.3, leave=0.6, probation=0, quorum=0.5)
    state = run(quarantine, [0.1, 0.9, 0.9, 0.9])
    # Only clients 0 and 1 take part, and both are low: one of them has to stay.
    state = quarantine.update(state, np.array([0.2, 0.1, 0.9, 0.9]), [0, 1])
    assert state["quarantined"].tolist() == [0, 1, 0, 0]
    state = run(quarantine, [0.5, 0.1, 0.9, 0.9], state=state)
    assert state["quarantined"].tolist() == [1, 1, 0, 0]


def test_the_prior_is_the_reputation_and_half_of_it_on_probation() -> None:
    state = {"quarantined": np.array([0, 0, 1]), "probation": np.array([0, 2, 0])}
    np.testing.assert_allclose(Quarantine().prior(state, np.array([0.8, 0.6, 0.2])), [0.8, 0.3, 0.2])


@given(
    clients=st.integers(1, 12),
    quorum=st.floats(0.01, 1),
    probation=st.integers(0, 3),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_the_quorum_is_always_left_and_the_update_is_pure(
    clients: int, quorum: float, probation: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    quarantine = Quarantine(enter=0.5, leave=0.7, probation=probation, quorum=quorum)
    state = quarantine.start(clients)
    for _ in range(8):
        for values in state.values():
            values.flags.writeable = False
        present = np.flatnonzero(rng.random(clients) < 0.7)
        reputation = rng.integers(0, 5, size=clients) / 5
        after = quarantine.update(state, reputation, present.tolist())
        if len(present):
            left = int((after["quarantined"][present] == 0).sum())
            assert left >= max(1, math.ceil(quorum * len(present) - 1e-9))
        absent = np.setdiff1d(np.arange(clients), present)
        for name in state:
            np.testing.assert_array_equal(after[name][absent], state[name][absent])
        assert not (after["probation"][after["quarantined"] == 1]).any()
        out, inside = after["quarantined"][present] == 0, after["quarantined"][present] == 1
        if inside.any() and (spared := out & (reputation[present] < 0.5)).any():
            assert reputation[present][inside].max() <= reputation[present][spared].min()
        state = after


def test_a_whole_quorum_has_no_quarantine() -> None:
    assert run(Quarantine(quorum=1.0), [0.0, 0.0, 0.0])["quarantined"].tolist() == [0, 0, 0]


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with refused(path="leave", found="0.4", says="0.5"):
        Quarantine(enter=0.5, leave=0.4)
    assert Quarantine(enter=0.5, leave=0.5).leave == 0.5


def test_a_betrayer_goes_in_and_an_honest_client_with_a_spike_comes_back() -> None:
    """With the defaults: malice in every second round from the tenth on, beside one spike of a newcomer."""
    beta, quarantine = BetaReputation(), Quarantine()
    trust = beta.start(6) | quarantine.start(6)
    inside = []
    for turn in range(40):
        scores = dict.fromkeys(range(6), 0.2)
        scores[0] = 0.9 if turn >= 10 and turn % 2 == 0 else 0.2
        scores[1] = 0.9 if turn == 0 else 0.2
        trust |= beta.update(trust, scores)
        trust |= quarantine.update(trust, beta.value(trust), range(6))
        inside.append(trust["quarantined"].tolist())
    betrayer, newcomer = ([turn for turn in range(40) if inside[turn][client]] for client in (0, 1))
    assert betrayer == list(range(14, 40))  # from its third bad round on
    assert newcomer == [0, 1, 2, 3]
    assert not np.array(inside)[:, 2:].any()


def test_parole_comes_after_so_many_rounds_with_the_client() -> None:
    quarantine = Quarantine(parole=3, probation=2, quorum=0.2)
    state = run(quarantine, [0.1, 0.1, 1, 1])
    assert state["served"].tolist() == [1, 1, 0, 0]
    state = quarantine.update(state, np.array([0.1, 0.1, 1, 1]), [0, 2, 3])  # 1 is away, which does not count
    state = run(quarantine, [0.1, 0.1, 1, 1], state=state)
    assert state["served"].tolist() == [3, 2, 0, 0]
    assert quarantine.due(state, [0, 1, 2, 3]) == [0]
    assert quarantine.due(state, [1, 2, 3]) == []
    state = quarantine.update(state, np.array([0.5, 0.1, 1, 1]), range(4), paroled=[0])
    assert state["quarantined"].tolist() == [0, 1, 0, 0]
    assert state["probation"].tolist() == [2, 0, 0, 0]
    assert state["served"].tolist() == [0, 3, 0, 0]


def test_without_parole_who_is_in_stays_in() -> None:
    quarantine = Quarantine(parole=None, quorum=0.2)
    state = run(quarantine, *[[0.1, 1, 1]] * 50)
    assert state["quarantined"].tolist() == [1, 0, 0]
    assert quarantine.due(state, [0, 1, 2]) == []
