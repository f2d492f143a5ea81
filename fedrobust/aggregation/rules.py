"""Robust rules that decide from the Gram matrix alone. D²_ij = ‖u_i − u_j‖², p = prior weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.base import Context, Rule
from fedrobust.aggregation.gram import Combination, Floats, Gram


def honest_majority(name: str, n: int, f: int) -> str | None:
    """The bound n ≥ 2f + 1 that every rule has which an honest majority carries."""
    return None if n > 2 * f else f"{name} needs n ≥ 2f + 1: n = {n}, f = {f}"


def ranking(scores: Floats) -> NDArray[np.intp]:
    """The indices along the last axis from the lowest score to the highest.

    Scores that only rounding tells apart (a relative gap of 1e-12) are ties, which the lower index wins: exact ties are
    common, e.g. after clipping to one norm, and must not depend on the order of summation.
    """
    order = np.argsort(scores, axis=-1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=-1)
    apart = ordered[..., 1:] - ordered[..., :-1] > 1e-12 * np.abs(ordered[..., 1:])
    ranks = np.zeros(scores.shape, dtype=np.intp)
    np.put_along_axis(ranks, order[..., 1:], np.cumsum(apart, axis=-1), axis=-1)
    return np.argsort(ranks, axis=-1, kind="stable")


class Mean(Rule):
    """Weighted average, FedAvg (McMahan et al., AISTATS 2017): no robustness.

    F(u) = Σ p_i u_i. Needs a sum only. Prior: the weights themselves. One Byzantine row moves it anywhere.
    """

    name: Literal["mean"] = "mean"
    needs: ClassVar[frozenset[str]] = frozenset({"sum"})

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The prior."""
        return Combination(gram.prior.copy())


def krum_scores(gram: Gram, f: int) -> Floats:
    """Σ of D²_ij over the n − f − 2 nearest other rows j, for each row i."""
    distances = gram.distances_squared()
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : gram.n - f - 2]
    return np.asarray(nearest.sum(axis=1), dtype=np.float64)


class Krum(Rule):
    """The update closest to its n − f − 2 nearest others (Blanchard et al., NeurIPS 2017).

    F(u) = u_k, k = argmin_i Σ_{j ∈ N_i} D²_ij, N_i the n − f − 2 rows j ≠ i nearest to u_i; of equal scores the lowest
    index. Needs G, n ≥ 2f + 3. Prior: none, a single row is returned. Opens one hospital's update to whoever
    sees the aggregate.
    """

    name: Literal["krum"] = "krum"
    weighs: ClassVar[bool] = False

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 3."""
        return None if n >= 2 * f + 3 else f"krum needs n ≥ 2f + 3: n = {n}, f = {f}"

    def combine(self, gram: Gram, context: Context) -> Combination:
        """One-hot."""
        weights = np.zeros(gram.n)
        weights[ranking(krum_scores(gram, context.f))[0]] = 1.0
        return Combination(weights)


class MultiKrum(Rule):
    """The mean of the m updates of the best Krum scores (Blanchard et al., NeurIPS 2017).

    F(u) = Σ_{i ∈ S} p_i u_i / Σ_{i ∈ S} p_i, S the m rows of the lowest scores Σ_{j ∈ N_i} D²_ij. Needs G, n ≥ 2f + 3.
    Prior: the choice of S counts rows, the mean over S weighs them.
    """

    name: Literal["multi_krum"] = "multi_krum"
    m: Annotated[int, Field(ge=1)] | None = None
    """How many rows are averaged; n − f by default."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 3 and m ≤ n − f."""
        if n < 2 * f + 3:
            return f"multi_krum needs n ≥ 2f + 3: n = {n}, f = {f}"
        if self.m is not None and self.m > n - f:
            return f"multi_krum needs m ≤ n − f: m = {self.m}, n = {n}, f = {f}"
        return None

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The prior on the chosen rows."""
        chosen = ranking(krum_scores(gram, context.f))[: self.m or gram.n - context.f]
        weights = np.zeros(gram.n)
        weights[chosen] = gram.prior[chosen]
        return Combination(weights / weights.sum())


class GeometricMedian(Rule):
    """The point of least summed distance, by smoothed Weiszfeld (RFA: Pillutla et al., IEEE TSP 2022).

    F(u) = argmin_z Σ p_i ‖z − u_i‖, as the fixed point of z ← Σ β_i u_i / Σ β_i, β_i = p_i / max(ν, ‖z − u_i‖), from
    z = Σ p_i u_i. Needs G, n ≥ 2f + 1. Prior: p, as in the paper.
    """

    name: Literal["geometric_median"] = "geometric_median"
    nu: Annotated[float, Field(gt=0)] = 1e-6
    """ν: distances below it count as ν, in the unit of the updates."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-12
    """Stop at a step of this part of the median distance to z."""
    iterations: Annotated[int, Field(ge=1)] = 10_000
    """Stop after so many steps at the latest."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The normalised β."""
        weights = gram.prior
        for _ in range(self.iterations):
            distances = np.sqrt(gram.distances_squared_to(Combination(weights)))
            new = gram.prior / np.maximum(self.nu, distances)
            new /= new.sum()
            step = np.sqrt(gram.squared_norm(Combination(new - weights)))
            weights = new
            if step <= self.tolerance * max(self.nu, float(np.median(distances))):
                break
        return Combination(weights)


class CenteredClipping(Rule):
    """Clipped steps from the last aggregate (Karimireddy, He and Jaggi, ICML 2021).

    v ← v + Σ p_i (u_i − v) min(1, τ / ‖u_i − v‖), repeated, from v = the last aggregate (zero in the first round).
    Needs G and the anchor "momentum", n ≥ 2f + 1. Prior: p. One step moves v by τ at most. The paper's τ grows with the
    spread of the honest updates, which nobody knows: "median" takes the median of ‖u_i − v‖ at each step.
    """

    name: Literal["centered_clipping"] = "centered_clipping"
    anchors: ClassVar[tuple[str, ...]] = ("momentum",)
    tau: Annotated[float, Field(gt=0)] | Literal["median"] = "median"
    """τ: the radius, in the unit of the updates, or the median distance to v."""
    iterations: Annotated[int, Field(ge=1)] = 1
    """How many steps."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The clipped priors; what they leave of 1 stays on the last aggregate."""
        weights, momentum = np.zeros(gram.n), 1.0
        for _ in range(self.iterations):
            distances = np.sqrt(gram.distances_squared_to(Combination(weights, {"momentum": momentum})))
            tau = float(np.median(distances)) if self.tau == "median" else self.tau
            steps = gram.prior * shrink(distances, tau)
            weights = weights * (1.0 - steps.sum()) + steps
            momentum *= 1.0 - steps.sum()
        return Combination(weights, {"momentum": momentum} if "momentum" in gram.anchors else {})


def shrink(norms: Floats, radius: float) -> Floats:
    """min(1, radius / norm) for each norm; 1 for a zero vector."""
    return np.minimum(1.0, np.divide(radius, norms, out=np.ones_like(norms), where=norms > 0))
