"""Pre-aggregations: mixing matrices that a pipeline applies before its rule."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedrobust.aggregation.base import Context, Stage
from fedrobust.aggregation.gram import Floats, Gram
from fedrobust.aggregation.rules import honest_majority, ranking, shrink


class Clip(Stage):
    """Scale updates down to a largest norm (Sun et al., 2019).

    u_i ← u_i min(1, c / ‖u_i‖). Needs G. Prior: row i keeps prior i. Clipping alone is no robust rule: it bounds what a
    row can do to the mean.
    """

    name: Literal["clip"] = "clip"
    radius: Annotated[float, Field(gt=0)] | Literal["median"] = "median"
    """c: a norm in the unit of the updates, or the median norm of this round's updates, each counted once."""

    def mix(self, gram: Gram, context: Context) -> Floats:
        """A diagonal matrix."""
        norms = gram.norms()
        radius = float(np.median(norms)) if self.radius == "median" else self.radius
        return np.diag(shrink(norms, radius))


class NNM(Stage):
    """Nearest-neighbour mixing (Allouah et al., AISTATS 2023).

    u_i ← mean of the n − f rows nearest to u_i, itself included; of equal distances the lower index. The rule that
    follows becomes optimally robust under heterogeneity. Needs G, n ≥ 2f + 1. Prior: neighbours count once each; row i
    keeps prior i.
    """

    name: Literal["nnm"] = "nnm"

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def mix(self, gram: Gram, context: Context) -> Floats:
        """Each row has n − f entries 1 / (n − f)."""
        kept = gram.n - context.f
        nearest = ranking(gram.distances_squared())[:, :kept]
        mixing = np.zeros((gram.n, gram.n))
        np.put_along_axis(mixing, nearest, 1.0 / kept, axis=1)
        return mixing
