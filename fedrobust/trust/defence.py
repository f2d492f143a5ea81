"""The defence of a round: scores, reputations, quarantine, and the aggregate of the updates that are left.

Pure: the memory is passed in and returned, and nothing changes until the caller stores the new one. So a defence can be
asked for its answer to other updates. An attacker that knows the defence does that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation import Aggregated, Aggregation, Context, Decision, Gram, Layer
from fedrobust.aggregation.byzantine import cannot_weigh
from fedrobust.arrays import Arrays, Vector
from fedrobust.records import below
from fedrobust.seeds import generator
from fedrobust.timeline import step
from fedrobust.trust.anomaly import Scores
from fedrobust.trust.blame import members_scores, no_blame
from fedrobust.trust.reputation import ReputationState
from fedrobust.updates import NotOpened, Updates
from fedrobust.updates.interface import not_revealed
from fedrobust.updates.threads import algebra

if TYPE_CHECKING:
    from fedrobust.trust import Trust


@dataclass(frozen=True, eq=False)
class DefenceMemory:
    """What a defence remembers between rounds, except the histories of updates, which are stored with the updates."""

    trust: ReputationState
    """Reputations and quarantine: arrays indexed by client id."""
    rule: Arrays = field(default_factory=dict)
    detector: Arrays = field(default_factory=dict)
    previous: np.ndarray | None = None
    """(d,) the last aggregate."""
    step: np.ndarray | None = None
    """(d,) the last change of the global model."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a defence decides about the n rows of a round.

    `memory` is the new memory if the judgement is used, without the aggregate and the step, which are not computed yet.
    """

    gram: Gram
    """With the prior weights of the aggregate."""
    scores: Scores
    """Of the rows; without parts where there is no Gram to judge by."""
    anomaly: dict[int, float]
    """Client id → its own score, where there is one."""
    kept: NDArray[np.bool_]
    """(n,) bool: which rows count; the others belong to clients in quarantine."""
    context: Context
    decision: Decision | None
    """None where the remaining rows cannot be aggregated: see `skipped`."""
    skipped: str | None
    memory: DefenceMemory


@dataclass(frozen=True, eq=False)
class DefendedRound:
    """The result of a round."""

    memory: DefenceMemory
    """The new memory; after an aggregate, the coordinator adds the step of the global model with `stepped`."""
    judgement: Judgement | None = None
    """None where nothing was opened that could be judged."""
    histories: Arrays | None = None
    """The clients' histories after the round, where the coordinator keeps them; None: they stay as they are."""
    aggregated: Aggregated | None = None
    """None where the round is skipped."""
    skipped: str | None = None
    """Why the round is skipped; None where it is not."""

    def stepped(self, step: Vector) -> DefenceMemory:
        """The memory after the aggregate has changed the global model by `step` (d,)."""
        return replace(self.memory, step=step)


