"""The page of a sweep: it shows what the pictures show, and no name can break out of it."""

from __future__ import annotations

import numpy as np
import pytest
from studies import NAUGHTY, Page, by_rate, view_of

from fedrobust.tuning.again import Fresh
from fedrobust.tuning.objectives import Direction
from fedrobust.tuning.page import plotly_figures, sweep_html
from fedrobust.tuning.study import Completed, Trial
from fedrobust.tuning.views import View, importances


@pytest.mark.parametrize("directions", [("maximize",), ("maximize", "minimize")])
def test_no_name_can_break_out_of_the_page(directions: tuple[Direction, ...]) -> None:
    def view(name: str) -> View:
        return view_of(
            lambda number, chosen: None if number == 3 else [number % (7 + i) for i in range(len(directions))],
            {f"{name}": {"choice": [f"{name} one", f"{name} two"]}, f"rate.{name}": {"float": [0.0, 1.0]}},
            directions,
            names=[f"{name}{i}" for i in range(3)],
            title=name,
        )

    again = Fresh(Trial(1, {}, Completed((1.0,)), {}), None, {7: (0.25,) * len(directions), 8: None})
    calm, wild = sweep_html(view("calm"), [again]), sweep_html(view(NAUGHTY), [again])
    tags = [tag for tag, _ in Page.read(calm).tags if tag != "wbr"]
    page = Page.read(wild)
    assert [tag for tag, _ in page.tags if tag != "wbr"] == tags
    assert calm.count("plotly.js v") == 1
    own = ["1", "1", "–"]  # a seed failed, and so did the objective over all of them
    assert page.tables[1][1] == ([*own, "0.25", "–"] if len(directions) == 1 else [*own, *own[1:]])
    assert page.text.count(NAUGHTY) > 10
    for _, _, figure in plotly_figures(view(NAUGHTY)):
        assert "<img" not in str(figure.to_dict())  # plotly would make tags of some


def test_the_page_shows_what_the_pictures_show() -> None:
    view = view_of(by_rate, trials=40)
    found = {name: figure for _, name, figure in plotly_figures(view)}
    points, best = found["history"].data[:2]
    assert list(points.y) == [row.values[0] for row in view.rows]
    assert list(best.y) == list(np.maximum.accumulate(points.y))
    bars = found["importance"].data[0]
    shares = importances(view, 0)
    assert list(bars.y)[::-1] == list(shares)
    assert list(bars.x)[::-1] == pytest.approx(list(shares.values()))
    titles = [axis.title.text.replace("<br>", "") for axis in found["slice"].select_xaxes()]
    assert titles == sorted(view.space.searched)
