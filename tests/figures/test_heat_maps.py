"""Heat maps: who stands where, and the marks on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex

from fedrobust import figures
from fedrobust.figures.style import ATTACK, INK


def heat_map(figure: Any) -> Any:
    """The rows that a heat map shows, top to bottom."""
    return figure.axes[0].images[0].get_array()


def lines(axes: Any, colour: str, across: bool = True) -> list[list[float]]:
    """The lines of a colour in a heat map: row and ends of each that lies, column and ends of each that stands."""
    own = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    segments = [s for lines in own if to_hex(lines.get_color()[0]) == to_hex(colour) for s in lines.get_segments()]
    place, ends = (1, 0) if across else (0, 1)
    return [
        [float(segment[0, place]), *segment[:, ends].tolist()]
        for segment in segments
        if (segment[0, 1] == segment[1, 1]) == across
    ]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def test_heat_maps_show_attackers_first_and_absences_as_gaps() -> None:
    values = np.arange(12.0).reshape(4, 3) / 12
    values[1, 2] = np.nan
    shown = heat_map(figures.client_figure(values, [1, 2, 3], {2: "alie"}, "reputation"))
    np.testing.assert_array_equal(shown[0], values[2])
    np.testing.assert_array_equal(shown[1], values[0])
    assert shown.mask.sum() == 1 and shown.mask[2, 2]


def test_marks_stand_in_the_rounds_they_belong_to() -> None:
    """Hospital 2 attacks and stands on top: row 0; hospital 0 is in row 1."""
    attacking, quarantined, renewed, suspected = (np.zeros((3, 6), dtype=bool) for _ in range(4))
    attacking[2, [0, 1, 4]] = True
    quarantined[2, 1:] = quarantined[0, 3] = True
    renewed[2, 4] = suspected[0, 2] = True
    marks = figures.Marks(suspected, None, quarantined, attacking, renewed)
    figure = figures.client_figure(np.ones((3, 6)), range(1, 7), {2: "alie"}, "reputation", marks)
    axes = figure.axes[0]
    assert [ends for row, *ends in lines(axes, ATTACK)] == [[0.5, 2.5], [4.5, 5.5]]
    assert all(0.1 < row < 0.5 for row, *_ in lines(axes, ATTACK))
    assert lines(axes, "white") == [[0, 1.5, 6.5], [1, 3.5, 4.5]]
    assert lines(axes, INK, across=False) == [[4.5, -0.5, 0.5]]
    dots: list[Any] = [found for found in axes.collections if isinstance(found, PathCollection)]
    assert [dot.get_offsets().tolist() for dot in dots] == [[[3.0, 1.0]]]
    assert legend(figure) == ["attacks", "in quarantine", "suspected", "new identity"]
    recorded = figures.client_figure(np.ones((3, 6)), range(1, 7), {}, "reputation", replace(marks, acts=False))
    told = ["attacks", "quarantine, recorded only", "suspected, recorded only", "new identity"]
    assert legend(recorded) == told


def test_quarantine_that_does_not_act_is_called_so() -> None:
    marks = figures.Marks(quarantined=np.ones((2, 2), dtype=bool), acts=False)
    figure = figures.client_figure(np.ones((2, 2)), [1, 2], {}, "reputation", marks)
    assert legend(figure) == ["quarantine, recorded only"]


def test_each_part_of_the_score_has_a_panel_with_attackers_first() -> None:
    rng = np.random.default_rng(3)
    parts = {name: rng.random((4, 3)) for name in ("norm", "average_cosine", "own")}
    parts["own"][0, 1] = np.nan
    figure: Any = figures.parts_figure(parts, [1, 2, 3], {3: "alie"})
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["norm", "average cosine", "own"]
    for axes, values in zip(panels, parts.values(), strict=True):
        shown = axes.images[0].get_array()
        np.testing.assert_array_equal(shown.filled(np.nan), values[[3, 0, 1, 2]])
        assert axes.images[0].get_clim() == (0.0, 1.0)
    assert legend(figure) == ["no figure"]


def test_a_heat_map_names_attackers_and_rounds() -> None:
    figure = figures.client_figure(np.ones((3, 4)), [5, 6, 7, 8], {2: "alie"}, "weights")
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["alie · 2", "0", "1"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["5", "6", "7", "8"]
