"""Pictures of a run, as matplotlib figures. Pure functions of plain arrays: no files, no global state.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; what an attacker does is always
vermilion, and always said in words as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, FAINT, ABSENT = "#1d2733", "#66727f", "#d9dee3", "#e9ecef"
ATTACK = "#d55e00"
LABEL_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7f7f7f")
_WEIGHT = LinearSegmentedColormap.from_list("weight", ["#ffffff", "#9ecae1", "#0072b2", "#08306b"])
_ANOMALY = LinearSegmentedColormap.from_list("anomaly", ["#fffaf5", "#fdbe85", "#d55e00", "#5c1f00"])
HEAT_MAPS: Mapping[str, tuple[str, Any]] = {
    "reputation": ("reputation", "cividis"),
    "weights": ("share of the aggregate", _WEIGHT),
    "anomaly": ("anomaly score", _ANOMALY),
}
"""Per-client quantities of a round record: the legend of their colours, and the colours."""


def curves_figure(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], attacking: Mapping[int, int], chance: float
) -> Figure:
    """Figures in [0, 1] by round, each named at its end; below, how many hospitals attacked in each round.

    `curves` are name → (rounds, values), drawn in that order; `attacking` is round → number of hospitals.
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
    for place, (_, text, colour) in zip(_apart([end[0] for end in ends], 0.072), ends, strict=True):
        upper.annotate(
            text,
            (1, place),
            xycoords=upper.get_yaxis_transform(),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9.5,
            annotation_clip=False,
        )
    _bare(upper)
    upper.set_ylim(-0.02, 1.02)
    upper.grid(axis="y", color=FAINT, linewidth=0.7)
    upper.tick_params(bottom=False)
    _bare(lower)
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


def client_figure(
    values: np.ndarray,
    rounds: Sequence[int],
    attackers: Mapping[int, str],
    kind: str,
    suspected: np.ndarray | None = None,
    rejected: np.ndarray | None = None,
) -> Figure:
    """Heat map client × round of `kind`, a key of `HEAT_MAPS`, with the true attackers at the top.

    `values` (clients, rounds) float, NaN where a hospital took no part; `suspected` and `rejected` bool, of the same
    shape, are marked with a dot and a cross as long as the cells are large enough.
    """
    clients, columns = values.shape
    order = [*sorted(attackers), *(client for client in range(clients) if client not in attackers)]
    height = min(9.0, max(2.0, 1.25 + 0.24 * clients))
    figure = Figure(figsize=(9.2, height), layout="constrained")
    axes = figure.subplots()
    legend, colours = HEAT_MAPS[kind]
    finite = values[np.isfinite(values)]
    top = 1.0 if kind != "weights" else float(finite.max(initial=0.0)) or 1.0
    scale = Normalize(min(0.0, float(finite.min(initial=0.0))), top)
    axes.set_facecolor(ABSENT)
    axes.imshow(
        np.ma.masked_invalid(values[order]),
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        norm=scale,
        extent=(0.5, columns + 0.5, clients - 0.5, -0.5),
    )
    cell = min(7.0 * 72 / columns, (height - 1) * 72 / clients)
    notes = []
    for marks, symbol, word in ((suspected, "o", "suspected"), (rejected, "x", "rejected")):
        if marks is not None and cell >= 4.0 and marks.any():
            rows, places = np.nonzero(marks[order])
            style: dict[str, Any] = {"s": (cell * 0.32) ** 2, "linewidths": max(0.6, cell * 0.06), "clip_on": True}
            edge: dict[str, Any] = {"c": INK} if symbol == "x" else {"facecolors": "white", "edgecolors": INK}
            axes.scatter(places + 1, rows, marker=symbol, **style, **edge)
            notes.append(f"{'○' if symbol == 'o' else '×'} {word}")
    if np.isnan(values).any():
        notes.append("grey: not in this round")
    _client_ticks(axes, order, attackers, (height - 1) * 72 / clients)
    _round_ticks(axes, rounds)
    axes.set_xlabel("round" + ("      " + "      ".join(notes) if notes else ""))
    axes.spines[:].set_color(FAINT)
    if attackers and len(attackers) < clients:
        axes.axhline(len(attackers) - 0.5, color="white", linewidth=max(1.0, min(4.0, cell * 0.3)))
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, pad=0.02, fraction=0.045, aspect=max(8, 6 * height))
    _bar(bar, legend)
    return figure


