"""The results of a duel: a line for each turn, and a curve for each defence."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fedrobust.figures.comparison import DASHES, GROUP_COLOURS
from fedrobust.figures.drawing import drawing, png
from fedrobust.figures.style import INK, apart, bare
from fedrobust.studies.writing import drawn
from fedrobust.texts import cell, code, enumerated, fit, markdown
from fedrobust.tuning.objectives import Direction, Objective

FIXED = "fixed"
"""The first turn, before any search."""
AGAIN = "When the duel is started again with the same command"


@dataclass(frozen=True)
class Turn:
    """A defence after a turn, measured on the fresh seeds against all attacks found so far."""

    defence: str
    side: str
    """`fixed`, `attacker` or `defender`."""
    number: int
    by_attack: Mapping[str, float]
    """The objective under each attack; if the turn failed, only for attacks without a failed run."""
    by_seed: Mapping[str, Mapping[int, float]]
    """Attack → fresh seed → the objective of that run."""
    chosen: Mapping[str, Any]
    """The options that the side has found in this turn, by dotted path."""
    direction: Direction = "maximize"
    """Whether the defence wants to maximize or to minimize the objective."""
    failed: str = ""
    """Why the turn has no value; the defence then takes no further turn."""
    unlearnt: str = ""
    """One sentence if no run that judges the turn is better than chance."""

    @property
    def worst(self) -> str:
        """The attack that does the most harm; an empty text if the turn failed."""
        if self.failed:
            return ""
        choose = min if self.direction == "maximize" else max
        return choose(self.by_attack, key=lambda attack: self.by_attack[attack])

    @property
    def equally_bad(self) -> list[str]:
        """All attacks that do as much harm as `worst`."""
        return [name for name, value in self.by_attack.items() if not self.failed and value == self.value]

    @property
    def value(self) -> float:
        """The objective under that attack; NaN if the turn failed."""
        return math.nan if self.failed else self.by_attack[self.worst]

    @property
    def label(self) -> str:
        """The name of the turn in the picture."""
        return "fixed attacks" if self.side == FIXED else f"{self.side} {self.number}"


def write_results(folder: Path, name: str, objective: Objective, turns: Sequence[Turn], complete: bool = True) -> None:
    """Write `turns.csv`, a line for each turn and attack, `duel.md` and, if any turn has a value, `duel.png`.

    folder: must exist.
    name: of the duel.
    objective: its objective.
    turns: those so far.
    complete: False if the duel was stopped.
    """
    with (folder / "turns.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        heads = ("defence", "turn", "attack", objective.metric, "by_seed", "worst", "chosen", "failed")
        table.writerow(map(cell, heads))
        for turn in turns:
            chosen = _json(turn.chosen)
            for attack, value in turn.by_attack.items():
                seeds = json.dumps(dict(turn.by_seed[attack]))
                line = (turn.defence, turn.label, attack, value, seeds, attack in turn.equally_bad, chosen, "")
                table.writerow(map(cell, line))
            if turn.failed:
                table.writerow(map(cell, (turn.defence, turn.label, "", "", "", False, chosen, turn.failed)))
    (folder / "duel.md").write_text(page(name, objective, turns, complete), encoding="utf-8")
    picture, judged = folder / "duel.png", [turn for turn in turns if not turn.failed]
    picture.unlink(missing_ok=True)
    if judged:
        with drawn(picture):
            picture.write_bytes(png(curve_figure(objective, judged, "" if complete else "incomplete: ")))


def turns_written(folder: Path) -> int:
    """Return the number of turns in the table of an earlier execution."""
    if not (table := folder / "turns.csv").exists():
        return 0
    with table.open(encoding="utf-8", newline="") as file:
        return len({tuple(row[:2]) for row in csv.reader(file)} - {("defence", "turn")})


def page(name: str, objective: Objective, turns: Sequence[Turn], complete: bool = True) -> str:
    """Return the duel as Markdown: a line for each defence, a column for each turn, what was found, and what failed.

    Arguments as in `write_results`.
    """
    labels = list(dict.fromkeys(turn.label for turn in turns))
    lines = [f"# {markdown(name)}", "", f"{code(objective.metric)} under the worst known attack, on fresh seeds.", ""]
    if not complete:
        lines += [f"**Incomplete**: the duel was stopped before its end. {AGAIN}, it goes on.", ""]
    if turns:
        lines += [f"| defence | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for defence in dict.fromkeys(turn.defence for turn in turns):
        own = {turn.label: _shown(turn) for turn in turns if turn.defence == defence}
        lines.append(f"| {markdown(defence)} | {' | '.join(own.get(label, '–') for label in labels)} |")
    if not turns:
        lines.append("No turn is judged yet.")
    if len(turns) < len(labels) * len({turn.defence for turn in turns}):
        lines += ["", "–: the defence has no space to tune, or it took no further turn."]
    if flat := [turn for turn in turns if turn.unlearnt]:
        lines += ["", "## Not better than chance", ""]
        lines += [f"- {markdown(turn.defence)}, {turn.label}: {markdown(turn.unlearnt)}" for turn in flat]
    if failed := [turn for turn in turns if turn.failed]:
        lines += ["", "## What failed", "", "A defence whose turn failed takes no further one."]
        lines += [f"{AGAIN}, the runs that failed are made again; trials that failed are not.", ""]
        lines += [f"- {markdown(turn.defence)}, {turn.label}: {markdown(turn.failed)}" for turn in failed]
    lines += ["", "## What was found", ""]
    for turn in turns:
        if turn.chosen:
            lines.append(f"- {markdown(turn.defence)}, {turn.label}: {code(_json(turn.chosen))}")
    return "\n".join([*lines, ""])


def _json(chosen: Mapping[str, Any]) -> str:
    return json.dumps(dict(chosen), default=str, ensure_ascii=False)


def _shown(turn: Turn) -> str:
    return "failed" if turn.failed else f"{turn.value:.3f} ({markdown(enumerated(turn.equally_bad))})"


@drawing()
def curve_figure(objective: Objective, turns: Sequence[Turn], before: str = "") -> Figure:
    """Draw the objective under the worst attack after each turn, a line for each defence.

    objective: its metric is the label of the axis.
    turns: those that did not fail.
    before: put in front of the title.
    """
    labels = list(dict.fromkeys(turn.label for turn in turns))
    names = list(dict.fromkeys(turn.defence for turn in turns))
    figure = Figure(figsize=(9.2, 4.2), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06))
    axes = figure.subplots()
    ends: list[tuple[float, str, str]] = []
    for place, name in enumerate(names):
        own = [turn for turn in turns if turn.defence == name]
        at, values = [labels.index(turn.label) for turn in own], [turn.value for turn in own]
        look: dict[str, Any] = {"color": GROUP_COLOURS[place % 7], "linestyle": DASHES[place // 7 % 3]}
        axes.step([*at, len(labels) - 1], [*values, values[-1]], where="post", linewidth=1.2, alpha=0.45, **look)
        axes.plot(at, values, "o", markersize=6, color=look["color"])
        seeds = [(x, value) for x, turn in zip(at, own, strict=True) for value in turn.by_seed[turn.worst].values()]
        axes.plot(*zip(*seeds, strict=True), "o", markersize=2.5, color=look["color"], alpha=0.6)
        ends.append((values[-1], name, look["color"]))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    heights = apart([(value - low) / (high - low) for value, _, _ in ends], 0.06)
    for height, (_, name, colour) in zip(heights, ends, strict=True):
        look = {"color": colour, "fontsize": 9, "va": "center"}
        axes.annotate(fit(name, 32), (1, height), (6, 0), "axes fraction", "offset points", **look)
    bare(axes)
    axes.set_xticks(np.arange(len(labels)), labels)
    axes.set_xlim(-0.3, len(labels) - 1 + 0.05)
    title = f"{before}{fit(objective.metric, 60)} under the worst known attack, on fresh seeds; small: each seed"
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    return figure
