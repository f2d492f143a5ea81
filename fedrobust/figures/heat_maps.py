"""Heat maps of the coordinator's view of each hospital in each round, with events marked in their cells."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from fedrobust.figures.drawing import drawing
from fedrobust.figures.rows import rows_of
from fedrobust.figures.style import (
    ABSENT,
    ANOMALY,
    ATTACK,
    FAINT,
    INK,
    MUTED,
    WEIGHT,
    client_ticks,
    colour_bar,
    round_ticks,
)
from fedrobust.texts import wrapped

HEAT_MAPS: Mapping[str, tuple[str, Any]] = {
    "reputation": ("reputation", "cividis"),
    "weights": ("share of the aggregate", WEIGHT),
    "anomaly": ("anomaly score", ANOMALY),
}
"""Per-client quantities of a round record: the label of the colour bar, and the colours."""
SMALLEST = 4.0
"""Minimum size, in points, of a cell's shorter side for dots and crosses; in smaller cells they would not be
legible."""


@dataclass(frozen=True, eq=False)
class Marks:
    """The marks in the cells of a heat map: (clients, rounds) bool each; None: not marked."""

    suspected: np.ndarray | None = None
    """A dot, in cells that are large enough."""
    rejected: np.ndarray | None = None
    """A cross, in cells that are large enough."""
    quarantined: np.ndarray | None = None
    """A bar through the middle."""
    attacking: np.ndarray | None = None
    """The truth, as a vermilion line at the bottom."""
    renewed: np.ndarray | None = None
    """The hospital appears under a different id than in the round before: a dark line on the left."""
    acts: bool = True
    """Whether suspicion and quarantine act on the aggregate, or are only recorded."""


@drawing()
def client_figure(
    values: np.ndarray,
    rounds: Sequence[int],
    attackers: Mapping[int, str],
    kind: str,
    marks: Marks | None = None,
    chosen: Collection[int] = (),
) -> Figure:
    """Draw a heat map client × round of `kind`, a key of `HEAT_MAPS`, with the true attackers at the top.

    values: (clients, rounds) float, NaN if a hospital took no part.
    rounds: numbers of the rounds, the labels of the columns.
    attackers: id of a malicious hospital → name of its attack.
    marks: of the same shape as `values`.
    chosen: the hospitals with rows of their own if there are too many for all, see `rows_of`.
    """
    rows = rows_of(values, attackers, chosen)
    count, columns = rows.values.shape
    height = min(9.0, max(2.2, 1.45 + 0.24 * count))
    figure = Figure(figsize=(9.2, height), layout="constrained")
    axes = figure.subplots()
    told, colours = HEAT_MAPS[kind]
    finite = values[np.isfinite(values)]
    top = 1.0 if kind != "weights" else float(finite.max(initial=0.0)) or 1.0
    scale = Normalize(min(0.0, float(finite.min(initial=0.0))), top)
    row = (height - 1.2) * 72 / count
    handles = cells(axes, rows.values, scale, colours)
    handles |= marked(axes, marks or Marks(), rows.clients, 7.0 * 72 / columns, row)
    client_ticks(axes, rows.clients, attackers, row, bands=rows.bands)
    round_ticks(axes, rounds)
    axes.set_xlabel("round")
    separate(axes, rows.gaps, row)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, pad=0.02, fraction=0.045, aspect=max(8, 6 * height))
    colour_bar(bar, told, height - 1.2)
    legend(figure, handles)
    return figure


@drawing()
def parts_figure(
    parts: Mapping[str, np.ndarray],
    rounds: Sequence[int],
    attackers: Mapping[int, str],
    marks: Marks | None = None,
    chosen: Collection[int] = (),
) -> Figure:
    """Draw the parts of the anomaly score: a heat map client × round for each part, the true attackers at the top.

    parts: name → (clients, rounds) float in [0, 1], at least one part, NaN if a hospital has no figure. rounds,
        attackers, chosen: as in `client_figure`.
    marks: of the same shape as each part.
    """
    rows_of_parts = {name: rows_of(values, attackers, chosen) for name, values in parts.items()}
    count, columns = next(iter(rows_of_parts.values())).values.shape
    across = 2 if len(parts) == 4 else min(3, len(parts))
    down = math.ceil(len(parts) / across)
    panel = min(3.4, max(1.1, 0.3 + 0.17 * count))
    titles = [wrapped(name.replace("_", " "), 84 // across) for name in parts]
    more = [
        max(title.count("\n") for title in titles[first : first + across]) for first in range(0, len(titles), across)
    ]
    height = panel * down + 0.16 * sum(more) + 0.75
    figure = Figure(figsize=(9.2, height), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    scale, row = Normalize(0.0, 1.0), (panel - 0.3) * 72 / count
    handles: dict[str, Any] = {}
    for place, axes in enumerate(panels.ravel()):
        if place >= len(parts):
            axes.set_axis_off()
            continue
        rows = rows_of_parts[list(parts)[place]]
        handles |= cells(axes, rows.values, scale, ANOMALY)
        handles |= marked(axes, marks or Marks(), rows.clients, 7.4 * 72 / across / columns, row)
        separate(axes, rows.gaps, row)
        axes.set_title(titles[place], fontsize=10, color=INK, pad=4)
        client_ticks(axes, rows.clients, attackers, row, named=False, bands=rows.bands)
        round_ticks(axes, rounds, most=10 if across == 1 else 5)
        if place % across:
            axes.set_yticks([])
            axes.set_ylabel("")
        if place + across < len(parts):
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel("round")
    beside: dict[str, Any] = {"pad": 0.02, "fraction": 0.045, "shrink": 1 / down, "anchor": (0.0, 1.0)}
    bar = figure.colorbar(ScalarMappable(scale, ANOMALY), ax=panels, aspect=max(8, 6 * panel), **beside)
    colour_bar(bar, "part of the anomaly score", panel - 0.3)
    legend(figure, handles)
    return figure


def cells(axes: Axes, values: np.ndarray, scale: Normalize, colours: str | Colormap) -> dict[str, Any]:
    """Draw the cells, in columns 1, 2, …; return the entries for the legend.

    values: (clients, columns) float, NaN for no figure. scale, colours: map a value to its colour.
    """
    clients, columns = values.shape
    axes.set_facecolor(ABSENT)
    axes.imshow(
        np.ma.masked_invalid(values),
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        norm=scale,
        extent=(0.5, columns + 0.5, clients - 0.5, -0.5),
    )
    axes.spines[:].set_color(FAINT)
    return {"no figure": Patch(color=ABSENT)} if np.isnan(values).any() else {}


def separate(axes: Axes, gaps: Sequence[int], row: float) -> None:
    """Draw gaps between the attackers, the others, and bands; `row` is the height of a row in points.

    axes: those of the heat map.
    gaps: the rows below them.
    """
    for gap in gaps:
        axes.axhline(gap - 0.5, color="white", linewidth=max(1.0, min(4.0, row * 0.2)), zorder=1)


def marked(axes: Axes, marks: Marks, clients: Sequence[int], column: float, row: float) -> dict[str, Any]:
    """Draw the marks into cells of `column` by `row` points; return the entries for the legend.

    clients: those of the first rows.
    """
    order, cell, found = np.array(clients, dtype=int), min(column, row), {}
    if marks.attacking is not None and marks.attacking[order].any():
        style: dict[str, Any] = {"color": ATTACK, "linewidth": max(1.0, min(3.0, row * 0.18))}
        below = 0.4 - 0.5 * style["linewidth"] / row
        lines = [(place + below, *run) for place, run in _runs(marks.attacking[order])]
        axes.hlines(*zip(*lines, strict=True), **style, capstyle="butt", zorder=2)
        found["attacks"] = Line2D([], [], **style)
    if marks.quarantined is not None and marks.quarantined[order].any():
        width = max(1.0, min(3.5, row * 0.2))
        style = {
            "color": "white",
            "linewidth": width,
            "path_effects": [Stroke(linewidth=width + 1.2, foreground=INK), Normal()],
        }
        lines = [(place, start, stop) for place, (start, stop) in _runs(marks.quarantined[order])]
        axes.hlines(*zip(*lines, strict=True), **style, capstyle="butt", zorder=3)
        found["in quarantine" if marks.acts else "quarantine, recorded only"] = Line2D([], [], **style)
    dots = {"s": (cell * 0.36) ** 2, "facecolors": "white", "edgecolors": INK, "marker": "o"}
    crosses = {"s": (cell * 0.36) ** 2, "c": INK, "marker": "x"}
    suspected = "suspected" if marks.acts else "suspected, recorded only"
    for word, given, points in ((suspected, marks.suspected, dots), ("rejected", marks.rejected, crosses)):
        if given is not None and cell >= SMALLEST and given[order].any():
            rows, places = np.nonzero(given[order])
            axes.scatter(places + 1, rows, **points, linewidths=max(0.6, cell * 0.06), zorder=4)  # type: ignore[arg-type]
            look = {"markerfacecolor": "white", "markeredgecolor": INK, "linestyle": "", "markersize": 6}
            found[word] = Line2D([], [], marker=str(points["marker"]), **look)  # type: ignore[arg-type]
    if marks.renewed is not None and marks.renewed[order].any():
        rows, places = np.nonzero(marks.renewed[order])
        edge: dict[str, Any] = {"color": INK, "path_effects": [Stroke(linewidth=3.0, foreground="white"), Normal()]}
        axes.vlines(places + 0.5, rows - 0.5, rows + 0.5, linewidth=1.4, capstyle="butt", zorder=5, **edge)
        found["new identity"] = Line2D([], [], marker="|", linestyle="", markersize=9, markeredgewidth=1.6, color=INK)
    return found


def _runs(marks: np.ndarray) -> list[tuple[int, tuple[float, float]]]:
    """Return row and ends of each unbroken run of marks, for columns 1, 2, … that extend half a column to either
    side."""
    padded = np.pad(marks, ((0, 0), (1, 1))).astype(np.int8)
    found = []
    for row, steps in enumerate(np.diff(padded, axis=1)):
        starts, stops = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
        found += [(row, (start + 0.5, stop + 0.5)) for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
    return found


def legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Draw the legend of the marks below the figure.

    handles: label → artist.
    """
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower left",
            ncols=len(handles),
            frameon=False,
            fontsize=9,
            labelcolor=MUTED,
            handlelength=1.6,
        )
