"""What a pipeline returns: an aggregate, how it will be computed, and what each part saw and found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation.base import Context
from fedrobust.updates.gram import Combination, Floats, Gram
from fedrobust.updates.interface import Reduction


@dataclass(frozen=True, eq=False)
class Step:
    """What one part of a pipeline computed for the original rows.

    name: of the part.
    scores: (n,) the scores of the rows, higher is worse, NaN for a row that an earlier stage left out; None if the part
        does not score rows.
    weights: (n,) the weights of the rows in the (prior-weighted) mean of the rows after a stage, or in the aggregate;
        None if a rule gives no weights.
    """

    name: str
    scores: Floats | None
    weights: Floats | None


@dataclass(frozen=True, eq=False)
class Aggregated:
    """The result of a pipeline.

    aggregate: (d,) float32.
    weights: (n,) float64, of the original rows; None if the rule gives no weights.
    anchors: the coefficient of each anchor.
    gram: of the original rows; None if it was not computed.
    steps: what each stage and the rule computed.
    state: for the next round's `Context`.
    notes: for the run's record, see `Combination`.

    The weights and the coefficients of the anchors give the aggregate, but for its noise: Σ weights_i u_i + Σ
    anchors[name] v_name.
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
    """How the aggregate will be computed.

    decided: weights of the original rows, or a reduction of the rows that `mixing` makes of them.
    mixing: (m, n) the product of the stages' matrices; None: no stage mixes the rows.
    gram: of the original rows.
    context: what the parts could use.
    seen: what each part saw.
    """

    decided: Combination | Reduction
    mixing: Floats | None
    gram: Gram | None
    context: Context
    seen: tuple[Seen, ...]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a part of a pipeline sees: a Gram of mixed rows, the matrix `total` (m, n) that made them from the original
    rows (None: they are the original rows), and whether rows were merged on the way.
    """

    gram: Gram
    total: Floats | None
    merged: bool

    def of_rows(self, scores: Floats | None) -> Floats | None:
        """Scores (m,) of its rows, as scores (n,) of the original rows: where rows were merged, the mean over the rows
        that an original row is part of.
        """
        if scores is None or self.total is None or not self.merged:
            return scores
        parts = np.abs(self.total)
        shares = parts.sum(axis=0)
        spread: Floats = np.divide(scores @ parts, shares, out=np.full(len(shares), np.nan), where=shares > 0)
        return spread
