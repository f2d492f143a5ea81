"""Comparison of groups of runs: their curves, and the reputations in each group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedrobust.figures.drawing import drawing
from fedrobust.figures.heat_maps import HEAT_MAPS, Marks, cells, legend, marked, separate
from fedrobust.figures.rows import rows_of
from fedrobust.figures.style import (
    ATTACK,
    FAINT,
    INK,
    MUTED,
    bare,
    client_ticks,
    colour_bar,
    label_ends,
    round_ticks,
)
from fedrobust.texts import width, wrapped

GROUP_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#1d2733", "#8c6d31")
LEGEND = 110
"""Width of a legend, in characters."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))
"""Line styles: if there are more groups than colours, the colours are used again with the next style."""

Lines = tuple[Sequence[int], np.ndarray]
"""Rounds, and the figures of each seed: (seeds, rounds)."""
FEW = 3
"""Up to so many seeds have a line each; more have a band."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One of several heat maps hospital × round."""

    title: str
    values: np.ndarray
    """(clients, rounds) float, NaN if there is no figure."""
    rounds: Sequence[int]
    attackers: Mapping[int, str]
    marks: Marks = field(default_factory=Marks)


@drawing()
def bands_figure(panels: Mapping[str, Mapping[str, Lines]]) -> Figure:
    """Draw figures in [0, 1] by round: a panel for each, with the mean over the seeds of each group; with two or three
    seeds also a thin line for each of them, with more a band of one standard deviation.

    panels: title → group → lines. A group has the same line style in every panel; its last mean is written at the end
        of the line.
    """
    names = list(dict.fromkeys(name for groups in panels.values() for name in groups))
    widest = max((min(width(name), LEGEND) for name in names), default=1)
    columns = max(1, min(len(names), LEGEND // (widest + 8)))
    shown = [wrapped(name, LEGEND // columns - 8 if columns > 1 else LEGEND) for name in names]
    below = sum(1 + name.count("\n") for name in shown) / columns + 1
    figure = Figure(figsize=(9.2, 2.75 * len(panels) + 0.4 + 0.2 * math.ceil(below)), layout="constrained")
    axes_of = figure.subplots(len(panels), 1, sharex=True, squeeze=False).ravel()
    looks = {
        name: {"color": GROUP_COLOURS[place % 7], "linestyle": DASHES[place // 7 % 3]}
        for place, name in enumerate(names)
    }
    for axes, (title, groups) in zip(axes_of, panels.items(), strict=True):
        _curves(axes, groups, looks)
        axes.set_title(title, fontsize=10, color=INK, pad=6, loc="left")
    axes_of[-1].set_xlabel("round")
    axes_of[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles = [Line2D([], [], linewidth=2.2, **looks[name]) for name in names]
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handlelength": 2.4}
    figure.legend(handles, shown, loc="outside lower left", ncols=columns, **style)
    return figure


@drawing()
def panels_figure(panels: Sequence[Panel], kind: str) -> Figure:
    """Draw heat maps of `kind`, a key of `HEAT_MAPS`, side by side on one scale, with the true attackers at the top.

    panels: one for each heat map.
    """
    across = 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3
    down = math.ceil(len(panels) / across)
    every = [rows_of(panel.values, panel.attackers) for panel in panels]
    count = max(len(rows.values) for rows in every)
    titles = [wrapped(panel.title, 88 // across) for panel in panels]
    each = min(4.2, max(1.5, 0.6 + 0.17 * count))
    over = sum(
        max(title.count("\n") for title in titles[line : line + across]) for line in range(0, len(titles), across)
    )
    figure = Figure(figsize=(9.2, each * down + 0.16 * over + 0.6), layout="constrained")
    axes_of = figure.subplots(down, across, squeeze=False)
    told, colours = HEAT_MAPS[kind]
    finite = np.concatenate([panel.values[np.isfinite(panel.values)] for panel in panels])
    top = 1.0 if kind != "weights" else float(finite.max(initial=0.0)) or 1.0
    scale = Normalize(min(0.0, float(finite.min(initial=0.0))), top)
    handles: dict[str, Any] = {}
    for place, axes in enumerate(axes_of.ravel()):
        if place >= len(panels):
            axes.set_axis_off()
            continue
        panel, rows = panels[place], every[place]
        own, columns = rows.values.shape
        row = (each - 0.6) * 72 / own
        handles |= cells(axes, rows.values, scale, colours)
        handles |= marked(axes, panel.marks, rows.clients, 7.2 * 72 / across / max(1, columns), row)
        separate(axes, rows.gaps, row)
        client_ticks(axes, rows.clients, panel.attackers, row, named=False, bands=rows.bands)
        round_ticks(axes, panel.rounds, most=10 if across == 1 else 5)
        axes.set_title(titles[place], fontsize=9.5, color=INK, pad=4)
        if place % across:
            axes.set_ylabel("")
        if place + across >= len(panels):
            axes.set_xlabel("round")
    bar = figure.colorbar(
        ScalarMappable(scale, colours), ax=axes_of, pad=0.02, fraction=0.045, shrink=1 / down, anchor=(0.0, 1.0)
    )
    colour_bar(bar, told, each - 0.6)
    legend(figure, handles)
    return figure


@drawing()
def strips_figure(strips: Mapping[str, np.ndarray]) -> Figure:
    """Draw reputation as two strips for each group, attackers above the others.

    strips: group → (2, rounds) float, NaN if there is none.
    """
    columns = max(values.shape[1] for values in strips.values())
    rows: list[np.ndarray] = []
    ticks, names = [], []
    for name, values in strips.items():
        title = wrapped(name, 96)
        rows += [np.full(columns, np.nan)] * (1 + title.count("\n"))
        names.append((len(rows) - 1, title))
        for line, word, colour in zip(values, ("attackers", "honest"), (ATTACK, INK), strict=True):
            if np.isfinite(line).any():
                ticks.append((len(rows), word, colour))
                rows.append(np.pad(line, (0, columns - len(line)), constant_values=np.nan))
    figure = Figure(figsize=(9.2, 0.75 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    told, colours = HEAT_MAPS["reputation"]
    scale, extent = Normalize(0.0, 1.0), (0.5, columns + 0.5, len(rows) - 0.5, -0.5)
    shown = np.ma.masked_invalid(rows)
    axes.imshow(shown, aspect="auto", interpolation="nearest", cmap=colours, norm=scale, extent=extent)
    for place, name in names:
        axes.text(0.5, place + 0.38, name, fontsize=9.5, color=INK, va="bottom", ha="left")
    for place, word, _ in ticks:
        if word == "attackers":
            axes.axhline(place + 0.5, color="white", linewidth=1.5)
    axes.set_yticks([place for place, _, _ in ticks], [word for _, word, _ in ticks], fontsize=8.5)
    bare(axes)
    for text, (_, _, colour) in zip(axes.get_yticklabels(), ticks, strict=True):
        text.set_color(colour)
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    round_ticks(axes, range(1, columns + 1))
    axes.set_xlabel("round")
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, pad=0.02, fraction=0.045)
    colour_bar(bar, told, 0.22 * len(rows))
    return figure


def _curves(axes: Axes, groups: Mapping[str, Lines], looks: Mapping[str, Mapping[str, Any]]) -> None:
    ends = []
    for name, (rounds, values) in groups.items():
        if not len(rounds):
            continue
        mean, look = values.mean(axis=0), looks[name]
        if len(values) > FEW:
            sd = values.std(axis=0, ddof=1)
            axes.fill_between(rounds, mean - sd, mean + sd, color=look["color"], alpha=0.16, linewidth=0)
        elif len(values) > 1:
            axes.plot(rounds, values.T, linewidth=0.8, alpha=0.6, **look)
        dot: dict[str, Any] = {"marker": "o", "markersize": 3.4} if len(rounds) <= 10 else {}
        axes.plot(rounds, mean, linewidth=2.0, **dot, **look)
        ends.append((float(mean[-1]), f"{mean[-1]:.2f}", look["color"]))
    label_ends(axes, ends, 0.068)
    bare(axes)
    axes.spines["left"].set_color(MUTED)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
