"""Pre-aggregations: mixing matrices that a pipeline applies before its rule."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedrobust.aggregation.base import Context, Stage, honest_majority
from fedrobust.aggregation.numerics import ranking, shrink
from fedrobust.options import refusal
from fedrobust.updates.gram import Floats, Gram


class Clip(Stage):
    """Scale updates down to a largest norm (Sun et al., 2019).

    u_i ← u_i min(1, c / ‖u_i‖). Needs norms. Prior: row i keeps prior i. Clipping alone is no robust rule: it bounds
    what a row can do to the mean. Byzantine rows can set a quantile above (n − f − 1) / (n − 1); it then bounds
    nothing.
    """

    name: Literal["clip"] = "clip"
    needs: ClassVar[frozenset[str]] = frozenset({"norms"})
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "breakdown"})
    radius: Annotated[float, Field(gt=0)] | Literal["median", "quantile"] = "median"
    """c: a norm in the unit of the updates, or the median or a quantile of the norms of this round's updates, each
    counted once."""
    quantile: Annotated[float, Field(gt=0, le=1)] | None = None
    """Which quantile, with radius "quantile": 1 is the largest norm."""

    @model_validator(mode="after")
    def _one_radius(self) -> Clip:
        if (self.quantile is None) == (self.radius == "quantile"):
            raise refusal('expected together with radius: "quantile", and only there', "quantile")
        return self

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The norms."""
        return gram.norms()

    def mix(self, gram: Gram, context: Context) -> Floats:
        """The mixing matrix, diagonal."""
        norms = gram.norms()
        if isinstance(self.radius, str):
            return np.diag(shrink(norms, float(np.quantile(norms, self.quantile or 0.5))))
        return np.diag(shrink(norms, self.radius))


class NNM(Stage):
    """Nearest-neighbour mixing (Allouah et al., AISTATS 2023).

    u_i ← mean of the n − f rows nearest to u_i, itself included; of equal distances the lower index. The rule that
    follows becomes optimally robust under heterogeneity. Needs G, n ≥ 2f + 1. Prior: neighbours count once each; row i
    keeps prior i.
    """

    name: Literal["nnm"] = "nnm"
    spreads: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling", "breakdown"})

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The mean of D²_ij over the n − f rows that are averaged."""
        nearest = _nearest(gram, context.f)
        return np.asarray(np.take_along_axis(gram.distances_squared(), nearest, axis=1).mean(axis=1))

    def mix(self, gram: Gram, context: Context) -> Floats:
        """The mixing matrix: each row has n − f entries 1 / (n − f)."""
        nearest = _nearest(gram, context.f)
        mixing = np.zeros((gram.n, gram.n))
        np.put_along_axis(mixing, nearest, 1.0 / nearest.shape[1], axis=1)
        return mixing


def _nearest(gram: Gram, f: int) -> NDArray[np.intp]:
    """The n − f nearest rows of each row (n, n − f)."""
    key = "nearest", f
    if key not in gram.found:
        gram.found[key] = ranking(gram.distances_squared())[:, : gram.n - f]
    return gram.found[key]


class ARC(Stage):
    """Adaptive robust clipping (Allouah et al., ICLR 2025).

    u_i ← u_i min(1, c / ‖u_i‖), c the (k + 1)-th largest norm, k = ⌊2 (f / n) (n − f)⌋. As k ≥ f, c is at most the
    largest norm of an honest row. A rule that is robust without it stays so. Needs norms, n ≥ 2f + 1. Prior: row i
    keeps prior i.
    """

    name: Literal["arc"] = "arc"
    needs: ClassVar[frozenset[str]] = frozenset({"norms"})
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "breakdown"})

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The norms."""
        return gram.norms()

    def mix(self, gram: Gram, context: Context) -> Floats:
        """The mixing matrix, diagonal."""
        norms, clipped = gram.norms(), 2 * context.f * (gram.n - context.f) // gram.n
        return np.diag(shrink(norms, float(np.sort(norms)[gram.n - 1 - clipped])))


class Bucketing(Stage):
    """Means of random groups of rows (Karimireddy, He and Jaggi, ICLR 2022).

    A random order of the rows is cut into m = ⌈n / s⌉ buckets of s, the last one smaller, and each becomes its mean.
    That makes rows of different hospitals more alike. But f rows can spoil f of only m buckets: needs m ≥ 2f + 1, and
    the rule that follows gets m rows of which f are Byzantine. Needs a sum only. Prior: the mean of a bucket weighs its
    members, and the bucket's prior is the sum of theirs, so that the mean of all rows is the same; a smaller bucket
    weighs less.
    """

    name: Literal["bucketing"] = "bucketing"
    needs: ClassVar[frozenset[str]] = frozenset({"sum"})
    merges: ClassVar[bool] = True
    spreads: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"translation", "scaling", "breakdown"})
    s: Annotated[int, Field(ge=1)] = 2
    """Rows per bucket."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure m ≥ 2f + 1."""
        m = self.rows(n)
        return None if m > 2 * f else f"bucketing needs ⌈n / s⌉ ≥ 2f + 1: n = {n}, s = {self.s}, f = {f}"

    def rows(self, n: int) -> int:
        """The number of buckets."""
        return -(-n // self.s)

    def mix(self, gram: Gram, context: Context) -> Floats:
        """The mixing matrix: each column has one entry."""
        order = context.generator.permutation(gram.n) if self.s > 1 else np.arange(gram.n)  # with n rows, i stays i
        mixing = np.zeros((self.rows(gram.n), gram.n))
        mixing[np.arange(gram.n) // self.s, order] = gram.prior[order]
        mixing /= mixing.sum(axis=1, keepdims=True)
        return mixing
