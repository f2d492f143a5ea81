"""Pictures, page and table of a sweep: what is in them is what the trials were, whatever became of them."""

from __future__ import annotations

import csv
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nasty import NAMES
from studies import MIXED, Page, by_rate, view_of

from fedrobust.texts import visible
from fedrobust.tuning import Objective, load_sweep
from fedrobust.tuning.files import write_study, write_trials
from fedrobust.tuning.objectives import Direction
from fedrobust.tuning.page import sweep_html
from fedrobust.tuning.pictures import make_figures, wrapped
from fedrobust.tuning.space import Values
from fedrobust.tuning.study import Asked, Completed, Failed, Outcome, Pruned, study_of
from fedrobust.tuning.views import SweepView, importances, labels

BASE = """
name: base
data: {source: {name: histology, patients: 20}}
federation: {clients: 10, rounds: 12}
attacks: [{name: sign_flip, fraction: 0.3}]
"""
SWEEP = """
name: small
experiment: base.yaml
space:
  learning.local.optimizer.lr: {log: [0.001, 0.3]}
  trust.acts: {choice: [true, false]}
  aggregation:
    choice:
      clipping: {rule: {name: centered_clipping, tau: {log: [0.1, 10.0]}}}
      krum: {stages: [nnm], rule: multi_krum, f: {int: [1, 3]}}
      mean: {rule: mean}
objectives: [{metric: test/balanced_accuracy}, {metric: test/loss, direction: minimize}]
sampler: {name: tpe, startup: 5}
trials: 18
parallel: 3
"""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Nothing here may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        yield


def figures(view: SweepView) -> dict[str, Any]:
    return {name: figure for _, name, figure in make_figures(view)}


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_history_has_every_trial_and_the_best_so_far(direction: Direction) -> None:
    values = [None, 0.5, 0.7, None, 0.6, 0.8, 0.3, None]
    view = view_of(
        lambda number, _: None if values[number] is None else [values[number]],
        directions=[direction],
        trials=8,
        reports=lambda number: {1: 0.1} if number in (3, 7) else {},
    )
    points, line, *rest = figures(view)["history"].data
    done = {number: value for number, value in enumerate(values) if value is not None}
    assert dict(zip(points.x, points.y, strict=True)) == done
    assert list(line.y)[1:] == [0.5, *([0.7] * 3 + [0.8] * 3 if direction == "maximize" else [0.5] * 4 + [0.3] * 2)]
    assert not math.isfinite(line.y[0])  # nothing is completed yet
    assert {each.name: list(each.x) for each in rest if each.x} == {"pruned": [3, 7], "failed": [0]}


def test_importance_finds_what_counts_and_is_the_same_again() -> None:
    view = view_of(by_rate, trials=40)
    found = importances(view, 0)
    assert set(found) == set(view.space.searched)  # what is only searched in some trials included
    assert math.fsum(found.values()) == pytest.approx(1)
    assert next(iter(found)) == "learning.local.optimizer.lr"
    assert found["learning.local.optimizer.lr"] > 0.6
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert importances(view, 0) == found
    bars = figures(view)["importance"].data[0]
    assert list(bars.y)[::-1] == list(found)
    assert list(bars.x)[::-1] == pytest.approx(list(found.values()))


def test_importance_of_a_plateau_is_that_of_the_few_above_it() -> None:
    def above(number: int, chosen: Values) -> list[float]:
        return [0.5 + 0.3 * (chosen["trust.acts"] and chosen["federation.rounds"] > 14)]

    view = view_of(above, trials=30)
    assert 1 <= sum(row.values[0] > 0.5 for row in view.rows) < 30 * 0.25
    found = importances(view, 0)
    assert max(found, key=lambda name: found[name]) == "federation.rounds"
    assert importances(view_of(lambda *_: [0.5]), 0) == {}
    assert importances(view_of(by_rate, trials=7), 0) == {}
    assert importances(view_of(lambda *_: None), 0) == {}


