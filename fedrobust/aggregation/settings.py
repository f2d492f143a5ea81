"""The defence as options of an experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import field_validator, model_validator

import fedrobust.aggregation.rules
import fedrobust.aggregation.stages  # noqa: F401  OneOf finds the classes of these rooms
from fedrobust.aggregation.base import AnyRule, PipelinePart, RowRule, Rule, Stage
from fedrobust.aggregation.byzantine import ByzantineF, cannot_weigh, resolve_f
from fedrobust.aggregation.pipeline import Pipeline, misfit
from fedrobust.aggregation.rules.averages import Mean
from fedrobust.errors import ExperimentError, Problem
from fedrobust.options import Many, OneOf, Options, members, refusal
from fedrobust.portions import portion
from fedrobust.updates.gram import Gram


class Aggregation(Options):
    """How the coordinator makes one update of many."""

    stages: Many[Annotated[Stage, OneOf(Stage)]] = ()
    """Pre-aggregations, in order."""
    rule: Annotated[AnyRule, OneOf(Rule, RowRule)] = Mean()
    """The rule at the end."""
    f: ByzantineF = "largest"
    """The Byzantine f, how many malicious updates the rule expects: a count, or a fraction in (0, 0.5) of the hospitals
    drawn for the round, which stay as they are whoever is absent or in quarantine; "largest": the most that it allows
    of the updates that are there; "auto": estimated anew in each round from the gap between the updates' scores."""
    weighting: Literal["uniform", "samples"] = "uniform"
    """Prior weights: all equal, or by sample count, each counted up to twice the median."""

    @field_validator("f")
    @classmethod
    def _check_f(cls, f: ByzantineF) -> ByzantineF:
        if (isinstance(f, float) and not 0 < f < 0.5) or (isinstance(f, int) and f < 0):
            raise refusal('expected a count ≥ 0, a fraction in (0, 0.5), "largest" or "auto"')
        return f

    @model_validator(mode="after")
    def _fits(self) -> Aggregation:
        parts = (*self.stages, self.rule)
        if reason := misfit(parts):
            raise refusal(reason, "stages")
        if self.weighting == "samples" and (reason := cannot_weigh(parts)):
            known = {name: rule for name, rule in members(Rule, RowRule).items() if issubclass(rule, PipelinePart)}
            able = ", ".join(name for name, rule in known.items() if rule.weighs)
            raise refusal(Problem(reason, "weighting", hint=f'use "uniform", or one of: {able}'))
        return self

    def pipeline(self) -> Pipeline:
        """The stages and the rule as one."""
        return Pipeline([*self.stages, self.rule])

    def refusal(self, n: int, asked: int | None = None, malformed: int = 0) -> str | None:
        """Why n updates cannot be aggregated like this, so many having been asked for; None if they can."""
        try:
            self.byzantine_f(n, asked, malformed)
        except ExperimentError as error:
            return str(error)
        return None

    def byzantine_f(self, n: int, asked: int | None = None, malformed: int = 0, gram: Gram | None = None) -> int:
        """`f` for n rows; ExperimentError if the parts do not allow it among so many.

        asked: how many clients were drawn for the round, n by default. A fraction is one of them. Rows are fewer where
            clients are late, dropped out, in quarantine, or behind a mean over a group. They may all be honest, so that
            lowers neither a count nor a fraction: the liars may all be among those who are left.
        malformed: rows that arrived and were no update. Whoever sent them is faulty, so f falls by their number.
        gram: of the n rows, for "auto"; without it "auto" stands for the largest. Both are of the n rows alone.
        """
        f: ByzantineF = self.f
        if isinstance(f, float):
            f = portion(f, n if asked is None else asked)
        if isinstance(f, int):
            f = max(0, f - malformed)
        return resolve_f(f, n, self.rule, self.stages, gram)
