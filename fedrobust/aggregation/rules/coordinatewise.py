"""Rules that decide each coordinate from the rows' values there; they need the rows, so they run in the clear only."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.base import Context, CoordinateRule, RowRule, honest_majority
from fedrobust.aggregation.numerics import ranking
from fedrobust.aggregation.rules import order_statistics
from fedrobust.aggregation.rules.selection import krum_scores
from fedrobust.updates import chunks
from fedrobust.updates.chunks import Chunk
from fedrobust.updates.gram import Floats, Gram
from fedrobust.updates.interface import Reduction

if TYPE_CHECKING:
    from fedrobust.aggregation.base import Rows


class Median(CoordinateRule):
    """The median of each coordinate (Yin et al., ICML 2018).

    F(u)_k = median of u_1k … u_nk, for an even n the mean of the two middle values. Needs the rows, n ≥ 2f + 1.
    Prior: none, it counts rows.
    """

    name: Literal["median"] = "median"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling", "breakdown"})

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def reduce(self, rows: Chunk, context: Context) -> Chunk:
        """The median of each column. Arguments as for `CoordinateRule.reduce`."""
        return order_statistics.median(rows)


class TrimmedMean(CoordinateRule):
    """The mean of each coordinate without its f smallest and f greatest values (Yin et al., ICML 2018).

    F(u)_k = mean of the n − 2f values of u_1k … u_nk in the middle. Needs the rows, n ≥ 2f + 1. Prior: none, it counts
    rows.
    """

    name: Literal["trimmed_mean"] = "trimmed_mean"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling", "breakdown"})

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def reduce(self, rows: Chunk, context: Context) -> Chunk:
        """The trimmed mean of each column. Arguments as for `CoordinateRule.reduce`."""
        return order_statistics.trimmed_mean(rows, context.f)


class MeaMed(CoordinateRule):
    """The mean of each coordinate's n − f values nearest to their median (Xie, Koyejo and Gupta, 2018).

    F(u)_k = mean of the n − f values of u_1k … u_nk of the least |u_ik − median_k|; of equal distances the lower value.
    Needs the rows, n ≥ 2f + 1. Prior: none, it counts rows.
    """

    name: Literal["meamed"] = "meamed"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling", "breakdown"})

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def reduce(self, rows: Chunk, context: Context) -> Chunk:
        """The mean around the median of each column. Arguments as for `CoordinateRule.reduce`."""
        return order_statistics.mean_around_median(rows, len(rows) - context.f)


class Bulyan(RowRule):
    """The mean around the median of rows that Krum picks one by one (El Mhamdi, Guerraoui and Rouault, ICML 2018).

    S: θ = n − 2f rows, of which each is Krum's choice among the m rows that are left, by Σ D²_ij over the m − f − 2
    nearest others; F(u)_k = mean of the θ − 2f values of u_ik, i ∈ S, nearest to their median. Needs G and the rows,
    n ≥ 4f + 3. Prior: none, it counts rows. Of equal scores it picks the row that scored lower at the first pick: with
    f ≤ 2, the last picks count one neighbour, so that the two nearest rows tie, or none.
    """

    name: Literal["bulyan"] = "bulyan"
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "rows"})
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling", "breakdown"})

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 4f + 3."""
        return None if n >= 4 * f + 3 else f"bulyan needs n ≥ 4f + 3: n = {n}, f = {f}"

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The scores of the first pick."""
        return krum_scores(gram.distances_squared(), context.f)

    def decide(self, rows: Rows, context: Context) -> Reduction:
        """The mean around the median of the picked rows."""
        f, distances = context.f, rows.gram.distances_squared()
        left = ranking(krum_scores(distances, f))
        for _ in range(rows.n - 2 * f):
            scores = krum_scores(distances[np.ix_(left, left)], f)
            left = np.delete(left, ranking(scores)[0])
        picked = np.setdiff1d(np.arange(rows.n), left)
        return partial(_around_median_of, picked=picked, keep=rows.n - 4 * f)


def _around_median_of(rows: Chunk, columns: slice, picked: NDArray[np.intp], keep: int) -> Chunk:
    return order_statistics.mean_around_median(rows[picked], keep)


class SignVote(RowRule):
    """A step in the direction of most rows, coordinate by coordinate (Bernstein et al., ICLR 2019).

    F(u)_k = η sign Σ sign(u_ik): zero where the vote is a tie. Needs the rows, n ≥ 2f + 1. Prior: none, it counts rows.

    The paper votes on gradients, and η is its learning rate. Here a row is the change by a client's training, and η is
    how far each weight moves in a round. The paper tunes η; "median" is the mean change of a weight, in the row whose
    mean change is the median, so that the aggregate shrinks as training converges. The size of a value does not count:
    where the honest rows disagree on a sign, few votes decide it.
    """

    name: Literal["sign_vote"] = "sign_vote"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "breakdown"})
    step: Annotated[float, Field(gt=0)] | Literal["median"] = "median"
    """η: a change of each weight, in the unit of the updates, or the median over the rows of Σ_k |u_ik| / d."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def decide(self, rows: Rows, context: Context) -> Reduction:
        """The vote, times the step. Arguments as for `RowRule.decide`."""
        step = float(np.median(rows.total(_sizes))) / rows.d if self.step == "median" else self.step
        return partial(_vote, step=step)


def _sizes(rows: Chunk, columns: slice) -> NDArray[Any]:
    """Σ_k |u_ik| (m,)."""
    return chunks.host(chunks.double(abs(rows)).sum(1))


def _vote(rows: Chunk, columns: slice, step: float) -> Chunk:
    return chunks.double(chunks.sign(chunks.sign(rows).sum(0))) * step


class RLR(RowRule):
    """The mean, with its sign reversed where too few rows agree on one (Ozdayi, Kantarcioglu and Gel, AAAI 2021).

    F(u)_k = μ_k if |Σ_i sign(u_ik)| ≥ θ, else −μ_k, μ = Σ p_i u_i: the robust learning rate. Made against backdoors,
    whose coordinates only the attackers move. Needs the rows and f < θ ≤ n − 2f: f rows alone must not reach θ, and
    must not reverse a coordinate on which all others agree. Prior: the mean weighs rows, the vote counts them.

    The paper tunes θ, well above f: 4 for n = 10 with f = 1, 8 for n = 40 with f = 4. A greater θ also reverses more
    coordinates on which honest rows disagree. One row can move the mean anywhere: clip first.
    """

    name: Literal["rlr"] = "rlr"
    weighs: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling"})
    threshold: Annotated[int, Field(ge=1)] | None = None
    """θ; f + 1 by default, the smallest number that f rows alone do not reach."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure f < θ ≤ n − 2f."""
        if self.threshold is None:
            return None if n >= 3 * f + 1 else f"rlr needs n ≥ 3f + 1: n = {n}, f = {f}"
        if f < self.threshold <= n - 2 * f:
            return None
        return f"rlr needs f < threshold ≤ n − 2f: threshold = {self.threshold}, n = {n}, f = {f}"

    def decide(self, rows: Rows, context: Context) -> Reduction:
        """The mean of each column, with its sign or reversed. Arguments as for `RowRule.decide`."""
        return partial(_turned, prior=rows.prior, threshold=self.threshold or context.f + 1)


def _turned(rows: Chunk, columns: slice, prior: Floats, threshold: int) -> Chunk:
    mean = chunks.combined(chunks.double(rows), prior)
    return chunks.where(abs(chunks.sign(rows).sum(0)) >= threshold, mean, -mean)
