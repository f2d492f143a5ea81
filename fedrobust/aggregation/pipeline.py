"""A whole defence: stages that mix the updates, then the rule that makes one vector of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation.base import AnyRule, Context, Layer, PipelinePart, RowRule, Rows, Rule, Stage
from fedrobust.aggregation.byzantine import ByzantineF, cannot_weigh, capped_prior, resolve_f, violation
from fedrobust.aggregation.numerics import one_blas_thread
from fedrobust.errors import ExperimentError, Problem
from fedrobust.seeds import generator
from fedrobust.updates import chunks
from fedrobust.updates.clear import LARGEST_SQUARE, ClearUpdates
from fedrobust.updates.gram import Combination, Floats, Gram
from fedrobust.updates.interface import NotRevealed, Reduction, Updates

if TYPE_CHECKING:
    from torch import Tensor

ArrayT = TypeVar("ArrayT", NDArray[Any], "Tensor")


@dataclass(frozen=True, eq=False)
class Step:
    """What one part of a pipeline made of the original rows.

    `scores` (n,): what it judged them by, higher is worse, NaN for a row that an earlier stage left out; None if it
    judges none. `weights` (n,): their weights in the (prior-weighted) mean of the rows after a stage, or in the
    aggregate; None if a rule gives none.
    """

    name: str
    scores: Floats | None
    weights: Floats | None


@dataclass(frozen=True, eq=False)
class Aggregated:
    """The aggregate (d,) float32, the weights of the original rows (n,) float64 (None: it has none), the Gram
    (None: it was not asked for).

    The weights and the coefficients of the anchors give the aggregate, but for its noise:
    Σ weights_i u_i + Σ anchors[name] v_name. `state` is for the next round's `Context`.
    """

    aggregate: NDArray[np.float32]
    weights: Floats | None
    anchors: Mapping[str, float]
    gram: Gram | None
    steps: tuple[Step, ...] = ()
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Decision:
    """What makes the aggregate, before it is made.

    `decided`: weights of the original rows, or a reduction of the rows `mixing` (m, n) makes of them (None: of the
    original ones). `gram` is that of the original rows; `context` and `seen` are what the parts got and saw.
    """

    decided: Combination | Reduction
    mixing: Floats | None
    gram: Gram | None
    context: Context
    seen: tuple[_Seen, ...]


@dataclass
class Memory:
    """What `Pipeline.aggregate` carries from round to round, for rules that start from the last aggregate or remember
    clients: hand the same one to every round. Row i is client i's in each of them.

    `histories` are (clients, d) float32, a row for each client: a rule that asks for one needs that much memory.
    """

    round: int = 0
    previous: NDArray[np.float32] | None = None
    step: NDArray[np.float32] | None = None
    """The last change of the global model, where that is not the last aggregate."""
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    histories: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


class AggregateOptions(TypedDict, total=False):
    """What `Pipeline.aggregate`, `combination` and `explain` can be given beside the updates (n, d)."""

    samples: Sequence[float] | NDArray[Any] | None
    """Sample counts (n,), each counted up to twice the median; None: uniform weights."""
    f: ByzantineF | None
    """Byzantine rows: a count, a fraction of n, "auto", or None for as many as the parts allow."""
    seed: int
    """Of the parts' random draws, by default 0."""
    previous: NDArray[Any] | None
    """The last aggregate (d,), for rules that start from it; by default that of `memory`."""
    root: NDArray[Any] | None
    """The server's own update (d,)."""
    layers: Sequence[tuple[str, tuple[int, ...]]]
    """Names and shapes of the model's tensors, in the order of the d coordinates."""
    memory: Memory | None
    """What is carried from round to round."""


