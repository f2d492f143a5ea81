"""Trust: anomaly scores of a round's updates, and the reputation that grows out of them."""

from __future__ import annotations

from typing import Annotated

from fedrobust.options import OneOf, Options
from fedrobust.trust.anomaly import Detector, RobustZ, Scores, detection
from fedrobust.trust.reputation import BetaReputation, Reputation, State

__all__ = ["BetaReputation", "Detector", "Reputation", "RobustZ", "Scores", "State", "Trust", "detection"]


class Trust(Options):
    """Anomaly scores and reputations of every round. They are recorded only, and do not act on the weights yet."""

    detector: Annotated[Detector, OneOf(Detector)] = RobustZ()
    """What scores the updates of a round."""
    reputation: Annotated[Reputation, OneOf(Reputation)] = BetaReputation()
    """What the scores of all rounds add up to."""