def test_a_slice_has_the_trials_that_have_the_option() -> None:
    view = view_of(by_rate)
    figure = figures(view)["slice"]
    axes = list(figure.select_xaxes())
    names = [axis.title.text.replace("<br>", "") for axis in axes]
    assert names == sorted(view.space.searched)
    panels = dict(zip(names, zip(figure.data, axes, strict=True), strict=True))
    for name, (trace, axis) in panels.items():
        having = {row.number: row for row in view.rows if name in row.chosen}
        assert list(trace.y) == [having[number].values[0] for number in trace.marker.color]
        assert set(trace.marker.color) == set(having)
        if name in ("aggregation", "trust.acts"):
            shown = dict(zip(axis.tickvals, axis.ticktext, strict=True))
            expected = [str(having[number].chosen[name]) for number in trace.marker.color]
            told = [shown[value].removesuffix("…") for value in trace.x]
            assert all(own.lower().startswith(text) for own, text in zip(expected, told, strict=True))
        else:
            assert list(trace.x) == [having[number].chosen[name] for number in trace.marker.color]
    tau, axis = panels["aggregation.clipping.rule.tau"]
    assert 0 < len(tau.x) < len(view.rows)
    assert (axis.type, axis.range[0] < -1, axis.range[1] > 1) == ("log", True, True)
    assert list(panels["trust.acts"][1].ticktext) == ["true", "false"]


@pytest.mark.parametrize("directions", [("maximize",), ("maximize", "minimize")])
def test_a_line_of_the_parallel_picture_has_all_of_a_trial_under_whole_names(directions: tuple[Direction, ...]) -> None:
    space = {"aggregation": MIXED["aggregation"], "nulls": {"choice": [None, "None", "null", 3, "3"]}}
    view = view_of(lambda number, _: [number, -number][: len(directions)], space, directions)
    figure = figures(view)["parallel"]
    *lines, _ = figure.data
    names = [*view.objectives, *sorted(view.space.searched)]
    assert [text.replace("<br>", "") for text in figure.layout.xaxis.ticktext] == names
    texts = {None: "null", "None": "None", "null": '"null"', 3: "3", "3": '"3"'}
    seen = set()
    for line in lines:
        told = dict(line.customdata)
        row = view.rows[int(float(told[view.objectives[0]]))]
        seen.add(row.number)
        assert told["nulls"] == texts[row.chosen["nulls"]]
        for name in set(view.space.searched) - {"nulls"}:
            own = row.chosen.get(name, "–")
            assert told[name] == own if isinstance(own, str) else float(told[name]) == pytest.approx(own, rel=1e-2)
    assert seen == set(range(30))


@pytest.mark.parametrize("directions", [("maximize", "minimize"), ("minimize", "minimize", "maximize")])
def test_the_pareto_pictures_have_every_pair_and_the_front(directions: tuple[Direction, ...]) -> None:
    random = np.random.default_rng(1)
    scores = random.random((30, len(directions)))
    view = view_of(lambda number, _: [float(each) for each in scores[number]], directions=directions)
    found = [figure for _, name, figure in make_figures(view) if name == "pareto"]
    pairs = [(0, 1)] if len(directions) == 2 else [(0, 1), (0, 2), (1, 2)]
    for figure, pair in zip(found, pairs, strict=True):
        beaten, front = figure.data
        assert list(front.marker.color) == list(view.best)
        assert list(zip(front.x, front.y, strict=True)) == [tuple(scores[i][list(pair)]) for i in view.best]
        assert len(beaten.x) == 30 - len(view.best)
        assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == tuple(
            view.objectives[place] for place in pair
        )


def test_intermediate_values_are_those_that_were_reported() -> None:
    def reports(number: int) -> dict[int, float]:
        return {step: number + step / 10 for step in range(1, 3 + number % 3)}

    view = view_of(lambda number, _: None if number % 4 == 1 else [number], trials=9, reports=reports)
    figure = figures(view)["intermediate"]
    *lines, ends = figure.data
    assert [dict(zip(each.x, each.y, strict=True)) for each in lines] == [reports(number) for number in range(9)]
    assert list(zip(ends.x, ends.y, strict=True)) == [max(reports(number).items()) for number in (1, 5)]
    assert figure.layout.xaxis.title.text == "round"


def test_the_same_trials_give_the_same_page() -> None:
    assert sweep_html(view_of(by_rate)) == sweep_html(view_of(by_rate))


