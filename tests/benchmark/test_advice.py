"""Which rows answer for an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from benched import OWN, SUITE, made_row, planted, usual, write_suite
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


def why(experiment: Mapping[str, Any], lines: list[Ranked]) -> str:
    return advised(Experiment.model_validate(experiment), lines).why


def test_why_the_own_defence_has_no_line(lines: list[Ranked]) -> None:
    assert why({"aggregation": {"rule": "median"}}, lines) == ""
    assert "has no row" in why({"aggregation": {"rule": "krum"}}, lines)
    assert "a row without a rank, dnc: nobody, seed 1: the rule needs" in why({"aggregation": {"rule": "dnc"}}, lines)
    assert "data.root.set_aside" in why({"aggregation": {"rule": "fltrust"}}, lines)


def test_what_a_protocol_changes_was_not_measured(lines: list[Ranked]) -> None:
    """Means of groups, and hypotheses in turn."""
    found = advised(
        Experiment.model_validate(
            {"aggregation": {"rule": "mean"}, "privacy": "grouped", "federation": {"clients": 20}}
        ),
        lines,
    )
    assert "grouped" in found.why
    assert (found.own, found.possible, found.with_patches) == (None, [], [])
    referee = {
        "aggregation": {"rule": "adaptive"},
        "trust": {"referee": {}},
        "data": {"root": {"set_aside": 0.1}},
        "federation": {"clients": 20},
    }
    assert names(referee, lines)[0] == "referee"
    shares = {**referee, "privacy": "shares"}
    assert "here one is opened" in why(shares, lines)
    own, possible, _ = names(shares, lines)
    assert own is None
    assert "referee" not in possible and "mean" in possible


def test_another_class_of_the_same_name_has_no_row(suite: Suite) -> None:
    Path("own_rule.py").write_text(OWN)
    row = made_row(suite, usual, planted, entry="own_rule:Equal")
    experiment = Experiment.model_validate({"aggregation": {"rule": "own_rule:Equal"}})
    assert advised(experiment, ranked([row], suite)).own is not None
    other = row.model_copy(update={"entry": row.entry.model_copy(update={"code": {"own_rule:Equal": "0" * 64}})})
    found = advised(experiment, ranked([other], suite))
    assert (found.own, found.possible) == (None, [])
    nameless = row.model_copy(update={"entry": row.entry.model_copy(update={"code": {}})})
    assert advised(experiment, ranked([nameless], suite)).own is None


def test_a_row_without_an_option_that_has_been_added_since_answers(suite: Suite) -> None:
    row = made_row(suite, usual, planted)

    def changed(**aggregation: Any) -> list[Ranked]:
        options = {**row.entry.options, "aggregation": aggregation}
        return ranked([row.model_copy(update={"entry": row.entry.model_copy(update={"options": options})})], suite)

    median = {"aggregation": {"rule": "median"}}
    older = {key: value for key, value in row.entry.options["aggregation"].items() if key != "sketch"}
    assert names(median, changed(**older))[0] == "median"
    assert names(median, changed(**older, gone=1)) == (None, [], [])


def test_what_is_shown(suite: Suite, lines: list[Ranked]) -> None:
    def shown(experiment: Mapping[str, Any]) -> str:
        out = Console(width=100, record=True, file=StringIO())
        show_advice(out, advised(Experiment.model_validate(experiment), lines), suite, quick=True)
        return out.export_text()

    said = shown({"aggregation": {"rule": "median"}})
    assert "tiny-v1, quick part" in said and "this experiment" in said and "with data.root.set_aside" in said
    assert said.count("median") == 2
    assert "has no row" in shown({"aggregation": {"rule": "krum"}})
