"""The referee where a round opens one sum: hypotheses in turn, and a sum after which the loss is too high changes
nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from refused import refused

from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.secure.weights import least_support, support
from fedrobust.trust import Referee
from fedrobust.trust.referee import DEFENCE, REFERENCE, WORST, shares

LABELS, PATIENTS = np.arange(60) % 2, np.arange(60) // 2
HYPOTHESES = (DEFENCE, "mean", "rest")
START = 0.7


def played(
    falls: Mapping[str, float], rounds: int = 40, seed: int = 0, wobble: float = 0.01, referee: Referee | None = None
) -> tuple[list[str], list[bool], list[float]]:
    """The hypotheses that were opened, whether they were refused, and the loss of the model after each round.

    falls: hypothesis → by how much the loss falls with its sum, in the mean.
    wobble: standard deviation of what a round adds to that, the same for all patches; twice as much for each patch.
    """
    referee, draw = referee or Referee(), np.random.default_rng(seed)
    now = START + 0.1 * draw.standard_normal(len(LABELS))
    evidence: dict[str, np.ndarray] = {}
    opened, kept_out, losses = [], [], []
    for _ in range(rounds):
        name = referee.turn([each for each in HYPOTHESES if each in falls], evidence)
        after = now - falls[name] + wobble * (draw.standard_normal() + 2 * draw.standard_normal(len(LABELS)))
        ruling = referee.judged(name, now, after, LABELS, PATIENTS, evidence)
        now, evidence = now if ruling.refused else after, ruling.evidence
        opened.append(name)
        kept_out.append(bool(ruling.refused))
        losses.append(float(shares(LABELS) @ now))
    return opened, kept_out, losses


def test_the_defence_keeps_its_turn_while_its_sums_help() -> None:
    opened, refusals, losses = played({DEFENCE: 0.01, "mean": 0.01, "rest": -0.05})
    assert set(opened) == {DEFENCE} and not any(refusals)
    assert losses[-1] < START - 0.3


def test_a_defence_that_believes_the_attackers_is_overcome() -> None:
    for seed in range(5):
        opened, refusals, losses = played({DEFENCE: -0.04, "mean": 0.01, "rest": 0.01}, seed=seed)
        assert losses[-1] < START - 0.15
        # It is tried again after seven rounds or more, and refused again.
        turns = np.flatnonzero(np.array(opened) == DEFENCE)
        first = int(np.flatnonzero(refusals)[0])
        assert first < 4 and all(gap == 1 or gap >= 6 for gap in np.diff(turns[turns > first]))
        assert all(refusals[turn] for turn in turns[turns > first])


def test_the_rest_is_opened_where_defence_and_mean_fail() -> None:
    opened, _, losses = played({DEFENCE: -0.04, "mean": -0.04, "rest": 0.01})
    assert losses[-1] < START - 0.1 and opened.count("rest") > 20


def test_a_defence_that_recovers_has_its_turns_again() -> None:
    referee = Referee()
    evidence = {REFERENCE: np.full(60, 0.5), DEFENCE: np.array(1.0)}
    turns = []
    for _ in range(10):
        name = referee.turn(HYPOTHESES, evidence)
        evidence = referee.judged(name, np.full(60, 0.5), np.full(60, 0.5), LABELS, PATIENTS, evidence).evidence
        turns.append(name)
    assert turns == ["mean"] * 6 + [DEFENCE] * 4


@pytest.mark.parametrize("step", [0.002, 0.005, 0.02])
def test_small_lies_lead_no_further_than_the_patches_can_doubt(step: float) -> None:
    """Each one is within doubt of the model before it, but not all together."""
    for seed in range(5):
        _, refusals, losses = played(dict.fromkeys(HYPOTHESES, -step), 200, seed)
        assert any(refusals)
        assert losses[-1] < START + 0.06  # without refusals 1.1 at least


def test_where_all_were_refused_the_one_refused_least_is_opened() -> None:
    opened, refusals, losses = played(dict.fromkeys(HYPOTHESES, -0.2), 30)
    assert all(refusals) and losses[-1] == losses[0]
    assert [opened.count(name) for name in HYPOTHESES] == [10, 10, 10]


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e30])
def test_a_model_that_is_not_finite_is_refused(broken: float) -> None:
    before = np.full(60, START) + np.linspace(0, 0.1, 60)
    ruling = Referee().judged(DEFENCE, before, np.full(60, broken), LABELS, PATIENTS, {})
    assert ruling.refused and ruling.losses[DEFENCE] == pytest.approx(WORST)


def test_patches_of_one_patient_refuse_nothing() -> None:
    before, after = np.full(60, START), np.full(60, 9.0)
    ruling = Referee().judged(DEFENCE, before, after, LABELS, np.zeros(60, dtype=int), {})
    assert ruling.refused is False


def test_a_model_that_gets_better_is_not_refused_for_being_worse_than_the_reference() -> None:
    """No other model comes back here: training would end."""
    before, evidence = np.full(60, 1.0), {REFERENCE: np.full(60, 0.5), "average": np.full(60, 0.5)}
    assert not Referee().judged(DEFENCE, before, before - 0.1 + noise(1), LABELS, PATIENTS, evidence).refused
    assert Referee().judged(DEFENCE, before, before + noise(1), LABELS, PATIENTS, evidence).refused == (
        noise(1).mean() >= 0
    )


def test_a_model_that_was_trained_on_the_patches_is_no_reference() -> None:
    """After a repair, hospitals' rounds make its losses at its own patches rise: they must not be refused for that."""
    referee = Referee()
    before = START + 0.1 * np.random.default_rng(0).standard_normal(60)
    evidence = referee.judged(DEFENCE, before, before - 0.01, LABELS, PATIENTS, {}).evidence
    own, others = before - 0.3, before - 0.05 + noise(1)
    repaired = referee.after_repair(others, LABELS, evidence)
    np.testing.assert_allclose(repaired[REFERENCE], others)
    after = referee.judged(DEFENCE, own, own + 0.1 + noise(3), LABELS, PATIENTS, repaired)
    assert not after.refused
    np.testing.assert_allclose(after.evidence[REFERENCE], others)  # as before the round
    assert referee.judged(DEFENCE, others, others + 0.1 + noise(2), LABELS, PATIENTS, after.evidence).refused
    worse = referee.after_repair(others + 0.1, LABELS, after.evidence)
    np.testing.assert_allclose(worse[REFERENCE], others)


