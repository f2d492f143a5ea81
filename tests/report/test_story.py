"""The journal, sorted by hospital and round."""

from __future__ import annotations

import numpy as np
import pytest
from reported import journal, quarantining, recorded

from fedrobust.errors import ExperimentError
from fedrobust.report import hospitals


def test_an_empty_journal_is_told() -> None:
    with pytest.raises(ExperimentError, match="empty"):
        recorded([])


def test_every_client_and_round_stands_where_it_belongs() -> None:
    run = recorded(journal())
    weights = run.by_client("weights")
    assert weights.shape == (6, 5)
    assert weights[4, 0] == 0.04 and np.isnan(weights[3, 1]) and np.isfinite(weights[3, 2])
    assert np.isnan(run.by_client("anomaly")[0]).all()
    assert np.argwhere(run.marks("rejected")).tolist() == [[5, 1]]
    assert np.argwhere(run.marks("suspected")).tolist() == [[0, 1], [1, 2], [1, 3], [1, 4]]


def test_hospitals_are_judged_by_the_last_round() -> None:
    stories = {story.client: story for story in hospitals(recorded(journal()))}
    assert [story.client for story in hospitals(recorded(journal()))] == [1, 4, 0, 2, 3, 5]
    assert {client: story.verdict for client, story in stories.items() if story.verdict != "honest"} == {
        1: "caught",
        4: "missed",
    }
    assert (stories[1].suspected, stories[1].first, stories[0].suspected, stories[5].rejected) == (3, 3, 1, 1)
    assert stories[3].participated == 4 and stories[3].weight == pytest.approx(0.03)
    assert stories[2].patches == 25 and stories[2].reputation == 0.5


def test_quarantine_and_identities_are_told() -> None:
    run = recorded(quarantining())
    stories = {story.client: story for story in hospitals(run)}
    assert run.acts and not recorded(quarantining(acts=False)).acts and not recorded(journal()).acts
    assert (stories[1].quarantined, stories[1].quarantined_from, stories[1].quarantined_now) == (2, 4, True)
    assert (stories[2].quarantined, stories[2].quarantined_from, stories[2].quarantined_now) == (1, 2, False)
    assert (stories[1].attacked, stories[4].attacked, stories[0].attacked) == (5, 3, 0)
    assert stories[4].identities == (4, 6, 7) and stories[1].identities == (1,)
    assert np.argwhere(run.renewed()).tolist() == [[4, 2], [4, 4]]
    assert run.identities()[4].tolist() == [4, 4, 6, 6, 7]


def test_parts_of_the_score_stand_where_they_belong() -> None:
    parts = recorded(journal()).parts()
    assert list(parts) == ["norm", "average_cosine"]
    assert parts["average_cosine"][4].tolist() == [0.04] * 5
    assert np.argwhere(np.isnan(parts["norm"])).tolist() == [[3, 1]]
