"""A whole defence: stages that mix the updates, then the rule that makes one vector of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator, model_validator

import fedrobust.aggregation.coordinatewise
import fedrobust.aggregation.preaggregation  # noqa: F401  OneOf finds the classes of both
from fedrobust.aggregation import rules
from fedrobust.aggregation.base import Context, CoordinateRule, Part, Rule, Stage
from fedrobust.aggregation.gram import Combination, Floats, Gram
from fedrobust.aggregation.protocol import Clear, NotRevealed, Protocol
from fedrobust.errors import ExperimentError
from fedrobust.options import Many, OneOf, Options, members, refusal
from fedrobust.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Aggregation",
    "Combination",
    "Context",
    "CoordinateRule",
    "Pipeline",
    "Result",
    "Rule",
    "Stage",
    "capped_prior",
    "resolve_f",
]

Declared = int | float | Literal["auto"]
Updates = TypeVar("Updates", NDArray[Any], "Tensor")


@dataclass(frozen=True, eq=False)
class Result:
    """The aggregate (d,) float32, the weights of the original rows (n,) float64 (None: a coordinate rule), the Gram.

    The weights and the coefficients of the anchors give the aggregate: Σ weights_i u_i + Σ anchors[name] v_name.
    """

    aggregate: NDArray[np.float32]
    weights: Floats | None
    anchors: Mapping[str, float]
    gram: Gram


class Pipeline:
    """`Pipeline([Clip(), NNM(), GeometricMedian()])`: any stages, in order, then one rule."""

    def __init__(self, parts: Sequence[Stage | Rule | CoordinateRule]) -> None:
        kinds = [type(part).__name__ for part in parts]
        stages = tuple(part for part in parts[:-1] if isinstance(part, Stage))
        if len(stages) != len(parts) - 1 or not isinstance(parts[-1], Rule | CoordinateRule):
            raise ExperimentError(f"a pipeline is any stages, then one rule; found {', '.join(kinds) or 'nothing'}")
        self.stages: tuple[Stage, ...] = stages
        self.rule: Rule | CoordinateRule = parts[-1]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The stages and the rule."""
        return (*self.stages, self.rule)

    @property
    def needs(self) -> frozenset[str]:
        """What the protocol has to reveal."""
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def anchors(self) -> tuple[str, ...]:
        """The public vectors that the rule wants in the Gram: "momentum", the last aggregate."""
        return self.rule.anchors if isinstance(self.rule, Rule) else ()

    def run(self, protocol: Protocol, context: Context, gram: Gram | None = None) -> Result:
        """Aggregate what `protocol` holds.

        gram: its Gram, where the caller has it already, with the anchors that the rule wants and any prior.
        The caller has dropped rows that are not finite (`Clear.finite_rows`). NotRevealed if the protocol keeps secret
        what a part needs; ExperimentError if n and f violate a bound.
        """
        for part in self.parts:
            if hidden := part.needs - protocol.reveals:
                raise NotRevealed(
                    f"{part.name} needs {', '.join(sorted(hidden))}; "
                    f"{type(protocol).__name__.lower()} reveals {', '.join(sorted(protocol.reveals))}"
                )
        if gram is None:
            gram = protocol.gram(self._known_anchors(context))
        if isinstance(self.rule, Rule):
            combination = self.decide(gram, context)
            return Result(protocol.combine(combination), combination.weights, combination.anchors, gram)
        aggregate = self._reduce(protocol, self._mix(gram, context)[0], context)
        return Result(aggregate.float().cpu().numpy(), None, {}, gram)

    def decide(self, gram: Gram, context: Context) -> Combination:
        """The combination of the original rows; ExperimentError for a coordinate rule, which makes none."""
        if not isinstance(self.rule, Rule):
            raise ExperimentError(f"{self.rule.name} works on each coordinate by itself: it has no weights of rows")
        mixing, mixed = self._mix(gram, context)
        decided = self.rule.combine(mixed, context)
        return decided if mixing is None else Combination(decided.weights @ mixing, decided.anchors)

    def aggregate(
        self,
        updates: Updates,
        samples: Sequence[float] | NDArray[Any] | None = None,
        f: Declared | None = None,
        seed: int = 0,
        previous: NDArray[Any] | None = None,
    ) -> Updates:
        """The aggregate (d,) of `updates` (n, d), an array or a tensor of any floating type, in the same kind.

        samples: sample counts (n,), each counted up to twice the median; None: uniform weights.
        f: declared Byzantine rows: a count, a fraction of n, or None for as many as the parts allow.
        previous: the last aggregate (d,), for rules that start from it.
        ExperimentError: a row with NaN or Inf (named), a bound that n and f violate, counts for a rule without weights.
        """
        protocol, context = self._prepare(updates, samples, f, seed, previous)
        if isinstance(self.rule, Rule):
            result = protocol.weighted_sum(self.decide(protocol.gram(self._known_anchors(context)), context))
        else:
            mixing = self._mix(protocol.gram(), context)[0] if self.stages else None
            result = self._reduce(protocol, mixing, context)
        if isinstance(updates, np.ndarray):
            return result.cpu().numpy().astype(updates.dtype, copy=False)
        return result.to(updates.dtype)

    def combination(
        self,
        updates: NDArray[Any] | Tensor,
        samples: Sequence[float] | NDArray[Any] | None = None,
        f: Declared | None = None,
        seed: int = 0,
        previous: NDArray[Any] | None = None,
    ) -> Combination:
        """The weights on the original rows, without the aggregate; arguments and errors as in `aggregate`."""
        protocol, context = self._prepare(updates, samples, f, seed, previous)
        return self.decide(protocol.gram(self._known_anchors(context)), context)

    def _prepare(
        self,
        updates: Any,
        samples: Sequence[float] | NDArray[Any] | None,
        f: Declared | None,
        seed: int,
        previous: NDArray[Any] | None,
    ) -> tuple[Clear, Context]:
        protocol = Clear([updates], prior=None if samples is None else capped_prior(samples, len(updates)))
        if samples is not None and (reason := cannot_weigh(self.parts)):
            raise ExperimentError(f"{reason}; leave samples out")
        bad = np.flatnonzero(~protocol.finite_rows())
        if len(bad):
            named = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
            raise ExperimentError(f"not finite, or too large for float64: row {named}; drop such rows first")
        declared = resolve_f("auto" if f is None else f, protocol.n, self.rule, self.stages)
        return protocol, Context(declared, generator=generator(seed, "aggregation"), previous=previous)

    def _known_anchors(self, context: Context) -> dict[str, NDArray[Any]]:
        known = {} if context.previous is None else {"momentum": context.previous}
        return {name: known[name] for name in self.anchors if name in known}

    def _mix(self, gram: Gram, context: Context) -> tuple[Floats | None, Gram]:
        """The product of all mixing matrices (None: no stages), and the Gram of the rows that it makes."""
        if reason := _violation(self.parts, gram.n, context.f):
            raise ExperimentError(reason)
        total: Floats | None = None
        for stage in self.stages:
            mixing = stage.mix(gram, context)
            gram = gram.mixed(mixing)
            total = mixing if total is None else mixing @ total
        return total, gram

    def _reduce(self, protocol: Protocol, mixing: Floats | None, context: Context) -> Tensor:
        """The coordinate rule on the mixed rows, chunk by chunk of columns → (d,) in the rows' type."""
        import torch

        assert isinstance(self.rule, CoordinateRule)
        result = torch.empty(0)
        for columns in protocol.columns():
            rows = protocol.rows(columns)
            if columns.start == 0:
                result = rows.new_empty(protocol.d)
            if mixing is not None:
                rows = torch.mm(torch.as_tensor(mixing, device=rows.device), rows.double())
            result[columns] = self.rule.reduce(rows, context)
        return result


