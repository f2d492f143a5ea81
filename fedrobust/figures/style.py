"""Colours, ticks and labels that the pictures share.

The colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish; the actions of attackers are
always vermilion, and always named in words as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from fedrobust.texts import fit, wrapped

INK, MUTED, FAINT, ABSENT = "#1d2733", "#66727f", "#d9dee3", "#d3d8dd"
ATTACK = "#d55e00"
LABEL_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7f7f7f")
WEIGHT = LinearSegmentedColormap.from_list("weight", ["#ffffff", "#9ecae1", "#0072b2", "#08306b"])
ANOMALY = LinearSegmentedColormap.from_list("anomaly", ["#ffffff", "#dcc2e6", "#9a5bb0", "#3c1053"])


class Band(NamedTuple):
    """Rows of a heat map that are no single hospitals."""

    label: str
    first: int
    """The row at its top."""
    rows: int
    malicious: bool


def client_ticks(
    axes: Axes,
    order: Sequence[int],
    attackers: Mapping[int, str],
    room: float,
    named: bool = True,
    bands: Sequence[Band] = (),
) -> None:
    """Label the rows: all of them if there is enough `room` (points per row), otherwise every so many.

    order: the clients in the order of the rows.
    attackers: client → name of its attack.
    named: add the name of the attack to attackers.
    bands: the rows below them.
    """
    size = 9.0 if room >= 11 else 7.5 if room >= 9 else 6.5
    step = max(1, math.ceil((size + 0.5) / max(room, 0.1)))
    rows = range(0, len(order), step)
    names = [client_name(order[row], attackers) if named else str(order[row]) for row in rows]
    labels = [(float(row), name, order[row] in attackers) for row, name in zip(rows, names, strict=True)]
    labels += [(band.first + (band.rows - 1) / 2, band.label, band.malicious) for band in bands]
    axes.set_yticks([place for place, *_ in labels], [name for _, name, _ in labels], fontsize=size)
    for (_, _, malicious), text in zip(labels, axes.get_yticklabels(), strict=True):
        if malicious:
            text.set_color(ATTACK)
            text.set_fontweight("bold")
        else:
            text.set_color(INK)
    axes.tick_params(axis="y", length=0, pad=9)
    axes.set_ylabel("hospital", color=MUTED)
    for row, client in enumerate(order):
        if client in attackers:
            axes.axhspan(row - 0.5, row + 0.5, -0.010, -0.004, color=ATTACK, linewidth=0, clip_on=False)
    for band in bands:
        if band.malicious:
            ends = (band.first - 0.5, band.first + band.rows - 0.5)
            axes.axhspan(*ends, -0.010, -0.004, color=ATTACK, linewidth=0, clip_on=False)


def client_name(client: int, attackers: Mapping[int, str]) -> str:
    return f"{fit(attackers[client], 32)} · {client}" if client in attackers else f"{client}"


def round_ticks(axes: Axes, rounds: Sequence[int], most: int = 10) -> None:
    """Label the columns 1, 2, … with the numbers of the rounds, at most `most` of them."""
    places = [int(place) for place in MaxNLocator(most, integer=True).tick_values(1, len(rounds))]
    places = sorted({1, *(place for place in places if 1 <= place <= len(rounds))} if len(rounds) < 10 else places)
    places = [place for place in places if 1 <= place <= len(rounds)]
    axes.set_xticks(places, [str(rounds[place - 1]) for place in places])
    axes.tick_params(axis="x", colors=MUTED, labelsize=9, length=3, color=FAINT)
    axes.xaxis.label.set_color(MUTED)


def bare(axes: Axes) -> None:
    """Remove the box, and make the ticks inconspicuous."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=MUTED, labelsize=9, length=3)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)


def colour_bar(bar: Any, legend: str, height: float) -> None:
    """Label a colour bar that is `height` inches high: on several lines if that is too little for one."""
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=8.5, length=0)
    most = max(int(height * 72 / 5.2), *map(len, legend.split()))
    bar.set_label(wrapped(legend, most), color=MUTED, fontsize=9)


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Return positions in [0, 1] for labels at `values`, moved no more than necessary to be `gap` apart."""
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


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], gap: float) -> None:
    """Write labels behind the right ends of curves in [0, 1], at least `gap` apart; `ends`: (height, text, colour)
    each."""
    for place, (_, text, colour) in zip(apart([end[0] for end in ends], gap), ends, strict=True):
        axes.annotate(
            text,
            (1, place),
            xycoords=axes.get_yaxis_transform(),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9.5,
            annotation_clip=False,
        )
