"""A whole defence: stages that mix the updates, then a rule that combines them into one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation.base import AnyRule, Context, Layer, PipelinePart, RowRule, Rows, Rule, Stage
from fedrobust.aggregation.byzantine import ByzantineF, Cap, cannot_weigh, capped_prior, misfit, resolve_f, violation
from fedrobust.aggregation.outcome import Aggregated, Decision, Seen, Step
from fedrobust.errors import ExperimentError, Problem
from fedrobust.seeds import generator
from fedrobust.updates import chunks
from fedrobust.updates.clear import LARGEST_SQUARE, ClearUpdates
from fedrobust.updates.demand import Demand
from fedrobust.updates.gram import Combination, Floats, Gram
from fedrobust.updates.interface import NotRevealed, Reduction, Updates, not_revealed
from fedrobust.updates.threads import algebra

if TYPE_CHECKING:
    from torch import Tensor

ArrayT = TypeVar("ArrayT", NDArray[Any], "Tensor")


@dataclass
class Memory:
    """What `Pipeline.aggregate` carries from round to round. Pass the same object to every round.

    Rules need it that start from the last aggregate or remember clients. Row i must be client i's in every round.
    `histories` are (clients, d) float32, a row for each client: a rule that uses one needs that much memory. The arrays
    are overwritten in each round.
    """

    round: int = 0
    previous: NDArray[np.float32] | None = None
    step: NDArray[np.float32] | None = None
    """(d,) the last change of the global model, where it differs from the last aggregate."""
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    histories: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


class AggregateOptions(TypedDict, total=False):
    """The optional arguments of `Pipeline.aggregate`, `combination` and `explain`, besides the updates (n, d)."""

    samples: Sequence[float] | NDArray[Any] | None
    """Sample counts (n,), each counted up to `cap`; None: uniform weights."""
    cap: Cap
    """The most that a count counts, see `capped_prior`: by default twice the median."""
    f: ByzantineF | None
    """Byzantine rows: a count, a fraction of n, "auto", or None for as many as the parts allow."""
    seed: int
    """The seed of the parts' random draws, by default 0."""
    previous: NDArray[Any] | None
    """The last aggregate (d,), for rules that start from it; by default that of `memory`."""
    root: NDArray[Any] | None
    """The server's own update (d,)."""
    layers: Sequence[tuple[str, tuple[int, ...]]]
    """Names and shapes of the model's tensors, in the order of the d coordinates."""
    memory: Memory | None
    """What earlier rounds left, see `Memory`."""


