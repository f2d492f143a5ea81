"""From the cells of rows to ranks and intervals, against a reference with pandas and scipy."""

from __future__ import annotations

import math
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benched import made_row, planted, usual, write_suite
from rich.console import Console
from scipy import stats

from fedrobust.benchmark import BenchmarkRow, Suite, comparable, ranked
from fedrobust.terminal import show_ranking


@pytest.fixture
def suite(workplace: Path) -> Suite:
    return write_suite(workplace)


def reference(row: BenchmarkRow, setting: str) -> dict[str, tuple[float, float, float]]:
    """Attack → mean robustness and its t interval, by other means."""
    table = pd.DataFrame([cell.model_dump() for cell in row.cells])
    table = table[(table["setting"] == setting) & (table["attack"] != "nobody")]
    table["robustness"] = (table["accuracy"] - 0.5) / (0.9 - 0.5)
    found = {}
    for attack, cells in table.groupby("attack"):
        mean, error = cells["robustness"].mean(), stats.sem(cells["robustness"])
        found[str(attack)] = (mean, *stats.t.interval(0.95, len(cells) - 1, mean, error))
    return found


def test_the_worst_attack_of_each_setting(suite: Suite) -> None:
    (line,) = ranked([made_row(suite, usual, planted)], suite)
    assert {name: each.attack for name, each in line.settings.items()} == {"few": "flip", "many": "patch"}
    for setting, found in line.settings.items():
        attacks = reference(line.row, setting)
        assert found.robustness == pytest.approx(attacks[found.attack])
        assert found.robustness.value == pytest.approx(min(mean for mean, *_ in attacks.values()))
    assert line.score == pytest.approx(np.mean([each.robustness.value for each in line.settings.values()]))


def test_gain_cost_and_time(suite: Suite) -> None:
    (line,) = ranked([made_row(suite, usual, planted)], suite)
    gains = [planted("many", "patch", seed) - 0.1 for seed in (1, 2, 3, 4)]
    low, high = stats.t.interval(0.95, 3, np.mean(gains), stats.sem(gains))
    assert line.settings["many"].gain == pytest.approx((np.mean(gains), low, high))
    assert line.settings["many"].backdoor == "patch"
    costs = [0.88 - usual("few", "nobody", seed) for seed in (1, 2, 3, 4)]
    assert line.cost == pytest.approx((np.mean(costs), *stats.t.interval(0.95, 3, np.mean(costs), stats.sem(costs))))
    assert line.time == 1.5


def test_ranks_are_shared_and_rows_that_lack_cells_are_last(suite: Suite) -> None:
    rows = [
        made_row(suite, lambda *key: None if key == ("many", "weak", 3) else 0.9, planted),
        made_row(suite, lambda *key: usual(*key) - 0.1, planted),
        made_row(suite, usual, planted),
        made_row(suite, usual, planted, entry="multi_krum"),
    ]
    lines = ranked(rows, suite)
    assert [line.rank for line in lines] == [1, 1, 3, None]
    assert lines[2].row is rows[1]
    lacking = lines[-1].settings["many"]
    assert lacking.lacks.startswith("weak, seed 3: the rule needs")
    assert math.isnan(lacking.robustness.value)
    assert lines[-1].settings["few"].robustness.value == pytest.approx(1)


@pytest.mark.parametrize("control", [False, True])
def test_a_cell_that_fails_with_nobody_attacking_takes_the_rank_and_the_cost(suite: Suite, control: bool) -> None:
    row = made_row(suite, usual, planted)
    part = "controls" if control else "cells"
    failed = {"accuracy": None, "failed": "it died"}
    cells = [
        each.model_copy(update=failed) if (each.attack, each.setting, each.seed) == ("nobody", "few", 2) else each
        for each in getattr(row, part)
    ]
    line, whole = ranked([row.model_copy(update={part: tuple(cells)}), row], suite)[::-1]
    assert (line.rank, whole.rank) == (None, 1)
    assert line.settings["few"].lacks == "nobody, seed 2: it died"
    assert not line.settings["many"].lacks
    assert math.isnan(line.cost.value)
    assert math.isfinite(whole.cost.value)


