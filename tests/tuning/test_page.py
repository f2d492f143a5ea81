"""The page of a sweep: it shows what the pictures show, and no name can break out of it."""

from __future__ import annotations

import re

import pytest
from plotly.offline import get_plotlyjs
from studies import NAUGHTY, Page, view_of

from fedrobust.texts import visible
from fedrobust.tuning.again import Fresh
from fedrobust.tuning.objectives import Direction
from fedrobust.tuning.page import sweep_html
from fedrobust.tuning.pictures import make_figures
from fedrobust.tuning.study import Completed, Trial
from fedrobust.tuning.views import SweepView

CONTROLS = "\x1b]52;c;YQ==\x07 \x9b \u202e\ud800 $x$ <b>良</b>"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("directions", "naughty"),
    [(("maximize",), NAUGHTY), (("maximize", "minimize"), NAUGHTY), (("maximize",), CONTROLS)],
)
def test_no_name_can_break_out_of_the_page(directions: tuple[Direction, ...], naughty: str) -> None:
    def view(name: str) -> SweepView:
        return view_of(
            lambda number, chosen: None if number == 3 else [number % (7 + i) for i in range(len(directions))],
            {f"{name}": {"choice": [f"{name} one", f"{name} two"]}, f"rate.{name}": {"float": [0.0, 1.0]}},
            directions,
            names=[f"{name}{i}" for i in range(3)],
            title=name,
        )

    again = Fresh(Trial(1, {}, Completed((1.0,)), {}), None, {7: (0.25,) * len(directions), 8: None})
    calm, wild = sweep_html(view("calm"), [again]), sweep_html(view(naughty), [again])
    tags = [tag for tag, _ in Page.read(calm).tags if tag != "wbr"]
    page = Page.read(wild)
    assert [tag for tag, _ in page.tags if tag != "wbr"] == tags
    assert calm.count("plotly.js v") == 1
    own = ["1", "1", "–"]  # a seed failed, and so did the objective over all of them
    assert page.tables[1][1] == ([*own, "0.25", "–"] if len(directions) == 1 else [*own, *own[1:]])
    assert page.text.count(visible(naughty)) > 10
    own_texts = wild.replace(get_plotlyjs(), "")
    own_texts.encode()
    assert visible(own_texts, keep="\n\t") == own_texts
    assert wild.count('"typesetMath": false') == calm.count("Plotly.newPlot(")
    for _, _, figure in make_figures(view(naughty)):
        assert not re.search("<(?!br>|extra>|/extra>)", str(figure.to_dict()))  # plotly would make tags of some


def test_what_is_told_of_a_trial_has_names_as_they_are_written() -> None:
    names = ["良性 👍", "b\u202e", r"c\u0041"]
    view = view_of(lambda number, _: [number % 3, number % 5], {"%{x}": {"choice": names}}, ("maximize", "minimize"))
    found = {name: figure for _, name, figure in make_figures(view)}
    told = "".join(text for trace in found["pareto"].data for text in trace.text)
    assert '"良性 👍"' in told and r'"b\\u202e"' in told and r'"c\\u0041"' in told
    assert found["importance"].data[0].hovertemplate == "%{y}: %{x:.2f}<extra></extra>"
