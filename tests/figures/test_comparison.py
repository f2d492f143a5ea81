"""Groups of runs in pictures."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fedrobust.figures import Marks, Panel, bands_figure, panels_figure, strips_figure


def texts(figure: Figure) -> set[str]:
    figure.canvas.draw()
    found = {text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title, *axes.get_yticklabels())}
    return found | {axes.get_title(loc="left") for axes in figure.axes}


def test_a_group_has_the_same_line_in_every_panel_and_its_last_value_beside_it() -> None:
    bands = {
        "a": ([1, 2], np.array([0.2, 0.4]), np.array([0.1, 0.1])),
        "b": ([1, 2], np.array([0.6, 0.9]), np.zeros(2)),
    }
    figure = bands_figure({"accuracy": bands, "attack success": {"b": bands["b"]}})
    above, below = figure.axes
    assert [line.get_color() for line in below.lines] == [above.lines[1].get_color()] != [above.lines[0].get_color()]
    assert {"0.40", "0.90", "accuracy", "attack success"} <= texts(figure)
    band = above.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 0.1 and band[:, 1].max() == 0.5
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_more_groups_than_colours_differ_in_their_dashes() -> None:
    bands = {str(place): ([1], np.array([0.5]), np.zeros(1)) for place in range(15)}
    lines = bands_figure({"accuracy": bands}).axes[0].lines
    assert (
        len({(line.get_color(), str(line.get_linestyle()), str(line._unscaled_dash_pattern)) for line in lines}) == 15
    )


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