class Pipeline:
    """`Pipeline([Clip(), NNM(), GeometricMedian()])`: any stages, in order, then one rule.

    Raises `ExperimentError` for other parts, and where a part cannot follow another one.
    """

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
        """What the updates must reveal: "sum", "norms", "gram", "rows".

        The norms of rows that are means of several depend on all products: after a stage that spreads, "norms" means
        "gram".
        """
        found: set[str] = set()
        spread = False
        for part in self.parts:
            found |= {"gram" if spread and need == "norms" else need for need in part.asks()}
            spread = spread or (isinstance(part, Stage) and part.spreads)
        return frozenset(found)

    @property
    def anchors(self) -> tuple[str, ...]:
        """The public vectors that the rule needs in the Gram: "momentum" is the last aggregate, "root" the server's own
        update.
        """
        return self.rule.anchors if isinstance(self.rule, Rule) else ()

    @property
    def histories(self) -> tuple[str, ...]:
        """The histories of the clients' rows that the rule needs in the Gram: "sum", "average", "last"."""
        return self.rule.histories if isinstance(self.rule, Rule) else ()

    @property
    def demand(self) -> Demand:
        """What it asks of the updates."""
        return Demand(self.needs, len(self.anchors), self.histories)

    def gram(
        self,
        updates: Updates,
        context: Context,
        histories: Sequence[str] = (),
        vectors: Mapping[str, Any] | None = None,
    ) -> Gram:
        """The Gram of the updates, with the anchors and histories that the rule needs; without products of two updates
        where they reveal norms and no more.

        updates: n updates of d coordinates.
        context: what is public in this round; its `f` is not used.
        histories, vectors: names of further histories; further anchors, name → (d,).
        """
        asked, anchors = dict.fromkeys([*self.histories, *histories]), self._vectors(context) | dict(vectors or {})
        if "norms" in updates.reveals and not asked:
            return updates.norms(anchors)
        return updates.gram(anchors, tuple(asked))

    def known(self, updates: Updates, context: Context) -> Gram | None:
        """What the parts need to know of the rows' products, and no more; None if there is only a rule on rows.

        Arguments as for `gram`.
        """
        needs = self.needs
        if "gram" in needs or self.histories:
            return self.gram(updates, context)
        if "norms" in needs:
            return updates.norms(self._vectors(context))
        return Gram.unknown(updates.prior) if "sum" in needs else None

    def _vectors(self, context: Context) -> dict[str, np.ndarray]:
        return self.rule.vectors(context) if isinstance(self.rule, Rule) else {}

    def run(self, updates: Updates, context: Context, gram: Gram | None = None) -> Aggregated:
        """Aggregate the updates of one round.

        updates: n finite rows: the caller has dropped the others, see `ClearUpdates.finite_rows`.
        context: what is public in this round, with the Byzantine f as a number of rows.
        gram: the Gram from `gram`, if the caller has it already, with any prior weights.

        Raises `NotRevealed` if the updates keep secret what a part needs, and `ExperimentError` if n and f violate a
        bound.
        """
        if gram is None:
            gram = self.known(updates, context) or self.gram(updates, context)
        return self.carry_out(self.decide(updates, context, gram), updates)

    def carry_out(self, decision: Decision, updates: Updates) -> Aggregated:
        """The aggregate, from what `decide` returned for these updates.

        decision: of `decide`.
        updates: the same updates.
        """
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
        """The aggregate (d,), of the type of `updates`.

        updates: (n, d), an array or a tensor of any floating type.
        options: see `AggregateOptions`. `memory` is updated.

        Raises `ExperimentError` for a row with NaN or Inf (it is named), if n and f violate a bound, and for sample
        counts with a rule that cannot use prior weights.
        """
        clear, decision = self._decided(updates, options)
        decided = decision.decided
        if isinstance(decided, Combination):
            result = clear.weighted_sum(decided)
            with algebra():
                if self.needs == {"sum"} and not chunks.finite(result):
                    _refuse_infinite(clear)
            if decided.noise:
                noise = decision.context.generator.standard_normal(clear.d, dtype=np.float32)
                result += decided.noise * chunks.like(result, noise)
        else:
            result = clear.reduced(decided, decision.mixing)
        if (memory := options.get("memory")) is not None:
            memory.round += 1
            memory.previous, memory.step = np.array(chunks.single(result)), None  # the caller's may be changed
            memory.state = decided.state if isinstance(decided, Combination) else {}
            memory.histories = clear.remembered(self.histories)
        if isinstance(updates, np.ndarray):
            return chunks.host(result).astype(updates.dtype, copy=False)
        import torch

        return torch.as_tensor(result).to(updates.dtype)

    def combination(self, updates: NDArray[Any] | Tensor, **options: Unpack[AggregateOptions]) -> Combination:
        """The weights of the original rows, without the aggregate; arguments and errors as in `aggregate`.

        `memory` is read, not changed. Raises `ExperimentError` for a rule that gives no weights of rows, such as a
        median of each coordinate.
        """
        _, decision = self._decided(updates, options)
        if not isinstance(decision.decided, Combination):
            raise ExperimentError(
                f"{self.rule.name} gives no weights of rows: it computes the aggregate from the coordinates"
            )
        return decision.decided

    def explain(self, updates: NDArray[Any] | Tensor, **options: Unpack[AggregateOptions]) -> tuple[Step, ...]:
        """The score and the weight of each row at each stage and at the rule; arguments and errors as in `aggregate`.

        `memory` is read, not changed.
        """
        _, decision = self._decided(updates, options, explained=True)
        return self._steps(decision)

    def _decided(
        self, updates: Any, options: AggregateOptions, explained: bool = False
    ) -> tuple[ClearUpdates, Decision]:
        """The rows, and how their aggregate is computed; `explained`: always with a Gram."""
        if unknown := options.keys() - AggregateOptions.__annotations__.keys():
            raise TypeError(
                f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(AggregateOptions.__annotations__)}"
            )
        samples, f, previous = options.get("samples"), options.get("f"), options.get("previous")
        past = options.get("memory") or Memory()
        prior = None if samples is None else self._prior(samples, len(updates), options.get("cap", 2.0), f)
        clear = ClearUpdates([updates], prior=prior, histories=past.histories, in_place=True)
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
        gram = self.gram(clear, context) if explained or f == "auto" else self.known(clear, context)
        # A sum shows afterwards whether its rows were finite. A comparison with NaN is false.
        if self.needs != {"sum"} and (gram is None or not (np.diag(gram.matrix) <= LARGEST_SQUARE).all()):
            _refuse_infinite(clear)
        count = resolve_f("largest" if f is None else f, clear.n, self.rule, self.stages, gram)
        return clear, self.decide(clear, replace(context, f=count), gram)

    def _prior(self, samples: Sequence[float] | NDArray[Any], n: int, cap: Cap, f: ByzantineF | None) -> Floats:
        """The prior weights (n,) of n rows. They are needed before there is a Gram from which f could be estimated:
        with a cap of "auto", the largest f stands for an estimate."""
        if cap != "auto":
            return capped_prior(samples, n, cap)
        return capped_prior(samples, n, cap, resolve_f("largest" if f is None else f, n, self.rule, self.stages))

    def decide(
        self, updates: Updates, context: Context, gram: Gram | None, kept: NDArray[np.bool_] | None = None
    ) -> Decision:
        """How the aggregate will be computed. Only a rule on rows reads the rows themselves.

        updates: n finite rows.
        context: what is public in this round; its `clients` are those of all n rows.
        gram: of the n rows; None, for rules on rows only: the parts see no Gram.
        kept: (n,) bool, the rows that count; the others are left out before the first part. None: all rows count.

        Raises `NotRevealed` and `ExperimentError` as `run` does.
        """
        for part in self.parts:
            if hidden := not_revealed(part.asks(), updates.reveals):
                raise NotRevealed(
                    f"{part.name} needs {', '.join(sorted(hidden))}; "
                    f"of these updates only {', '.join(sorted(updates.reveals))} may be seen"
                )
        n = updates.n if kept is None else int(kept.sum())
        if reason := violation(self.parts, n, context.f):
            raise ExperimentError(reason)
        with algebra(n):
            seen = [] if gram is None else [Seen(gram, None, False)]
            if seen and kept is not None and n < updates.n:
                # As a mixing matrix, so that what follows stays algebra on the original rows.
                chosen = np.eye(updates.n)[kept]
                seen = [Seen(seen[0].gram.mixed(chosen), chosen, True)]
                context = replace(context, clients=None if context.clients is None else context.clients[kept])
            for stage in self.stages:
                now = seen[-1]
                mixing = stage.mix(now.gram, context)
                total = mixing if now.total is None else mixing @ now.total
                seen.append(Seen(now.gram.mixed(mixing, stage.merges), total, now.merged or stage.merges))
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
        """What each stage and the rule computed."""
        decided, seen = decision.decided, decision.seen
        weights: list[Floats | None] = [after.gram.prior @ after.total for after in seen[1:] if after.total is not None]
        weights.append(decided.weights if isinstance(decided, Combination) else None)
        with algebra(0 if decision.gram is None else decision.gram.n):
            return tuple(
                Step(part.name, before.of_rows(part.scores(before.gram, decision.context)), own)
                for part, before, own in zip(self.parts, seen, weights, strict=True)
            )


def _refuse_infinite(updates: ClearUpdates) -> None:
    bad = np.flatnonzero(~updates.finite_rows())
    if len(bad):
        named = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        reason = "not finite, or too large for float64; drop such rows first"
        raise ExperimentError(Problem(reason, found=f"row {named}"))
