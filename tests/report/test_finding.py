"""Runs are found by id, by its beginning, and by either name of their experiment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from refused import refused
from reported import compared, write

from fedrobust.report.finding import find_run, find_runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs, the first of them written last, and a folder that holds no journal."""
    named = {"ab12": ("trial", "weekly"), "ab34": ("trial", "daily"), "cd56": ("other", "weekly")}
    for age, (id, (name, experiment)) in enumerate(named.items()):
        (tmp_path / id).mkdir()
        write(tmp_path / id, compared(name=name, tracking={"experiment": experiment}))
        os.utime(tmp_path / id / "journal.jsonl", (1000 - age, 1000 - age))
    (tmp_path / "ef78").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["trial"], ["ab34", "ab12"]),
        (["weekly"], ["cd56", "ab12"]),
        (["ab1"], ["ab12"]),
        (["cd56", "ab12", "trial"], ["cd56", "ab34", "ab12"]),
    ],
)
def test_all_that_is_meant_each_once_in_the_order_of_writing(runs: Path, names: list[str], found: list[str]) -> None:
    assert [folder.name for folder in find_runs(names, runs)] == found


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ab", {"says": "2 runs"}),
        ("trail", {"allowed": ("daily", "other", "trial", "weekly"), "hint": "did you mean 'trial'?"}),
        ("../x", {"allows": "daily"}),
    ],
)
def test_what_means_no_run_or_several_is_one_line(runs: Path, name: str, problem: dict[str, Any]) -> None:
    with refused(found=f"'{name}'", **problem):
        find_runs(["weekly", name], runs)


def test_where_nothing_has_run_there_are_no_runs(tmp_path: Path) -> None:
    with refused(found="'trial'", allowed=()):
        find_runs(["trial"], tmp_path / "runs")
    with refused(found="'ab12'", allowed=()):
        find_run("ab12", tmp_path / "runs")
