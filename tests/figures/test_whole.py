"""No label of any picture is cut, at one hospital and at many, with short names and long ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from fedrobust import figures

NAMES = ["krum", "a_rule_of_my_own whose name is long and has a class:TheLongestOfAllItsNames"]
ROUNDS = list(range(1, 7))


def marked(values: np.ndarray) -> figures.Marks:
    some = values > 0.5
    return figures.Marks(suspected=some, rejected=some, quarantined=some, attacking=some, renewed=some, acts=False)


def pictures(hospitals: int, name: str) -> Iterator[tuple[str, Figure]]:
    """One of each kind, for so many hospitals and everything called `name`."""
    values = np.random.default_rng(0).random((hospitals, len(ROUNDS)))
    attackers, marks = {0: name}, marked(values)
    yield "clients", figures.client_figure(values, ROUNDS, attackers, "weights", marks)
    for count in (1, 4):
        parts = {f"{name} {part}": values for part in range(count)}
        yield f"{count} parts", figures.parts_figure(parts, ROUNDS, attackers, marks)
        panels = [figures.Panel(part, values, ROUNDS, attackers, marks) for part in parts]
        yield f"{count} panels", figures.panels_figure(panels, "weights")
        yield f"{count} strips", figures.strips_figure(dict.fromkeys(parts, values[:1].repeat(2, axis=0)))
        yield f"{count} bands", figures.bands_figure({"accuracy": dict.fromkeys(parts, (ROUNDS, values[:1]))})
    curves = dict.fromkeys(("balanced accuracy", "worst hospital", "attack success"), (ROUNDS, values[0]))
    yield "curves", figures.curves_figure(curves, dict.fromkeys(ROUNDS, 1), chance=0.5)
    for labels in (8, 12):
        names = [f"{name} {label}" for label in range(labels)]
        yield f"confusion of {labels}", figures.confusion_figure(np.eye(labels, dtype=int), names)
        counts = np.full((hospitals, labels), 1234)
        yield f"partition of {labels}", figures.partition_figure(counts, names, attackers, [1234] * hospitals)
    images = np.zeros((8, 16, 16, 3), dtype=np.uint8)
    yield "misread", figures.misread_figure(images, [0] * 8, [1] * 8, [0.9] * 8, [name, name])


def undrawn(figure: Figure) -> set[Artist]:
    """Texts that matplotlib keeps but does not draw: ticks beyond the ends of an axis, and those of hidden axes."""
    found: set[Artist] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not axes.axison or not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    found |= {tick.label1, tick.label2}
    return found


def cut(figure: Figure) -> list[str]:
    """The texts that are drawn, and not wholly inside the picture; and whether titles of panels overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, hidden, found = canvas.get_renderer(), undrawn(figure), []
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible() and text not in hidden:
            box = text.get_window_extent(renderer)
            beyond = (-box.x0, -box.y0, box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1)
            if box.width and max(beyond) > 1.5:
                found.append(text.get_text())
    titles = [axes.title.get_window_extent(renderer) for axes in figure.axes if axes.get_title()]
    return found + ["titles overlap" for one, other in combinations(titles, 2) if one.overlaps(other)]


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("hospitals", "name"), [(1, NAMES[1]), (4, NAMES[0]), pytest.param(100, NAMES[1], marks=pytest.mark.long)], ids=str
)
def test_no_label_is_cut(hospitals: int, name: str) -> None:
    found = {kind: texts for kind, figure in pictures(hospitals, name) if (texts := cut(figure))}
    assert not found


def test_a_cut_label_is_found() -> None:
    figure = Figure(figsize=(2, 2))
    figure.subplots().set_title("a title that is much too long for this picture")
    assert "a title that is much too long for this picture" in cut(figure)
