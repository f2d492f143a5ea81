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
from fedrobust.trust.referee import DEFENCE, WORST, Ruling
from fedrobust.updates import ClearUpdates

LABELS, PATIENTS = np.arange(60) % 2, np.arange(60) // 3


def ruling(
    better: NDArray[np.float64], referee: Referee | None = None, evidence: dict[str, np.ndarray] | None = None
) -> Ruling:
    """Of a round in which the model after `mean` loses less by `better` (m,) at each patch."""
    own = np.full(len(LABELS), 1.0)
    losses = {DEFENCE: own, "mean": own - better}
    return (referee or Referee()).choose(losses, LABELS, PATIENTS, evidence or {})


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
        evidence, chosen = found.evidence, [*chosen, found.chosen]
    assert chosen[20:].count("mean") > 15


def test_what_was_better_once_by_much_is_not_taken_where_it_is_worse() -> None:
    first = ruling(2.0 + noise(1))
    assert first.chosen == "mean"
    assert ruling(-0.3 + noise(2), evidence=dict(first.evidence)).chosen == DEFENCE
    assert ruling(-0.001 + noise(3, spread=0.05), evidence=dict(first.evidence)).chosen == "mean"  # within doubt


def test_many_patches_of_one_patient_are_one_draw() -> None:
    per_patient = np.random.default_rng(5).normal(0.01, 0.05, 4)
    few = np.arange(60) % 4
    better = per_patient[few]
    own = np.ones(60)
    losses = {DEFENCE: own, "mean": own - better}
    of_four = Referee().choose(losses, LABELS, few, {}).certainty["mean"]
    of_sixty = Referee().choose(losses, LABELS, np.arange(60), {}).certainty["mean"]
    assert abs(of_four) < abs(of_sixty) / 2
    assert Referee(certainty=0).choose(losses, LABELS, np.zeros(60, dtype=int), {}).chosen == DEFENCE


def test_every_label_counts_the_same() -> None:
    labels = np.array([0] * 54 + [1] * 6)
    better = np.where(labels == 0, 0.01, -0.05) + noise(2, 0.001)
    own = np.ones(60)
    found = Referee().choose({DEFENCE: own, "mean": own - better}, labels, np.arange(60), {})
    assert found.chosen == DEFENCE and found.losses["mean"] == pytest.approx(1.02, abs=2e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_model_that_is_not_finite_is_never_better(bad: float) -> None:
    own = np.ones(60)
    found = Referee().choose({DEFENCE: own, "mean": np.full(60, bad)}, LABELS, PATIENTS, {})
    assert found.chosen == DEFENCE and found.losses["mean"] == pytest.approx(WORST)
    found = Referee().choose({DEFENCE: np.full(60, bad), "mean": own + noise(1)}, LABELS, PATIENTS, {})
    assert found.chosen == "mean"


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_order_of_patches_and_the_names_of_patients_do_not_matter(seed: int) -> None:
    draw = np.random.default_rng(seed)
    order, better = draw.permutation(60), draw.normal(0.01, 0.03, 60)
    own = draw.uniform(0, 2, 60)
    losses = {DEFENCE: own, "mean": own - better}
    first = Referee().choose(losses, LABELS, PATIENTS, {})
    mixed = {name: each[order] for name, each in losses.items()}
    again = Referee().choose(mixed, LABELS[order], 7 * PATIENTS[order] + 2, {})
    assert again.certainty["mean"] == pytest.approx(first.certainty["mean"], rel=1e-9)


def test_a_hypothesis_that_cannot_be_tried_in_a_round_keeps_its_evidence_and_is_not_chosen() -> None:
    own = np.ones(60)
    before = ruling(0.05 + noise(1)).evidence
    found = Referee().choose({DEFENCE: own}, LABELS, PATIENTS, before)
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
