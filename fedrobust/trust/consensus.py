"""The anomaly score of the project's own defence: which clients disagree with the majority of the moving averages."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.aggregation import Adaptive, Context, Gram
from fedrobust.aggregation.rules.adaptive import reached
from fedrobust.trust.anomaly import Detector, Scores

LONG = 1.5
"""An update longer than this multiple of the usual norm counts as long; at twice the multiple, the part `length` is 1.
"""


class Consensus(Detector):
    """Scores from the weights that the rule `adaptive` gives the updates, whatever the experiment's own rule is.

    q_i = w_i / max w, the weight that `adaptive` gives row i (of equal priors), r the norm that holds 3/4 of the
    weights. The parts are
    - `consensus`: max(0, 1 − q_i / `least`) · (1 + min(1, ‖u_i‖ / median norm)) / 2: rows of little weight; a short
      row scores one half at most, as it can do little harm;
    - `length`: (‖u_i‖ / r − 1.5) / 1.5, between 0 and 1: for a client that turns malicious, whose average stays good
      for some rounds.
    The score is the larger one.

    Unlike `robust_z` it finds colluders at 40 %, and few honest hospitals: those with data of one kind only and
    similar updates count as copies of each other. docs/adaptive.md has figures.
    """

    name: Literal["consensus"] = "consensus"
    rule: Adaptive = Adaptive()
    """The rule, with options of its own."""
    least: float = Field(default=0.2, gt=0, le=1)
    """The weight, as a fraction of the greatest, from which on a row is not suspected."""

    @property
    def histories(self) -> tuple[str, ...]:
        return self.rule.histories

    def score(self, gram: Gram, context: Context) -> Scores:
        """The scores. With fewer than three rows there is no majority, and all are 0."""
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