def confusion_figure(matrix: np.ndarray, label_names: Sequence[str]) -> Figure:
    """Confusion matrix (truth, predicted), coloured by the share of each true label; counts while they are legible."""
    classes = len(matrix)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(9.0, max(3.4, 1.9 + 0.72 * classes))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap=_WEIGHT, vmin=0, vmax=1)
    size = 10.5 if classes <= 4 else 8 if classes <= 9 else 6
    if classes <= 14:
        for row, column in np.ndindex(classes, classes):
            text = f"{share[row, column]:.0%}" + (f"\n{matrix[row, column]:,}" if classes <= 9 else "")
            colour = "white" if share[row, column] > 0.45 else INK
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size, linespacing=1.4)
    names = [_fit(name, 22) for name in label_names]
    turn = 0 if classes <= 3 and max(map(len, names), default=0) <= 14 else 40
    axes.set_xticks(range(classes), names, rotation=turn, ha="right" if turn else "center", rotation_mode="anchor")
    axes.set_yticks(range(classes), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    _bare(axes)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return figure


def misread_figure(
    images: np.ndarray,
    truth: Sequence[int],
    predicted: Sequence[int],
    confidence: Sequence[float],
    label_names: Sequence[str],
    most: int = 24,
) -> Figure:
    """Montage of misread patches, the most confident first: `images` (n, H, W, 3) uint8, aligned with the rest."""
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")[:most]
    columns = min(8, max(1, len(order)))
    rows = max(1, math.ceil(len(order) / columns))
    figure = Figure(figsize=(max(3.2, 1.15 * columns), 1.62 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, index in zip(panels, order, strict=False):
        axes.imshow(images[index], interpolation="nearest" if images.shape[1] < 64 else "antialiased")
        name, wrong = (_fit(label_names[label], 15) for label in (truth[index], predicted[index]))
        axes.set_title(f"{name}", fontsize=7.5, color=INK, pad=3)
        axes.text(
            0.5,
            -0.05,
            f"{wrong}\n{confidence[index]:.0%}",
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=7.5,
            color=ATTACK,
            linespacing=1.25,
        )
    return figure


def partition_figure(
    counts: np.ndarray,
    label_names: Sequence[str],
    attackers: Mapping[int, str] | None = None,
    patients: Sequence[int] | None = None,
) -> Figure:
    """Who holds what: training patches of each label at each hospital.

    `counts` (hospitals, labels) int; `attackers` are marked; `patients` (hospitals,) is written beside the bars. Up to
    eight labels are stacked bars, more are a heat map.
    """
    counts = np.asarray(counts)
    attackers = attackers or {}
    hospitals, labels = counts.shape
    height = min(9.0, max(2.2, 1.3 + 0.26 * hospitals))
    figure = Figure(figsize=(9.2, height), layout="constrained")
    axes = figure.subplots()
    room = (height - 1.3) * 72 / hospitals
    totals = counts.sum(axis=1)
    if labels <= len(LABEL_COLOURS):
        left = np.zeros(hospitals)
        for label, colour in zip(range(labels), LABEL_COLOURS, strict=False):
            name = _fit(label_names[label], 24)
            edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.6} if room > 6 else {}
            axes.barh(range(hospitals), counts[:, label], 0.8, left=left, color=colour, label=name, **edge)
            left += counts[:, label]
        axes.set_ylim(hospitals - 0.4, -0.6)
        axes.set_xlabel("training patches")
        axes.set_xlim(0, max(1, totals.max(initial=0)) * (1.24 if room > 8 else 1.02))
        axes.grid(axis="x", color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        ncols = labels if sum(len(name) + 6 for name in label_names) < 100 else 4
        figure.legend(loc="outside upper left", ncols=ncols, frameon=False, fontsize=9, labelcolor=INK)
        if room > 8:
            for hospital, total in enumerate(totals):
                text = f"{total:,}" + (f"  ·  {patients[hospital]:,} patients" if patients is not None else "")
                axes.annotate(
                    text, (total, hospital), (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=MUTED
                )
    else:
        image = axes.imshow(counts, aspect="auto", interpolation="nearest", cmap=_WEIGHT, vmin=0)
        axes.set_xticks(range(labels), [_fit(name, 24) for name in label_names], rotation=40, ha="right")
        _bar(figure.colorbar(image, ax=axes, pad=0.02, fraction=0.045), "training patches")
        if room > 8 and labels <= 16:
            for row, column in np.ndindex(hospitals, labels):
                colour = "white" if counts[row, column] > 0.45 * counts.max() else INK
                axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=7, color=colour)
    _bare(axes)
    _client_ticks(axes, list(range(hospitals)), attackers, room)
    axes.spines["left"].set_visible(False)
    return figure


def _client_ticks(axes: Axes, order: Sequence[int], attackers: Mapping[int, str], room: float) -> None:
    """Name the rows: all where `room` points a row allow it, otherwise the attackers and every so many of the rest."""
    step = max(1, math.ceil(9.0 / max(room, 0.1)))
    rows = range(0, len(order), step)
    axes.set_yticks(rows, [_client_name(order[row], attackers) for row in rows], fontsize=9 if room >= 11 else 7.5)
    for row, text in zip(rows, axes.get_yticklabels(), strict=True):
        if order[row] in attackers:
            text.set_color(ATTACK)
            text.set_fontweight("bold")
        else:
            text.set_color(INK)
    axes.tick_params(axis="y", length=0, pad=9)
    axes.set_ylabel("hospital", color=MUTED)
    for row, client in enumerate(order):
        if client in attackers:
            axes.axhspan(row - 0.5, row + 0.5, -0.010, -0.004, color=ATTACK, linewidth=0, clip_on=False)


def _client_name(client: int, attackers: Mapping[int, str]) -> str:
    return f"{attackers[client]} · {client}" if client in attackers else f"{client}"


def _round_ticks(axes: Axes, rounds: Sequence[int]) -> None:
    """Columns are numbered 1, 2, …; their labels are the rounds."""
    places = [int(place) for place in MaxNLocator(10, integer=True).tick_values(1, len(rounds))]
    places = sorted({1, *(place for place in places if 1 <= place <= len(rounds))} if len(rounds) < 10 else places)
    places = [place for place in places if 1 <= place <= len(rounds)]
    axes.set_xticks(places, [str(rounds[place - 1]) for place in places])
    axes.tick_params(axis="x", colors=MUTED, labelsize=9, length=3, color=FAINT)
    axes.xaxis.label.set_color(MUTED)


def _bare(axes: Axes) -> None:
    """No box, quiet ticks."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=MUTED, labelsize=9, length=3)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)


def _bar(bar: Any, legend: str) -> None:
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=8.5, length=0)
    bar.set_label(legend, color=MUTED)


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Places for labels at `values`, moved no more than it takes to be `gap` apart, within [0, 1]."""
    order = np.argsort(values, kind="stable")
    places = np.asarray(values, dtype=np.float64)[order]
    for _ in range(200):
        overlap = np.diff(places) - gap
        if (overlap >= -1e-6).all():
            break
        for pair in np.flatnonzero(overlap < 0):
            shift = (gap - (places[pair + 1] - places[pair])) / 2
            places[pair] -= shift
            places[pair + 1] += shift
        places = np.clip(places, 0.0, 1.0)
    result = np.empty(len(values))
    result[order] = places
    return [float(place) for place in result]


def _fit(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
