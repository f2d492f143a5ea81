"""What to change where servers of secret shares would refuse the sums of a defence: each remedy is tried first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import floor

import numpy as np
from pydantic import ValidationError

from fedrobust.aggregation import Aggregation, Rule
from fedrobust.aggregation.stages import NNM
from fedrobust.errors import ExperimentError
from fedrobust.options import members
from fedrobust.secure.supports import MOST, Prospect, below, supports

SELDOM = 0.05
"""A remedy leaves at most this share of the trial rounds refused."""
NAMED = 4
"""The most rules that a remedy names."""


@dataclass(frozen=True)
class _Wanted:
    fits: Callable[[Aggregation], str | None]
    least: float

    def good(self, aggregation: Aggregation, n: int, asked: int) -> bool:
        """Whether the servers would open the sums of nearly all rounds."""
        if self.fits(aggregation) or aggregation.refusal(n, asked):
            return False
        tried = [below(each, self.least) for each in supports(aggregation, n, asked, rounds=1)]
        return bool(tried) and sum(tried) <= SELDOM * len(tried)


def remedies(
    aggregation: Aggregation,
    n: int,
    asked: int,
    found: Prospect,
    fits: Callable[[Aggregation], str | None],
    colluders: int = 0,
) -> list[str]:
    """What to change; each remedy was tried. The last one costs secrecy.

    aggregation: the defence.
    n: updates in a round.
    asked: hospitals that are drawn for it.
    found: what the trial rounds say of this defence.
    fits: why a defence does not work with the protocol at all; None if it does.
    colluders: how much of `found.least` is there because of them.
    """
    wanted, ways = _Wanted(fits, found.least), list[str]()
    if (more := _hospitals(wanted, aggregation, n, asked)) is not None:
        ways.append(f"{more} updates in a round (more hospitals, or a larger share of them)")
    rules = list(islice(_rules(wanted, aggregation, n, asked), NAMED))
    if rules:
        after = f" after {', '.join(stage.name for stage in aggregation.stages)}" if aggregation.stages else ""
        ways.append(f"aggregation.rule={' or '.join(rules)}{after}")
    if not aggregation.stages and wanted.good(aggregation.model_copy(update={"stages": (NNM(),)}), n, asked):
        ways.append("aggregation.stages=[nnm]")
    elif aggregation.stages and wanted.good(aggregation.model_copy(update={"stages": ()}), n, asked):
        ways.append("aggregation.stages=[]")
    kept = floor(10 * float(np.quantile(found.supports, SELDOM, method="lower"))) / 10 - colluders
    if 2 <= kept < found.least - colluders:
        ways.append(f"privacy.min_support={kept:g}, which lets the servers open sums of fewer updates")
    return ways


def _hospitals(wanted: _Wanted, aggregation: Aggregation, n: int, asked: int) -> int | None:
    """The least number of updates with which nearly all rounds are made."""
    for more in range(n + 1, min(4 * n, MOST) + 1):
        if wanted.good(aggregation, more, asked + more - n):
            return more
    return None


def _rules(wanted: _Wanted, aggregation: Aggregation, n: int, asked: int) -> Iterator[str]:
    """Robust rules that work here, after the same stages; each with its default options."""
    kinds = {name: kind for name, kind in members(Rule).items() if issubclass(kind, Rule)}
    for name, kind in kinds.items():
        if "breakdown" not in kind.claims or kind is type(aggregation.rule):
            continue
        try:
            other = Aggregation.model_validate({**dict(aggregation), "rule": {"name": name}})
        except (ValidationError, ExperimentError):
            continue  # it cannot follow these stages
        if wanted.good(other, n, asked):
            yield name