class Aggregation(Options):
    """How the coordinator makes one update of many."""

    stages: Many[Annotated[Stage, OneOf(Stage)]] = ()
    """Pre-aggregations, in order."""
    rule: Annotated[Rule | CoordinateRule, OneOf(Rule, CoordinateRule)] = rules.Mean()
    """The rule at the end."""
    f: Declared = "auto"
    """Byzantine updates the rule is told to expect: a count, a fraction in (0, 0.5), or "auto": the most it allows."""
    weighting: Literal["uniform", "samples"] = "uniform"
    """Prior weights: all equal, or by sample count, each counted up to twice the median."""

    @field_validator("f")
    @classmethod
    def _check_f(cls, f: Declared) -> Declared:
        if (isinstance(f, float) and not 0 < f < 0.5) or (isinstance(f, int) and f < 0):
            raise refusal(f'expected a count ≥ 0, a fraction in (0, 0.5) or "auto", found {f}')
        return f

    @model_validator(mode="after")
    def _check_weighting(self) -> Aggregation:
        if self.weighting == "samples" and (reason := cannot_weigh((*self.stages, self.rule))):
            known = {name: rule for name, rule in members(Rule, CoordinateRule).items() if issubclass(rule, Part)}
            able = ", ".join(name for name, rule in known.items() if rule.weighs)
            raise refusal(f'{reason}; use "uniform", or one of: {able}', "weighting")
        return self

    def pipeline(self) -> Pipeline:
        """The stages and the rule as one."""
        return Pipeline([*self.stages, self.rule])

    def refusal(self, n: int, dropped: int = 0) -> str | None:
        """Why n updates cannot be aggregated like this, `dropped` more being missing; None if they can."""
        try:
            self.declared_f(n, dropped)
        except ExperimentError as error:
            return str(error)
        return None

    def declared_f(self, n: int, dropped: int = 0) -> int:
        """`f` for n updates, `dropped` more having been rejected already; ExperimentError if the parts do not allow it.

        Of a count, the dropped ones are taken off; a fraction is one of the updates that are left.
        """
        f = max(0, self.f - dropped) if isinstance(self.f, int) else self.f
        return resolve_f(f, n, self.rule, self.stages)


