"""The partition: which hospital has which patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedrobust.figures.drawing import drawing
from fedrobust.figures.rows import MOST_ROWS
from fedrobust.figures.style import ATTACK, FAINT, INK, LABEL_COLOURS, MUTED, WEIGHT, bare, client_ticks, colour_bar
from fedrobust.texts import fit, width, wrapped


@drawing()
def partition_figure(
    counts: np.ndarray,
    label_names: Sequence[str],
    attackers: Mapping[int, str] | None = None,
    patients: Sequence[int] | None = None,
) -> Figure:
    """Draw the number of training patches of each label at each hospital.

    label_names: one for each column.
    counts: (hospitals, labels) int.
    attackers: hospital → name of its attack; these hospitals are marked.
    patients: (hospitals,) int, written beside the bars.

    Up to eight labels are drawn as stacked bars, more as a heat map. More hospitals than there can be rows for are
    sorted, the largest at the top, and not named.
    """
    counts = np.asarray(counts)
    attackers = attackers or {}
    hospitals, labels = counts.shape
    if crowd := hospitals > MOST_ROWS:
        order = np.argsort(-counts.sum(axis=1), kind="stable")
        counts, malicious = counts[order], np.isin(order, sorted(attackers))
    height = min(9.0, max(2.2, 1.3 + 0.26 * hospitals))
    names = [wrapped(name, 34, lines=3) for name in label_names]
    across = max(1, min(labels, 104 // (max(width(line) for name in names for line in name.splitlines()) + 7)))
    lines = sum(
        1 + max(name.count("\n") for name in names[first : first + across]) for first in range(0, labels, across)
    )
    above = 0.17 * (lines - 1) if labels <= len(LABEL_COLOURS) else 0.0
    figure = Figure(figsize=(9.2, height + above), layout="constrained")
    axes = figure.subplots()
    room = (height - 1.3) * 72 / hospitals
    totals = counts.sum(axis=1)
    if labels <= len(LABEL_COLOURS):
        left, edges = np.zeros(hospitals), np.arange(hospitals + 1) - 0.5
        for label, colour in zip(range(labels), LABEL_COLOURS, strict=False):
            edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.6} if room > 6 else {}
            if crowd:  # one outline instead of a bar for each hospital
                axes.stairs(
                    left + counts[:, label],
                    edges,
                    baseline=left.copy(),
                    orientation="horizontal",
                    fill=True,
                    color=colour,
                    linewidth=0,
                )
            else:
                axes.barh(range(hospitals), counts[:, label], 0.8, left=left, color=colour, **edge)
            left += counts[:, label]
        axes.set_ylim(hospitals - 0.4, -0.6)
        axes.set_xlabel("training patches")
        axes.set_xlim(0, max(1, totals.max(initial=0)) * (1.34 if room > 8 else 1.02))
        axes.grid(axis="x", color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        style: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK, "ncols": across}
        # Named one by one: by default, matplotlib leaves out names that are empty or begin with "_".
        bars: list[Any] = list(axes.patches) if crowd else list(axes.containers)
        figure.legend(bars, names, loc="outside upper left", **style)
        if room > 8:
            for hospital, total in enumerate(totals):
                text = f"{total:,}" + (f"  ·  {patients[hospital]:,} patients" if patients is not None else "")
                axes.annotate(
                    text, (total, hospital), (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=MUTED
                )
    else:
        image = axes.imshow(counts, aspect="auto", interpolation="nearest", cmap=WEIGHT, vmin=0)
        axes.set_xticks(range(labels), [fit(name, 24) for name in label_names], rotation=40, ha="right")
        colour_bar(figure.colorbar(image, ax=axes, pad=0.02, fraction=0.045), "training patches", height - 1.3)
        if room > 8 and labels <= 16:
            for row, column in np.ndindex(hospitals, labels):
                colour = "white" if counts[row, column] > 0.45 * counts.max() else INK
                axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=7, color=colour)
    bare(axes)
    if crowd:
        _crowd_ticks(axes, malicious)
    else:
        client_ticks(axes, list(range(hospitals)), attackers, room)
    axes.spines["left"].set_visible(False)
    return figure


def _crowd_ticks(axes: Axes, malicious: np.ndarray) -> None:
    """Count the rows instead of naming them, and mark those of attackers; `malicious`: (rows,) bool."""
    hospitals = len(malicious)
    places = [place for place in MaxNLocator(8, integer=True).tick_values(0, hospitals) if 0 < place <= hospitals]
    axes.set_yticks([0, *(place - 1 for place in places)], ["1", *(f"{place:,.0f}" for place in places)])
    bad = f", {malicious.sum():,} attackers marked" if malicious.any() else ""
    axes.set_ylabel(f"hospitals by size{bad}", color=MUTED)
    rows = np.flatnonzero(malicious)
    look: dict[str, Any] = {"color": ATTACK, "linewidth": 1.0, "transform": axes.get_yaxis_transform()}
    axes.hlines(rows, -0.012, -0.004, clip_on=False, **look)
    axes.tick_params(axis="y", length=0, pad=9)
