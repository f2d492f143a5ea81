"""The timeline of a round: which process did what, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fedrobust.figures.drawing import drawing
from fedrobust.figures.style import FAINT, INK, MUTED, bare
from fedrobust.texts import fit, width

COLOURS = {
    "train": "#0072b2",
    "evaluate": "#56b4e9",
    "craft": "#d55e00",
    "receive": "#c7b198",
    "Gram matrix": "#7b3294",
    "scores": "#cc79a7",
    "weights": "#e69f00",
    "aggregate": "#009e73",
    "server step": "#004d39",
    "journal": "#f0e442",
    "hooks": "#8c6d31",
    "send": "#b8a06a",
    "start the next training": "#4b5563",
}
"""Step → colour; other steps are grey."""
WAITING = "#e3e7eb"
"""Colour of steps in which a process waits for others."""
OTHER = "#98a2ad"


@drawing()
def timeline_figure(lanes: Mapping[str, Sequence[tuple[str, float, float]]], start: float, end: float) -> Figure:
    """Draw the steps of each lane from `start` to `end`, in seconds; those behind others lie on top of them.

    lanes: name → steps in the order of their starts: name, start and end.
    """
    height = 0.95 + 0.36 * len(lanes)
    figure = Figure(figsize=(9.2, height + 0.3), layout="constrained")
    axes = figure.subplots()
    inches = 6.8 / max(end - start, 1e-9)
    there: dict[str, str] = {}
    for row, bars in enumerate(lanes.values()):
        for name, first, last in bars:
            kind = "wait" if name.startswith(("wait", "last")) else name if name in COLOURS else "other"
            colour = {"wait": WAITING, "other": OTHER}.get(kind) or COLOURS[kind]
            there[kind] = colour
            left, right = max(first, start) - start, min(last, end) - start
            edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.5} if (right - left) * inches > 0.03 else {}
            axes.barh(row, max(right - left, 0.012 / inches), 0.74, left=left, color=colour, **edge)
            text = f"{right - left:.2f} s"
            if (right - left) * inches > 0.075 * width(text) and name != "hospital":
                dark = colour in (WAITING, "#f0e442", "#c7b198", OTHER, "#56b4e9", "#e69f00", "#b8a06a")
                place = ((left + right) / 2, row)
                axes.annotate(text, place, ha="center", va="center", fontsize=7.5, color=INK if dark else "white")
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_xlim(0, end - start)
    axes.set_yticks(range(len(lanes)), [fit(name, 30) for name in lanes])
    axes.set_xlabel("seconds since the beginning of the round")
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    bare(axes)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    order = [kind for kind in (*COLOURS, "other", "wait") if kind in there]
    figure.legend(
        [Patch(color=there[kind]) for kind in order],
        ["waits for others" if kind == "wait" else kind for kind in order],
        loc="outside lower left",
        ncols=min(7, max(1, len(order))),
        frameon=False,
        fontsize=8.5,
        labelcolor=MUTED,
        handlelength=1.2,
    )
    return figure
