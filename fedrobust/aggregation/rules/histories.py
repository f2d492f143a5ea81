"""Rules with a memory of clients: a client's earlier updates decide how much its update of this round counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.base import Context, Rule
from fedrobust.aggregation.numerics import ROUNDING, TIE, cosines, lengths, ranking
from fedrobust.updates.clear import ClearUpdates
from fedrobust.updates.gram import Combination, Floats, Gram

LEAST_SCORE = 1e-6
"""ε of FedSCS: what is added to a score that is divided by, and the sum of scores up to which nobody agrees."""


class FoolsGold(Rule):
    """Less weight for clients whose histories point the same way, as those of sybils do (Fung et al., RAID 2020).

    H_i = Σ of client i's updates so far, cs_ij = cos(H_i, H_j), v_i = max_{j ≠ i} cs_ij. Pardoning: cs_ij ← cs_ij v_i /
    v_j where v_j > v_i. α_i = 1 − max_{j ≠ i} cs_ij, rescaled so that the largest is 1, then α_i ← κ (ln(α_i / (1 −
    α_i)) + 1/2), clipped to [0, 1]. F(u) = Σ p_i α_i u_i / Σ p_i α_i. Needs G and the histories "sum"; f is not used.
    Prior: p, beside α. A new client's history is its update; one that was away comes back with its own.

    The paper's step is Σ α_i u_i, for gradients; updates of whole local trainings need the mean. Opposite histories are
    no sign of a sybil: cs_ij < 0 counts as 0, as in the authors' code. Every coordinate counts the same: the paper's
    weights for the features of an output layer would need the rows. Where all histories are parallel, no client differs
    from the others, and α = 1 for all.

    Limits: honest clients must differ. On IID data they point the same way too, and a single row that points elsewhere,
    an attacker's, has all the weight. The rule does not look at the size of updates either: clip first.
    """

    name: Literal["foolsgold"] = "foolsgold"
    histories: ClassVar[tuple[str, ...]] = ("sum",)
    per_client: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling"})
    kappa: Annotated[float, Field(gt=0)] = 1.0
    """κ: the larger, the sharper the line between clients that count and clients that do not."""

    def scores(self, gram: Gram, context: Context) -> Floats:
        """1 − α_i before the rescaling: the pardoned cosine to the most similar client."""
        history = gram.histories["sum"]
        products = gram.matrix + history.cross + history.cross.T + history.matrix
        norms = lengths(np.diag(products), np.diag(gram.matrix) + np.diag(history.matrix))
        similar = cosines(products, np.outer(norms, norms))
        np.fill_diagonal(similar, 0.0)  # so that no maximum is negative
        nearest = similar.max(axis=1)
        larger = np.maximum(nearest, nearest[:, None])  # (i, j): v_j where it is greater than v_i
        pardon = np.divide(nearest[:, None], larger, out=np.ones_like(larger), where=larger > 0)
        return np.asarray((similar * pardon).max(axis=1))

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The priors times α."""
        alpha = 1.0 - self.scores(gram, context)
        if alpha.max() <= TIE:
            return Combination(gram.prior.copy(), notes=("foolsgold: all histories are parallel, so all count",))
        alpha = alpha / alpha.max()
        with np.errstate(divide="ignore"):  # ln 0: clipped to 0 or 1
            alpha = np.clip(self.kappa * (np.log(alpha) - np.log1p(-alpha) + 0.5), 0.0, 1.0)
        weights = gram.prior * alpha
        return Combination(weights / weights.sum())


