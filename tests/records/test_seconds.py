"""How long a run took, without its start-up."""

from __future__ import annotations

import math

import pytest
from reported import journal, recorded


@pytest.mark.parametrize(
    ("rounds", "seconds"),
    [
        ([12.0, 4.9, 0.5, 0.4, 0.5], 2.5),  # the first two also import libraries
        ([12.0, 0.5], 1.0),
        ([0.5], 0.5),
        ([None, 0.25, 0.25], 0.75),
        ([], math.nan),
        ([None], math.nan),
    ],
)
def test_the_seconds_of_a_run_are_those_of_its_median_round(rounds: list[float | None], seconds: float) -> None:
    made = [
        {"kind": "round", "round": number, "participants": [], "seconds": {"round": took} if took else {}}
        for number, took in enumerate(rounds, 1)
    ]
    found = recorded([journal()[0], *made]).seconds
    assert found == pytest.approx(seconds, nan_ok=True)