def test_nothing_gets_better_because_it_is_missing(suite: Suite) -> None:
    row = made_row(suite, usual, planted)
    (whole,) = ranked([row], suite)
    hidden = {
        "cells": tuple(each.model_copy(update={"success": None}) for each in row.cells),
        "controls": tuple(each.model_copy(update={"base_rates": {}}) for each in row.controls),
    }
    for part, gain in (("cells", 1 - 0.1), ("controls", np.mean([planted("many", "patch", s) for s in (1, 2, 3, 4)]))):
        (line,) = ranked([row.model_copy(update={part: hidden[part]})], suite)
        assert line.settings["many"].gain.value == pytest.approx(gain)
        assert line.settings["many"].gain.value > whole.settings["many"].gain.value


def test_a_seed_on_which_the_oracle_has_learnt_nothing_is_left_out(suite: Suite) -> None:
    row = made_row(suite, usual, planted)
    flat = tuple(
        each.model_copy(update={"accuracy": 0.51}) if (each.attack, each.seed) == ("oracle", 2) else each
        for each in row.controls
    )
    (line,) = ranked([row.model_copy(update={"controls": flat})], suite)
    expected = np.mean([(usual("few", "flip", seed) - 0.5) / 0.4 for seed in (1, 3, 4)])
    assert line.settings["few"].robustness.value == pytest.approx(expected)
    gains = np.mean([planted("few", "patch", seed) - 0.1 for seed in (1, 3, 4)])
    assert line.settings["few"].gain.value == pytest.approx(gains)
    out = Console(width=140, record=True, file=StringIO())
    show_ranking(out, [line], suite, quick=False)
    assert "median, few: without seeds 2, on which the oracle has learnt nothing" in out.export_text()


def test_a_full_row_beside_a_quick_one(suite: Suite) -> None:
    """Of a stored row only the same cells count: `flip`, the worst of all, is not in the quick part."""
    quick, full = made_row(suite, usual, planted, quick=True), made_row(suite, usual, planted)
    lines = ranked([quick, full.restricted(suite)], suite)
    assert repr(lines[0].settings) == repr(lines[1].settings)
    assert [line.rank for line in lines] == [1, 1]
    assert lines[0].settings["few"].attack == "patch"
    assert math.isnan(lines[0].settings["few"].robustness.low)  # two seeds


def test_rows_are_compared_on_the_cells_that_they_share(suite: Suite) -> None:
    quick, full = made_row(suite, usual, planted, quick=True), made_row(suite, usual, planted)

    def tables(own: list[BenchmarkRow], stored: list[BenchmarkRow], part: bool = False) -> list[tuple[bool, int, int]]:
        found = comparable(own, stored, part, suite)
        for is_part, *both in found:
            assert all(len(row.cells) == len(suite.cells(is_part)) for rows in both for row in rows)
        return [(is_part, len(own), len(stored)) for is_part, own, stored in found]

    assert tables([], []) == []
    assert tables([], [full, full]) == [(False, 0, 2)]
    assert tables([], [full, full], part=True) == [(True, 0, 2)]
    assert tables([], [quick, full]) == [(False, 0, 1), (True, 0, 2)]
    assert tables([full], [quick, quick]) == [(False, 1, 0), (True, 1, 2)]
    assert tables([quick], [full]) == tables([full], [full], part=True) == [(True, 1, 1)]
    assert tables([full, quick], [full]) == [(False, 1, 1), (True, 2, 1)]


def test_the_table_has_every_row_and_why_one_has_no_rank(suite: Suite) -> None:
    own = made_row(suite, usual, planted)
    failed = made_row(suite, lambda *key: None if key[1] == "weak" else 0.9, planted, entry="multi_krum")
    out = Console(width=140, record=True, file=StringIO())
    show_ranking(out, ranked([failed, own], suite), suite, quick=False, own=[own])
    shown = out.export_text()
    assert "→ median" in shown
    assert "→ multi_krum" not in shown
    assert "0.52 [0.49, 0.56]" in shown
    assert "multi_krum, few: no robustness: weak, seed 1: the rule needs n ≥ 2f + 1 (3 more cells failed)" in shown