class FedSCS(Rule):
    """Weigh updates by how much, and how steadily, they agree with the others (Haque and Markopoulos, ICCST 2025).

    ρ_i = max(0, cos(u_i, Σ_{j ≠ i} u_j)); s_i ← β s_i + (1 − β) ρ_i, at first ρ_i; ν_i = the change of s_i / (the s_i
    from before + 10⁻⁶); w_i = p_i s_i / (1 + ν_i); F(u) = Σ w_i u_i / Σ w_i. Needs G; f is not used. Prior: p, beside
    s; the sums of the others count rows. As in the code offered to Flower (2026); in that offered to NVFlare, which has
    no β, w_i is ρ_i times min / max of this round's and the last round's ρ_i. Where nobody agrees with the others, the
    priors are the weights.

    Limits: the sum of the others belongs to the longest of them: one long row decides who agrees, so clip first. An
    honest client with rare labels agrees with nobody.
    """

    name: Literal["fedscs"] = "fedscs"
    per_client: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling"})
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """β: how much of a client's score of before is kept."""

    def scores(self, gram: Gram, context: Context) -> Floats:
        """1 − s_i."""
        return 1.0 - self._steady(gram, context)[0]

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The priors times s_i / (1 + ν_i)."""
        score, before = self._steady(gram, context)
        corrected = score / (1.0 + np.abs(score - before) / (before + LEAST_SCORE))
        state = {"agreement": context.remembered("agreement", score, np.nan)}
        if corrected.sum() <= LEAST_SCORE:
            return Combination(gram.prior.copy(), state=state, notes=("fedscs: no update agrees with the others",))
        weights = gram.prior * corrected
        return Combination(weights / weights.sum(), state=state)

    def _steady(self, gram: Gram, context: Context) -> tuple[Floats, Floats]:
        """s_i (n,) after this round, and before it; of a new client both are ρ_i."""
        squares, products = np.diag(gram.matrix), gram.matrix.sum(axis=1)
        others = lengths(products.sum() - 2.0 * products + squares, squares.sum())
        agreement = np.maximum(cosines(products - squares, lengths(squares) * others), 0.0)
        before = context.recalled("agreement", gram.n, np.nan)
        before = np.where(np.isnan(before), agreement, before)
        return self.beta * before + (1.0 - self.beta) * agreement, before


class FLDetector(Rule):
    """Leave out clients whose updates differ from those that their last ones predict (Zhang et al., KDD 2022).

    û_i = h_i + H s: h_i the client's update of the last round, s the last step of the global model, H the Hessian as
    L-BFGS estimates it from the last N steps and the changes of the aggregate after them. e_i = ‖û_i − u_i‖ / mean of
    all; the suspicion of a client is its mean e_i over its last N rounds. Where the gap statistic finds more than one
    cluster of suspicions, 2-means splits them, and the cluster of the greater ones is left out of the (prior-weighted)
    mean. Needs G, the histories "last" and the anchor "prediction", H s; f is not used. Prior: the mean weighs.

    The paper divides the distances by their sum, which is the same while all take part. It trains anew without the
    detected clients; here they are left out of this round, and judged again in the next. Only clients that took part in
    the last round too have a prediction; a client with fewer than N predictions is not judged, and counts. So no client
    is left out in the first N + 1 rounds, and with few participants per round for longer.

    Limits: an attacker who is consistent from round to round is predictable, and honest clients with noisy updates are
    not. The gap statistic sees two clusters where there is one in up to a fifth of the rounds.
    After a stage, u_i and h_i are mixed alike, but s is not. Remembers N vectors of d coordinates, or 2 N where the
    step of the global model is not the aggregate.
    """

    name: Literal["fldetector"] = "fldetector"
    anchors: ClassVar[tuple[str, ...]] = ("prediction",)
    histories: ClassVar[tuple[str, ...]] = ("last",)
    per_client: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling"})
    window: Annotated[int, Field(ge=1)] = 10
    """N: how many past rounds the Hessian and the suspicion use."""
    references: Annotated[int, Field(ge=2)] = 20
    """Number of uniform samples that the gap statistic compares with."""

    def vectors(self, context: Context) -> dict[str, np.ndarray]:
        """The anchor "prediction": H s, from the third round on. Argument as for `Rule.vectors`."""
        steps, aggregates = self._trajectory(context)
        if len(steps) < 2:
            return {}
        product = hessian_product(steps, aggregates)
        return {} if product is None else {"prediction": product}

    def scores(self, gram: Gram, context: Context) -> Floats | None:
        """The suspicion so far, this round included; 1, the mean, for a client without one. None if no client has
        one.
        """
        errors = self._errors(gram, context)
        known = np.isfinite(errors)
        if not known.any():
            return None
        counts, sums = known.sum(axis=1), np.where(known, errors, 0.0).sum(axis=1)
        return np.asarray(np.divide(sums, counts, out=np.ones(gram.n), where=counts > 0))

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The priors of the clients that are not left out."""
        errors = self._errors(gram, context)
        judged = np.flatnonzero(np.isfinite(errors).all(axis=1))
        weights = gram.prior.copy()
        weights[judged[greater_cluster(errors[judged].mean(axis=1), self.references, context.generator)]] = 0.0
        steps, aggregates = self._trajectory(context)
        state: dict[str, NDArray[np.floating]] = {
            f"error{back}": context.remembered(f"error{back}", errors[:, back], np.nan) for back in range(self.window)
        }
        state["present"] = replace(context, state={}).remembered("present", np.ones(gram.n))
        for name, rows in (("step", steps), ("aggregate", aggregates)):
            state |= {f"{name}{back}": row for back, row in enumerate(rows[: -self.window - 1 : -1])}
        return Combination(weights / weights.sum(), state=state)

    def _trajectory(self, context: Context) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        """The last steps of the global model, and the aggregates that led to them, oldest first: at most N + 1 rows
        (d,). Where a step is the aggregate itself, it is the same array.
        """
        if context.previous is None:
            return [], []
        last = np.asarray(context.previous, dtype=np.float32)
        moved = context.step is not None and not np.array_equal(context.step, last)
        newest = {"step": np.asarray(context.step, dtype=np.float32) if moved else last, "aggregate": last}
        back = range(self.window - 1, -1, -1)
        kept = {name: [context.state[key] for k in back if (key := f"{name}{k}") in context.state] for name in newest}
        return [*kept["step"], newest["step"]], [*kept["aggregate"], newest["aggregate"]]

    def _errors(self, gram: Gram, context: Context) -> Floats:
        """e_i of the last N rounds, this one first (n, N); NaN where there were fewer."""
        past = np.stack([context.recalled(f"error{back}", gram.n, np.nan) for back in range(self.window)], axis=1)
        predicted = np.flatnonzero(context.recalled("present", gram.n) > 0)
        anchor, history = gram.anchors.get("prediction"), gram.histories["last"]
        if anchor is None or len(predicted) == 0:
            return past
        beside = np.diag(gram.matrix) + np.diag(history.matrix) + anchor.squared_norm
        products = np.diag(history.cross) + anchor.products - history.anchors["prediction"]
        square = (beside - 2.0 * products)[predicted]
        # The histories are float32: a distance below a millionth of the vectors is rounding.
        distances = np.sqrt(np.where(square > 1e-12 * beside[predicted], square, 0.0))
        mean = distances.mean()
        past[predicted, 1:] = past[predicted, :-1]
        past[predicted, 0] = distances / mean if mean > 0 else 1.0
        return past


