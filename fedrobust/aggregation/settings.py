"""The defence as options of an experiment file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

import fedrobust.aggregation.rules
import fedrobust.aggregation.stages  # noqa: F401  OneOf finds the classes of these rooms
from fedrobust.aggregation.base import AnyRule, PipelinePart, RowRule, Rule, Stage
from fedrobust.aggregation.byzantine import ByzantineF, Cap, cannot_weigh, capped_prior, misfit, resolve_f
from fedrobust.aggregation.pipeline import Pipeline
from fedrobust.aggregation.rules.averages import Mean
from fedrobust.errors import ExperimentError, Problem
from fedrobust.options import Many, OneOf, Options, members, refusal
from fedrobust.portions import portion
from fedrobust.updates.demand import Demand
from fedrobust.updates.gram import Floats, Gram


class Aggregation(Options):
    """How the coordinator combines many updates into one."""

    stages: Many[Annotated[Stage, OneOf(Stage)]] = ()
    """Pre-aggregations, in order."""
    rule: Annotated[AnyRule, OneOf(Rule, RowRule)] = Mean()
    """The rule at the end."""
    f: ByzantineF = "largest"
    """The Byzantine f, the number of malicious updates that the rule expects: a count, or a fraction in (0, 0.5) of the
    hospitals drawn for the round, neither of which changes if some are absent or in quarantine; "largest": the most
    that it allows for the updates that are there; "auto": estimated anew in each round from the gap between the
    updates' scores."""
    weighting: Literal["uniform", "samples"] = "uniform"
    """Prior weights: all equal, or by sample count."""
    cap: Cap = 2.0
    """With `weighting: samples`, the most that a count, which is the client's own claim, counts: a multiple of the
    median; null: without limit; "auto": so much that the f largest claims hold a third of the weight at most."""
    sketch: Annotated[int, Field(ge=128)] | None = None
    """k: products of updates are taken from random sketches with k columns, drawn anew in each round: for hundreds of
    hospitals n² k steps instead of n² d. A squared distance is then off by √(2 / k) of itself (standard deviation).
    null: exact."""

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
        if self.cap != 2.0 and self.weighting != "samples":
            raise refusal("counts with weighting: samples only", "cap")
        return self

    def prior(self, samples: NDArray[Any] | None, n: int, asked: int | None = None) -> Floats:
        """The prior weights (n,) of n rows, see `capped_prior`.

        samples: (n,) what their clients claim; None: unknown. It counts with `weighting: samples`.
        asked: as for `byzantine_f`.
        """
        if self.weighting != "samples" or samples is None:
            return capped_prior(None, n)
        f = 0
        if self.cap == "auto":
            # Where so few rows are refused later on, any f will do.
            f = (n - 1) // 2 if self.refusal(n, asked) else self.byzantine_f(n, asked)
        return capped_prior(samples, n, self.cap, f)

    def pipeline(self) -> Pipeline:
        """The stages and the rule as one."""
        return Pipeline([*self.stages, self.rule])

    @property
    def demand(self) -> Demand:
        """What stages, rule and `f` ask of the updates: an f that is estimated needs their distances."""
        estimated = Demand(frozenset({"gram"} if self.f == "auto" else ()))
        return self.pipeline().demand | estimated

    def refusal(self, n: int, asked: int | None = None, malformed: int = 0) -> str | None:
        """Why n updates cannot be aggregated; None if they can. Arguments as for `byzantine_f`."""
        try:
            self.byzantine_f(n, asked, malformed)
        except ExperimentError as error:
            return str(error)
        return None

    def byzantine_f(self, n: int, asked: int | None = None, malformed: int = 0, gram: Gram | None = None) -> int:
        """`f` as a number of the n rows.

        n: how many rows there are.
        asked: how many clients were drawn for the round, n by default; a fraction refers to them. There are fewer rows
            where clients are late, dropped out, in quarantine, or averaged over a group. All missing clients may be
            honest, and all malicious ones among the rest, so missing rows lower neither a count nor a fraction.
        malformed: how many rows arrived that were no updates. Their senders are faulty, so f falls by this number.
        gram: of the n rows, for "auto"; without it, "auto" is the largest f. Both look at the n rows alone.

        Raises `ExperimentError` if the parts do not allow this f for n rows.
        """
        f: ByzantineF = self.f
        if isinstance(f, float):
            f = portion(f, n if asked is None else asked)
        if isinstance(f, int):
            f = max(0, f - malformed)
        return resolve_f(f, n, self.rule, self.stages, gram)
