"""The quality of the global model: its curves, its confusion matrix and the patches it misreads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedrobust.figures.drawing import drawing
from fedrobust.figures.style import ATTACK, FAINT, INK, MUTED, WEIGHT, bare, label_ends
from fedrobust.texts import fit, width, wrapped

PATCH = 1.07
"""Longer side of a misread patch in its picture, in inches."""


@drawing()
def curves_figure(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], attacking: Mapping[int, int], chance: float
) -> Figure:
    """Draw figures in [0, 1] by round, each labelled at its end; below, how many hospitals attacked in each round.

    curves: name → (rounds, values), drawn in this order.
    attacking: round → number of hospitals.
    chance: the value of guessing, drawn as a line.
    """
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[7, 1])
    styles = {
        "balanced accuracy": ("#0072b2", "-", 2.4),
        "accuracy": ("#56b4e9", "-", 1.6),
        "worst hospital": ("#009e73", "--", 1.6),
        "attack success": (ATTACK, "-", 2.4),
    }
    upper.axhline(chance, color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
    ends: list[tuple[float, str, str]] = []
    for name, (rounds, values) in curves.items():
        colour, dash, width = styles.get(name, (MUTED, "-", 1.4))
        marker = "o" if len(rounds) <= 40 else None
        upper.plot(rounds, values, dash, color=colour, linewidth=width, marker=marker, markersize=width + 1.2)
        shown = [value for value in values if math.isfinite(value)]
        if shown:
            ends.append((shown[-1], f"{name}  {shown[-1]:.2f}", colour))
    ends.append((chance, "chance", MUTED))
    label_ends(upper, ends, 0.072)
    bare(upper)
    upper.set_ylim(-0.02, 1.02)
    upper.grid(axis="y", color=FAINT, linewidth=0.7)
    upper.tick_params(bottom=False)
    bare(lower)
    rounds_seen = sorted(attacking) or [1]
    most = max(attacking.values(), default=0)
    lower.bar(rounds_seen, [attacking.get(round, 0) for round in rounds_seen], width=1.0, color=ATTACK, alpha=0.75)
    lower.set_ylim(0, max(1, most) * 1.05)
    lower.set_yticks([0, max(1, most)])
    lower.set_xlim(rounds_seen[0] - 0.6, rounds_seen[-1] + 0.6)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lower.set_xlabel("round")
    note = "hospitals that attack" if most else "no hospital attacks"
    lower.annotate(
        note,
        (1, 0.5),
        xycoords="axes fraction",
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=ATTACK if most else MUTED,
        fontsize=9.5,
        annotation_clip=False,
    )
    return figure


@drawing()
def confusion_figure(matrix: np.ndarray, label_names: Sequence[str]) -> Figure:
    """Draw the confusion matrix, coloured by the share of each true label, with counts if they are legible.

    label_names: one for each row and column.
    matrix: (truth, predicted) int.
    """
    classes = len(matrix)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(9.0, max(3.4, 1.9 + 0.72 * classes))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap=WEIGHT, vmin=0, vmax=1)
    size = 10.5 if classes <= 4 else 8 if classes <= 9 else 6
    if classes <= 14:
        for row, column in np.ndindex(classes, classes):
            text = f"{share[row, column]:.0%}" + (f"\n{matrix[row, column]:,}" if classes <= 9 else "")
            colour = "white" if share[row, column] > 0.45 else INK
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size, linespacing=1.4)
    names = [wrapped(name, 22, lines=2) if classes <= 9 else fit(name, 22) for name in label_names]
    turn = 0 if classes <= 3 and max(map(width, names), default=0) <= 14 else 40
    axes.set_xticks(range(classes), names, rotation=turn, ha="right" if turn else "center", rotation_mode="anchor")
    axes.set_yticks(range(classes), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    bare(axes)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return figure


@drawing()
def misread_figure(
    images: np.ndarray,
    truth: Sequence[int],
    predicted: Sequence[int],
    confidence: Sequence[float],
    label_names: Sequence[str],
    most: int = 24,
) -> Figure:
    """Draw misread patches, the most confident first, at most `most` of them.

    label_names: indexed by `truth` and `predicted`.
    images: (n, H, W, 3) uint8. truth, predicted, confidence: n values each, for the same patches.
    """
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")[:most]
    columns = min(8, max(1, len(order)))
    rows = max(1, math.ceil(len(order) / columns))
    size = max(3.2, 1.15 * columns), 1.68 * rows
    figure = Figure(figsize=size)
    # One pair of axes, in inches: a pair for each patch would take most of the time of a report.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    high, wide = (PATCH * side / max(images.shape[1:3]) for side in images.shape[1:3])
    smooth = "nearest" if images.shape[1] < 64 else "antialiased"
    for place, index in enumerate(order):
        x, y = size[0] / columns * (place % columns + 0.5), 1.68 * (place // columns) + 0.29
        edges = (x - wide / 2, x + wide / 2, y + high, y)
        axes.imshow(images[index], interpolation=smooth, extent=edges, aspect="auto", clip_on=False)
        name, wrong = (fit(label_names[label], 15) for label in (truth[index], predicted[index]))
        style: dict[str, Any] = {"ha": "center", "fontsize": 7.5}
        axes.text(x, y - 0.04, name, va="baseline", color=INK, **style)
        below = f"{wrong}\n{confidence[index]:.0%}"
        axes.text(x, y + high + 0.05, below, va="top", color=ATTACK, linespacing=1.25, **style)
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    return figure
