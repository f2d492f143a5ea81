"""Averages, robust ones too, from the Gram matrix alone. D²_ij = ‖u_i − u_j‖², p = prior weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrobust.aggregation.base import Context, Rule, honest_majority
from fedrobust.aggregation.numerics import shrink
from fedrobust.updates.gram import Combination, Floats, Gram

DISTANCE_DIGITS = 2e-8
"""The relative precision of a distance from a Gram matrix, compared with a typical distance."""


class Mean(Rule):
    """Weighted average, FedAvg (McMahan et al., AISTATS 2017): no robustness.

    F(u) = Σ p_i u_i. Needs a sum only. Prior: the weights themselves. One Byzantine row moves it anywhere.
    """

    name: Literal["mean"] = "mean"
    needs: ClassVar[frozenset[str]] = frozenset({"sum"})
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "scaling"})

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The prior."""
        return Combination(gram.prior.copy())


class GeometricMedian(Rule):
    """The point of least summed distance, smoothed (RFA: Pillutla et al., IEEE TSP 2022).

    F(u) = argmin_z Σ p_i h(‖z − u_i‖), h(r) = r from ν on and (r² / ν + ν) / 2 below: the fixed point of the paper's
    Weiszfeld steps z ← Σ β_i u_i / Σ β_i, β_i = p_i / max(ν, ‖z − u_i‖). Needs G, n ≥ 2f + 1. Prior: p.

    The paper takes a few of these steps from the mean. Near a row, or with rows of very different size, they converge
    slowly. So here each is a damped Newton step, solved in the span of the rows, and the first z is the row of least
    sum. Where the minimum is not unique (an even number of rows on a line) the result is one of the minima.
    """

    name: Literal["geometric_median"] = "geometric_median"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "translation", "breakdown"})
    nu: Annotated[float, Field(gt=0)] = 1e-6
    """ν: smaller distances count as ν, in the unit of the updates; at least the precision of a distance."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-12
    """Stop when a step is smaller than this fraction of the median distance to z."""
    iterations: Annotated[int, Field(ge=1)] = 1000
    """The largest number of steps."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def scores(self, gram: Gram, context: Context) -> Floats:
        """‖u_i − F(u)‖."""
        return np.sqrt(gram.distances_squared_to(self.combine(gram, context)))

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The weights of the minimum."""
        asked = self.nu, self.tolerance, self.iterations
        if asked not in gram.found:
            gram.found[asked] = self._minimum(gram)
        return Combination(gram.found[asked].copy())

    def _minimum(self, gram: Gram) -> Floats:
        nearest_half = np.median(
            np.sqrt(gram.distances_squared()), axis=1
        )  # f huge rows cannot raise the least of them
        nu = max(self.nu, DISTANCE_DIGITS * float(nearest_half.min()))
        weights, damping = _best_rows(gram, nu), 0.0
        for _ in range(self.iterations):
            around = gram.around(weights)  # u_i − z
            products, old = around.matrix, around.norms()
            beta = gram.prior / np.maximum(nu, old)
            length, scale = np.where(old > 0, old, 1.0), max(nu, float(np.median(old)))
            # Newton's step Σ a_i (u_i − z), from the unit vectors (u_i − z) / ‖u_i − z‖: scales differ by many powers.
            curved = np.where(old > nu, beta, 0.0)[:, None] * products / np.outer(length, length)
            while True:
                system = (1.0 + damping) * beta.sum() * np.eye(gram.n) - curved
                last = damping >= 1e3  # then Weiszfeld's step, which never ascends
                step = beta / beta.sum() if last else _solved(system, beta * old) / length
                square = max(0.0, float(step @ products @ step))
                ascent = float(_ascents(gram.prior, old, square - 2.0 * products @ step, nu))
                if last or ascent <= 1e-13 * scale:
                    break
                damping = max(10.0 * damping, 1e-3)
            gained, length_of_step = ascent < -1e-15 * scale, float(np.sqrt(square))
            if not gained and length_of_step > 1e-7 * scale:
                break  # along minima that are equal: rounding errors would choose
            weights = weights * (1.0 - step.sum()) + step
            damping = damping / 100.0 if damping > 1e-3 else 0.0
            # A short step without a gain is a rounding error.
            if length_of_step <= (self.tolerance if gained else 1e-7) * scale:
                break
        return weights


def _smoothed(distances: Floats, nu: float) -> Floats:
    """h(r)."""
    return np.where(distances < nu, (distances**2 / nu + nu) / 2.0, distances)


def _best_rows(gram: Gram, nu: float) -> Floats:
    """The weights (n,) of the row of least sum; of several such rows, of their mean."""
    sums = _smoothed(np.sqrt(gram.distances_squared()), nu) @ gram.prior
    around = gram.around(np.eye(gram.n)[np.argmin(sums)])
    old, squares = around.norms(), np.diag(around.matrix)
    ascents = _ascents(gram.prior, old, squares[:, None] - 2.0 * around.matrix, nu)
    best = ascents <= ascents.min() + 1e-12 * float(np.median(old))
    return np.asarray(best / best.sum())


def _ascents(prior: Floats, old: Floats, change: Floats, nu: float) -> Floats:
    """By how much the sum grows when the squared distances, once `old`² (n,), change by `change` (…, n).

    The difference of the sums would lose its digits where some rows are huge.
    """
    new = np.sqrt(np.maximum(old**2 + change, 0.0))
    outside = (old >= nu) & (new >= nu)
    inside = (old < nu) & (new < nu)
    grown = np.where(inside, change / (2.0 * nu), _smoothed(new, nu) - _smoothed(old, nu))
    grown = np.divide(change, old + new, out=grown, where=outside)
    return np.asarray(grown @ prior)


def _solved(system: Floats, target: Floats) -> Floats:
    try:
        return np.asarray(np.linalg.solve(system, target), dtype=np.float64)
    except np.linalg.LinAlgError:  # rows on a line
        return np.asarray(np.linalg.lstsq(system, target, rcond=None)[0], dtype=np.float64)


class CenteredClipping(Rule):
    """Clipped steps from the last aggregate (Karimireddy, He and Jaggi, ICML 2021).

    v ← v + Σ p_i (u_i − v) min(1, τ / ‖u_i − v‖), repeated, from v = the last aggregate (zero in the first round).
    Needs norms and the anchor "momentum", for more than one step G; n ≥ 2f + 1. Prior: p. One step moves v by τ at
    most. The paper's τ grows with the spread of the honest updates, which is not known: "median" takes the median of
    ‖u_i − v‖ at each step.
    """

    name: Literal["centered_clipping"] = "centered_clipping"
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "breakdown"})
    anchors: ClassVar[tuple[str, ...]] = ("momentum",)
    tau: Annotated[float, Field(gt=0)] | Literal["median"] = "median"
    """τ: the radius, in the unit of the updates, or the median distance to v."""
    iterations: Annotated[int, Field(ge=1)] = 1
    """Number of steps."""

    def asks(self) -> frozenset[str]:
        """Norms and the anchor tell the distances to the last aggregate; those to later v depend on all products."""
        return frozenset({"norms"}) if self.iterations == 1 else self.needs

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def scores(self, gram: Gram, context: Context) -> Floats:
        """‖u_i − v‖ for the last aggregate v."""
        return np.sqrt(gram.distances_squared_to(Combination(np.zeros(gram.n), {"momentum": 1.0})))

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The clipped priors; the rest of 1 is the coefficient of the last aggregate."""
        weights, momentum = np.zeros(gram.n), 1.0
        for _ in range(self.iterations):
            distances = np.sqrt(gram.distances_squared_to(Combination(weights, {"momentum": momentum})))
            tau = float(np.median(distances)) if self.tau == "median" else self.tau
            steps = gram.prior * shrink(distances, tau)
            weights = weights * (1.0 - steps.sum()) + steps
            momentum *= 1.0 - steps.sum()
        return Combination(weights, {"momentum": momentum} if "momentum" in gram.anchors else {})


class NormBound(Rule):
    """The mean of updates of bounded norm, plus optional noise (Sun et al., 2019).

    F(u) = Σ p_i u_i min(1, c / ‖u_i‖) + N(0, σ² I). Needs norms, n ≥ 2f + 1. Prior: p. The paper's c is a fixed norm
    that suits its task. A row moves the mean by p_i c at most: that stops one large row, but not f rows over many
    rounds. The paper calls the noise weak differential privacy: too little for a privacy guarantee.
    """

    name: Literal["norm_bound"] = "norm_bound"
    needs: ClassVar[frozenset[str]] = frozenset({"norms"})
    radius: Annotated[float, Field(gt=0)] | Literal["median"] = "median"
    """c: a norm in the unit of the updates, or the median norm of this round's updates, each counted once."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """σ: standard deviation of the noise in each coordinate of the mean, in the unit of the updates."""
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "breakdown"})

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def scores(self, gram: Gram, context: Context) -> Floats:
        """The norms."""
        return gram.norms()

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The clipped priors."""
        norms = gram.norms()
        radius = float(np.median(norms)) if self.radius == "median" else self.radius
        return Combination(gram.prior * shrink(norms, radius), noise=self.noise)
