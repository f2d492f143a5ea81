"""The anomaly score of the project's own defence: who does not belong to what the moving averages agree on."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.aggregation import Adaptive, Context, Gram
from fedrobust.aggregation.rules.adaptive import reached
from fedrobust.trust.anomaly import Detector, Scores

LONG = 1.5
"""An update of so many times the usual norm begins to be long, and of twice that is as long as can be."""


class Consensus(Detector):
    """Outlyingness by what the rule `adaptive` makes of the updates and their moving averages, whatever the rule is.

    q_i = w_i / max w, the weight that `adaptive` gives row i (of equal priors), r the norm that holds 3/4 of the
    weights. The parts are
    - `consensus`: max(0, 1 − q_i / `least`) · (1 + min(1, ‖u_i‖ / median norm)) / 2: who counts for nothing; a row that
      is short scores one half at most, as it can do little harm;
    - `length`: (‖u_i‖ / r − 1.5) / 1.5, between 0 and 1: for a betrayer, whose average is good for some rounds more.
    The score is the larger one.

    Unlike `robust_z` it finds colluders at 40 %, and few honest hospitals: those whose data are of one kind only, and
    who do alike, count as copies of each other. docs/adaptive.md has figures.
    """

    name: Literal["consensus"] = "consensus"
    rule: Adaptive = Adaptive()
    """The rule, with options of its own."""
    least: float = Field(default=0.2, gt=0, le=1)
    """The weight, as a part of the greatest, from which on a row is above suspicion."""

    @property
    def histories(self) -> tuple[str, ...]:
        return self.rule.histories

    def score(self, gram: Gram, context: Context) -> Scores:
        """The scores. With fewer than three rows there is no majority to differ from, and all are 0."""
        norms = gram.norms()
        if gram.n < 3 or not norms.any():
            zeros = np.zeros(gram.n)
            return Scores(zeros, {"consensus": zeros, "length": zeros}, context.state)
        equal = gram.weighted(np.ones(gram.n))
        weights, state = self.rule.judged(equal, context)
        impact = np.minimum(1.0, norms / max(float(np.median(norms)), np.finfo(float).tiny))
        usual = max(reached(norms, weights, self.rule.reach), np.finfo(float).tiny)
        parts = {
            "consensus": np.maximum(0.0, 1.0 - weights / weights.max() / self.least) * (1.0 + impact) / 2.0,
            "length": np.clip((norms / usual - LONG) / LONG, 0.0, 1.0),
        }
        return Scores(np.maximum(parts["consensus"], parts["length"]), parts, state)
