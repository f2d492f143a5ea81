"""Which member explains the bad groups of all rounds."""

from __future__ import annotations

import numpy as np
import pytest

from fedrobust.secure.masked_updates import draw_groups
from fedrobust.trust.blame import members_scores, no_blame


def scored_rounds(rounds, attackers, n=20, size=3, seed=0):
    rng = np.random.default_rng(seed)
    for round_ in range(rounds):
        groups = draw_groups(range(n), size, seed, round_)
        bad = np.array([bool(set(group) & attackers) for group in groups])
        yield groups, np.where(bad, rng.uniform(0.7, 1.0, len(groups)), rng.uniform(0.0, 0.35, len(groups)))


@pytest.mark.parametrize("seed", range(4))
def test_over_the_rounds_the_attackers_stand_out(seed):
    attackers, memory, company = {2, 11}, no_blame(20), np.zeros((20, 12))
    for at, (groups, scores) in enumerate(scored_rounds(12, attackers, seed=seed)):
        own, memory = members_scores(memory, groups, scores)
        for group, score in zip(groups, scores, strict=True):
            company[list(group), at] = score
    honest = [own[i] for i in range(20) if i not in attackers]
    assert min(own[i] for i in attackers) > 0.6
    assert max(honest) < 0.45
    assert np.mean(honest) < 0.15
    # The mean score of a client's groups would hold the company against it.
    assert np.mean([company[i].mean() for i in range(20) if i not in attackers]) > 2 * np.mean(honest)


def test_the_first_round_blames_all_members_alike_and_less_than_the_group():
    own, _ = members_scores(no_blame(6), [(0, 1, 2), (3, 4, 5)], [0.9, 0.0])
    # z = −log 0.1 / (3 + 0.1) for each of three
    expected = 1 - 0.1 ** (1 / 3.1)
    assert own == pytest.approx({0: expected, 1: expected, 2: expected, 3: 0, 4: 0, 5: 0})


def test_one_good_group_clears_a_client():
    memory = no_blame(6)
    _, memory = members_scores(memory, [(0, 1, 2), (3, 4, 5)], [0.9, 0.0])
    own, _ = members_scores(memory, [(0, 3, 4), (1, 2, 5)], [0.9, 0.0])
    assert own[0] > 0.75
    assert max(own[i] for i in range(1, 6)) < 0.25


def test_a_member_is_not_blamed_more_than_its_group_of_this_round():
    memory = no_blame(6)
    for _ in range(5):
        _, memory = members_scores(memory, [(0, 1, 2), (3, 4, 5)], [0.9, 0.0])
    own, _ = members_scores(memory, [(0, 1, 2), (3, 4, 5)], [0.1, 0.0])
    assert max(own.values()) <= 0.1


def test_old_blame_is_forgotten_and_memory_is_not_changed_in_place():
    memory = no_blame(3)
    _, after = members_scores(memory, [(0, 1, 2)], [1.0])
    assert not memory["blame"].any()
    assert not memory["together"].any()
    np.testing.assert_array_equal(after["together"], np.ones((3, 3)))
    np.testing.assert_allclose(after["blame"], -np.log(0.01) * np.ones(3))
    _, later = members_scores(after, [], [], forgetting=0.5)
    np.testing.assert_allclose(later["blame"], after["blame"] / 2)


def test_who_is_absent_has_no_score():
    own, _ = members_scores(no_blame(9), [(0, 4, 8)], [0.5])
    assert sorted(own) == [0, 4, 8]
