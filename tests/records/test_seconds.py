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


def test_a_repair_of_the_model_is_in_the_seconds_of_a_run() -> None:
    """It is in one round of many, so that the median does not have it."""
    made = [
        {"kind": "round", "round": number, "participants": [], "seconds": {"round": took}, "repair": steps}
        for number, (took, steps) in enumerate([(9.0, None), (0.5, None), (0.5, 0), (0.4, 40), (30.5, 400)], 1)
    ]
    assert recorded([journal()[0], *made]).seconds == pytest.approx(5 * 0.5 + 30.0)
