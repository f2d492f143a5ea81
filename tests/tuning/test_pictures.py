"""Pictures, page and table of a sweep: what is in them is what the trials were, whatever became of them."""

from __future__ import annotations

import csv
import logging
import math
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from nasty import NAMES
from studies import Page, by_rate, view_of

from fedrobust.texts import visible
from fedrobust.tuning import Objective, load_sweep
from fedrobust.tuning.files import write_study, write_trials
from fedrobust.tuning.objectives import Direction
from fedrobust.tuning.page import plotly_figures, sweep_html
from fedrobust.tuning.pictures import history_figure, importance_figure, make_figures, slice_figure, wrapped
from fedrobust.tuning.space import Values
from fedrobust.tuning.study import Asked, Completed, Failed, Outcome, Pruned, study_of
from fedrobust.tuning.views import importances, labels

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


def offsets(axes: Axes, size: int | None = None) -> list[list[float]]:
    """Points of the scatter plots of a panel, by size if it is given."""
    found = [each for each in axes.collections if isinstance(each, PathCollection)]
    return [list(map(float, at)) for each in found if size in (None, each.get_sizes()[0]) for at in each.get_offsets()]


def panel(figure: Figure, name: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_xlabel().replace("\n", "") == name)


def drawn(figure: Figure) -> Figure:
    FigureCanvasAgg(figure).draw()
    return figure


def overlaps(axes: Axes) -> list[str]:
    """Neighbouring tick labels that touch: lines of text seen along them, or ends of words beside each other."""
    found = []
    for axis, upright in ((axes.xaxis, False), (axes.yaxis, True)):
        texts = [text for text in axis.get_ticklabels() if text.get_text() and text.get_visible()]
        for one, other in pairwise(texts):
            boxes = [text.get_window_extent() for text in (one, other)]
            places = [text.get_transform().transform(text.get_position()) for text in (one, other)]
            apart = np.abs(places[1] - places[0])
            height = one.get_fontsize() * axes.figure.dpi / 72
            if upright:
                touch = apart[1] < height
            elif one.get_rotation():
                touch = apart[0] * math.sin(math.radians(one.get_rotation())) < height
            else:
                touch = min(boxes, key=lambda box: box.x0).x1 > max(boxes, key=lambda box: box.x0).x0
            if touch:
                found.append(f"{one.get_text()} | {other.get_text()}")
    return found


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_history_has_every_trial_and_the_best_so_far(direction: Direction) -> None:
    values = [0.5, None, 0.7, None, 0.6, 0.8, 0.3, None]
    view = view_of(
        lambda number, _: None if values[number] is None else [values[number]],
        directions=[direction],
        trials=8,
        reports=lambda number: {1: 0.1} if number in (3, 7) else {},
    )
    (axes,) = history_figure(view).axes
    assert offsets(axes, 24) == [[i, value] for i, value in enumerate(values) if value is not None]
    (line,) = [each for each in axes.lines if len(each.get_xdata()) > 1]
    best = [0.5, 0.7, 0.7, 0.8, 0.8] if direction == "maximize" else [0.5, 0.5, 0.5, 0.5, 0.3]
    assert list(line.get_xdata())[:-1] == [0, 2, 4, 5, 6]
    assert list(line.get_ydata()) == [*best, best[-1]]
    assert line.get_drawstyle() == "steps-post"
    marks = [[at[0] for at in each.get_offsets()] for each in axes.collections if each.get_sizes()[0] == 26]
    assert marks == [[3, 7], [1]]


def test_importance_finds_what_counts_and_is_the_same_again() -> None:
    view = view_of(by_rate, trials=40)
    found = importances(view, 0)
    assert set(found) == set(view.space.searched)  # what is only searched in some trials included
    assert math.fsum(found.values()) == pytest.approx(1)
    assert next(iter(found)) == "learning.local.optimizer.lr"
    assert found["learning.local.optimizer.lr"] > 0.6
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert importances(view, 0) == found
    (axes,) = importance_figure({"accuracy": found}).axes
    assert [bar.get_width() for bar in axes.patches] == list(found.values())
    assert [label.get_text().replace("\n", "") for label in axes.get_yticklabels()] == list(found)


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
    figure = slice_figure(view)
    tau = panel(figure, "aggregation.clipping.rule.tau")
    having = [row for row in view.rows if "aggregation.clipping.rule.tau" in row.chosen]
    assert 0 < len(having) < len(view.rows)
    expected = [[row.chosen["aggregation.clipping.rule.tau"], row.values[0]] for row in having]
    np.testing.assert_allclose(offsets(tau, 20), expected)
    assert (tau.get_xscale(), tau.get_xlim()[0] < 0.1, tau.get_xlim()[1] > 10) == ("log", True, True)
    rate = panel(figure, "learning.local.optimizer.lr")
    best = max(view.rows, key=lambda row: row.values[0])
    np.testing.assert_allclose(offsets(rate, 62), [[best.chosen["learning.local.optimizer.lr"], best.values[0]]])
    rule = panel(figure, "aggregation")
    order = ["mean", "clipping", "a_rule_with_quite_a_long_name_of_its_own"]
    assert [round(x) for x, _ in offsets(rule, 20)] == [order.index(row.chosen["aggregation"]) for row in view.rows]
    assert [text.get_text() for text in panel(figure, "trust.acts").get_xticklabels()] == ["true", "false"]


