"""The coordinator's judgement of a round: scores, reputations, quarantine, and what the pipeline makes of who is left.

Pure: what is remembered is handed about, and a judgement changes nothing until it is committed. So a defence can be
asked what it would make of other updates, which is what an attacker who knows it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation import Aggregation, Context, Decision, Gram, Layer, Protocol
from fedrobust.aggregation.declared import cannot_weigh
from fedrobust.seeds import generator
from fedrobust.trust.anomaly import Scores
from fedrobust.trust.reputation import State

if TYPE_CHECKING:
    from fedrobust.trust import Trust

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Known:
    """What a defence remembers between rounds, but for the histories of updates, which lie where the updates lie."""

    trust: State
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
    kept: NDArray[np.bool_]
    """(n,) which rows count; the others are of clients in quarantine."""
    context: Context
    decision: Decision | None
    """None where the rows that are left cannot be aggregated: see `skipped`."""
    skipped: str | None
    known: Known


class Defence:
    """Detector, reputation, quarantine and pipeline of an experiment, as one.

    `participants` are asked in each round; `layers` say what the coordinates of an update are.
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
        """What is known after a round without usable updates, in which some clients sent what is no update."""
        return replace(known, trust=self._trusted(known.trust, dict.fromkeys(rejected, 1.0)))

    def judge(
        self,
        known: Known,
        protocol: Protocol,
        clients: NDArray[np.int64],
        round: int,
        root: np.ndarray | None = None,
        rejected: Sequence[int] = (),
    ) -> Judgement:
        """What it makes of the rows of `protocol`, which are finite and come from `clients` (n,), by ascending id.

        `root` (d,) is the server's own update, `rejected` are clients who sent what is no update.
        """
        context = Context(
            f=0,
            round=round,
            generator=generator(self.seed, "aggregation", round),
            clients=clients,
            previous=known.previous,
            step=known.step,
            root=root,
            layers=self.layers,
            state=known.rule,
        )
        gram = self.pipeline.gram(protocol, context, self.trust.detector.histories)
        scores = self.trust.detector.score(gram, replace(context, state=known.detector))
        given = dict(zip(clients.tolist(), scores.score.tolist(), strict=True)) | dict.fromkeys(rejected, 1.0)
        trust = self._trusted(known.trust, given)
        kept = np.ones(len(clients), dtype=bool)
        if self.trust.acts:
            kept = trust["quarantined"][clients] == 0
            if self._weighs:
                factors = self.trust.quarantine.prior(trust, self.trust.reputation.value(trust))[clients]
                gram = gram.weighted(gram.prior * np.maximum(factors, 1e-9))
        left = int(kept.sum())
        missing = self.participants - left
        after = replace(known, trust=trust, detector=scores.state)
        if skipped := self.aggregation.refusal(left, missing):
            return Judgement(gram, scores, kept, context, None, skipped, after)
        chosen = gram if kept.all() else gram.mixed(np.eye(len(kept))[kept])
        context = replace(context, f=self.aggregation.declared_f(left, missing, chosen))
        decision = self.pipeline.decide(protocol, context, gram, kept)
        after = replace(after, rule=getattr(decision.decided, "state", {}))
        return Judgement(gram, scores, kept, context, decision, None, after)

    def _trusted(self, state: State, scores: Mapping[int, float]) -> State:
        """Reputations and quarantine after a round with these scores."""
        present = sorted(scores)
        after: State = state | self.trust.reputation.update(state, scores)
        paroled = self.trust.quarantine.due(state, present)
        if paroled:
            after |= self.trust.reputation.forgiven(after, paroled)
        value = self.trust.reputation.value(after)
        return after | self.trust.quarantine.update(state, value, present, paroled)
