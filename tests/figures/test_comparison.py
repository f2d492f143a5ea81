"""Groups of runs in pictures."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedrobust.figures import Marks, Panel, bands_figure, panels_figure, strips_figure


def texts(figure: Figure) -> set[str]:
    figure.canvas.draw()
    found = {text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title, *axes.get_yticklabels())}
    return found | {axes.get_title(loc="left") for axes in figure.axes}


def test_a_group_has_the_same_line_in_every_panel_and_its_last_value_beside_it() -> None:
    lines = {"a": ([1, 2], np.array([[0.2, 0.4]])), "b": ([1, 2], np.array([[0.6, 0.9]]))}
    figure = bands_figure({"accuracy": lines, "attack success": {"b": lines["b"]}})
    above, below = figure.axes
    assert [line.get_color() for line in below.lines] == [above.lines[1].get_color()] != [above.lines[0].get_color()]
    assert {"0.40", "0.90", "accuracy", "attack success"} <= texts(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


@pytest.mark.parametrize(("seeds", "lines", "bands"), [(1, 1, 0), (2, 3, 0), (3, 4, 0), (4, 1, 1)])
def test_up_to_three_seeds_have_a_line_each_more_have_a_band(seeds: int, lines: int, bands: int) -> None:
    values = np.linspace(0.2, 0.8, seeds)[:, None] * [0.5, 1.0]
    axes = bands_figure({"accuracy": {"a": ([1, 2], values)}}).axes[0]
    assert (len(axes.lines), len(axes.collections)) == (lines, bands)
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), values.mean(axis=0))
    if bands:
        band = axes.collections[0].get_paths()[0].vertices
        assert band[:, 1].max() == pytest.approx((values.mean(axis=0) + values.std(axis=0, ddof=1)).max())


def test_more_groups_than_colours_differ_in_their_dashes() -> None:
    bands = {str(place): ([1], np.array([[0.5]])) for place in range(15)}
    lines = bands_figure({"accuracy": bands}).axes[0].lines
    assert (
        len({(line.get_color(), str(line.get_linestyle()), str(line._unscaled_dash_pattern)) for line in lines}) == 15
    )


LONG = "clip + nnm + geometric median · tau 0.05 · trust acts true · server yogi · lr 0.001 · f largest · model resnet"


def test_long_names_are_whole() -> None:
    values = np.full((4, 3), 0.5)
    figures = [
        bands_figure({"accuracy": {f"{place} {LONG}": ([1], np.array([[0.5]])) for place in range(9)}}),
        panels_figure([Panel(f"{place} {LONG}", values, [1, 2, 3], {}) for place in range(9)], "reputation"),
        strips_figure({f"{place} {LONG}": np.full((2, 3), 0.5) for place in range(9)}),
    ]
    for figure in figures:
        shown = texts(figure) | {text.get_text() for legend in figure.legends for text in legend.get_texts()}
        whole = {" ".join(text.split()) for text in shown}
        assert {f"{place} {LONG}" for place in range(9)} <= whole


def test_heat_maps_stand_side_by_side_with_their_own_attackers_on_top() -> None:
    values = np.arange(12).reshape(4, 3) / 12
    panels = [
        Panel("one", values, [1, 2, 3], {2: "ipm"}, Marks(attacking=values > 0.5)),
        Panel("two", values[:, :2], [1, 2], {}),
        Panel("three", np.full((4, 3), np.nan), [1, 2, 3], {}),
    ]
    figure = panels_figure(panels, "reputation")
    figure.canvas.draw()
    first, second, third = figure.axes[:3]
    np.testing.assert_allclose(first.images[0].get_array(), values[[2, 0, 1, 3]])
    np.testing.assert_allclose(second.images[0].get_array(), values[:, :2])
    assert third.images[0].get_array().mask.all()
    assert [axes.get_title() for axes in (first, second, third)] == ["one", "two", "three"]
    assert first.images[0].norm is second.images[0].norm


def test_strips_have_a_row_for_attackers_only_where_there_are_any() -> None:
    both, honest = np.array([[0.1, 0.2], [0.8, 0.9]]), np.array([[np.nan] * 3, [0.7] * 3])
    figure = strips_figure({"first": both, "second": honest})
    rows = figure.axes[0].images[0].get_array()
    assert rows.shape == (5, 3)  # two names, three strips
    np.testing.assert_allclose(rows[1, :2].data, both[0])
    assert rows.mask[1, 2] and rows.mask[0].all() and not rows.mask[4].any()
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["attackers", "honest", "honest"] and {"first", "second"} <= texts(figure)
