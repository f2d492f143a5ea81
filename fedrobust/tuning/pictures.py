"""The pictures of a sweep, as matplotlib figures: how it went, what mattered, what was traded for what."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from fedrobust.figures.comparison import GROUP_COLOURS
from fedrobust.figures.drawing import drawing
from fedrobust.figures.style import ABSENT, FAINT, INK, MUTED, bare, colour_bar
from fedrobust.texts import fit, head, visible, width
from fedrobust.tuning.space import Choice, Number, Searched
from fedrobust.tuning.views import Row, View, better, importances, present, told

DONE, BEST = "#0072b2", "#009e73"
ORDER_COLOURS = ("#b9d9ec", "#0072b2", "#08306b")
"""From the first trial to the last."""
ACROSS = 3
"""Panels beside each other."""

_ORDER = LinearSegmentedColormap.from_list("order", ORDER_COLOURS)
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def make_figures(view: View) -> dict[str, Callable[[], Figure]]:
    """What draws the pictures that the trials allow, by name; nothing as long as no trial is completed."""
    found: dict[str, Callable[[], Figure]] = {}
    if view.completed:
        found["history"] = partial(history_figure, view)
        if shares := {label: each for i, label in enumerate(view.objectives) if (each := importances(view, i))}:
            found["importance"] = partial(importance_figure, shares)
        found["slice"] = partial(slice_figure, view)
        if len(view.objectives) > 1:
            found["pareto"] = partial(pareto_figure, view)
    if len(view.objectives) == 1 and any(row.reports for row in view.rows):
        found["intermediate"] = partial(intermediate_figure, view)
    return found


@drawing()
def history_figure(view: View) -> Figure:
    """The trials in order, a panel for each objective, with the best value so far as a line.

    Trials that were pruned or have failed are marked at the bottom.
    """
    figure = Figure(figsize=(9.2, 2.9 * len(view.objectives) + 0.45), layout="constrained")
    axes_of = figure.subplots(len(view.objectives), 1, sharex=True, squeeze=False).ravel()
    last = max((row.number for row in view.rows), default=0)
    numbers = [row.number for row in view.completed]
    handles: dict[str, Any] = {}
    for index, axes in enumerate(axes_of):
        values = np.array([row.values[index] for row in view.completed])
        if len(values):
            best = _so_far(values, view.directions[index])
            ends = [*numbers, max(last, numbers[-1] + 0.5)]
            (handles["best so far"],) = axes.step(
                ends, [*best, best[-1]], where="post", color=INK, linewidth=1.6, zorder=2
            )
            handles["completed"] = axes.scatter(numbers, values, s=24, color=DONE, linewidth=0, zorder=3)
            _at_end(axes, float(best[-1]))
        bare(axes)
        _values_axis(axes, values)
        for state, look in _MARKS.items():
            if at := [row.number for row in view.rows if row.state == state]:
                bottom = axes.get_xaxis_transform()
                handles[state] = axes.scatter(
                    at, [0.035] * len(at), s=26, linewidth=1.2, transform=bottom, zorder=3, **look
                )
        axes.set_title(_headed(view, index), fontsize=10, color=INK, pad=6, loc="left")
        axes.set_xlim(-0.5 - 0.01 * last, last + 0.5 + 0.01 * last)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes_of[-1].set_xlabel("trial")
    _legend(figure, handles.items())
    return figure


@drawing()
def importance_figure(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """How much each searched option matters, as bars; `shares` are objective → option → share, see `importances`."""
    names = sorted(
        dict.fromkeys(name for each in shares.values() for name in each),
        key=lambda name: -sum(each.get(name, 0.0) for each in shares.values()),
    )
    thick = 0.74 / len(shares)
    height = 0.85 + len(names) * max(0.42, 0.2 * len(shares) + 0.12) + 0.24 * (len(shares) > 1)
    figure = Figure(figsize=(9.2, height), layout="constrained")
    axes = figure.subplots()
    most = max(max(each.values()) for each in shares.values())
    bars = []
    for place, (label, each) in enumerate(shares.items()):
        colour = GROUP_COLOURS[place % len(GROUP_COLOURS)]
        at = np.arange(len(names)) + (place - (len(shares) - 1) / 2) * thick
        values = [each.get(name, 0.0) for name in names]
        bars.append((fit(label, 90), axes.barh(at, values, height=thick * 0.9, color=colour, linewidth=0)))
        for y, value in zip(at, values, strict=True):
            axes.text(value + 0.008 * most, y, _share(value), va="center", fontsize=8.5, color=INK)
    axes.set_yticks(range(len(names)), [wrapped(name, 44) for name in names])
    axes.invert_yaxis()
    bare(axes)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_color(MUTED)
    axes.set_xlim(0, most * 1.1)
    axes.xaxis.set_major_formatter(_PLAIN)
    title = "share in what it takes to be among the best quarter"
    axes.set_xlabel(title if len(shares) > 1 else f"{title}, by {fit(next(iter(shares)), 50)}")
    if len(shares) > 1:
        _legend(figure, bars)
    return figure


@drawing()
def slice_figure(view: View) -> Figure:
    """Each objective over each searched option: a point for each completed trial that has it, the later the darker."""
    names, rows = present(view), view.completed
    down = math.ceil(len(names) / ACROSS)
    across = min(ACROSS, len(names))
    rooms = [_room(view.space.searched[name]) for name in names]
    height = sum(2.35 + max(rooms[start : start + ACROSS]) for start in range(0, len(names), ACROSS))
    size = (max(4.2, 9.2 * across / ACROSS), height * len(view.objectives) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes_of = figure.subplots(down * len(view.objectives), across, squeeze=False)
    scale = Normalize(0, max(1, max(row.number for row in rows)))
    for index in range(len(view.objectives)):
        block = axes_of[index * down : (index + 1) * down].ravel()
        values = np.array([row.values[index] for row in rows])
        for place, axes in enumerate(block):
            if place >= len(names):
                axes.set_axis_off()
                continue
            _slice(axes, view, names[place], index, scale)
            _values_axis(axes, values)
            if place % across:
                axes.tick_params(axis="y", labelleft=False)
            if not place:
                axes.set_title(_headed(view, index), fontsize=10, color=INK, pad=7, loc="left")
    bar = figure.colorbar(
        ScalarMappable(scale, _ORDER), ax=axes_of, pad=0.015, fraction=0.03, aspect=26, shrink=min(1, 1 / down + 0.2)
    )
    colour_bar(bar, "trial")
    bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _legend(figure, [("Pareto front" if len(view.objectives) > 1 else "best", _ring())])
    return figure


@drawing()
def pareto_figure(view: View) -> Figure:
    """Every two objectives against each other, with the trials that no other beats in all of them."""
    pairs = list(combinations(range(len(view.objectives)), 2))
    across = 1 if len(pairs) == 1 else min(ACROSS, len(pairs))
    down = math.ceil(len(pairs) / across)
    size = (6.4, 4.9) if len(pairs) == 1 else (3.07 * across, 3.0 * down + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    for place, axes in enumerate(figure.subplots(down, across, squeeze=False).ravel()):
        if place >= len(pairs):
            axes.set_axis_off()
            continue
        x, y = pairs[place]
        front = [row for row in view.completed if row.number in view.best]
        beaten = [row for row in view.completed if row.number not in view.best]
        _points(axes, beaten, x, y, s=20, color=ABSENT, linewidth=0)
        if len(pairs) == 1:
            corners = sorted((row.values[x], row.values[y]) for row in front)
            # What is reached at x is the y of a trial that is no worse there.
            steps = "steps-post" if view.directions[x] == "minimize" else "steps-pre"
            line: dict[str, Any] = {"drawstyle": steps, "color": BEST, "linewidth": 1.3, "alpha": 0.6}
            axes.plot(*zip(*corners, strict=True), **line)
            _numbered(axes, front, x, y)
        _points(axes, front, x, y, s=30, color=BEST, linewidth=0, zorder=3)
        bare(axes)
        for axis, index in ((axes.xaxis, x), (axes.yaxis, y)):
            ends = np.array([row.values[index] for row in view.completed])
            axis.set_major_locator(MaxNLocator(4 if len(pairs) > 1 else 6))
            _limits(axes.set_xlim if axis is axes.xaxis else axes.set_ylim, ends, 0.09)
            axis.set_label_text(f"{wrapped(view.objectives[index], 34)}\n{better(view.directions[index])}")
    _legend(figure, [("Pareto front", _dot(BEST)), ("beaten by another", _dot(ABSENT))])
    return figure


@drawing()
def intermediate_figure(view: View) -> Figure:
    """What the pruner was told of each trial, step by step; a cross where it ended one."""
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    axes = figure.subplots()
    handles: dict[str, Any] = {}
    for row in view.rows:
        if not row.reports:
            continue
        best = row.number in view.best
        kind = "best" if best else row.state
        colour, width = {"best": (BEST, 2.2), "completed": (DONE, 1.0)}.get(kind, (MUTED, 0.9))
        steps, values = list(row.reports), list(row.reports.values())
        dot: dict[str, Any] = {"marker": "o", "markersize": 3.0} if len(steps) == 1 else {}
        dash = "-" if row.state == "completed" else (0, (3, 1.5))
        style: dict[str, Any] = {"linestyle": dash, "color": colour, "linewidth": width, "zorder": 3 if best else 2}
        (line,) = axes.plot(steps, values, alpha=1.0 if best else 0.7, **style, **dot)
        handles.setdefault(kind, line)
        if row.state == "pruned":
            axes.scatter(steps[-1:], values[-1:], marker="x", s=22, color=INK, linewidth=1.1, zorder=3)
    bare(axes)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes.set_xlabel(view.step)
    axes.set_title(_headed(view, 0), fontsize=10, color=INK, pad=6, loc="left")
    _legend(figure, [(kind, handles[kind]) for kind in ("best", "completed", "pruned", "failed") if kind in handles])
    return figure


def wrapped(path: str, across: int, most: int = 3) -> str:
    """A dotted path in lines of at most `across` columns, at most `most` of them, broken after dots if possible."""
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
        lines = [*lines[: most - 1], fit("".join(lines[most - 1 :]), across)]
    return "\n".join(lines)


_MARKS: dict[str, dict[str, Any]] = {
    "pruned": {"marker": "|", "color": MUTED},
    "failed": {"marker": "x", "color": INK},
}


def slant(names: Sequence[str]) -> int:
    """The angle at which the names of choices do not touch, below a panel."""
    return 90 if len(names) > 9 else 35 if max(map(width, names)) * len(names) > 30 else 0


def _room(searched: Searched) -> float:
    """Inches that the labels below a panel take."""
    if not isinstance(searched, Choice):
        return 0.15
    names = [fit(told(label), 22) for label in searched.ends]
    return 0.2 + 0.072 * max(map(width, names)) * math.sin(math.radians(slant(names)))


def _slice(axes: Axes, view: View, name: str, index: int, scale: Normalize) -> None:
    searched = view.space.searched[name]
    rows = [row for row in view.completed if name in row.chosen]
    at = [_place(searched, row) for row in rows]
    values = [row.values[index] for row in rows]
    look: dict[str, Any] = {"s": 20, "c": [row.number for row in rows], "cmap": _ORDER, "norm": scale, "linewidth": 0}
    axes.scatter(at, values, zorder=3, **look)
    rings = [place for place, row in enumerate(rows) if row.number in view.best]
    axes.scatter([at[ring] for ring in rings], [values[ring] for ring in rings], zorder=4, **_RING)
    bare(axes)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_xlabel(wrapped(name, 38), fontsize=9)
    if isinstance(searched, Choice):
        _choice_axis(axes, [told(label) for label in searched.ends])
    else:
        _number_axis(axes, searched)


def _place(searched: Searched, row: Row) -> float:
    """Where a trial lies; those of one choice are spread beside each other by their numbers."""
    value = row.chosen[searched.name]
    if isinstance(searched, Choice):
        return searched.ends.index(value) + 0.36 * ((row.number * 0.6180339887) % 1 - 0.5)
    return float(value)


def _choice_axis(axes: Axes, names: Sequence[str]) -> None:
    angle = slant(names)
    turned: dict[str, Any] = {"rotation": angle, "rotation_mode": "anchor", "ha": "right"} if angle else {}
    if angle == 90:
        turned["va"] = "center"
    axes.set_xticks(range(len(names)), [fit(name, 22 if angle else 30) for name in names], **turned)
    axes.tick_params(axis="x", labelsize=8.5 if len(names) <= 16 else 6.0, length=0)
    axes.set_xlim(-0.5, len(names) - 0.5)


def _number_axis(axes: Axes, searched: Number) -> None:
    low, high = float(searched.low), float(searched.high)
    if searched.log:
        pad = (high / low) ** 0.05
        axes.set_xscale("log")
        axes.set_xlim(low / pad, high * pad)
        axes.set_xticks(_log_ticks(low, high))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        pad = 0.05 * (high - low)
        axes.set_xlim(low - pad, high + pad)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=searched.whole, min_n_ticks=1))
    axes.xaxis.set_major_formatter(_PLAIN)


def _log_ticks(low: float, high: float) -> list[float]:
    """At most five round values in a range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5), range(1, 10)):
        found = [value for decade in decades for digit in digits if low <= (value := digit * 10.0**decade) <= high]
        if len(found) > 1:
            return found[:: math.ceil(len(found) / 5)]
    return [low, high]


