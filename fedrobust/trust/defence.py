"""The coordinator's judgement of a round: scores, reputations, quarantine, and what the pipeline makes of who is left.

Pure: what is remembered is handed about, and a judgement changes nothing until it is committed. So a defence can be
asked what it would make of other updates, which is what an attacker who knows it does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation import Aggregation, Context, Decision, Gram, Layer
from fedrobust.aggregation.byzantine import cannot_weigh
from fedrobust.arrays import Arrays
from fedrobust.seeds import generator
from fedrobust.trust.anomaly import Scores
from fedrobust.trust.blame import members_scores, no_blame
from fedrobust.trust.reputation import ReputationState
from fedrobust.updates import Updates

if TYPE_CHECKING:
    from fedrobust.trust import Trust


@dataclass(frozen=True, eq=False)
class Known:
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

    `known` is what it remembers if the judgement stands, but for the aggregate and the step, which are not made yet.
    """

    gram: Gram
    """With the priors that the aggregate is made with."""
    scores: Scores
    """Of the rows, without parts where the protocol shows nothing to judge by."""
    anomaly: dict[int, float]
    """Client → its own score, where there is one."""
    kept: NDArray[np.bool_]
    """(n,) which rows count; the others are of clients in quarantine."""
    context: Context
    decision: Decision | None
    """None where the rows that are left cannot be aggregated: see `skipped`."""
    skipped: str | None
    known: Known


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

    def start(self, clients: int) -> Known:
        """What is known before the first round of so many clients."""
        return Known(self.trust.reputation.start(clients) | self.trust.quarantine.start(clients))

    def punished(self, known: Known, rejected: Sequence[int]) -> Known:
        """What is known after a round in which some clients sent what is no update, without a judgement of the others.

        Quarantine, which keeps a quorum of a round's clients, follows with the next judgement.
        """
        scores = dict.fromkeys(rejected, 1.0)
        return replace(known, trust=known.trust | self.trust.reputation.update(known.trust, scores))

    def judge(
        self,
        known: Known,
        protocol: Updates,
        clients: NDArray[np.int64],
        round: int,
        root: np.ndarray | None = None,
        rejected: Sequence[int] = (),
        malformed: int = 0,
    ) -> Judgement:
        """What it makes of the rows of `protocol`, which are finite and come from `clients` (n,), by ascending id.

        Where the rows are means over groups, `clients` are the members of all. `root` (d,) is the server's own update,
        `rejected` are clients who sent what is no update; so many of them, `malformed`, sent a row that is none, see
        `Aggregation.byzantine_f`.

        Quarantine lowers no declared f. Where the parts need more rows for it, the best in quarantine stay out of it.
        """
        groups, n = protocol.groups, protocol.n
        context = Context(
            f=0,
            round=round,
            generator=generator(self.seed, "aggregation", round),
            clients=clients if groups is None else None,
            previous=known.previous,
            step=known.step,
            root=root,
            layers=self.layers,
            state=known.rule,
        )
        if "gram" in protocol.reveals:
            gram = self.pipeline.gram(protocol, context, self.trust.detector.histories)
            scores = self.trust.detector.score(gram, replace(context, state=known.detector))
            anomaly, remembered = self._own_scores(known, clients, groups, scores)
        else:
            gram, scores = Gram.unknown(protocol.prior), Scores(np.zeros(n), {})
            anomaly, remembered = {}, {}
        evidence = anomaly | dict.fromkeys(rejected, 1.0)
        trust = self._trusted(known.trust, evidence, rejected)
        kept = np.ones(n, dtype=bool)
        if self.trust.acts:
            kept = trust["quarantined"][clients] == 0
            if needed := self._needed(int(kept.sum()), n, malformed):
                trust = self._trusted(known.trust, evidence, rejected, needed)
                kept = trust["quarantined"][clients] == 0
            if self._weighs:
                factors = self.trust.quarantine.prior(trust, self.trust.reputation.value(trust))[clients]
                gram = gram.weighted(gram.prior * np.maximum(factors, 1e-9))
        left = int(kept.sum())
        after = replace(known, trust=trust, detector=remembered)
        if skipped := self.aggregation.refusal(left, self.participants, malformed):
            return Judgement(gram, scores, anomaly, kept, context, None, skipped, after)
        chosen = gram if kept.all() else gram.mixed(np.eye(len(kept))[kept])
        context = replace(context, f=self.aggregation.byzantine_f(left, self.participants, malformed, chosen))
        decision = self.pipeline.decide(protocol, context, gram, kept)
        after = replace(after, rule=getattr(decision.decided, "state", {}))
        return Judgement(gram, scores, anomaly, kept, context, decision, None, after)

    def _own_scores(
        self, known: Known, clients: NDArray[np.int64], groups: Sequence[Sequence[int]] | None, scores: Scores
    ) -> tuple[dict[int, float], Arrays]:
        """Each client's own score, and what is remembered for the next round's."""
        if groups is None:
            return dict(zip(clients.tolist(), scores.score.tolist(), strict=True)), dict(scores.state)
        everybody = len(self.trust.reputation.value(known.trust))
        before = known.detector if "blame" in known.detector else no_blame(everybody)
        found, memory = members_scores(before, groups, scores.score)
        return dict(sorted(found.items())), {**scores.state, **memory}

    def _needed(self, left: int, n: int, malformed: int) -> int:
        """How many of the n rows the declared f needs, where `left` are too few for it and n are not; else 0."""

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
