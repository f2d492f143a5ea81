"""The defence of a round: scores, reputations, quarantine, and the aggregate of the updates that are left.

Pure: what is remembered is handed in and returned, and nothing changes until the caller keeps it. So a defence can be
asked what it would make of other updates, which is what an attacker who knows it does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation import Aggregated, Aggregation, Context, Decision, Gram, Layer
from fedrobust.aggregation.byzantine import cannot_weigh
from fedrobust.arrays import Arrays, Vector
from fedrobust.records import below
from fedrobust.seeds import generator
from fedrobust.trust.anomaly import Scores
from fedrobust.trust.blame import members_scores, no_blame
from fedrobust.trust.reputation import ReputationState
from fedrobust.updates import NotOpened, Updates

if TYPE_CHECKING:
    from fedrobust.trust import Trust


@dataclass(frozen=True, eq=False)
class DefenceMemory:
    """What a defence remembers between rounds, but for the histories of updates, which lie where the updates lie."""

    trust: ReputationState
    """Reputations and quarantine, by client id."""
    rule: Arrays = field(default_factory=dict)
    detector: Arrays = field(default_factory=dict)
    previous: np.ndarray | None = None
    """(d,) the last aggregate."""
    step: np.ndarray | None = None
    """(d,) the last change of the global model."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a defence makes of the n rows of a round.

    `memory` is what it remembers if the judgement stands, but for the aggregate and the step, which are not made yet.
    """

    gram: Gram
    """With the priors that the aggregate is made with."""
    scores: Scores
    """Of the rows, without parts where there is nothing to judge by."""
    anomaly: dict[int, float]
    """Client → its own score, where there is one."""
    kept: NDArray[np.bool_]
    """(n,) which rows count; the others are of clients in quarantine."""
    context: Context
    decision: Decision | None
    """None where the rows that are left cannot be aggregated: see `skipped`."""
    skipped: str | None
    memory: DefenceMemory


@dataclass(frozen=True, eq=False)
class DefendedRound:
    """What came of a round."""

    memory: DefenceMemory
    """What is remembered; after an aggregate the coordinator adds the step that it makes of it: `stepped`."""
    judgement: Judgement | None = None
    """None where nothing was opened that could be judged."""
    histories: Arrays | None = None
    """The clients' histories after the round, where the coordinator keeps them; None: they stay as they are."""
    aggregated: Aggregated | None = None
    """None where the round is skipped."""
    skipped: str | None = None
    """Why it is."""

    def stepped(self, step: Vector) -> DefenceMemory:
        """What is remembered once the aggregate has changed the global model by `step` (d,)."""
        return replace(self.memory, step=step)