MANY = {f"a.rather_long.path.to.an_option_{i}": {"float": [0.0, 1e-5 * 10**i]} for i in range(7)}
ONE = {"x": {"int": [1, 3]}}
EDGES: dict[str, tuple[Any, set[str]]] = {
    "none": ({"judge": by_rate, "trials": 0}, set()),
    "all failed": ({"judge": lambda *_: None, "trials": 5}, set()),
    "one": ({"judge": by_rate, "trials": 1}, {"history", "slice", "parallel"}),
    "few": (
        {"judge": by_rate, "trials": 7, "space": {"learning.local.optimizer.lr": {"log": [0.001, 1.0]}}},
        {"history", "slice", "parallel"},
    ),
    "enough": ({"judge": lambda n, _: [n], "trials": 8, "space": ONE}, {"history", "slice", "parallel", "importance"}),
    "constant": ({"judge": lambda *_: [0.0], "space": ONE}, {"history", "slice", "parallel"}),
    "huge": (
        {"judge": lambda number, _: [1e12 + number], "space": ONE},
        {"history", "slice", "parallel", "importance"},
    ),
    "one option": ({"judge": lambda n, _: [n], "space": ONE}, {"history", "slice", "parallel", "importance"}),
    "only choices": (
        {
            "judge": lambda n, chosen: [len(str(chosen["rule"]))],
            "space": {
                "rule": {"choice": [f"rule number {'x' * i}" for i in range(12)]},
                "acts": {"choice": [True, None, 3, "3"]},
            },
        },
        {"history", "slice", "parallel", "importance"},
    ),
    "many options": ({"judge": lambda n, _: [n], "space": MANY}, {"history", "slice", "parallel", "importance"}),
    "narrow logarithm": (
        {"judge": lambda n, _: [n], "space": {"x": {"log": [0.11, 0.19]}, "y": {"log": [1e-7, 1e5]}}},
        {"history", "slice", "parallel", "importance"},
    ),
    "two objectives, one": (
        {"judge": lambda n, _: [n, 1.0], "directions": ("maximize", "minimize"), "trials": 1, "space": ONE},
        {"history", "slice", "parallel", "pareto"},
    ),
    "two objectives, one of them constant": (
        {"judge": lambda n, _: [n, 1.0], "directions": ("maximize", "minimize"), "space": ONE},
        {"history", "slice", "parallel", "pareto", "importance"},
    ),
    "four objectives": (
        {"judge": lambda n, _: [n, -n, n % 7, n % 5], "directions": ("maximize", "minimize") * 2, "space": ONE},
        {"history", "slice", "parallel", "pareto", "importance"},
    ),
}


@pytest.mark.parametrize("case", EDGES)
def test_whatever_the_trials_are_there_are_pictures_and_a_page(case: str, caplog: pytest.LogCaptureFixture) -> None:
    options, expected = EDGES[case]
    page = Page.read(sweep_html(view_of(**options)))
    pictured = [
        attributes["id"] or "" for _, attributes in page.tags if "plotly-graph-div" in (attributes.get("class") or "")
    ]
    assert {name.partition("-")[0] for name in pictured} == expected
    assert len(set(pictured)) == len(pictured)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_whole_sweep_is_written(workplace: Path) -> None:
    Path("base.yaml").write_text(BASE)
    Path("sweep.yaml").write_text(SWEEP)
    plan = load_sweep("sweep.yaml")
    study = study_of(plan, "sqlite:///:memory:")
    folder = Path("out/sweep")
    assert [file.name for file in write_study(folder, plan, study)] == ["trials.csv", "sweep.html"]

    def outcome(asked: Asked) -> Outcome:
        rate = asked.values["learning.local.optimizer.lr"]
        if asked.number == 4:
            return Failed('no quorum, "2" of 10\nhospitals')
        return Pruned() if asked.number == 7 else Completed((1 / (1 + rate), rate * (1 + asked.number % 3)))

    while study.finished < 12:
        study.tell({asked.number: outcome(asked) for asked in study.ask()})
    study.ask()  # three more are running
    write_study(folder, plan, study)
    with (folder / "trials.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == [
        *("number", "state", "test/balanced_accuracy", "test/loss", "learning.local.optimizer.lr", "trust.acts"),
        *("aggregation", "aggregation.clipping.rule.tau", "aggregation.krum.f", "reason"),
    ]
    trials = {trial.number: trial for trial in study.study.get_trials()}
    assert [int(row["number"]) for row in rows] == list(range(12))
    for row in rows:
        trial, number = trials[int(row["number"])], int(row["number"])
        assert row["state"] == {4: "failed", 7: "pruned"}.get(number, "completed")
        values = [float(row[name]) for name in ("test/balanced_accuracy", "test/loss") if row[name]]
        assert values == (trial.values or [])
        searched = {name: row[name] for name in plan.space.searched if row[name]}
        expected = {name: str(value) for name, value in trial.params.items()}
        assert searched == expected | {"trust.acts": expected["trust.acts"].lower()}
        assert row["reason"] == ('no quorum, "2" of 10\nhospitals' if number == 4 else "")
    page = Page.read((folder / "sweep.html").read_text(encoding="utf-8"))
    best, everything = page.tables
    assert {row[0] for row in best[1:]} == {str(trial.number) for trial in study.best()}
    assert [row[:2] for row in everything[1:]] == [[row["number"], row["state"]] for row in rows]
    assert everything[5][-1].split() == ["no", "quorum,", '"2"', "of", "10", "hospitals"]
    assert "12 of 18 trials" in page.text


