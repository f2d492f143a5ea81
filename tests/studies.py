"""Made-up studies for the pictures and the page of a sweep, and a reader of pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np

from fedrobust.tuning.objectives import Direction
from fedrobust.tuning.space import Space, Values, parsed
from fedrobust.tuning.views import Row, SweepView

MIXED = {
    "learning.local.optimizer.lr": {"log": [0.001, 1.0]},
    "federation.rounds": {"int": [2, 16]},
    "aggregation": {
        "choice": {
            "mean": "mean",
            "clipping": {"rule": {"tau": {"log": [0.1, 10]}}},
            "a_rule_with_quite_a_long_name_of_its_own": {"f": {"float": [0.1, 0.7], "step": 0.2}},
        }
    },
    "trust.acts": {"choice": [True, False]},
}
NAUGHTY = '</script><img src="https://example.org/x.png" onerror="alert(1)">&amp;'


Judge = Callable[[int, Values], Sequence[float] | None]


def view_of(
    judge: Judge,
    space: dict[str, Any] = MIXED,
    directions: Sequence[Direction] = ("maximize",),
    trials: int = 30,
    reports: Callable[[int], dict[int, float]] = lambda number: {},
    names: Sequence[str] = ("test/balanced_accuracy", "time/seconds", "attack/success", "loss"),
    title: str = "made up",
) -> SweepView:
    """A view of random trials; one for which `judge` returns nothing was pruned if it has reports, or failed."""
    templates = Space({path: parsed(path, template) for path, template in space.items()})
    random = np.random.default_rng(7)
    rows: list[Row] = []
    for number in range(trials):
        chosen = templates.at({name: float(random.random()) for name in templates.searched})
        values, told = judge(number, chosen), reports(number)
        state: Any = "completed" if values is not None else "pruned" if told else "failed"
        reason = NAUGHTY if state == "failed" else ""
        rows.append(Row(number, state, tuple(values or ()), chosen, told, reason))
    signs = [-1 if way == "maximize" else 1 for way in directions]
    losses = {row.number: np.multiply(signs, row.values) for row in rows if row.state == "completed"}
    front = [
        number
        for number, own in losses.items()
        if not any((other <= own).all() and (other < own).any() for other in losses.values())
    ]
    best = front if len(directions) > 1 else front[:1]
    objectives = tuple(names[: len(directions)])
    return SweepView(title, objectives, tuple(directions), templates, tuple(rows), tuple(best), trials + 2, "round")


def by_rate(number: int, chosen: Values) -> list[float]:
    """Only the learning rate counts."""
    return [0.9 - 0.1 * (math.log10(chosen["learning.local.optimizer.lr"]) + 1.5) ** 2]


class Page(HTMLParser):
    """The tags of a page, the cells of its tables, and whether all that is opened is closed."""

    VOID = ("meta", "img", "br", "wbr", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""

    @classmethod
    def read(cls, html: str) -> Page:
        """The page, which must be well formed and have no references to anything outside it."""
        page = cls()
        page.feed(html)
        page.close()
        assert page.open == []
        for tag, attributes in page.tags:
            assert not {"src", "href", "srcset", "data"} & set(attributes), (tag, attributes)
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
            assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data