def hessian_product(
    steps: Sequence[NDArray[np.float32]], aggregates: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32] | None:
    """H v (d,) for the last step v, where L-BFGS estimates H; None if it is not finite.

    steps: k + 1 steps (d,) float32 of the global model, oldest first; v is the last one.
    aggregates: k + 1 aggregates (d,) float32, oldest first; a pair is a step and the change of the aggregate after it.

    The compact form of Byrd, Nocedal and Schnabel (1994): H v = σ v − [σ S, Y] M⁻¹ [σ Sᵀ; Yᵀ] v, M = [σ SᵀS, L; Lᵀ,
    −D], L and D the lower and the diagonal part of SᵀY, σ = ⟨y, s⟩ / ⟨s, s⟩ of the last pair. A pair without a step
    says nothing, and is left out; where M is singular, the least solution is taken. Updates are steps down the
    gradient, so this H is minus the Hessian; the formula is odd in Y, so it allows that.
    """
    rows, k = ClearUpdates([row[None] for row in (*steps, *aggregates)]), len(steps) - 1
    if not rows.finite_rows().all():
        return None
    centred = rows.gram().centred
    assert centred is not None
    changes = np.eye(k, k + 1, 1) - np.eye(k, k + 1)
    mixing = np.block([[np.eye(k + 1), np.zeros((k + 1, k + 1))], [np.zeros((k, k + 1)), changes]])
    products = centred.mixed(mixing).uncentred()  # of the steps, the last of them v, then the changes
    norms = lengths(np.diag(products)[: k + 1])
    s = np.flatnonzero(norms[:k])
    if len(s) == 0:
        return np.zeros(rows.d, dtype=np.float32)
    y, scale = k + 1 + s, 1.0 / norms[s]
    curvature = products[np.ix_(s, y)] * np.outer(scale, scale)
    sigma = curvature[-1, -1]
    lower = np.tril(curvature, -1)
    matrix = np.block(
        [
            [sigma * products[np.ix_(s, s)] * np.outer(scale, scale), lower],
            [lower.T, -np.diag(np.diag(curvature))],
        ]
    )
    target = np.concatenate([sigma * products[s, k] * scale, products[y, k] * scale])
    solution = np.linalg.lstsq(matrix, target, rcond=TIE)[0]
    coefficients = np.zeros(len(products))
    coefficients[k] = sigma
    coefficients[s] = -sigma * solution[: len(s)] * scale
    coefficients[y] = -solution[len(s) :] * scale
    product = rows.combine(Combination(coefficients @ mixing))
    return product if np.isfinite(product).all() else None


