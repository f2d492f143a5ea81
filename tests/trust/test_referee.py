"""The referee: hypotheses about who lies, and when the coordinator's patches may choose another one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from refused import refused

from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.trust import Referee
from fedrobust.trust.referee import AVERAGE, DEFENCE, REFERENCE, WORST, Ruling, compared
from fedrobust.updates import ClearUpdates

LABELS, PATIENTS = np.arange(60) % 2, np.arange(60) // 3


def ruling(
    better: NDArray[np.float64], referee: Referee | None = None, evidence: dict[str, np.ndarray] | None = None
) -> Ruling:
    """Of a round in which the model after `mean` loses less by `better` (m,) at each patch."""
    own = np.full(len(LABELS), 1.0)
    losses = {DEFENCE: own, "mean": own - better}
    return (referee or Referee()).choose(own, losses, LABELS, PATIENTS, evidence or {})


def noise(seed: int, spread: float = 0.01) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, spread, len(LABELS))


def test_the_hypotheses_are_clipped_means_of_all_of_the_least_trusted_and_of_low_scores() -> None:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((10, 6)) * np.arange(1, 11)[:, None]
    updates = ClearUpdates([rows])
    trusted = np.array([0.2] * 5 + [0.0] * 5)
    scores = np.array([0.1, 0.9] * 5)
    found = Referee().weights(updates.gram(), updates.prior, trusted, scores)
    norms = np.linalg.norm(rows, axis=1)
    for name, believed in (("mean", np.arange(10)), ("rest", np.arange(5, 10)), ("ordinary", np.arange(0, 10, 2))):
        most = np.median(norms[believed])
        cut = [row * min(1.0, most / norm) for row, norm in zip(rows[believed], norms[believed], strict=True)]
        np.testing.assert_allclose(found[name] @ rows, np.mean(cut, axis=0), atol=1e-12)


def test_a_hypothesis_needs_three_updates_and_the_rest_needs_weights() -> None:
    updates = ClearUpdates([np.eye(5)])
    gram, prior, scores = updates.gram(), updates.prior, np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    assert list(Referee().weights(gram, prior, np.array([0.3, 0.3, 0.4, 0.0, 0.0]), scores)) == ["mean"]
    assert list(Referee().weights(gram, prior, None, scores)) == ["mean"]
    assert list(Referee(hypotheses=("rest",)).weights(gram, prior, np.array([0.5, 0.5, 0, 0, 0]), scores)) == ["rest"]
    assert Referee(hypotheses=("ordinary",)).weights(gram, prior, None, scores) == {}
    two = ClearUpdates([np.eye(2)])
    assert Referee().weights(two.gram(), two.prior, None, np.zeros(2)) == {}


def test_a_clear_gain_is_seen_at_once_and_noise_is_not() -> None:
    assert ruling(0.05 + noise(1)).chosen == "mean"
    assert ruling(-0.05 + noise(1)).chosen == DEFENCE
    chosen = [ruling(noise(seed)).chosen for seed in range(200)]
    assert chosen.count("mean") < 20  # two standard errors: one in forty


def test_a_small_gain_is_seen_over_the_rounds() -> None:
    small = [0.001 + noise(seed) for seed in range(40)]
    assert [ruling(each).chosen for each in small].count("mean") < 15
    evidence, chosen = dict[str, np.ndarray](), []
    for each in small:
        found = ruling(each, Referee(memory=0.95), evidence)
        evidence, chosen = {"mean": found.evidence["mean"]}, [*chosen, found.chosen]
    assert chosen[20:].count("mean") > 15


def test_what_was_better_once_by_much_is_not_taken_where_it_is_worse() -> None:
    first = ruling(2.0 + noise(1))
    assert first.chosen == "mean"
    lately = {"mean": first.evidence["mean"]}
    assert ruling(-0.3 + noise(2), evidence=lately).chosen == DEFENCE
    assert ruling(-0.001 + noise(3, spread=0.05), evidence=lately).chosen == "mean"  # within doubt


def after_round(rises: dict[str, float], evidence: dict[str, np.ndarray] | None = None, seed: int = 0) -> Ruling:
    """Of a round in which the loss rises by so much with each hypothesis."""
    draw, before = np.random.default_rng(seed), np.full(len(LABELS), 1.0)
    losses = {name: before + rise + draw.normal(0, 0.01, len(LABELS)) for name, rise in rises.items()}
    return Referee().choose(before, losses, LABELS, PATIENTS, evidence or {})


def test_where_every_hypothesis_makes_the_model_worse_none_is_taken() -> None:
    found = after_round({DEFENCE: 0.3, "mean": 0.2, "rest": 0.4})
    assert found.refused and found.chosen == DEFENCE
    np.testing.assert_array_equal(found.evidence[REFERENCE], np.ones(len(LABELS)))
    assert not after_round({DEFENCE: 0.0, "mean": 0.2}).refused


def test_a_round_in_which_all_are_refused_is_no_evidence() -> None:
    lately = {"mean": noise(1), REFERENCE: np.ones(len(LABELS))}
    found = after_round({DEFENCE: 5.0, "mean": 0.2}, lately)
    assert found.refused
    np.testing.assert_allclose(found.evidence["mean"], 0.8 * lately["mean"])
    assert after_round({DEFENCE: -0.02, "mean": 0.0}, dict(found.evidence)).chosen == DEFENCE


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e30])
def test_models_that_are_not_finite_are_refused(broken: float) -> None:
    assert after_round({DEFENCE: broken, "mean": broken}).refused


def test_of_those_that_are_not_refused_the_better_one_replaces_a_defence_that_is() -> None:
    found = after_round({DEFENCE: 0.3, "mean": 0.0, "rest": -0.2})
    assert (found.chosen, found.refused) == ("rest", False)
    lately = {"mean": np.full(len(LABELS), -5.0)}  # it was much worse, so that it is not better beyond doubt
    found = after_round({DEFENCE: 0.3, "mean": 0.0}, lately)
    assert found.certainty["mean"] < 0 and (found.chosen, found.refused) == ("mean", False)


@pytest.mark.parametrize(("rise", "chosen"), [(-0.003, DEFENCE), (0.003, "mean")])
def test_the_defence_has_the_benefit_of_the_doubt_only_where_the_loss_falls(rise: float, chosen: str) -> None:
    draw, before = np.random.default_rng(7), np.full(len(LABELS), 1.0)
    wide, own = draw.normal(0, 0.2, len(LABELS)), draw.normal(0, 0.2, len(LABELS))
    own += before + rise - own.mean()
    better = wide - wide.mean() + 0.01
    found = Referee().choose(before, {DEFENCE: own, "mean": own - better}, LABELS, PATIENTS, {})
    assert 0 < found.certainty["mean"] < 2 and (found.chosen, found.refused) == (chosen, False)
    found = Referee().choose(before, {DEFENCE: own, "mean": own + better}, LABELS, PATIENTS, {})
    assert found.certainty["mean"] < 0 and (found.chosen, found.refused) == (DEFENCE, False)


def test_a_hypothesis_that_is_refused_does_not_replace_the_defence() -> None:
    lately = {"mean": np.full(len(LABELS), 5.0)}
    found = after_round({DEFENCE: -0.01, "mean": 0.1}, lately)
    assert (found.chosen, found.refused) == (DEFENCE, False)
    found = after_round({DEFENCE: 0.5, "mean": 0.1}, lately)
    assert found.certainty["mean"] > 2 and found.refused


def test_a_model_above_the_reference_is_refused_even_if_it_is_better_than_the_one_before() -> None:
    """The last good model comes back, so training goes on from there."""
    half = np.full(len(LABELS), 0.5)
    evidence = {AVERAGE: half, REFERENCE: half}
    assert after_round({DEFENCE: 0.0}, evidence).refused
    assert after_round({DEFENCE: -0.1}, evidence).refused
    found = after_round({DEFENCE: -0.7}, evidence)
    assert not found.refused and found.good
    np.testing.assert_allclose(found.evidence[REFERENCE].mean(), 0.8 * 0.5 + 0.2 * 0.3, atol=0.01)


def test_what_is_within_doubt_for_few_patients_does_not_lead_on_to_what_is_not() -> None:
    """A model that fails at a fifth of the patients is within doubt; a better one that fails at more of them is not."""
    labels, patients = np.arange(90) % 2, np.arange(90) // 6
    honest = 0.4 + 0.05 * np.random.default_rng(0).standard_normal(90)
    first = np.where(patients < 3, WORST, honest)
    found = Referee().choose(honest, {DEFENCE: first}, labels, patients, {})
    assert not found.refused
    for second in (np.where(patients < 3, 20.0, np.where(patients < 6, 18.0, honest)), np.full(90, 7.5)):
        assert second.mean() < first.mean()
        assert Referee().choose(first, {DEFENCE: second}, labels, patients, found.evidence).refused


def test_a_hypothesis_that_is_worse_in_this_round_replaces_no_defence_that_is_not_refused() -> None:
    before = np.full(len(LABELS), 1.0)
    once = Referee().choose(before, {DEFENCE: np.full(60, WORST), "mean": before - 0.01}, LABELS, PATIENTS, {})
    assert once.chosen == "mean"
    own = before + 0.01 + noise(1, 0.1) - noise(1, 0.1).mean()
    found = Referee().choose(before, {DEFENCE: own, "mean": own + 0.001}, LABELS, PATIENTS, once.evidence)
    assert found.certainty["mean"] > 2 and (found.chosen, found.refused) == (DEFENCE, False)
    found = Referee().choose(before, {DEFENCE: own + 1, "mean": own + 0.001}, LABELS, PATIENTS, once.evidence)
    assert (found.chosen, found.refused) == ("mean", False)


@pytest.mark.parametrize("of_one_label", [True, False])
def test_what_differs_between_labels_is_no_doubt(of_one_label: bool) -> None:
    """A model that calls everything healthy, where each patient has one label or both."""
    patients = (np.arange(60) // 2 % 7) * 2 + LABELS if of_one_label else np.arange(60) // 2 % 14
    before = 0.5 + noise(1)
    after = np.where(LABELS == 1, 1.95, 0.05) + noise(2)
    assert Referee().choose(before, {DEFENCE: after}, LABELS, patients, {}).refused


@pytest.mark.parametrize("of_one_label", [True, False])
@pytest.mark.parametrize("count", [8, 15, 30])
def test_chance_passes_two_standard_errors_in_few_rounds(of_one_label: bool, count: int) -> None:
    draw = np.random.default_rng(count)
    patients = (np.arange(60) // 2 % (count // 2)) * 2 + LABELS if of_one_label else np.arange(60) // 2 % count
    passed = 0
    for _ in range(1000):
        differences = draw.standard_normal(60)[patients] + 0.3 * draw.standard_normal(60)
        passed += compared(differences, LABELS, patients)[1] > 2
    assert 10 < passed < 60


@pytest.mark.parametrize(("training", "most"), [(0.003, 25), (0.01, 55)])
def test_honest_rounds_are_not_refused_for_being_worse_than_a_lucky_one(training: float, most: int) -> None:
    """How well a round turns out is luck, too: the best of many is better, beyond doubt, than most that follow it."""
    for seed in range(5):
        draw = np.random.default_rng(seed)
        hard, evidence, refusals = 0.5 + 0.1 * draw.standard_normal(60), dict[str, np.ndarray](), 0
        now = hard + 0.3
        for _ in range(100):
            new = hard + training * draw.standard_normal() + 0.03 * draw.standard_normal(20)[PATIENTS]
            found = Referee().choose(now, {DEFENCE: new}, LABELS, PATIENTS, evidence)
            now, evidence = now if found.refused else new, found.evidence
            refusals += found.refused
        assert refusals <= most


def test_without_tolerance_every_rise_is_refused() -> None:
    before, seen = np.ones(len(LABELS)), set[bool]()
    for seed in range(10):
        losses = {DEFENCE: before + noise(seed)}
        refused = [Referee(tolerance=k).choose(before, losses, LABELS, PATIENTS, {}).refused for k in (0, 5)]
        assert refused == [losses[DEFENCE].mean() > 1, False]
        seen.add(refused[0])
    assert seen == {True, False}


@pytest.mark.parametrize("step", [0.002, 0.005, 0.02])
def test_small_lies_in_every_hypothesis_lead_no_further_than_the_patches_can_doubt(step: float) -> None:
    """Each one is within doubt of the model before it, but not all together."""
    for seed in range(5):
        draw = np.random.default_rng(seed)
        now, evidence, refusals = 0.7 + 0.1 * draw.standard_normal(60), dict[str, np.ndarray](), 0
        for _ in range(200):
            wobble = 0.01 * (draw.standard_normal((2, 1)) + 2 * draw.standard_normal((2, 60)))
            both = dict(zip((DEFENCE, "mean"), now + step + wobble, strict=True))
            found = Referee().choose(now, both, LABELS, PATIENTS, evidence)
            now, evidence = now if found.refused else both[found.chosen], found.evidence
            refusals += found.refused
        assert refusals and now.mean() < 0.7 + 0.06  # without refusals 1.0 at least


def test_a_model_that_was_trained_on_the_patches_is_no_reference() -> None:
    """After a repair, hospitals' rounds make its losses at its own patches rise: they must not be refused for that."""
    first = after_round({DEFENCE: 0.0})
    others = np.full(len(LABELS), 0.95)
    repaired = Referee().after_repair(others, LABELS, first.evidence)
    before = np.full(len(LABELS), 0.5)
    found = Referee().choose(before, {DEFENCE: before + 0.1 + noise(3)}, LABELS, PATIENTS, repaired)
    assert not found.refused
    np.testing.assert_array_equal(found.evidence[REFERENCE], others)
    assert Referee().choose(before, {DEFENCE: others + 0.1 + noise(3)}, LABELS, PATIENTS, found.evidence).refused


