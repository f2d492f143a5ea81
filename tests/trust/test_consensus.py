"""The score of the project's own defence, over rounds, with histories as the coordinator keeps them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedrobust.aggregation import Adaptive, Context, Gram
from fedrobust.trust import Consensus, Scores
from fedrobust.updates import ClearUpdates

N, D = 20, 400
Lie = Callable[[np.ndarray, np.random.Generator, int], np.ndarray]


def played(lie: Lie | None, attackers: int, rounds: int = 15, seed: int = 0) -> list[Scores]:
    """Scores of each round: honest rows are a common part, a peculiarity of each client, and noise; the first lie."""
    rng = np.random.default_rng(seed)
    common, own = rng.standard_normal(D), 0.5 * rng.standard_normal((N, D))
    detector, histories, state, found = Consensus(), {}, {}, []
    for round in range(1, rounds + 1):
        rows = common + own + rng.standard_normal((N, D))
        if lie is not None:
            rows[:attackers] = lie(rows[attackers:], rng, round)
        clear = ClearUpdates([rows.astype(np.float32)], histories=histories)
        gram = clear.gram(histories=detector.histories)
        found.append(detector.score(gram, Context(f=0, round=round, state=state)))
        histories, state = clear.remembered(detector.histories), found[-1].state
    return found


def reversed_with_noise(honest: np.ndarray, rng: np.random.Generator, round: int) -> np.ndarray:
    return -0.5 * honest.mean(axis=0) + rng.standard_normal((N - len(honest), D))


def betrayal(honest: np.ndarray, rng: np.random.Generator, round: int) -> np.ndarray:
    """Honest for ten rounds, then a long reversed update in every second one."""
    rows = honest.mean(axis=0) + rng.standard_normal((N - len(honest), D))
    return -5 * rows if round > 10 and round % 2 else rows


def test_the_parts_on_numbers_worked_out_by_hand() -> None:
    rows = np.random.default_rng(1).standard_normal((9, 50)) + 1
    rows[0] *= 30
    rows[1] *= 1e-3
    gram = ClearUpdates([rows]).gram(histories=("average",))
    found = Consensus(least=0.5).score(gram, Context(f=0))
    weights, _ = Adaptive().judged(gram, Context(f=0))
    norms = np.linalg.norm(rows, axis=1)
    order = np.argsort(norms)
    usual = next(norms[order[k]] for k in range(9) if weights[order[: k + 1]].sum() >= 0.75 * weights.sum() - 1e-9)
    for i in range(9):
        share = max(0.0, 1 - weights[i] / max(weights) / 0.5)
        assert found.parts["consensus"][i] == pytest.approx(share * (1 + min(1, norms[i] / np.median(norms))) / 2)
        assert found.parts["length"][i] == pytest.approx(min(1, max(0, (norms[i] / usual - 1.5) / 1.5)))
        assert found.score[i] == max(found.parts["consensus"][i], found.parts["length"][i])
    assert found.score[0] == 1
    assert found.score[1] <= 0.51  # next to nothing does next to no harm


@pytest.mark.parametrize("attackers", [4, 8])
def test_colluders_with_fresh_noise_are_found_in_time(attackers: int) -> None:
    late = np.mean([scores.score for scores in played(reversed_with_noise, attackers)[8:]], axis=0)
    assert late[:attackers].min() > 0.6
    assert np.median(late[attackers:]) < 0.1
    assert late[attackers:].max() < late[:attackers].min()


def test_with_nobody_attacking_few_are_suspected() -> None:
    scores = np.array([each.score for each in played(None, 0, rounds=25)])
    assert np.mean(scores > 0.5) < 0.07


def test_a_betrayer_is_seen_in_its_first_bad_round() -> None:
    found = played(betrayal, 4, rounds=14)
    for round, scores in enumerate(found, start=1):
        if round > 10 and round % 2:
            assert scores.score[:4].min() > 0.9
            assert scores.score[4:].max() < 0.5


def test_priors_and_the_scale_of_updates_do_not_matter() -> None:
    rows = np.random.default_rng(3).standard_normal((8, 30)) + 1
    rows[2] *= -4
    base = ClearUpdates([rows]).gram(histories=("average",))
    weighted = ClearUpdates([rows], prior=np.arange(1.0, 9)).gram(histories=("average",))
    scaled = ClearUpdates([1e-4 * rows]).gram(histories=("average",))
    expected = Consensus().score(base, Context(f=0)).score
    for gram in (weighted, scaled):
        assert np.allclose(Consensus().score(gram, Context(f=0)).score, expected, atol=1e-6)


@pytest.mark.parametrize("rows", [np.zeros((5, 4)), np.ones((2, 4)), np.ones((6, 4))])
def test_where_there_is_nothing_to_tell_nobody_is_suspected(rows: np.ndarray) -> None:
    gram: Gram = ClearUpdates([rows]).gram(histories=("average",))
    assert not Consensus().score(gram, Context(f=0)).score.any()
