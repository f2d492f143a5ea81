"""The jury: votes within labels, which malicious hospitals cannot turn as long as honest ones outnumber them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused

from fedrobust.attacks.voting import EXTREME, with_lies
from fedrobust.cautions import cautions
from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.federation.voting import ballot, mean_losses, votes_of
from fedrobust.trust import Jury
from fedrobust.trust.referee import DEFENCE, WORST

NOBODY = np.nan


def cast(*rows: list[float]) -> np.ndarray:
    """Votes (hospitals, 1, labels) about one hypothesis."""
    return np.array(rows)[:, None, :]


def test_the_hypothesis_with_the_largest_gain_replaces_the_defence() -> None:
    votes = np.random.default_rng(0).normal(0.1, 0.01, (10, 2, 2)) * np.array([[[1.0], [2.0]]])
    found = Jury().poll(["mean", "rest"], votes, len(votes))
    assert found.chosen == "rest" and found.voters == (10, 10)
    for index, name in enumerate(("mean", "rest")):
        middles = [np.median(votes[:, index, label]) for label in range(2)]
        assert found.gains[name] == pytest.approx(np.mean(middles))
    assert Jury().poll(["mean", "rest"], -votes, len(votes)).chosen == DEFENCE


def test_every_label_counts_the_same_however_many_vote_about_it() -> None:
    votes = cast(*[[0.1, NOBODY]] * 3, *[[0.1, -0.3]] * 7)
    found = Jury().poll(["mean"], votes, len(votes))
    assert (found.chosen, found.voters) == (DEFENCE, (10, 7)) and found.gains["mean"] == pytest.approx(-0.1)


@pytest.mark.parametrize(("voters", "decided"), [(13, True), (12, False), (0, False)])
def test_a_label_with_votes_of_which_half_may_be_lies_stops_the_jury(voters: int, decided: bool) -> None:
    """Of twenty hospitals, six may be malicious."""
    votes = cast(*[[0.1, 0.1]] * voters, *[[0.1, NOBODY]] * (20 - voters))
    found = Jury(fraction=0.3).poll(["mean"], votes, len(votes))
    assert found.voters == (20, voters)
    assert (found.chosen, found.gains != {}) == (("mean", True) if decided else (DEFENCE, False))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_no_lie_moves_a_gain_out_of_the_range_of_honest_votes(seed: int) -> None:
    draw = np.random.default_rng(seed)
    votes = draw.normal(0, 0.1, (20, 2, 2))
    votes[:5, :, 0] = np.nan
    liars = draw.permutation(20)[:6]
    honest = np.delete(votes, liars, axis=0)
    votes[liars] = draw.choice([-EXTREME, EXTREME, 0.0, np.inf, np.nan, 1e300], (6, 2, 2))
    found = Jury().poll(["mean", "rest"], votes, len(votes))
    for index, gain in enumerate(found.gains.values()):
        assert np.nanmin(honest[:, index], axis=0).mean() <= gain <= np.nanmax(honest[:, index], axis=0).mean()


def test_nothing_to_vote_on_leaves_the_defence() -> None:
    assert Jury().poll([], np.empty((5, 0, 2)), 5).chosen == DEFENCE


def test_liars_vote_about_every_label_against_what_helps_and_for_what_harms() -> None:
    good, bad = [0.2, -0.1], [0.1, -0.2]
    votes = {client: np.array([good, bad]) for client in range(5)}
    votes[3] = np.array([[NOBODY, -0.1], [NOBODY, -0.2]])
    before = {client: each.copy() for client, each in votes.items()}
    told = with_lies(votes, [1, 3], 3)
    assert list(told) == list(range(5))
    for client in (0, 2, 4):
        np.testing.assert_array_equal(told[client], before[client])
    for client in (1, 3):
        np.testing.assert_array_equal(told[client], [[-EXTREME] * 2, [EXTREME] * 2])
    np.testing.assert_array_equal(with_lies(votes, [], 3)[3], before[3])
    assert with_lies({}, [1], 3) == {}


@pytest.mark.parametrize(("honest", "chosen"), [(12, DEFENCE), (13, "mean")])
def test_liars_do_not_vote_where_that_ends_the_jury(honest: int, chosen: str) -> None:
    """Of twenty hospitals, six may be malicious: twelve honest votes about a label are too few alone."""
    votes = {client: np.full((1, 2), 0.1) for client in range(20)}
    for client in range(honest, 14):
        votes[client][:, 1] = NOBODY
    told = with_lies(votes, range(14, 20), Jury(fraction=0.3).needed(20))
    assert np.isnan(told[19]).all() == (honest == 12)
    found = Jury(fraction=0.3).poll(["mean"], np.stack(list(told.values())), 20)
    assert found.chosen == chosen
    assert (
        Jury(fraction=0.3).poll(["mean"], np.stack(list(votes.values())), 20).chosen == "mean"
    )  # had they voted honestly


def test_liars_that_can_choose_the_model_do_vote() -> None:
    votes = {client: np.full((1, 2), -0.1) for client in range(20)}
    for client in range(7, 12):
        votes[client][:, 1] = NOBODY
    told = with_lies(votes, range(12, 20), Jury().needed(20))
    assert Jury().poll(["mean"], np.stack(list(told.values())), 20).chosen == "mean"


def test_all_malicious_hospitals_may_be_among_the_few_that_are_there() -> None:
    votes = np.full((6, 1, 2), 0.1)
    assert Jury().poll(["mean"], votes, 6).chosen == "mean"
    assert Jury().poll(["mean"], votes, 20).chosen == DEFENCE


def test_a_majority_that_lies_is_believed() -> None:
    """So a jury does harm with more malicious hospitals than it allows for."""
    votes = {client: np.full((1, 2), 0.1) for client in range(10)}
    for liars, chosen in ((3, "mean"), (6, DEFENCE)):
        told = with_lies(votes, range(liars), 7)
        assert Jury().poll(["mean"], np.stack(list(told.values())), 10).chosen == chosen


def test_a_hospital_votes_by_labels_of_which_it_has_enough() -> None:
    labels = np.array([0] * 19 + [1] * 20 + [2] * 300)
    own = np.arange(len(labels))
    found = ballot(own, labels, 100, seed=3, client=1)
    assert np.bincount(labels[found]).tolist() == [0, 20, 100]
    assert (np.diff(found) > 0).all()
    np.testing.assert_array_equal(found, ballot(own, labels, 100, seed=3, client=1))
    assert (found != ballot(own, labels, 100, seed=3, client=2)).any()
    assert len(ballot(own[:10], labels, 100, seed=3, client=1)) == 0


def test_a_vote_is_how_much_less_is_lost_at_the_patches_of_a_label() -> None:
    labels = np.array([0, 0, 2])
    first = np.array([[0.5, 0.3, 0.2], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], dtype=np.float32)
    second = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=np.float32)
    losses = np.array([mean_losses(each, labels) for each in (first, second)])
    np.testing.assert_allclose(losses[0], [np.log(8) / 2, np.nan, -np.log(0.8)], rtol=1e-6)
    np.testing.assert_allclose(losses[1], [0, np.nan, WORST])
    np.testing.assert_allclose(votes_of(losses), [[np.log(8) / 2, np.nan, -np.log(0.8) - WORST]], rtol=1e-6)
    assert np.isnan(mean_losses(first[:0], labels[:0])).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"trust": {"jury": {"fraction": 0.4}}}, "fraction"),
        ({"trust": {"jury": {"patches": 19}}}, "patches"),
        ({"trust": {"jury": {}, "referee": {}}, "data": {"root": {"set_aside": 0.05}}}, r"trust\.jury.*not both"),
        ({"trust": {"jury": {}}, "privacy": "shares", "aggregation": {"rule": "mean"}}, r"trust\.jury.*one sum"),
        ({"trust": {"jury": {}}, "privacy": "masked", "aggregation": {"rule": "mean"}}, r"trust\.jury.*one sum"),
        ({"trust": {"jury": {}}, "privacy": "grouped", "aggregation": {"rule": "mean"}}, r"trust\.jury.*groups"),
    ],
)
def test_what_a_jury_cannot_do_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Experiment.model_validate(options)


def test_a_wrong_hypothesis_is_named() -> None:
    with refused(ExperimentError, path="hypotheses.0"):
        Jury(hypotheses=("liars",))  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "jury", "warned"), [(2, {}, False), (3, {}, True), (3, None, False)])
def test_more_attackers_than_the_jury_allows_for_are_a_caution(count: int, jury: object, warned: bool) -> None:
    experiment = Experiment.model_validate(
        {"attacks": [{"name": "label_flip", "count": count}], "trust": {"jury": jury}}
    )
    said = [each for each in cautions(experiment) if each.startswith("trust.jury")]
    assert len(said) == warned
    if said:
        assert "3 of 10 hospitals are malicious, and the jury allows for 2" in said[0]