class Pipeline:
    """`Pipeline([Clip(), NNM(), GeometricMedian()])`: any stages, in order, then one rule."""

    def __init__(self, parts: Sequence[Stage | AnyRule]) -> None:
        kinds = [type(part).__name__ for part in parts]
        stages = tuple(part for part in parts[:-1] if isinstance(part, Stage))
        if len(stages) != len(parts) - 1 or not isinstance(parts[-1], Rule | RowRule):
            raise ExperimentError(
                Problem("a pipeline is any stages, then one rule", found=", ".join(kinds) or "nothing")
            )
        self.stages: tuple[Stage, ...] = stages
        self.rule: AnyRule = parts[-1]
        if reason := misfit(self.parts):
            raise ExperimentError(reason)

    @property
    def parts(self) -> tuple[PipelinePart, ...]:
        """The stages and the rule."""
        return (*self.stages, self.rule)

    @property
    def needs(self) -> frozenset[str]:
        """What has to be revealed of the updates."""
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def anchors(self) -> tuple[str, ...]:
        """The public vectors that the rule wants in the Gram: "momentum", the last aggregate, "root", the server's."""
        return self.rule.anchors if isinstance(self.rule, Rule) else ()

    @property
    def histories(self) -> tuple[str, ...]:
        """The histories of the clients' rows that the rule wants in the Gram: "sum", "average", "last"."""
        return self.rule.histories if isinstance(self.rule, Rule) else ()

    def gram(self, updates: Updates, context: Context, histories: Sequence[str] = ()) -> Gram:
        """The Gram of `updates`, with all that the rule wants in it, and more histories.

        `context.f` plays no part.
        """
        vectors = self.rule.vectors(context) if isinstance(self.rule, Rule) else {}
        return updates.gram(vectors, tuple(dict.fromkeys([*self.histories, *histories])))

    def run(self, updates: Updates, context: Context, gram: Gram | None = None) -> Aggregated:
        """Aggregate `updates`.

        gram: its Gram from `gram`, where the caller has it already, with any prior.
        The caller has dropped rows that are not finite (`ClearUpdates.finite_rows`). NotRevealed if they keep secret
        what a part needs; ExperimentError if n and f violate a bound.
        """
        if gram is None:
            gram = Gram.unknown(updates.prior) if self.needs == {"sum"} else self.gram(updates, context)
        return self.carry_out(self.decide(updates, context, gram), updates)

    def carry_out(self, decision: Decision, updates: Updates) -> Aggregated:
        """The aggregate of what was decided on for the rows of `updates`."""
        decided, steps, context = decision.decided, self._steps(decision), decision.context
        if not isinstance(decided, Combination):
            return Aggregated(updates.reduce(decided, decision.mixing), None, {}, decision.gram, steps)
        aggregate = updates.combine(decided)
        if decided.noise:
            noise = context.generator.standard_normal(updates.d, dtype=np.float32)
            aggregate = aggregate + np.float32(decided.noise) * noise
        return Aggregated(
            aggregate, decided.weights, decided.anchors, decision.gram, steps, decided.state, decided.notes
        )

    def aggregate(self, updates: ArrayT, **options: Unpack[AggregateOptions]) -> ArrayT:
        """The aggregate (d,) of `updates` (n, d), an array or a tensor of any floating type, in the same kind.

        `AggregateOptions` says what else can be given. `memory` is brought up to date.
        ExperimentError: a row with NaN or Inf (named), a bound that n and f violate, counts for a rule without weights.
        """
        clear, decision = self._decided(updates, options)
        decided = decision.decided
        if isinstance(decided, Combination):
            result = clear.weighted_sum(decided)
            if decided.noise:
                noise = decision.context.generator.standard_normal(clear.d, dtype=np.float32)
                result += decided.noise * chunks.like(result, noise)
        else:
            result = clear.reduced(decided, decision.mixing)
        if (memory := options.get("memory")) is not None:
            memory.round += 1
            memory.previous, memory.step = chunks.single(result), None
            memory.state = decided.state if isinstance(decided, Combination) else {}
            memory.histories = clear.remembered(self.histories)
        if isinstance(updates, np.ndarray):
            return chunks.host(result).astype(updates.dtype, copy=False)
        return cast("ArrayT", result.to(updates.dtype))

    def combination(self, updates: NDArray[Any] | Tensor, **options: Unpack[AggregateOptions]) -> Combination:
        """The weights on the original rows, without the aggregate; arguments and errors as in `aggregate`.

        `memory` is read, and stays. ExperimentError for a rule that works on each coordinate by itself.
        """
        _, decision = self._decided(updates, options)
        if not isinstance(decision.decided, Combination):
            raise ExperimentError(f"{self.rule.name} works on each coordinate by itself: it has no weights of rows")
        return decision.decided

    def explain(self, updates: NDArray[Any] | Tensor, **options: Unpack[AggregateOptions]) -> tuple[Step, ...]:
        """The score and the weight that each stage and the rule gave each row; arguments and errors as in `aggregate`.

        `memory` is read, and stays.
        """
        _, decision = self._decided(updates, options, explained=True)
        return self._steps(decision)

    def _decided(
        self, updates: Any, options: AggregateOptions, explained: bool = False
    ) -> tuple[ClearUpdates, Decision]:
        """The rows, and what makes the aggregate of them; `explained`: with a Gram in any case."""
        if unknown := options.keys() - AggregateOptions.__annotations__.keys():
            raise TypeError(
                f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(AggregateOptions.__annotations__)}"
            )
        samples, f, previous = options.get("samples"), options.get("f"), options.get("previous")
        past = options.get("memory") or Memory()
        prior = None if samples is None else capped_prior(samples, len(updates))
        clear = ClearUpdates([updates], prior=prior, histories=past.histories)
        if samples is not None and (reason := cannot_weigh(self.parts)):
            raise ExperimentError(Problem(reason, "samples", hint="leave samples out"))
        context = Context(
            f=0,
            round=past.round,
            generator=generator(options.get("seed", 0), "aggregation", past.round),
            previous=past.previous if previous is None else previous,
            step=past.step,
            root=options.get("root"),
            layers=tuple(Layer(name, tuple(shape)) for name, shape in options.get("layers", ())),
            state=past.state,
        )
        gram = None
        if "gram" in self.needs or f == "auto":
            gram = self.gram(clear, context)
        if gram is None or not (np.diag(gram.matrix) <= LARGEST_SQUARE).all():  # NaN is not
            _refuse_infinite(clear)
        if self.needs == {"sum"}:
            gram = gram or Gram.unknown(clear.prior)
        count = resolve_f("largest" if f is None else f, clear.n, self.rule, self.stages, gram)
        if explained:
            gram = gram or clear.gram()
        return clear, self.decide(clear, replace(context, f=count), gram)

    def decide(
        self, updates: Updates, context: Context, gram: Gram | None, kept: NDArray[np.bool_] | None = None
    ) -> Decision:
        """What `run` does before it makes the aggregate; of the rows, only a rule on rows looks at them.

        kept: (n,) the rows that count; the others are out before the first part. `context.clients` are those of all n.
        Without a Gram, which only rules on rows allow, nothing is seen.
        """
        for part in self.parts:
            if hidden := part.needs - updates.reveals:
                raise NotRevealed(
                    f"{part.name} needs {', '.join(sorted(hidden))}; "
                    f"of these updates only {', '.join(sorted(updates.reveals))} may be seen"
                )
        n = updates.n if kept is None else int(kept.sum())
        if reason := violation(self.parts, n, context.f):
            raise ExperimentError(reason)
        with one_blas_thread():
            seen = [] if gram is None else [_Seen(gram, None, False)]
            if seen and kept is not None and n < updates.n:
                # As a mixing matrix, so that what follows stays algebra on the original rows.
                chosen = np.eye(updates.n)[kept]
                seen = [_Seen(seen[0].gram.mixed(chosen), chosen, True)]
                context = replace(context, clients=None if context.clients is None else context.clients[kept])
            for stage in self.stages:
                now = seen[-1]
                mixing = stage.mix(now.gram, context)
                total = mixing if now.total is None else mixing @ now.total
                seen.append(_Seen(now.gram.mixed(mixing, stage.merges), total, now.merged or stage.merges))
            product = seen[-1].total if seen else None
            decided: Combination | Reduction
            if isinstance(self.rule, Rule):
                decided = self.rule.combine(seen[-1].gram, context)
            else:
                decided = self.rule.decide(Rows(updates, product, seen[-1].gram if seen else None), context)
        if isinstance(decided, Combination) and product is not None:
            decided = replace(decided, weights=decided.weights @ product)
        return Decision(decided, product, gram, context, tuple(seen))

    def _steps(self, decision: Decision) -> tuple[Step, ...]:
        """How it came about."""
        decided, seen = decision.decided, decision.seen
        weights: list[Floats | None] = [after.gram.prior @ after.total for after in seen[1:] if after.total is not None]
        weights.append(decided.weights if isinstance(decided, Combination) else None)
        with one_blas_thread():
            return tuple(
                Step(part.name, before.of_rows(part.scores(before.gram, decision.context)), own)
                for part, before, own in zip(self.parts, seen, weights, strict=True)
            )


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a part of a pipeline sees: mixed rows, the matrix `total` (m, n) that made them of the original ones (None:
    they are the original ones), and whether rows were merged on the way."""

    gram: Gram
    total: Floats | None
    merged: bool

    def of_rows(self, scores: Floats | None) -> Floats | None:
        """Scores (m,) of its rows for the original rows (n,): of those it went into, if rows were merged."""
        if scores is None or self.total is None or not self.merged:
            return scores
        parts = np.abs(self.total)
        shares = parts.sum(axis=0)
        spread: Floats = np.divide(scores @ parts, shares, out=np.full(len(shares), np.nan), where=shares > 0)
        return spread


def misfit(parts: Sequence[PipelinePart]) -> str | None:
    """Why these parts cannot follow each other; None if they can."""
    merging = [part.name for part in parts if isinstance(part, Stage) and part.merges]
    remembers = parts[-1].per_client or bool(getattr(parts[-1], "histories", ()))
    if merging and remembers:
        return f"{parts[-1].name} remembers clients; after {', '.join(merging)} a row is no single client's"
    return None


def _refuse_infinite(updates: ClearUpdates) -> None:
    bad = np.flatnonzero(~updates.finite_rows())
    if len(bad):
        named = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        reason = "not finite, or too large for float64; drop such rows first"
        raise ExperimentError(Problem(reason, found=f"row {named}"))
