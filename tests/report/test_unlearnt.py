"""A run that ends at chance says so, in one line, and what can be done about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reported import journal, recorded
from rich.console import Console

from fedrobust.report.page import html
from fedrobust.report.story import unlearnt
from fedrobust.runner import Result
from fedrobust.terminal import show_result


def ending(accuracy: float | None, attackers: tuple[int, ...] = (1, 4), **changes: Any) -> list[Any]:
    """The lines of a journal with this accuracy, and with changes to all evaluations."""
    records = journal(attackers=attackers)
    for record in records:
        if record["kind"] == "evaluation":
            record["metrics"] = record["metrics"] | {"test/balanced_accuracy": accuracy}
            record |= changes
    return records


@pytest.mark.parametrize(
    ("attackers", "said"),
    [
        ((), "the model is at chance (balanced accuracy 0.503 against 0.5) after 5 rounds: more rounds or data"),
        (
            (1, 4),
            "the model is at chance (balanced accuracy 0.503 against 0.5) after 5 rounds: the attackers have ruined "
            "it, or it needs more rounds or data; a run with attacks=[] shows which",
        ),
    ],
)
def test_a_run_at_chance_says_so_once_in_the_terminal_and_in_its_report(attackers: tuple[int, ...], said: str) -> None:
    run = recorded(ending(0.503, attackers=attackers))
    out = Console(record=True, width=250)
    show_result(out, Result("abc", "name", Path("mlruns/runs/abc"), run, {}, {}, []))
    assert out.export_text().count(said) == 1
    assert html(run, {}).count(f"T{said[1:]}.") == 1


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(ending(0.9), id="it has learnt"),
        pytest.param(ending(None), id="no figure"),
        pytest.param(ending(0.5)[:2], id="not evaluated yet"),
        pytest.param(
            [record | ({"skipped": "no update"} if record["kind"] == "round" else {}) for record in ending(0.5)],
            id="untrained, which is said elsewhere",
        ),
        pytest.param(ending(0.5, confusion=[]), id="chance is unknown"),
        pytest.param(ending(0.5, confusion=[[9, 0], [0, 0]]), id="one label in the test"),
    ],
)
def test_other_runs_say_nothing_of_the_kind(records: list[Any]) -> None:
    run = recorded(records)
    assert unlearnt(run) == ""
    assert "at chance" not in html(run, {})