def test_a_repair_before_any_round_was_judged_is_known_too() -> None:
    """The model has the patches by heart: honest rounds must not be compared with that."""
    heart, referee = np.full(60, 0.05), Referee()
    evidence = referee.after_repair(START + noise(1), LABELS, {})
    np.testing.assert_allclose(evidence[REFERENCE], START + noise(1))
    for turn in range(6):
        found = referee.choose(heart, {DEFENCE: START - 0.05 + noise(turn)}, LABELS, PATIENTS, evidence)
        assert not found.refused
        evidence = referee.after_repair(START + noise(turn), LABELS, found.evidence)
    assert referee.choose(heart, {DEFENCE: START + 0.1 + noise(9)}, LABELS, PATIENTS, evidence).refused


def noise(seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, 0.01, 60)


@pytest.mark.parametrize("memory", [0.0, 0.2])
def test_with_a_short_memory_a_refused_hypothesis_loses_the_next_turn(memory: float) -> None:
    opened, _, losses = played({DEFENCE: -0.1, "mean": 0.01}, referee=Referee(memory=memory))
    assert opened[1:] == ["mean", DEFENCE] * 19 + ["mean"]
    assert losses[-1] < START - 0.1


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(4, 9))
@settings(max_examples=25, deadline=None)
def test_no_combination_of_sums_rests_on_fewer_updates_than_is_said(seed: int, k: int, n: int) -> None:
    draw = np.random.default_rng(seed)
    weights = draw.random((k, n)) * (draw.random((k, n)) < 0.7) + 1e-3
    least = least_support(weights)
    # That which is largest at the update that can be singled out best, and random others.
    inverse = np.linalg.pinv(weights @ weights.T)
    best = [inverse @ weights[:, column] for column in range(n)]
    found = [support(each @ weights) for each in [*best, *draw.standard_normal((50, k))]]
    assert min(found) == pytest.approx(least, rel=1e-6)


def test_two_sums_that_differ_by_one_update_show_it() -> None:
    both: NDArray[np.float64] = np.ones((2, 10))
    assert least_support(both) == pytest.approx(10)  # twice the same sum
    both[1, 3] = 0
    assert least_support(both) == pytest.approx(1)
    apart = np.repeat(np.eye(2), 5, axis=1)
    assert least_support(apart) == pytest.approx(5)
    assert least_support(np.zeros((1, 4))) == 0


def test_which_protocols_open_in_turn() -> None:
    def referee(openings: str | None = None, **options: object) -> Referee | None:
        given = {"trust": {"referee": {"openings": openings}}, "data": {"root": {"set_aside": 0.05}}, **options}
        return Experiment.model_validate(given).trust.referee

    for protocol in ("shares", "replicated", "masked"):
        own: dict[str, object] = {"privacy": protocol, "aggregation": {"rule": "mean"}}
        reveals = Experiment.model_validate(own).privacy.reveals
        assert Referee().in_turn(reveals) and Referee(openings="in_turn").in_turn(reveals)
        assert referee(**own) == Referee()
        with refused(ExperimentError, path="trust.referee.openings", says=protocol):
            Experiment().changed(
                {**own, "trust.referee": {"openings": "together"}, "data.root": {"patches": 50, "set_aside": 0.05}}
            )
    assert not Referee().in_turn(Experiment().privacy.reveals)
    assert Referee(openings="in_turn").in_turn(Experiment().privacy.reveals)


def test_the_digest_knows_the_option_only_where_it_is_given() -> None:
    def digest(**options: object) -> str:
        given = {"trust": {"referee": options}, "data": {"root": {"set_aside": 0.05}}}
        return Experiment.model_validate(given).digest()

    assert digest() == digest(openings=None) != digest(openings="in_turn")
    assert digest(openings="in_turn") != digest(openings="together")
