"""The picture of a matrix: robustness of each defence under each attack."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedrobust.figures.drawing import drawing
from fedrobust.figures.style import ABSENT, ATTACK, INK, MUTED
from fedrobust.texts import fit


@drawing()
def heat_map(
    values: Any,
    harmless: Collection[str],
    headlines: Mapping[str, float],
    title: str,
    warning: str = "",
    empty: str = "",
) -> Figure:
    """Draw robustness, defence × attack; the worst cell of each row is framed; an extra column: the minimum on fresh
    seeds.

    values: a table with defences as index and attacks as columns; a cell without a figure is empty.
    harmless: attacks that do no harm without a defence; their names are grey.
    headlines: defence → robustness on fresh seeds, NaN if it is incomplete; it sorts the rows, the most robust first.
    title: the title.
    warning: a second line of the title.
    empty: what an empty cell means.
    """
    order = [defence for defence in headlines if defence in values.index]
    attacks, rows = list(values.columns), values.loc[order].to_numpy(dtype=float)
    last = np.array([[headlines[defence]] for defence in order])
    gap = np.full((len(order), 1), np.nan)
    across = max(5.4, 3.6 + 0.46 * (len(attacks) + 2))
    figure = Figure(figsize=(across, 2.6 + 0.36 * len(order) + 0.2 * bool(warning)), layout="constrained")
    axes = figure.subplots()
    shown = np.hstack([rows, gap, last])
    axes.set_facecolor(ABSENT)
    image = axes.imshow(np.clip(shown, 0.0, 1.0), cmap="cividis", vmin=0.0, vmax=1.0, aspect="auto")
    axes.add_patch(Rectangle((len(attacks) - 0.5, -0.5), 1, len(order), facecolor="white", edgecolor="none"))
    for row, column in np.ndindex(shown.shape):
        value = shown[row, column]
        if np.isfinite(value):
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if value < 0.55 else INK,
                weight="bold" if column > len(attacks) else "normal",
            )
        elif column != len(attacks):
            axes.text(column, row, "–", ha="center", va="center", fontsize=7, color=MUTED)
    for row in range(len(order)):
        for worst in np.flatnonzero(rows[row] == np.nanmin(rows[row], initial=np.inf)):
            frame = Rectangle((worst - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor=ATTACK, linewidth=2)
            axes.add_patch(frame)
    names = [*attacks, "minimum, fresh seeds"]
    shown_names = [fit(name, 40) for name in names]
    axes.set_xticks([*range(len(attacks)), len(attacks) + 1], shown_names, rotation=60, ha="right")
    for name, label in zip(names, axes.get_xticklabels(), strict=True):
        label.set_color(MUTED if name in harmless else INK)
        label.set_fontstyle("italic" if name in harmless else "normal")
        label.set_rotation_mode("anchor")
    axes.set_yticks(range(len(order)), [fit(defence, 40) for defence in order])
    axes.tick_params(length=0, labelsize=8)
    for side in axes.spines.values():
        side.set_visible(False)
    lines = [fit(line, int(11 * across)) for line in (title, *wrap(warning, int(10 * across)))]
    figure.suptitle("\n".join(lines), x=0.02, ha="left", color=INK, fontsize=11)
    note = "robustness: 1 = as accurate as without attackers, 0 = chance\n"
    note += "framed: worst attack, screening; grey name: harmless without a defence"
    note += "".join(f"\n{line}" for line in wrap(empty, int(13 * across)))
    if not np.isfinite(last).all():
        note += "\nminimum –: incomplete, see table.md"
    figure.supxlabel(note, x=0.02, ha="left", color=MUTED, fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    return figure
