"""Trust: anomaly scores of a round's updates, the reputations that result from them, and their consequences.

One of six updates points the other way. It scores above one half, and after three such rounds its client is suspected:

>>> import numpy as np
>>> from fedrobust.aggregation import Context
>>> from fedrobust.updates import ClearUpdates
>>> rows = 1 + np.random.default_rng(0).standard_normal((6, 50))
>>> rows[2] *= -5
>>> scores = RobustZ().score(ClearUpdates([rows]).gram(), Context(f=1)).score
>>> np.flatnonzero(scores > 0.5)
array([2])
>>> reputation = BetaReputation()
>>> state = reputation.start(clients=6)
>>> for _ in range(3):
...     state = reputation.update(state, dict(enumerate(scores)))
>>> reputation.suspected(state)
[2]
"""

from __future__ import annotations

from typing import Annotated

from fedrobust.options import OneOf, Options, find_options
from fedrobust.trust.anomaly import Detector, RobustZ, Scores, Unscored, detection
from fedrobust.trust.consensus import Consensus
from fedrobust.trust.jury import Jury
from fedrobust.trust.label_mix import LabelMix
from fedrobust.trust.quarantine import Quarantine
from fedrobust.trust.referee import Referee
from fedrobust.trust.repair import Repair
from fedrobust.trust.reputation import BetaReputation, ExponentialAverage, Reputation, ReputationState, SubjectiveLogic
from fedrobust.updates import Demand

__all__ = [
    "AFTER_DEFENCE",
    "BetaReputation",
    "Consensus",
    "Detector",
    "ExponentialAverage",
    "Jury",
    "LabelMix",
    "Quarantine",
    "Referee",
    "Repair",
    "Reputation",
    "ReputationState",
    "RobustZ",
    "Scores",
    "SubjectiveLogic",
    "Trust",
    "Unscored",
    "detection",
]

find_options(__name__)

AFTER_DEFENCE = ("referee", "jury", "repair")
"""Options of `Trust` that may change the model after the defence; null: they do not."""


class Trust(Options):
    """Anomaly scores and reputations of every round, and whether they act on the aggregate."""

    detector: Annotated[Detector, OneOf(Detector)] = RobustZ()
    """Scores the updates of a round."""
    reputation: Annotated[Reputation, OneOf(Reputation)] = BetaReputation()
    """Turns the scores of all rounds into reputations."""
    quarantine: Quarantine = Quarantine()
    """Which clients are left out, and when they come back."""
    acts: bool = False
    """Whether reputations multiply the prior weights and quarantine leaves clients out; else both are only recorded."""
    referee: Referee | None = None
    """Patches of the coordinator's own choose between hypotheses about who lies; null: the defence alone decides. It
    needs `data.root.set_aside`."""
    jury: Jury | None = None
    """Hospitals vote between hypotheses about who lies, on patches of their own; null: the defence alone decides. For
    consortia that have no patches for a referee, and at most 30 % malicious hospitals."""
    repair: Repair | None = None
    """Training on patches of the coordinator's own, against backdoors; null: none. It needs `data.root.set_aside`."""

    def demand(self, labels: int = 0) -> Demand:
        """What the detector and a referee, which cuts updates to a norm, ask of the updates; `labels`: see
        `Detector.demand`."""
        cut = self.referee is not None and bool(self.referee.hypotheses)
        return self.detector.demand(labels) | Demand(frozenset({"norms"} if cut else ()))

    @property
    def own_patches(self) -> tuple[str, ...]:
        """Which options use patches of the coordinator's own: `referee`, `repair`, `detector`."""
        found = tuple(name for name in ("referee", "repair") if getattr(self, name) is not None)
        return (*found, "detector") if self.detector.own_patches else found
