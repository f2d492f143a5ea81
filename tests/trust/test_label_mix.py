"""An update is suspected that no mix of labels explains; a hospital of one label is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedrobust.aggregation import Context
from fedrobust.trust import Consensus, LabelMix
from fedrobust.trust.label_mix import cone_cosines
from fedrobust.updates import ClearUpdates

D = 40


def scored(
    detector: LabelMix, rows: np.ndarray, descents: np.ndarray, state: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    context = Context(f=0, descents=descents, state=state)
    updates = ClearUpdates([rows], histories={"sum": np.zeros_like(rows), "average": np.zeros_like(rows)})
    gram = updates.gram(detector.vectors(context), detector.histories)
    found = detector.score(gram, context)
    return found.parts["label_mix"], dict(found.state)


def hospitals(generator: np.random.Generator, descents: np.ndarray, noise: float = 0.5) -> np.ndarray:
    """Twelve honest updates of different mixes of labels, the first two of one label, and eight small lies."""
    share = np.concatenate([np.eye(2), generator.dirichlet([0.5, 0.5], size=10)])
    honest = share @ descents + noise * generator.standard_normal((12, D)) / np.sqrt(D)
    lies = -0.1 * honest.mean(axis=0) + 0.2 * generator.standard_normal((8, D)) / np.sqrt(D)
    return np.concatenate([honest, lies])


def test_small_lies_are_found_and_hospitals_of_one_label_are_not() -> None:
    draw = np.random.default_rng(3)
    descents = np.linalg.qr(draw.standard_normal((D, 2)))[0].T
    state: dict[str, np.ndarray] = {}
    for _ in range(5):
        part, state = scored(LabelMix(), hospitals(draw, descents).astype(np.float32), descents, state)
    assert part[12:].min() > 0.7 and part[:12].max() < 0.3


def test_a_client_that_turns_is_found_later() -> None:
    draw = np.random.default_rng(4)
    descents = np.linalg.qr(draw.standard_normal((D, 2)))[0].T
    state: dict[str, np.ndarray] = {}
    seen = []
    for round in range(40):
        rows = hospitals(draw, descents)
        if round < 8:
            rows[12:] = rows[:8]
        part, state = scored(LabelMix(forgetting=0.9), rows.astype(np.float32), descents, state)
        seen.append(part[12:].min())
    assert max(seen[:8]) < 0.3 and seen[-1] > 0.6


def test_honest_updates_that_have_become_noise_do_not_count_against_patient_liars() -> None:
    draw = np.random.default_rng(6)
    descents = np.linalg.qr(draw.standard_normal((D, 2)))[0].T
    state: dict[str, np.ndarray] = {}
    for round in range(40):
        noise = np.full((12, 1), 0.3) if round < 8 else np.geomspace(1.5, 10.0, 12)[:, None]
        honest = draw.dirichlet([0.5, 0.5], size=12) @ descents + noise * draw.standard_normal((12, D)) / np.sqrt(D)
        flipped = np.repeat(descents[:1], 8, axis=0) + 0.3 * draw.standard_normal((8, D)) / np.sqrt(D)
        rows = np.concatenate([honest, flipped]).astype(np.float32)
        part, state = scored(LabelMix(), rows, descents, state)
    assert part.max() < 0.5


def test_a_round_in_which_the_labels_pull_in_opposite_directions_is_no_evidence() -> None:
    draw = np.random.default_rng(7)
    state: dict[str, np.ndarray] = {}
    for round in range(10):
        descents = np.linalg.qr(draw.standard_normal((D, 2)))[0].T
        if round == 0:
            descents[1] = -descents[0] + 1e-3 * descents[1]
        rows = hospitals(draw, descents, noise=0.01 if round == 0 else 0.8)
        rows[12:] = -0.1 * rows[:12].mean(axis=0) if round == 0 else rows[12:]
        part, state = scored(LabelMix(), rows.astype(np.float32), descents, state)
    assert part[12:].min() > 0.7 and part[:12].max() < 0.2


def test_without_directions_the_other_detector_scores_alone() -> None:
    rows = np.random.default_rng(5).standard_normal((6, D)).astype(np.float32)
    detector, context = LabelMix(), Context(f=0)
    gram = ClearUpdates([rows], histories={name: np.zeros_like(rows) for name in detector.histories}).gram(
        histories=detector.histories
    )
    np.testing.assert_array_equal(detector.score(gram, context).score, Consensus().score(gram, context).score)


@pytest.mark.parametrize("rows", [np.zeros((5, D)), np.ones((5, D)), np.eye(D)[:2]])
def test_rows_that_say_nothing_have_figures(rows: np.ndarray) -> None:
    for descents in (np.eye(D)[:2], np.zeros((2, D)), np.ones((3, D))):
        part, _ = scored(LabelMix(), rows.astype(np.float32), descents, {})
        assert np.isfinite(part).all() and (part >= 0).all() and (part <= 1).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), labels=st.integers(1, 4), equal=st.booleans())
def test_the_cosine_is_the_largest_of_the_cone(seed: int, labels: int, equal: bool) -> None:
    draw = np.random.default_rng(seed)
    descents, rows = (
        draw.standard_normal((labels, 6)) * 10.0 ** draw.integers(-3, 4, (labels, 1)),
        draw.standard_normal((3, 6)),
    )
    if equal:
        descents[-1] = descents[0]
    found = cone_cosines(rows @ descents.T, descents @ descents.T, np.linalg.norm(rows, axis=1))
    units = descents / np.linalg.norm(descents, axis=1, keepdims=True)
    for row, cosine in zip(rows, found, strict=True):

        def lost(shares: np.ndarray, row: np.ndarray = row) -> float:
            vector = (shares**2) @ units
            return -float(row @ vector / np.linalg.norm(row) / max(float(np.linalg.norm(vector)), 1e-12))

        starts = [*np.eye(labels), np.ones(labels), *draw.random((4, labels))]
        best = max(-minimize(lost, start).fun for start in starts)
        assert cosine == pytest.approx(best, abs=2e-3)