def test_after_a_repair_the_defence_keeps_the_benefit_of_the_doubt() -> None:
    """Every honest round makes the losses at the patches of the repair rise, the defence's as well as the others'."""
    draw, before = np.random.default_rng(7), np.full(len(LABELS), 0.5)
    first = Referee().choose(np.full(len(LABELS), 1.0), {DEFENCE: np.full(len(LABELS), 1.0)}, LABELS, PATIENTS, {})
    repaired = Referee().after_repair(np.full(len(LABELS), 0.95), LABELS, first.evidence)
    wide = draw.normal(0, 0.2, len(LABELS))
    better = wide - wide.mean() + 0.01
    found = Referee().choose(before, {DEFENCE: before + 0.1, "mean": before + 0.1 - better}, LABELS, PATIENTS, repaired)
    assert 0 < found.certainty["mean"] < 2 and (found.chosen, found.refused) == (DEFENCE, False)


@pytest.mark.parametrize(("ruined", "refused"), [(3, False), (4, True)])
def test_what_ruins_the_model_for_a_fifth_of_the_patients_is_within_doubt(ruined: int, refused: bool) -> None:
    """A limit that docs/referee.md names: what differs between patients is doubt."""
    labels, patients = np.arange(90) % 2, np.arange(90) // 6
    before = 0.45 + 0.1 * np.random.default_rng(0).standard_normal(90)
    after = before + np.where(patients < ruined, 5.0, 0.0)
    assert Referee().choose(before, {DEFENCE: after}, labels, patients, {}).refused == refused