def greater_cluster(values: Floats, references: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """The indices of the values in the greater of two clusters; empty if there is one cluster only.

    values: (n,) the figures to cluster; with fewer than three there is one cluster.
    references: number of uniform samples.
    generator: draws the samples.

    The gap statistic decides (Tibshirani et al., 2001). W_k is the sum of squares within k clusters. There is more than
    one cluster if the mean of ln W_1 − ln W_2 over uniform samples in the range of the values, plus their error, is
    below that of the values; larger k need not be tried.
    """
    found = np.zeros(0, dtype=np.intp)
    if len(values) < 3:
        return found
    order = ranking(values)
    low, high = values[order[0]], values[order[-1]]
    if high - low <= TIE * max(abs(low), abs(high)):
        return found
    one, two, cut = within(np.sort((values - low) / (high - low)))
    uniform = [within(np.sort(sample))[:2] for sample in generator.random((references, len(values)))]
    logs = np.log(np.maximum(uniform, np.finfo(float).tiny))
    error = np.sqrt(1.0 + 1.0 / references) * logs[:, 1].std()
    expected = float((logs[:, 0] - logs[:, 1]).mean() + error)
    return order[cut:] if np.log(one) - np.log(max(two, np.finfo(float).tiny)) > expected else found


def within(ordered: Floats) -> tuple[float, float, int]:
    """The sums of squares within one and within two clusters, and the index where the second of the two starts.

    ordered: (n,) the values, ascending.

    In one dimension the best clusters are intervals, so all n − 1 cuts are tried; of equal ones the greatest index
    wins.
    """
    n = len(ordered)
    deviations = ordered - ordered.mean()
    sizes = np.arange(n - 1, 0, -1)
    between = np.cumsum(deviations)[sizes - 1] ** 2 * (1.0 / sizes + 1.0 / (n - sizes))
    cut = int(sizes[ranking(-between)[0]])
    two = sum(float(((part - part.mean()) ** 2).sum()) for part in (ordered[:cut], ordered[cut:]))
    return float((deviations**2).sum()), two, cut


class AFA(Rule):
    """Adaptive federated averaging by the angle to the mean and each client's record (Muñoz-González et al., 2019).

    Repeat: z = Σ w_i u_i / Σ w_i over the rows that are left, w_i = p_i α_i / (α_i + β_i); c_i = cos(u_i, z); m the
    median of the c_i and σ their standard deviation. If their mean is below m, drop the rows with c_i < m − ξ σ, else
    those with c_i > m + ξ σ; ξ grows by Δξ. When none is dropped, F(u) = z. A client whose update was kept adds 1 to
    its α_i, one whose update was dropped to its β_i: its chance to send good ones has the posterior Beta(α_i, β_i), and
    a client with P(chance ≤ 1/2) > δ is blocked for good. Needs G; f is not used. Prior: p_i for the paper's n_i.

    The weights w_i are those from before this round. The paper compares models, this rule updates. A zero row has
    c_i = 0. Cosines that differ only by rounding (1e-12) drop no row. A new client starts from the first α and β; a
    client that was absent keeps its own. If all are blocked the aggregate is zero.

    Limits: it does not look at the size of updates, and two that are large enough can move it anywhere: clip first.
    Honest clients with rare data collect a bad record, and are blocked.
    """

    name: Literal["afa"] = "afa"
    per_client: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling"})
    alpha: Annotated[float, Field(gt=0)] = 3.0
    """α of a new client."""
    beta: Annotated[float, Field(gt=0)] = 3.0
    """β of a new client."""
    xi: Annotated[float, Field(ge=0)] = 2.0
    """ξ: rows further than so many standard deviations from the median are dropped at first."""
    xi_step: Annotated[float, Field(ge=0)] = 0.5
    """Δξ: the increase of ξ after each pass."""
    delta: Annotated[float, Field(gt=0.5, le=1)] = 0.95
    """δ: a client is blocked if it sends bad updates more often than not with more than this probability; 1: never."""

    def scores(self, gram: Gram, context: Context) -> Floats:
        """1 − the cosine to the aggregate."""
        return 1.0 - self._filtered(gram, context)[1]

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The weights w_i of the rows that are left."""
        weights, _, kept, blocked = self._filtered(gram, context)
        good = context.recalled("good", gram.n) + (kept & ~blocked)
        bad = context.recalled("bad", gram.n) + (~kept & ~blocked)
        new = np.flatnonzero(self._blocked(good, bad) & ~blocked)
        clients = new if context.clients is None else context.clients[new]
        return Combination(
            weights,
            state={"good": context.remembered("good", good), "bad": context.remembered("bad", bad)},
            notes=(f"afa: blocked client {', '.join(map(str, clients))}",) if len(new) else (),
        )

    def _blocked(self, good: Floats, bad: Floats) -> NDArray[np.bool_]:
        from scipy.special import betainc

        return np.asarray(betainc(self.alpha + good, self.beta + bad, 0.5) > self.delta)

    def _filtered(self, gram: Gram, context: Context) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_]]:
        """The weights, the cosines to their aggregate, which rows are left, and which clients were blocked before this
        round.
        """
        good, bad = context.recalled("good", gram.n), context.recalled("bad", gram.n)
        blocked = self._blocked(good, bad)
        trust = gram.prior * (self.alpha + good) / (self.alpha + self.beta + good + bad)
        kept, xi = ~blocked, self.xi
        while True:
            weights = np.where(kept, trust, 0.0)
            weights = weights / weights.sum() if kept.any() else weights
            similar = cosines_to(gram, weights)
            if not kept.any():
                break
            median, spread = np.median(similar[kept]), similar[kept].std()
            if similar[kept].mean() < median - TIE:
                dropped = kept & (similar < median - xi * spread - TIE)
            else:
                dropped = kept & (similar > median + xi * spread + TIE)
            if not dropped.any():
                break
            kept, xi = kept & ~dropped, xi + self.xi_step
        return weights, similar, kept, blocked


def cosines_to(gram: Gram, weights: Floats) -> Floats:
    """cos(u_i, z) (n,) of the rows of `gram` to z = Σ_j weights_j u_j; 0 where one of the two is zero.

    weights: (n,).
    """
    squares = np.diag(gram.matrix)
    square = gram.squared_norm(Combination(weights))
    length = np.sqrt(square) if square > ROUNDING * float(np.abs(weights) @ squares) else 0.0
    return cosines(gram.matrix @ weights, lengths(squares) * length)
