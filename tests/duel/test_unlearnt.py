"""A duel in which nothing is learnt says so, and its searches stop; attacks that do equal harm are all named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from played import Played
from rich.console import Console

from fedrobust.duels import load_duel
from fedrobust.duels.results import Turn, page
from fedrobust.duels.running import DuelResult, run_duel
from fedrobust.errors import UnlearntError
from fedrobust.experiment import Experiment
from fedrobust.terminal import show_duel
from fedrobust.tuning import Objective

pytestmark = pytest.mark.slow

SAID = "none of 4 runs is better than chance (test/balanced_accuracy 0.503 against 0.5) after 8 rounds"


def duel(*overrides: str, **options: Any) -> DuelResult:
    return run_duel(load_duel("duel.yaml", overrides), pool=SimpleNamespace(teams=2), **options)  # type: ignore[arg-type]


@pytest.fixture
def flat(played: Played, told: list[Any]) -> Played:
    """Nobody learns anything."""
    played.confusion = [[9, 1], [9, 1]]
    played.accuracy = lambda experiment, round: 0.503
    return played


def test_a_duel_stops_where_no_search_learns_anything_and_says_so(flat: Played) -> None:
    with pytest.raises(UnlearntError, match=r"^mean \+ nothing: none of 2 runs is .*, nor is one without attackers"):
        duel()
    text = Path("mlruns/duels/played/duel.md").read_text()
    assert f"- mean + nothing, fixed attacks: {SAID}: more rounds or data" in text, "nobody is among the attacks"
    assert text.count("with --anyway") == 2, "a failed turn of each defence"
    assert len([name for name in flat.begun if name.startswith("control")]) == 2
    found = duel(anyway=True)
    assert not any(turn.failed for turn in found.turns)
    assert all(turn.unlearnt for turn in found.turns)
    out = Console(record=True, width=200)
    show_duel(out, found)
    shown = out.export_text()
    assert f"clipping, fixed attacks: {SAID}" in shown
    assert "nobody, flip" in shown, "equal harm"


def test_a_defence_that_learns_nothing_ends_and_the_other_goes_on(flat: Played) -> None:
    def accuracy(experiment: Experiment, round: int) -> float:
        return 0.5 if experiment.resolved()["aggregation"]["rule"]["name"] == "mean" else 0.8

    flat.accuracy = accuracy
    found = duel()
    turns = {(turn.defence, turn.label): turn for turn in found.turns}
    assert "nor is one without attackers: more rounds or data" in turns["mean + nothing", "attacker 1"].failed
    assert not turns["clipping", "defender 1"].failed and not turns["clipping", "fixed attacks"].unlearnt


def test_a_dash_has_a_reason_and_equal_attacks_are_all_named() -> None:
    one = Turn("one", "fixed", 0, {"a": 0.5, "b": 0.5, "c": 0.7}, {}, {})
    two = Turn("one", "defender", 1, {"a": 0.6}, {}, {})
    other = Turn("other", "fixed", 0, {"a": 0.5}, {}, {})
    text = page("name", Objective(metric="test/auroc"), [one, two, other])
    assert "| 0.500 (a, b) |" in text
    assert "–: the defence has no space to tune, or it took no further turn." in text
    assert "–:" not in page("name", Objective(metric="test/auroc"), [one, other])
