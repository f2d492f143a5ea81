"""The defence as options of an experiment file."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import field_validator, model_validator

import fedrobust.aggregation.rules
import fedrobust.aggregation.stages  # noqa: F401  OneOf finds the classes of these rooms
from fedrobust.aggregation.base import AnyRule, Part, RowRule, Rule, Stage
from fedrobust.aggregation.declared import Declared, cannot_weigh, resolve_f
from fedrobust.aggregation.gram import Gram
from fedrobust.aggregation.pipeline import Pipeline, misfit
from fedrobust.aggregation.rules.averages import Mean
from fedrobust.errors import ExperimentError
from fedrobust.options import Many, OneOf, Options, members, refusal


class Aggregation(Options):
    """How the coordinator makes one update of many."""

    stages: Many[Annotated[Stage, OneOf(Stage)]] = ()
    """Pre-aggregations, in order."""
    rule: Annotated[AnyRule, OneOf(Rule, RowRule)] = Mean()
    """The rule at the end."""
    f: Declared = "largest"
    """Byzantine updates the rule is told to expect: a count, a fraction in (0, 0.5), "largest": the most it allows, or
    "auto": estimated anew in each round from the gap between the scores of the updates."""
    weighting: Literal["uniform", "samples"] = "uniform"
    """Prior weights: all equal, or by sample count, each counted up to twice the median."""

    @field_validator("f")
    @classmethod
    def _check_f(cls, f: Declared) -> Declared:
        if (isinstance(f, float) and not 0 < f < 0.5) or (isinstance(f, int) and f < 0):
            raise refusal(f'expected a count ≥ 0, a fraction in (0, 0.5), "largest" or "auto", found {f}')
        return f

    @model_validator(mode="after")
    def _fits(self) -> Aggregation:
        parts = (*self.stages, self.rule)
        if reason := misfit(parts):
            raise refusal(reason, "stages")
        if self.weighting == "samples" and (reason := cannot_weigh(parts)):
            known = {name: rule for name, rule in members(Rule, RowRule).items() if issubclass(rule, Part)}
            able = ", ".join(name for name, rule in known.items() if rule.weighs)
            raise refusal(f'{reason}; use "uniform", or one of: {able}', "weighting")
        return self

    def pipeline(self) -> Pipeline:
        """The stages and the rule as one."""
        return Pipeline([*self.stages, self.rule])

    def refusal(self, n: int, dropped: int = 0, clients: int | None = None) -> str | None:
        """Why n updates cannot be aggregated like this, `dropped` more being missing; None if they can."""
        try:
            self.declared_f(n, dropped, clients=clients)
        except ExperimentError as error:
            return str(error)
        return None

    def declared_f(self, n: int, dropped: int = 0, gram: Gram | None = None, clients: int | None = None) -> int:
        """`f` for n updates, `dropped` more having been rejected already; ExperimentError if the parts do not allow it.

        Of a count, the dropped ones are taken off; a fraction is one of the updates that are left. "auto" needs their
        `gram`; without it, it stands for the largest. clients: how many are behind the n rows, if each row is a mean
        over a group of them: f of them can be in f groups.
        """
        f = max(0, self.f - dropped) if isinstance(self.f, int) else self.f
        if isinstance(f, float) and clients is not None:
            f = math.floor(f * clients + 1e-9)
        return resolve_f(f, n, self.rule, self.stages, gram)