class Defence:
    """Detector, reputation, quarantine and pipeline of an experiment, as one.

    aggregation: the stages and the rule.
    trust: detector, reputation, quarantine, and whether they act.
    participants: how many clients are drawn for each round.
    seed: the seed of the run.
    layers: the tensors that the coordinates of an update belong to.
    """

    def __init__(
        self, aggregation: Aggregation, trust: Trust, participants: int, seed: int, layers: Sequence[Layer] = ()
    ) -> None:
        self.aggregation, self.pipeline, self.trust = aggregation, aggregation.pipeline(), trust
        self.participants, self.seed, self.layers = participants, seed, tuple(layers)
        self._weighs = not cannot_weigh(self.pipeline.parts)

    @property
    def histories(self) -> tuple[str, ...]:
        """The histories of the clients' rows that the rule and the detector need."""
        return tuple(dict.fromkeys([*self.pipeline.histories, *self.trust.detector.histories]))

    def start(self, clients: int) -> DefenceMemory:
        """The memory before the first round, for so many `clients`."""
        return DefenceMemory(self.trust.reputation.start(clients) | self.trust.quarantine.start(clients))

    def memory(self, arrays: Arrays, clients: int) -> DefenceMemory:
        """The memory that `arrays` of a checkpoint hold, for so many `clients`; the start if they hold none."""
        if not (trust := below(arrays, "trust")):
            return self.start(clients)
        parts = below(arrays, "rule"), below(arrays, "detector")
        return DefenceMemory(trust, *parts, arrays.get("previous"), arrays.get("step"))

    def arrays(self, memory: DefenceMemory) -> Arrays:
        """The `memory` as arrays for a checkpoint; (d,) arrays only where the defence uses them again."""
        folders = {"trust": memory.trust, "rule": memory.rule, "detector": memory.detector}
        arrays = {f"{folder}/{name}": array for folder, own in folders.items() for name, array in own.items()}
        looks_back = self.pipeline.anchors or memory.rule or memory.detector
        if memory.previous is not None and memory.step is not None and looks_back:
            arrays |= {"previous": memory.previous, "step": memory.step}
        return arrays

    def defend(
        self,
        memory: DefenceMemory,
        updates: Updates,
        clients: NDArray[np.int64],
        round: int,
        root: np.ndarray | None = None,
        rejected: Sequence[int] = (),
        malformed: int = 0,
        instead: Callable[[Judgement, Decision, Updates], Decision] | None = None,
        descents: np.ndarray | None = None,
    ) -> DefendedRound:
        """Judge the rows of a round, and compute the aggregate. Arguments as for `judge`.

        instead: returns what is opened instead of what was decided.

        Raises `NotOpened` where the rows open nothing to judge by. If they open no aggregate after that, the judgement
        is kept, and the round is skipped.
        """
        if self.aggregation.sketch is not None:
            seed = int(generator(self.seed, "sketch", round).integers(2**63))
            updates = updates.sketched(self.aggregation.sketch, seed)
        judgement = self.judge(memory, updates, clients, round, root, rejected, malformed, descents)
        # Updates without a Gram matrix remember no rows either.
        histories = updates.remembered(self.histories if "gram" in updates.reveals else ())
        done = DefendedRound(judgement.memory, judgement, dict(histories), skipped=judgement.skipped)
        if judgement.decision is None:
            return done
        decision = judgement.decision if instead is None else instead(judgement, judgement.decision, updates)
        try:
            with step("aggregate"):
                aggregated = self.pipeline.carry_out(decision, updates)
        except NotOpened as error:
            return replace(done, skipped=str(error))
        return replace(done, aggregated=aggregated, memory=replace(done.memory, previous=aggregated.aggregate))

    def unjudged(
        self, memory: DefenceMemory, participants: Sequence[int], rejected: Sequence[int], reason: str
    ) -> DefendedRound:
        """The result of a round that is skipped before any update is judged.

        memory: before the round.
        participants: the clients drawn for the round.
        rejected: those that sent no valid update. They are the only ones that the reputation learns about.
        reason: why the round is skipped.

        Quarantine, which keeps a quorum of a round's clients, is updated with the next judgement.
        """
        scores = dict.fromkeys(guilty(participants, rejected), 1.0)
        trust = memory.trust | self.trust.reputation.update(memory.trust, scores)
        return DefendedRound(replace(memory, trust=trust), skipped=reason)

    def judge(
        self,
        memory: DefenceMemory,
        updates: Updates,
        clients: NDArray[np.int64],
        round: int,
        root: np.ndarray | None = None,
        rejected: Sequence[int] = (),
        malformed: int = 0,
        descents: np.ndarray | None = None,
    ) -> Judgement:
        """Judge the rows of a round: scores, reputations, quarantine, and the weights of the pipeline.

        memory: before the round.
        updates: n finite rows, by ascending client id.
        clients: int64 ids of the rows (n,); where the rows are means over groups, the members of all groups.
        round: the number of the round.
        root: (d,) the server's own update.
        rejected: clients that sent no valid update.
        malformed: how many of these sent a row that is no update; see `Aggregation.byzantine_f`.
        descents: (labels, d) see `Context`; for a detector that needs patches of the coordinator's own.

        Quarantine does not lower the Byzantine f. Where the parts need more rows for it, the clients in quarantine with
        the best reputation are let out.
        """
        groups, n = updates.groups, updates.n
        context = Context(
            f=0,
            round=round,
            generator=generator(self.seed, "aggregation", round),
            clients=clients if groups is None else None,
            previous=memory.previous,
            step=memory.step,
            root=root,
            descents=descents,
            layers=self.layers,
            state=memory.rule,
        )
        detector = self.trust.detector
        gram = Gram.unknown(updates.prior)
        if {"norms", "gram"} & updates.reveals:
            with step("Gram matrix"):
                gram = self.pipeline.gram(updates, context, detector.histories, detector.vectors(context))
        if not_revealed(detector.demand().needs, updates.reveals):
            scores, anomaly, remembered = Scores(np.zeros(n), {}), dict[int, float](), Arrays()
        else:
            with step("scores"), algebra(n):
                scores = detector.score(gram, replace(context, state=memory.detector))
            anomaly, remembered = self._own_scores(memory, clients, groups, scores)
        evidence = anomaly | dict.fromkeys(rejected, 1.0)
        trust = self._trusted(memory.trust, evidence, rejected)
        kept = np.ones(n, dtype=bool)
        if self.trust.acts:
            kept = trust["quarantined"][clients] == 0
            if needed := self._needed(int(kept.sum()), n, malformed):
                trust = self._trusted(memory.trust, evidence, rejected, needed)
                kept = trust["quarantined"][clients] == 0
            if self._weighs:
                factors = self.trust.quarantine.prior(trust, self.trust.reputation.value(trust))[clients]
                gram = gram.weighted(gram.prior * np.maximum(factors, 1e-9))
        left = int(kept.sum())
        after = replace(memory, trust=trust, detector=remembered)
        if skipped := self.aggregation.refusal(left, self.participants, malformed):
            return Judgement(gram, scores, anomaly, kept, context, None, skipped, after)
        chosen = gram if kept.all() else gram.mixed(np.eye(len(kept))[kept])
        context = replace(context, f=self.aggregation.byzantine_f(left, self.participants, malformed, chosen))
        with step("weights"):
            decision = self.pipeline.decide(updates, context, gram, kept)
        after = replace(after, rule=getattr(decision.decided, "state", {}))
        return Judgement(gram, scores, anomaly, kept, context, decision, None, after)

    def _own_scores(
        self, memory: DefenceMemory, clients: NDArray[np.int64], groups: Sequence[Sequence[int]] | None, scores: Scores
    ) -> tuple[dict[int, float], Arrays]:
        """Each client's own score, and what the detector remembers."""
        if groups is None:
            return dict(zip(clients.tolist(), scores.score.tolist(), strict=True)), dict(scores.state)
        everybody = len(self.trust.reputation.value(memory.trust))
        before = memory.detector if "blame" in memory.detector else no_blame(everybody)
        found, blame = members_scores(before, groups, scores.score)
        return dict(sorted(found.items())), {**scores.state, **blame}

    def _needed(self, left: int, n: int, malformed: int) -> int:
        """How many of the n rows the Byzantine f needs, where `left` rows are too few for it and n are not; else 0."""

        def enough(count: int) -> bool:
            return self.aggregation.refusal(count, self.participants, malformed) is None

        if enough(left) or not enough(n):
            return 0
        return next(count for count in range(left + 1, n + 1) if enough(count))

    def _trusted(
        self, state: ReputationState, scores: Mapping[int, float], rejected: Collection[int] = (), least: int = 1
    ) -> ReputationState:
        """Reputations and quarantine after a round with these scores; at least `least` rows are not in quarantine."""
        present = sorted(scores)
        after: ReputationState = state | self.trust.reputation.update(state, scores)
        paroled = self.trust.quarantine.due(state, present)
        if paroled:
            after |= self.trust.reputation.forgiven(after, paroled)
        value = self.trust.reputation.value(after)
        return after | self.trust.quarantine.update(state, value, present, paroled, rejected, least)


def guilty(participants: Sequence[int], rejected: Sequence[int]) -> list[int]:
    """The rejected clients, unless all participants are rejected: then the fault may be in the experiment.

    participants: the clients drawn for the round.
    rejected: those that sent no valid update.
    """
    return list(rejected) if len(rejected) < len(participants) else []
