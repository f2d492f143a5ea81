"""The judgement of a round: who counts, how much, and what is remembered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedrobust.aggregation import Aggregation, Combination, GeometricMedian
from fedrobust.trust import Trust
from fedrobust.trust.defence import Defence, DefenceMemory, Judgement
from fedrobust.updates import ClearUpdates, NotOpened

N, D = 10, 40
ACTS = {"acts": True, "quarantine": {"enter": 0.4, "leave": 0.5, "probation": 2}}


def defence(trust: dict[str, Any] | None = None, **aggregation: Any) -> Defence:
    settings = Aggregation.model_validate({"rule": "mean"} | aggregation)
    return Defence(settings, Trust.model_validate(trust or {}), N, seed=3)


def rows_of(round: int, bad: int | None = 4) -> np.ndarray:
    rows = np.random.default_rng(round).standard_normal((N, D)) + 2
    if bad is not None:
        rows[bad] *= -8
    return rows


def judged(made: Defence, memory: DefenceMemory, round: int, bad: int | None = 4, **more: Any) -> Judgement:
    return made.judge(memory, ClearUpdates([rows_of(round, bad)]), np.arange(N), round, **more)


def weights(judgement: Judgement) -> np.ndarray:
    assert judgement.decision is not None
    assert isinstance(judgement.decision.decided, Combination)
    return judgement.decision.decided.weights


def after(made: Defence, rounds: int, bad: int | None = 4) -> DefenceMemory:
    memory = made.start(N)
    for round in range(1, rounds + 1):
        memory = judged(made, memory, round, bad).memory
    return memory


def test_trust_that_does_not_act_changes_no_weight() -> None:
    made = defence()
    judgement = judged(made, after(made, 6), 7)
    assert judgement.kept.all()
    assert np.allclose(weights(judgement), 1 / N)
    assert judgement.memory.trust["quarantined"].tolist() == [0] * 4 + [1] + [0] * 5  # but it is recorded


def test_reputations_multiply_the_priors() -> None:
    made = defence(ACTS | {"quarantine": {"enter": 0, "leave": 0}})
    judgement = judged(made, after(made, 3), 4)
    reputation = made.trust.reputation.value(judgement.memory.trust)
    assert reputation[4] < 0.4
    assert np.allclose(weights(judgement), reputation / reputation.sum())


def test_a_rule_that_cannot_weigh_gets_no_reputations() -> None:
    made = defence(ACTS | {"quarantine": {"enter": 0, "leave": 0}}, rule="krum", f=1)
    assert np.allclose(judged(made, after(made, 3), 4).gram.prior, 1 / N)


def test_clients_in_quarantine_are_scored_but_do_not_count() -> None:
    made = defence(ACTS, rule="geometric_median")
    judgement = judged(made, after(made, 6), 7)
    assert judgement.kept.tolist() == [True] * 4 + [False] + [True] * 5
    assert judgement.scores.score[4] > 0.5
    kept = np.delete(rows_of(7), 4, axis=0)
    prior = np.delete(judgement.gram.prior, 4)
    expected = GeometricMedian().combine(ClearUpdates([kept], prior=prior).gram(), judgement.context).weights
    assert np.allclose(weights(judgement), np.insert(expected, 4, 0.0), atol=1e-6)


def test_who_behaves_again_comes_back_on_probation_with_half_its_weight() -> None:
    made = defence(ACTS)
    memory, inside = after(made, 6), []
    for round in range(7, 40):
        judgement = judged(made, memory, round, bad=None)
        memory = judgement.memory
        inside.append(bool(memory.trust["quarantined"][4]))
        if not inside[-1]:
            break
    assert inside[0] and not inside[-1]
    reputation = made.trust.reputation.value(memory.trust)
    others = np.delete(np.arange(N), 4)
    assert weights(judgement)[4] / weights(judgement)[0] == pytest.approx(0.5 * reputation[4] / reputation[0])
    for _ in range(2):
        round += 1
        judgement = judged(made, memory, round, bad=None)
        memory = judgement.memory
    assert memory.trust["probation"][4] == 0
    assert weights(judgement)[others].min() > weights(judgement)[4]


@pytest.mark.parametrize("f", [3, 0.3])
def test_quarantine_lowers_no_declared_f(f: float) -> None:
    made = defence(ACTS, rule="trimmed_mean", f=f)
    assert judged(made, made.start(N), 1, bad=None).context.f == 3
    later = judged(made, after(made, 6), 7)
    assert not later.kept[4]
    assert later.context.f == 3


def test_quarantine_leaves_the_rows_that_a_declared_f_needs() -> None:
    """Of ten rows f = 4 allows for one in quarantine, whatever the quorum: the best of the two is spared."""
    made = defence(ACTS, rule="trimmed_mean", f=4)
    memory = made.start(N)
    for round in range(1, 7):
        rows = rows_of(round)
        rows[7] *= -3
        judgement = made.judge(memory, ClearUpdates([rows]), np.arange(N), round)
        memory = judgement.memory
    assert judgement.context.f == 4 and judgement.skipped is None
    assert judgement.kept.sum() == 9
    value = made.trust.reputation.value(memory.trust)
    assert value[4] < 0.4 and value[7] < 0.4
    spared = [client for client in (4, 7) if judgement.kept[client]]
    assert spared == [max((4, 7), key=lambda client: (value[client], client))]
    assert memory.trust["quarantined"].sum() == 1  # what is recorded is what was done


def test_clients_that_were_rejected_are_not_of_the_quorum_of_quarantine() -> None:
    """Five of ten send no update: of the other five three stay, though all five are in disgrace."""
    made = defence(ACTS | {"quarantine": {"enter": 0.9, "leave": 0.95, "quorum": 0.5}})
    memory = made.start(N)
    judgement = made.judge(
        memory, ClearUpdates([rows_of(1, None)[:5]]), np.arange(5), 1, rejected=range(5, 10), malformed=5
    )
    assert judgement.kept.sum() == 3
    assert judgement.memory.trust["quarantined"][5:].all()


def test_too_few_left_for_the_rule_skip_the_round_but_scores_count() -> None:
    made = defence(rule="krum", f=0.4)
    judgement = made.judge(made.start(N), ClearUpdates([rows_of(1)[:5]]), np.arange(5), 1)
    assert judgement.decision is None
    assert "krum needs n ≥ 2f + 3" in str(judgement.skipped)
    assert judgement.memory.trust["good"][:5].all()


def test_rejected_clients_are_bad_evidence_and_absent_ones_none() -> None:
    made = defence()
    clients = np.array([0, 1, 2, 3, 4, 6, 8])
    memory = made.judge(made.start(N), ClearUpdates([rows_of(1, None)[clients]]), clients, 1, rejected=[5]).memory
    value = made.trust.reputation.value(memory.trust)
    assert value[5] < value[7] < value[0]
    assert value[7] == value[9] == made.trust.reputation.value(made.start(N).trust)[7]
    punished = made.unjudged(made.start(N), range(N), [5], "none is there").memory
    assert np.array_equal(made.trust.reputation.value(punished.trust)[5], value[5])


def test_a_judgement_changes_nothing_that_it_is_given() -> None:
    made = defence(ACTS, rule="foolsgold")
    memory = after(made, 3)
    before = {name: array.copy() for name, array in memory.trust.items()}
    first, second = judged(made, memory, 4), judged(made, memory, 4)
    assert np.array_equal(weights(first), weights(second))
    assert all(np.array_equal(array, memory.trust[name]) for name, array in before.items())


def test_who_is_always_strange_comes_back_on_parole_and_is_judged_anew() -> None:
    made = defence(ACTS | {"quarantine": {"enter": 0.4, "leave": 0.5, "probation": 2, "parole": 4}})
    memory, inside = made.start(N), []
    for round in range(1, 16):
        judgement = judged(made, memory, round)
        memory = judgement.memory
        inside.append(not judgement.kept[4])
        if round > 1 and inside[-2] and not inside[-1]:
            assert made.trust.reputation.value(memory.trust)[4] == 0.5
            others = np.delete(made.trust.reputation.value(memory.trust), 4)
            assert weights(judgement)[4] == pytest.approx(0.25 / (0.25 + others.sum()))  # one half, on probation
    assert inside == [True] * 4 + [False] + [True] * 4 + [False] + [True] * 4 + [False]


def test_a_detector_with_a_memory_gets_its_own_state_and_histories() -> None:
    made = defence(ACTS | {"detector": "consensus"}, rule="foolsgold")
    assert made.histories == ("sum", "average")
    memory, histories = made.start(N), {}
    for round in range(1, 4):
        clear = ClearUpdates([rows_of(round)], histories=histories)
        judgement = made.judge(memory, clear, np.arange(N), round)
        memory, histories = judgement.memory, clear.remembered(made.histories)
    assert memory.detector["rounds"].tolist() == [3] * N
    assert "rounds" not in memory.rule
    assert judgement.scores.score[4] > 0.9


class Silent(ClearUpdates):
    """Updates that show their Gram matrix, and open no sum."""

    def combine(self, combination: Combination) -> Any:
        raise NotOpened("the sum is refused")


def test_a_round_is_judged_and_carried_out_in_one_call() -> None:
    made = defence()
    rows = rows_of(1).astype(np.float32)
    memory = made.start(N)
    done = made.defend(memory, ClearUpdates([rows]), np.arange(N), 1)
    assert done.skipped is None and done.judgement is not None and done.aggregated is not None
    np.testing.assert_allclose(done.aggregated.aggregate, rows.mean(axis=0), rtol=1e-5)
    assert done.memory.previous is done.aggregated.aggregate and done.memory.step is None
    step = rows[0]
    assert done.stepped(step).step is step
    assert memory.previous is None  # nothing has changed before the caller keeps it


def test_where_no_aggregate_is_opened_the_judgement_stands() -> None:
    made = defence()
    done = made.defend(made.start(N), Silent([rows_of(1)]), np.arange(N), 1)
    assert done.skipped == "the sum is refused" and done.aggregated is None
    assert done.judgement is not None
    assert made.trust.reputation.value(done.memory.trust)[4] < 0.5


def test_where_all_are_rejected_nobody_is_to_blame() -> None:
    made = defence()
    one, everybody = (made.unjudged(made.start(N), range(N), who, "why") for who in ([5], range(N)))
    assert made.trust.reputation.value(one.memory.trust)[5] < made.trust.reputation.value(made.start(N).trust)[5]
    np.testing.assert_array_equal(everybody.memory.trust["bad"], made.start(N).trust["bad"])
    assert one.skipped == "why"


@pytest.mark.parametrize("rule", ["mean", "centered_clipping", "foolsgold"])
def test_a_checkpoint_gives_back_what_is_remembered(rule: str) -> None:
    made = defence(rule=rule)
    done = made.defend(made.start(N), ClearUpdates([rows_of(1).astype(np.float32)]), np.arange(N), 1)
    assert done.aggregated is not None
    memory = done.stepped(done.aggregated.aggregate)
    arrays = made.arrays(memory)
    again = made.arrays(made.memory(arrays, N))
    assert arrays.keys() == again.keys() and all(arrays[name] is again[name] for name in arrays)
    assert ("previous" in arrays) == (rule == "centered_clipping")
    assert made.arrays(made.memory({}, N)).keys() == made.arrays(made.start(N)).keys()