def test_null_is_a_choice_and_an_empty_cell_is_none(tmp_path: Path) -> None:
    space = {"a": {"choice": {"x": {"b": {"choice": [None, "one, two"]}}, "y": "y"}}}
    view = view_of(lambda number, _: [number], space)
    write_trials(tmp_path / "trials.csv", view)
    with (tmp_path / "trials.csv").open(newline="") as lines:
        found = [row["a.x.b"] for row in csv.DictReader(lines)]
    names = {None: "null", "one, two": "one, two"}
    assert found == [names[row.chosen["a.x.b"]] if "a.x.b" in row.chosen else "" for row in view.rows]
    assert set(found) == {"", "null", "one, two"}


def test_no_cell_is_a_formula_and_numbers_stay_numbers(tmp_path: Path) -> None:
    names = [name for name in NAMES if name and not set(name) & {"."}]
    space = {"=a": {"choice": names}, "-b": {"float": [-1.0, -0.5]}, "c": {"choice": ["-0.5", "+x"]}}
    view = view_of(lambda number, _: [-number] if number else None, space, names=["@metric"], trials=2 * len(names))
    write_trials(tmp_path / "trials.csv", view)
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as lines:
        head, *rows = csv.reader(lines)
    assert head == ["number", "state", "'@metric", "'=a", "'-b", "c", "reason"]
    assert [float(row[2]) for row in rows if row[2]] == [row.values[0] for row in view.completed]
    assert [float(row[4]) for row in rows] == [row.chosen["-b"] for row in view.rows]
    assert {row[5] for row in rows} == {"-0.5", "'+x"}
    told = "".join(text for row in rows for text in row)
    assert visible(told, keep="\n") == told
    for row, own in zip(rows, view.rows, strict=True):
        assert row[3].removeprefix("'") == visible(own.chosen["=a"], keep="\n")
        assert not row[3].lstrip().startswith(("=", "+", "-", "@"))


def test_objectives_of_one_metric_are_told_apart() -> None:
    worst = Objective(metric="accuracy")
    assert labels([worst]) == ("accuracy",)
    assert labels([worst, Objective(metric="loss", direction="minimize")]) == ("accuracy", "loss")
    mean = Objective(metric="accuracy", attacks="mean")
    assert labels([worst, mean]) == ("accuracy (worst of attacks)", "accuracy (mean of attacks)")
    assert labels([worst, worst]) == ("accuracy #1", "accuracy #2")


def test_long_paths_are_broken_after_dots() -> None:
    assert wrapped("aggregation.clipping.rule.tau", 40) == "aggregation.clipping.rule.tau"
    assert wrapped("aggregation.clipping.rule.tau", 22) == "aggregation.clipping.\nrule.tau"
    assert wrapped("x" * 25, 10) == f"{'x' * 10}\n{'x' * 10}\n{'x' * 5}"
    assert wrapped("ab." * 20, 6) == "ab.ab.\nab.ab.\nab.ab…"
    assert wrapped("良性.恶性", 6) == "良性.\n恶性" and wrapped("良" * 5, 6) == "良良良\n良良"
    assert wrapped("a\x1b", 10) == r"a\x1b"