def capped_prior(samples: Sequence[float] | NDArray[Any] | None, n: int) -> Floats:
    """Sample counts (n,) as weights that sum to 1, uniform for None.

    A count is a client's own claim, so each counts up to twice the median.
    """
    counts = np.asarray(np.ones(n) if samples is None else samples, dtype=np.float64)
    if counts.shape != (n,) or not np.isfinite(counts).all() or (counts <= 0).any():
        raise ExperimentError(f"sample counts must be {n} positive numbers, found {samples}")
    capped = np.minimum(counts, 2.0 * np.median(counts))
    return np.asarray(capped / capped.sum(), dtype=np.float64)


def resolve_f(f: Declared, n: int, rule: Rule | CoordinateRule, stages: Sequence[Stage] = ()) -> int:
    """The declared number of Byzantine rows: a count, the whole part of a fraction of n, or the largest allowed.

    Allowed is what every part's own bound permits, and an honest majority, n > 2f. ExperimentError names the bound.
    """
    parts = (*stages, rule)
    allowed = [k for k in range((n + 1) // 2) if _violation(parts, n, k) is None]
    if f == "auto":
        wanted = max(allowed, default=0)
    elif isinstance(f, float):
        wanted = math.floor(f * n + 1e-9)  # 0.29 · 100 is a little below 29
    else:
        wanted = f
    if wanted in allowed:
        return wanted
    reason = _violation(parts, n, wanted) or rules.honest_majority(rule.name, n, wanted) or f"f = {wanted}"
    largest = f"largest f here: {max(allowed)}" if allowed else "too few updates for any f"
    raise ExperimentError(f"{reason}; {largest}")


def cannot_weigh(parts: Sequence[Part]) -> str:
    """Which part has no meaning for prior weights; empty if all have."""
    unable = [part.name for part in parts if not part.weighs]
    return f"{', '.join(unable)} cannot weigh updates by sample counts" if unable else ""


def _violation(parts: Sequence[Part], n: int, f: int) -> str | None:
    """The first bound that n rows with f Byzantine ones violate on their way through the parts."""
    for part in parts:
        if reason := part.bound(n, f):
            return reason
        if isinstance(part, Stage):
            n = part.rows(n)
    return None
