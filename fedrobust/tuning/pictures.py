"""The pictures of a sweep, drawn by Optuna with plotly: the course of the search, importances, trade-offs.

They show a copy of the study in memory that has readable names. This module adds a common style, readable labels, and
marks for the trials that Optuna leaves out: those that were pruned or have failed.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator
from html import escape, unescape
from itertools import combinations
from typing import TYPE_CHECKING, Any

from fedrobust.figures.comparison import GROUP_COLOURS
from fedrobust.figures.style import FAINT, INK, MUTED
from fedrobust.texts import head, visible, width
from fedrobust.tuning.space import Choice, Searched
from fedrobust.tuning.views import SweepView, choice_texts, evaluator, importances, in_memory, present

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.trial import FrozenTrial

COMPLETED, BEST = "#0072b2", "#009e73"
ORDER_COLOURS = ("#b9d9ec", "#0072b2", "#08306b")
"""Colours from the first trial to the last."""
ACROSS = 3
"""Number of panels in a row."""

_CODES = re.compile(r"(?<!\\)(\\u[0-9a-f]{4})+")


def make_figures(view: SweepView) -> Iterator[tuple[str, str, go.Figure]]:
    """Yield the pictures that the trials allow: the chapter of each, its name, and the figure.

    Names in them are escaped, since plotly interprets some HTML in its texts.
    """
    import optuna.visualization as drawn

    many = len(view.objectives) > 1
    if many and view.completed:
        yield from (("What was traded for what", "pareto", front) for front in _fronts(view))
        yield "What was traded for what", "parallel", _parallel(view)
    for index, label in enumerate(view.objectives):
        if not view.completed:
            break
        study, chapter, name = in_memory(view, [index], _text), label if many else "How the search went", _text(label)
        yield chapter, "history", _history(drawn.plot_optimization_history(study, target_name=name), view)
        if importances(view, index):
            tool, names = evaluator(view, index), [_text(each) for each in present(view)]
            with warnings.catch_warnings():  # about options that few trials have
                warnings.simplefilter("ignore", UserWarning)
                bars = drawn.plot_param_importances(study, evaluator=tool, params=names, target_name=name)
            yield chapter, "importance", _bars(bars)
        yield chapter, "slice", _panels(drawn.plot_slice(study, target_name=name), view, index)
        if not many:
            yield chapter, "parallel", _parallel(view)
    if not many and any(row.reports for row in view.rows):
        yield (
            "How the search went",
            "intermediate",
            _curves(drawn.plot_intermediate_values(in_memory(view, [0], _text)), view),
        )


def wrapped(path: str, across: int, most: int = 3) -> str:
    """Break a dotted path into lines of at most `across` columns, at most `most` lines, after dots if possible."""
    lines = [""]
    for part in re.findall(r"[^./ ]*[./ ]?", visible(path)):
        while (begun := head(part, across)) != part:
            lines.append(begun)
            part = part[len(begun) :]
        if width(lines[-1]) + width(part) > across:
            lines.append("")
        lines[-1] += part
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) > most:
        last = "".join(lines[most - 1 :])
        lines = [*lines[: most - 1], f"{head(last, across - 1)}…"]
    return "\n".join(lines)


def _fronts(view: SweepView) -> Iterator[go.Figure]:
    """Yield a figure for each pair of objectives."""
    import optuna.visualization as drawn

    names = [_text(label) for label in view.objectives]
    study = in_memory(view, range(len(names)), _text)
    for x, y in combinations(range(len(names)), 2):

        def values(trial: FrozenTrial, x: int = x, y: int = y) -> list[float]:
            return [trial.values[x], trial.values[y]]

        figure = drawn.plot_pareto_front(
            study, target_names=[_lines(names[x], 70), _lines(names[y], 40, 2)], targets=values
        )
        for trace in figure.data:  # characters of other scripts instead of their JSON escapes
            trace.text = [_CODES.sub(lambda found: str(json.loads(f'"{found[0]}"')), text) for text in trace.text]
        yield _styled(figure, 460)


def _history(figure: go.Figure, view: SweepView) -> go.Figure:
    points, best = figure.data[:2]
    points.update(name="completed", marker={"color": COMPLETED, "size": 7})
    best.update(name="best so far", line={"color": INK, "shape": "hv", "width": 2})
    for state, symbol in (("pruned", "line-ns-open"), ("failed", "x-thin-open")):
        if numbers := [row.number for row in view.rows if row.state == state]:
            marks: dict[str, Any] = {"symbol": symbol, "color": MUTED if state == "pruned" else INK, "size": 8}
            figure.add_scatter(
                x=numbers, y=[0.02] * len(numbers), yaxis="y2", mode="markers", marker=marks, name=state, hoverinfo="x"
            )
    figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})
    figure.update_yaxes(title_text=_lines(figure.layout.yaxis.title.text, 40, 2))
    figure.update_xaxes(title_text="trial", dtick=1 if len(best.x) <= 10 else None)
    return _styled(figure, 380)


def _bars(figure: go.Figure) -> go.Figure:
    # Inserts the name as data: in Optuna's template it could act as a template itself.
    figure.update_traces(marker_color=GROUP_COLOURS[0], showlegend=False, hovertemplate="%{y}: %{x:.2f}<extra></extra>")
    names = list(figure.data[0].y)
    figure.update_yaxes(title_text="", tickvals=names, ticktext=[_lines(name, 44) for name in names])
    figure.update_xaxes(title_text="share")
    return _styled(figure, 130 + 34 * len(names))


def _panels(figure: go.Figure, view: SweepView, objective: int) -> go.Figure:
    """Arrange the panels in rows, each over the whole searched range; long names are broken into lines."""
    searched = {_text(name): each for name, each in view.space.searched.items()}
    axes = list(zip(figure.select_xaxes(), figure.select_yaxes(), strict=True))
    down = math.ceil(len(axes) / ACROSS)
    height, gap = 340 * down, 150 / (340 * down)
    for place, (x, y) in enumerate(axes):
        row, column = divmod(place, ACROSS)
        across = min(ACROSS, len(axes))
        x.domain = [column / across + 0.03 * bool(column), (column + 1) / across - 0.01]
        y.update(domain=[1 - (row + 1) / down + gap, 1 - row / down], showticklabels=not column)
        y.title.text = _lines(_text(view.objectives[objective]), 26) if not column else ""
        _over_all(x, searched[x.title.text])
        x.title.text = _lines(x.title.text, 34)
    colours = [list(each) for each in zip((0, 0.5, 1), ORDER_COLOURS, strict=True)]
    for trace in figure.data:
        trace.marker.update(line={"width": 0}, size=7, colorscale=colours, cmin=0, cmax=max(1, len(view.rows) - 1))
        trace.marker.colorbar.update(title="trial", xpad=10, thickness=14, outlinewidth=0)
    figure.update_layout(width=None)
    return _styled(figure, height)


def _over_all(axis: Any, searched: Searched) -> None:
    """Set an axis to the whole searched range, with readable labels."""
    if isinstance(searched, Choice):
        names = [_short(name) for name in choice_texts(searched)]
        every = math.ceil(len(names) / 16)
        angle = 90 if len(names) > 9 else 35 if max(map(width, names)) * len(names) > 30 else 0
        axis.update(tickvals=axis.categoryarray[::every], ticktext=names[::every], tickangle=-angle)
        axis.range = [-0.5, len(names) - 0.5]
        return
    low, high = float(searched.low), float(searched.high)
    if searched.log:
        low, high = math.log10(low), math.log10(high)
        axis.update(dtick=1 if high - low >= 1.5 else None)
    axis.range = [low - 0.05 * (high - low), high + 0.05 * (high - low)]


def _parallel(view: SweepView) -> go.Figure:
    """Draw a line for each completed trial through its objectives and searched values; names are whole and do not
    overlap."""
    import optuna.visualization as drawn

    study = in_memory(view, range(len(view.objectives)), _text)
    figure = drawn.plot_parallel_coordinate(study, target_name=_text(view.objectives[0]))
    names = [*map(_text, view.objectives), *sorted(map(_text, present(view)))]
    partly = {_text(name) for name in present(view) if any(name not in row.chosen for row in view.completed)}

    def shown(axis: int, text: str) -> str:  # Optuna: "None" if missing; then a text "None" is "None (value)"
        return "–" if text == "None" and names[axis] in partly else text

    for trace in figure.data[:-1]:
        trace.customdata = [[names[axis], shown(axis, text)] for axis, (_, text) in enumerate(trace.customdata)]
    bar = figure.data[-1].marker.colorbar
    bar.update(title={"text": _lines(bar.title.text, 40, 2), "side": "right"}, thickness=14, outlinewidth=0)
    kept: dict[int, float] = {}
    for tick in figure.layout.annotations:
        axis = int(tick.x)
        tick.visible = abs(tick.y - kept.get(axis, -1)) > 0.04
        kept[axis] = tick.y if tick.visible else kept[axis]
        tick.update(text=_short(unescape(shown(axis, tick.text))), bgcolor="rgba(255,255,255,0.7)")
    _styled(figure, 430)
    figure.update_xaxes(ticktext=[_lines(name, 18, 5) for name in names], range=[-0.6, len(names) - 0.8], tickangle=0)
    figure.update_layout(width=130 * len(names) if len(names) > 7 else None, margin={"b": 110})
    return figure


def _curves(figure: go.Figure, view: SweepView) -> go.Figure:
    """Draw the best trial green, and trials that ended early dashed, with a cross where they were pruned."""
    rows = [row for row in view.rows if row.reports]
    for row, trace in zip(rows, figure.data, strict=True):
        colour = BEST if row.number in view.best else COMPLETED if row.state == "completed" else MUTED
        trace.update(name=f"trial {row.number}", opacity=1.0 if colour == BEST else 0.6)
        trace.update(marker={"color": colour, "size": 4}, line_width=2.5 if colour == BEST else 1)
        trace.update(line={"color": colour, "dash": "solid" if row.state == "completed" else "dash"})
    ends = [(*max(row.reports.items()), row.number) for row in rows if row.state == "pruned"]
    if ends:
        steps, values, numbers = zip(*ends, strict=True)
        figure.add_scatter(
            x=steps,
            y=values,
            text=[f"trial {number} was pruned" for number in numbers],
            mode="markers",
            marker={"symbol": "x-thin-open", "color": INK, "size": 8},
            hoverinfo="text",
        )
    figure.update_xaxes(title_text=view.step)
    figure.update_yaxes(title_text=_lines(_text(view.objectives[0]), 40, 2))
    return _styled(figure, 400)


def _styled(figure: go.Figure, height: int) -> go.Figure:
    line = {"gridcolor": FAINT, "linecolor": FAINT, "zeroline": False, "title_font_color": MUTED}
    figure.update_layout(
        template="plotly_white",
        title=None,
        height=height,
        font={"color": INK, "size": 12, "family": "system-ui, sans-serif"},
        margin={"l": 60, "r": 30, "t": 24, "b": 50},
        colorway=GROUP_COLOURS,
    )
    figure.update_xaxes(**line)
    figure.update_yaxes(automargin=True, **line)
    return figure


def _text(name: str) -> str:
    return escape(visible(name), quote=False)


def _lines(name: str, across: int, most: int = 3) -> str:
    return escape(wrapped(unescape(name), across, most), quote=False).replace("\n", "<br>")


def _short(name: str, most: int = 20) -> str:
    text = visible(name)
    return escape(text if text == head(text, most) else f"{head(text, most - 1)}…", quote=False)