@pytest.mark.parametrize("directions", [("maximize", "minimize"), ("minimize", "minimize", "maximize")])
def test_the_pareto_picture_has_every_pair_and_the_front(directions: tuple[Direction, ...]) -> None:
    random = np.random.default_rng(1)
    scores = random.random((30, len(directions)))
    view = view_of(lambda number, _: [float(each) for each in scores[number]], directions=directions)
    figure = make_figures(view)["pareto"]()
    pairs = [(0, 1)] if len(directions) == 2 else [(0, 1), (0, 2), (1, 2)]
    for axes, pair in zip(figure.axes, pairs, strict=True):
        assert offsets(axes, 30) == [[scores[number][i] for i in pair] for number in view.best]
        assert len(offsets(axes, 20)) == 30 - len(view.best)
    if len(directions) == 2:
        (line,) = figure.axes[0].lines
        assert sorted(line.get_xdata()) == sorted(scores[list(view.best), 0])
        assert line.get_drawstyle() == "steps-pre"  # a smaller accuracy is reached by whoever reaches a larger one


def test_intermediate_values_are_those_that_were_reported() -> None:
    def reports(number: int) -> dict[int, float]:
        return {step: number + step / 10 for step in range(1, 3 + number % 3)}

    view = view_of(lambda number, _: None if number % 4 == 1 else [number], trials=9, reports=reports)
    (axes,) = make_figures(view)["intermediate"]().axes
    lines = [dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines]
    assert lines == [reports(number) for number in range(9)]
    assert sorted(offsets(axes)) == [list(max(reports(number).items())) for number in (1, 5)]
    assert axes.get_xlabel() == "round"
    shown = {name: figure for _, name, figure in plotly_figures(view)}["intermediate"]
    assert [dict(zip(each.x, each.y, strict=True)) for each in shown.data] == [reports(number) for number in range(9)]


MANY = {f"a.rather_long.path.to.an_option_{i}": {"float": [0.0, 1e-5 * 10**i]} for i in range(7)}
ONE = {"x": {"int": [1, 3]}}
EDGES: dict[str, tuple[Any, set[str]]] = {
    "none": ({"judge": by_rate, "trials": 0}, set()),
    "all failed": ({"judge": lambda *_: None, "trials": 5}, set()),
    "one": ({"judge": by_rate, "trials": 1}, {"history", "slice"}),
    "few": (
        {"judge": by_rate, "trials": 7, "space": {"learning.local.optimizer.lr": {"log": [0.001, 1.0]}}},
        {"history", "slice"},
    ),
    "enough": ({"judge": lambda n, _: [n], "trials": 8, "space": ONE}, {"history", "slice", "importance"}),
    "constant": ({"judge": lambda *_: [0.0], "space": ONE}, {"history", "slice"}),
    "huge": ({"judge": lambda number, _: [1e12 + number], "space": ONE}, {"history", "slice", "importance"}),
    "one option": ({"judge": lambda n, _: [n], "space": ONE}, {"history", "slice", "importance"}),
    "only choices": (
        {
            "judge": lambda n, chosen: [len(str(chosen["rule"]))],
            "space": {
                "rule": {"choice": [f"rule number {'x' * i}" for i in range(12)]},
                "acts": {"choice": [True, None, 3, "3"]},
            },
        },
        {"history", "slice", "importance"},
    ),
    "many options": ({"judge": lambda n, _: [n], "space": MANY}, {"history", "slice", "importance"}),
    "narrow logarithm": (
        {"judge": lambda n, _: [n], "space": {"x": {"log": [0.11, 0.19]}, "y": {"log": [1e-7, 1e5]}}},
        {"history", "slice", "importance"},
    ),
    "two objectives, one": (
        {"judge": lambda n, _: [n, 1.0], "directions": ("maximize", "minimize"), "trials": 1, "space": ONE},
        {"history", "slice", "pareto"},
    ),
    "two objectives, one of them constant": (
        {"judge": lambda n, _: [n, 1.0], "directions": ("maximize", "minimize"), "space": ONE},
        {"history", "slice", "pareto", "importance"},
    ),
    "four objectives": (
        {"judge": lambda n, _: [n, -n, n % 7, n % 5], "directions": ("maximize", "minimize") * 2, "space": ONE},
        {"history", "slice", "pareto", "importance"},
    ),
}


@pytest.mark.parametrize("case", EDGES)
def test_whatever_the_trials_are_there_are_pictures_and_a_page(case: str, caplog: pytest.LogCaptureFixture) -> None:
    options, expected = EDGES[case]
    view = view_of(**options)
    found = make_figures(view)
    assert set(found) == expected
    for make in found.values():
        assert not [pair for axes in drawn(make()).axes for pair in overlaps(axes)]
    page = Page.read(sweep_html(view))
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
    study = study_of(plan, "sqlite:///:memory:", resume=False)
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
    files = write_study(folder, plan, study)
    assert [file.name for file in files[2:]] == ["history.png", "importance.png", "slice.png", "pareto.png"]
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
