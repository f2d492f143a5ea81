"""Rules that look at the directions in which the rows vary most. All are found from B_ij = ⟨u_i − μ, u_j − μ⟩."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.base import Context, Rule, honest_majority
from fedrobust.aggregation.numerics import ranking
from fedrobust.aggregation.rules.least_scatter import about_mean, least_scatter
from fedrobust.aggregation.rules.selection import mean_of
from fedrobust.updates.gram import Combination, Floats, Gram

EQUAL = 1e-9
"""Top eigenvalues with a smaller relative gap count as one: their eigenvectors are arbitrary."""


class SMEA(Rule):
    """Smallest maximum eigenvalue averaging (Allouah et al., ICML 2023).

    F(u) = Σ_{i ∈ S} p_i u_i / Σ_{i ∈ S} p_i, S the n − f rows with the least top eigenvalue of their covariance
    Σ_{i ∈ S} (u_i − μ_S)(u_i − μ_S)ᵀ / (n − f); of equal ones (a relative gap of 1e-12) the first in lexicographic
    order. Needs G, n ≥ 2f + 1. Prior: the choice of S counts rows, the mean over S weighs them. A row's score is its
    distance to μ_S.

    The paper tries all subsets. Here rows are dropped greedily, then exchanged one by one and two by two. Then a branch
    and bound search finds a better subset, or proves that there is none: on one core in 5 ms for n = 20, f = 4 and up
    to 40 ms for f = 9. A search that is cut short says so in the notes and keeps the best subset it has found, which
    may then depend on the order of the rows. That is common from n = 30, f = 8 on where f rows are not outliers; the
    round then takes 0.05 s for n = 50, 0.2 s for n = 100 and 1 s for n = 200.
    """

    name: Literal["smea"] = "smea"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling", "breakdown"})
    nodes: Annotated[int, Field(ge=0)] | None = None
    """The search is cut short after so many nodes; 2,500,000 / n² by default, which takes 30 ms (n = 20) to 80 ms
    (n = 100). 0: only greedy drops and exchanges."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The prior on the chosen rows."""
        chosen, exact = self._choose(gram, context)
        note = f"smea: n = {gram.n}, f = {context.f}: search cut short, best subset found"
        return mean_of(chosen, gram, () if exact else (note,))

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The distances to the mean of the chosen rows, each counted once."""
        chosen, _ = self._choose(gram, context)
        weights = np.zeros(gram.n)
        weights[chosen] = 1.0 / len(chosen)
        return np.sqrt(gram.distances_squared_to(Combination(weights)))

    def _choose(self, gram: Gram, context: Context) -> tuple[NDArray[np.intp], bool]:
        nodes = 2_500_000 // gram.n**2 if self.nodes is None else self.nodes
        chosen, exact = least_scatter(_scaled_distances(gram).tobytes(), gram.n, context.f, nodes)
        return np.array(chosen, dtype=np.intp), exact


class CAF(Rule):
    """Covariance bound-agnostic filter (Allouah et al., ICML 2025).

    From c_i = 1: μ = Σ c_i u_i / Σ c_i, Σ_c = Σ c_i (u_i − μ)(u_i − μ)ᵀ / Σ c_i with top eigenvector v₁,
    τ_i = ⟨u_i − μ, v₁⟩², c_i ← c_i (1 − τ_i / τ_max), as long as Σ c_i > n − 2f. F(u) = Σ p_i c_i u_i / Σ p_i c_i for
    the c whose Σ_c has the least top eigenvalue; of equal ones the first. τ_max is that of the rows with c_i > 0, so
    each step removes one of them. Needs G, n ≥ 2f + 1; with f = 0 it is the mean. Prior: the filter counts rows, the
    mean weighs them by p_i c_i. A row's score is 1 − c_i.

    Small changes of the rows may change c much where the top eigenvalues are close. Of equal ones (a relative gap of
    1e-9), τ sums over the eigenvectors, and τ_i within 1e-12 of τ_max is τ_max.
    """

    name: Literal["caf"] = "caf"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling", "breakdown"})

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """p_i c_i, normalised."""
        weights = gram.prior * (1.0 - self.scores(gram, context))
        return Combination(weights / weights.sum())

    def scores(self, gram: Gram, context: Context) -> Floats:
        """1 − c_i, the share of each row that the filter removed."""
        distances = _scaled_distances(gram)
        counts = np.ones(gram.n)
        best, least = counts, math.inf
        while True:
            left = np.flatnonzero(counts)
            value, tau = _spread(distances[np.ix_(left, left)], counts[left])
            if value < least * (1.0 - 1e-12):
                best, least = counts, value
            ratios = tau / tau.max() if value > 0 else np.ones(len(left))
            counts = counts.copy()
            counts[left] *= np.where(ratios > 1.0 - 1e-12, 0.0, 1.0 - ratios)
            if counts.sum() <= (gram.n - 2 * context.f) * (1.0 + 1e-12):
                return 1.0 - best


class DnC(Rule):
    """Divide and conquer (Shejwalkar and Houmansadr, NDSS 2021), with all coordinates.

    F(u) = Σ_{i ∈ S} p_i u_i / Σ_{i ∈ S} p_i, S all rows except the ⌈c f⌉ of greatest τ_i = ⟨u_i − μ, v₁⟩², μ the mean
    of all rows, v₁ the top eigenvector of their covariance; of equal ones (a relative gap of 1e-12) the higher index
    goes. Needs G, n ≥ 2f + 1, c f < n. Prior: the choice of S counts rows, the mean over S weighs them. A row's score
    is τ_i; of equal top eigenvalues (a relative gap of 1e-9), τ sums over the eigenvectors.

    To save time, the paper computes τ on random subsets of the coordinates and keeps the rows that pass in each of
    several iterations. On all coordinates every iteration gives the same result, so there is one, and nothing is drawn.
    The rule looks in one direction: rows that are malicious in another one stay, however large they are.
    """

    name: Literal["dnc"] = "dnc"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling"})
    c: Annotated[float, Field(gt=0)] = 1.0
    """The filtering factor: how many rows are dropped for each Byzantine one."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1 and that at least one row is left."""
        if reason := honest_majority(self.name, n, f):
            return reason
        return None if self._dropped(f) < n else f"dnc needs c·f < n: c = {self.c:g}, n = {n}, f = {f}"

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The prior on the rows that are left."""
        order = ranking(self.scores(gram, context))
        return mean_of(order[: gram.n - self._dropped(context.f)], gram)

    def scores(self, gram: Gram, context: Context) -> Floats:
        """τ, as a fraction of the greatest squared distance of two rows."""
        return _spread(_scaled_distances(gram), np.ones(gram.n))[1]

    def _dropped(self, f: int) -> int:
        return math.ceil(self.c * f - 1e-9)  # 1.1 · 10 is a little above 11


def _scaled_distances(gram: Gram) -> Floats:
    """D² as fractions of the greatest one, so that their squares neither overflow nor vanish."""
    distances = gram.distances_squared()
    return distances / (distances.max() or 1.0)


def _spread(distances: Floats, weights: Floats) -> tuple[float, Floats]:
    """The top eigenvalue of the weighted covariance of the rows, and τ (k,): ⟨u_i − μ, v⟩² for its eigenvector v."""
    products, roots = about_mean(distances, weights), np.sqrt(weights / weights.sum())
    eigenvalues, vectors = np.linalg.eigh(products * np.outer(roots, roots))
    top = eigenvalues > max(eigenvalues[-1] * (1.0 - EQUAL), 0.0)
    along = products @ (roots[:, None] * vectors[:, top])
    return max(float(eigenvalues[-1]), 0.0), np.asarray((along**2 / eigenvalues[top]).sum(axis=1))