def _values_axis(axes: Axes, values: np.ndarray) -> None:
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _limits(axes.set_ylim, values, 0.12)


def _limits(set_limits: Callable[[float, float], Any], values: np.ndarray, pad: float) -> None:
    """Room around the values, also where they are all the same."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    room = pad * ((high - low) or abs(high) or 1.0)
    set_limits(low - room, high + room)


def _so_far(values: np.ndarray, direction: str) -> np.ndarray:
    """The best value up to each."""
    best: np.ndarray = (np.maximum if direction == "maximize" else np.minimum).accumulate(values)
    return best


def _at_end(axes: Axes, value: float) -> None:
    right = axes.get_yaxis_transform()
    places: dict[str, Any] = {"xycoords": right, "xytext": (5, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(f"{value:.4g}", (1, value), fontsize=9.5, color=INK, annotation_clip=False, **places)


def _numbered(axes: Axes, rows: Sequence[Row], x: int, y: int) -> None:
    """Say which trials these are, if there is room."""
    if len(rows) <= 12:
        for row in rows:
            place: dict[str, Any] = {"xytext": (5, 5), "textcoords": "offset points"}
            axes.annotate(str(row.number), (row.values[x], row.values[y]), fontsize=8.5, color=INK, **place)


def _points(axes: Axes, rows: Iterable[Row], x: int, y: int, **look: Any) -> None:
    found = [(row.values[x], row.values[y]) for row in rows]
    if found:
        axes.scatter(*zip(*found, strict=True), **look)


def _headed(view: View, index: int) -> str:
    return f"{fit(view.objectives[index], 80)}, {better(view.directions[index])}"


def _share(value: float) -> str:
    return f"{value:.2f}" if value >= 0.005 else "< 0.01"


_RING: dict[str, Any] = {"s": 62, "facecolors": "none", "edgecolors": BEST, "linewidths": 1.8}


def _ring() -> Line2D:
    return Line2D([], [], marker="o", markersize=7.5, color=BEST, markerfacecolor="none", linestyle="", mew=1.8)


def _dot(colour: str) -> Line2D:
    return Line2D([], [], marker="o", markersize=5.5, color=colour, linestyle="", markeredgewidth=0)


def _legend(figure: Figure, entries: Collection[tuple[str, Any]]) -> None:
    if names := [name for name, _ in entries]:
        style: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK}
        columns = max(1, int(figure.get_figwidth() * 11 / (max(map(width, names)) + 6)))
        figure.legend([handle for _, handle in entries], names, loc="outside lower left", ncols=columns, **style)