def test_many_patches_of_one_patient_are_one_draw() -> None:
    per_patient = np.random.default_rng(5).normal(0.01, 0.05, 4)
    few = np.arange(60) % 4
    better = per_patient[few]
    own = np.ones(60)
    losses = {DEFENCE: own, "mean": own - better}
    of_four = Referee().choose(own, losses, LABELS, few, {}).certainty["mean"]
    of_sixty = Referee().choose(own, losses, LABELS, np.arange(60), {}).certainty["mean"]
    assert abs(of_four) < abs(of_sixty) / 2
    assert Referee(certainty=0).choose(own, losses, LABELS, np.zeros(60, dtype=int), {}).chosen == DEFENCE


def test_every_label_counts_the_same() -> None:
    labels = np.array([0] * 54 + [1] * 6)
    better = np.where(labels == 0, 0.01, -0.05) + noise(2, 0.001)
    own = np.ones(60)
    found = Referee().choose(own, {DEFENCE: own, "mean": own - better}, labels, np.arange(60), {})
    assert found.chosen == DEFENCE and found.losses["mean"] == pytest.approx(1.02, abs=2e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_model_that_is_not_finite_is_never_better(bad: float) -> None:
    own = np.ones(60)
    found = Referee().choose(own, {DEFENCE: own, "mean": np.full(60, bad)}, LABELS, PATIENTS, {})
    assert found.chosen == DEFENCE and found.losses["mean"] == pytest.approx(WORST)
    found = Referee().choose(own, {DEFENCE: np.full(60, bad), "mean": own + noise(1)}, LABELS, PATIENTS, {})
    assert found.chosen == "mean"


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_order_of_patches_and_the_names_of_patients_do_not_matter(seed: int) -> None:
    draw = np.random.default_rng(seed)
    order, better = draw.permutation(60), draw.normal(0.01, 0.03, 60)
    own = draw.uniform(0, 2, 60)
    losses = {DEFENCE: own, "mean": own - better}
    first = Referee().choose(own, losses, LABELS, PATIENTS, {})
    mixed = {name: each[order] for name, each in losses.items()}
    again = Referee().choose(own[order], mixed, LABELS[order], 7 * PATIENTS[order] + 2, {})
    assert again.certainty["mean"] == pytest.approx(first.certainty["mean"], rel=1e-9)


def test_a_hypothesis_that_cannot_be_tried_in_a_round_keeps_its_evidence_and_is_not_chosen() -> None:
    own = np.ones(60)
    before = ruling(0.05 + noise(1)).evidence
    found = Referee().choose(own, {DEFENCE: own}, LABELS, PATIENTS, before)
    assert found.chosen == DEFENCE
    np.testing.assert_allclose(found.evidence["mean"], 0.8 * before["mean"])


def test_a_referee_needs_patches_of_its_own() -> None:
    aside = {"root": {"set_aside": 0.05}}
    assert Experiment.model_validate({"trust": {"referee": {}}, "data": aside}).trust.referee == Referee()
    with pytest.raises(ValueError, match=r"set_aside: 0\.05"):
        Experiment.model_validate({"trust": {"referee": {}}})


def test_a_wrong_hypothesis_is_named() -> None:
    with refused(ExperimentError, path="hypotheses.0"):
        Referee(hypotheses=("liars",))  # type: ignore[arg-type]