class Defence:
    """Detector, reputation, quarantine and pipeline of an experiment, as one.

    `participants` are drawn for each round; `layers` say what the coordinates of an update are.
    """

    def __init__(
        self, aggregation: Aggregation, trust: Trust, participants: int, seed: int, layers: Sequence[Layer] = ()
    ) -> None:
        self.aggregation, self.pipeline, self.trust = aggregation, aggregation.pipeline(), trust
        self.participants, self.seed, self.layers = participants, seed, tuple(layers)
        self._weighs = not cannot_weigh(self.pipeline.parts)

    @property
    def histories(self) -> tuple[str, ...]:
        """The histories of the clients' rows that rule and detector want."""
        return tuple(dict.fromkeys([*self.pipeline.histories, *self.trust.detector.histories]))

    def start(self, clients: int) -> DefenceMemory:
        """What is remembered before the first round of so many clients: nothing."""
        return DefenceMemory(self.trust.reputation.start(clients) | self.trust.quarantine.start(clients))

    def memory(self, arrays: Arrays, clients: int) -> DefenceMemory:
        """What is remembered, by the `arrays` of a checkpoint, of so many clients; empty ones: it is the start."""
        if not (trust := below(arrays, "trust")):
            return self.start(clients)
        parts = below(arrays, "rule"), below(arrays, "detector")
        return DefenceMemory(trust, *parts, arrays.get("previous"), arrays.get("step"))

    def arrays(self, memory: DefenceMemory) -> Arrays:
        """What is remembered, for a checkpoint; (d,) arrays only where the defence looks back at them."""
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
    ) -> DefendedRound:
        """Judge the rows of a round, and carry the judgement out; arguments as for `judge`.

        Raises `NotOpened` where the rows show nothing to judge by; where they open no aggregate after that, the
        judgement stands, and the round is skipped.
        """
        judgement = self.judge(memory, updates, clients, round, root, rejected, malformed)
        # What shows no Gram matrix remembers no rows either.
        histories = updates.remembered(self.histories if "gram" in updates.reveals else ())
        done = DefendedRound(judgement.memory, judgement, dict(histories), skipped=judgement.skipped)
        if judgement.decision is None:
            return done
        try:
            aggregated = self.pipeline.carry_out(judgement.decision, updates)
        except NotOpened as error:
            return replace(done, skipped=str(error))
        return replace(done, aggregated=aggregated, memory=replace(done.memory, previous=aggregated.aggregate))

    def unjudged(
        self, memory: DefenceMemory, participants: Sequence[int], rejected: Sequence[int], reason: str
    ) -> DefendedRound:
        """What comes of a round that is skipped for this `reason` before anything is judged.

        What is known of its clients is that some were `rejected`. Quarantine, which keeps a quorum of a round's
        clients, follows with the next judgement.
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
    ) -> Judgement:
        """What it makes of the rows of `updates`, which are finite and come from `clients` (n,), by ascending id.

        Where the rows are means over groups, `clients` are the members of all. `root` (d,) is the server's own update,
        `rejected` are clients who sent what is no update; so many of them, `malformed`, sent a row that is none, see
        `Aggregation.byzantine_f`.

        Quarantine lowers no Byzantine f. Where the parts need more rows for it, the best in quarantine are let out.
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
            layers=self.layers,
            state=memory.rule,
        )
        if "gram" in updates.reveals:
            gram = self.pipeline.gram(updates, context, self.trust.detector.histories)
            scores = self.trust.detector.score(gram, replace(context, state=memory.detector))
            anomaly, remembered = self._own_scores(memory, clients, groups, scores)
        else:
            gram, scores = Gram.unknown(updates.prior), Scores(np.zeros(n), {})
            anomaly, remembered = {}, {}
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
        decision = self.pipeline.decide(updates, context, gram, kept)
        after = replace(after, rule=getattr(decision.decided, "state", {}))
        return Judgement(gram, scores, anomaly, kept, context, decision, None, after)

    def _own_scores(
        self, memory: DefenceMemory, clients: NDArray[np.int64], groups: Sequence[Sequence[int]] | None, scores: Scores
    ) -> tuple[dict[int, float], Arrays]:
        """Each client's own score, and what is remembered for the next round's."""
        if groups is None:
            return dict(zip(clients.tolist(), scores.score.tolist(), strict=True)), dict(scores.state)
        everybody = len(self.trust.reputation.value(memory.trust))
        before = memory.detector if "blame" in memory.detector else no_blame(everybody)
        found, blame = members_scores(before, groups, scores.score)
        return dict(sorted(found.items())), {**scores.state, **blame}

    def _needed(self, left: int, n: int, malformed: int) -> int:
        """How many of the n rows the Byzantine f needs, where `left` are too few for it and n are not; else 0."""

        def enough(count: int) -> bool:
            return self.aggregation.refusal(count, self.participants, malformed) is None

        if enough(left) or not enough(n):
            return 0
        return next(count for count in range(left + 1, n + 1) if enough(count))

    def _trusted(
        self, state: ReputationState, scores: Mapping[int, float], rejected: Collection[int] = (), least: int = 1
    ) -> ReputationState:
        """Reputations and quarantine after a round with these scores; `least` rows are not in quarantine."""
        present = sorted(scores)
        after: ReputationState = state | self.trust.reputation.update(state, scores)
        paroled = self.trust.quarantine.due(state, present)
        if paroled:
            after |= self.trust.reputation.forgiven(after, paroled)
        value = self.trust.reputation.value(after)
        return after | self.trust.quarantine.update(state, value, present, paroled, rejected, least)


def guilty(participants: Sequence[int], rejected: Sequence[int]) -> list[int]:
    """Who is rejected, if that sets anybody apart: where all are, the fault may be the experiment's."""
    return list(rejected) if len(rejected) < len(participants) else []
