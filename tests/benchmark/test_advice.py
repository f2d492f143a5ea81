"""Which rows answer for an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from benched import SUITE, made_row, planted, usual, write_suite
from rich.console import Console

from fedrobust.benchmark import Ranked, Suite, advised, ranked
from fedrobust.experiment import Experiment
from fedrobust.terminal import show_advice

REFEREE = "aggregation: {rule: adaptive}\ntrust: {referee: {}}\n"


@pytest.fixture
def suite(workplace: Path) -> Suite:
    Path("referee.yaml").write_text(REFEREE)
    aside = "    root: {patches: 10, set_aside: 0.2}\n    split"
    return write_suite(workplace, SUITE.replace("    split", aside))


@pytest.fixture
def lines(suite: Suite) -> list[Ranked]:
    entries = ("multi_krum", "median", "fltrust", "referee.yaml", "mean")

    def worse(entry: str) -> Any:
        return lambda *key: usual(*key) - 0.01 * entries.index(entry)

    rows = [made_row(suite, worse(entry), planted, entry=entry) for entry in entries]
    failed = made_row(suite, lambda *key: None, planted, entry="dnc")
    return ranked([*rows, failed], suite)


def names(experiment: Mapping[str, Any], lines: list[Ranked]) -> tuple[str | None, list[str], list[str]]:
    found = advised(Experiment.model_validate(experiment), lines)
    own = found.own.row.name if found.own is not None else None
    return own, [line.row.name for line in found.possible], [line.row.name for line in found.with_patches]


def test_the_own_defence_and_those_that_could_run(lines: list[Ranked]) -> None:
    median = {"aggregation": {"rule": "median"}}
    plain = ["multi_krum", "median", "mean"]
    assert names(median, lines) == ("median", plain, ["fltrust", "referee"])
    assert names({**median, "data": {"root": {"set_aside": 0.1}}}, lines) == (
        "median",
        ["multi_krum", "median", "fltrust", "referee", "mean"],
        [],
    )


def test_scores_that_are_only_recorded_make_no_other_defence(lines: list[Ranked]) -> None:
    median = {"aggregation": {"rule": "median"}}
    assert names({**median, "trust": {"detector": "consensus"}}, lines)[0] == "median"
    assert names({**median, "trust": {"acts": True}}, lines)[0] is None
    assert names({"aggregation": {"rule": "median", "f": 1}}, lines)[0] is None
    assert names({"aggregation": {"rule": "dnc"}}, lines)[0] is None  # its row has no figure


def test_a_row_whose_scores_need_patches_answers_for_its_defence(suite: Suite) -> None:
    """They are only recorded: the same model comes out without them."""
    Path("mix.yaml").write_text("aggregation: {rule: mean}\ntrust: {detector: label_mix}\n")
    lines = ranked([made_row(suite, usual, planted, entry="mix.yaml")], suite)
    assert names({"aggregation": {"rule": "mean"}}, lines) == ("mix", [], ["mix"])


def test_a_server_that_trains_on_the_hospitals_patches_was_not_measured(lines: list[Ranked]) -> None:
    fltrust = {"aggregation": {"rule": "fltrust"}}
    assert names(fltrust, lines)[0] is None
    assert names({**fltrust, "data": {"root": {"set_aside": 0.1}}}, lines)[0] == "fltrust"


def test_the_protocol_and_the_number_of_hospitals_decide_what_could_run(lines: list[Ranked]) -> None:
    mean = {"aggregation": {"rule": "mean"}}
    assert names({**mean, "privacy": "masked"}, lines) == ("mean", ["mean"], [])
    shares = {**mean, "privacy": {"name": "shares", "sketch": None}, "federation": {"clients": 12}}
    assert "median" not in names(shares, lines)[1]
    assert names({**mean, "federation": {"clients": 2}}, lines)[1] == ["median", "mean"]


def test_what_is_shown(suite: Suite, lines: list[Ranked]) -> None:
    def shown(experiment: Mapping[str, Any]) -> str:
        out = Console(width=100, record=True, file=StringIO())
        show_advice(out, advised(Experiment.model_validate(experiment), lines), suite, quick=True)
        return out.export_text()

    said = shown({"aggregation": {"rule": "median"}})
    assert "tiny-v1, quick part" in said and "this experiment" in said and "with data.root.set_aside" in said
    assert said.count("median") == 2
    assert "has no row" in shown({"aggregation": {"rule": "krum"}})
