"""The Gram matrix of the updates: most robust rules need nothing else.

A whole defence is then algebra on n × n matrices. Pre-aggregations are (m, n) mixing matrices `M`, which turn the Gram
matrix into `M G Mᵀ`; a rule returns a linear combination of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROUNDING = 2e-15
"""A square below this fraction of the squares that were subtracted to get it is a rounding error."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """A public vector v beside the updates: the products ⟨u_i, v⟩ (n,) float64 and ‖v‖²."""

    products: Floats
    squared_norm: float


@dataclass(frozen=True, eq=False)
class History:
    """A row h_i that is kept for each client beside its update u_i: all zero for a new client.

    matrix: ⟨h_i, h_j⟩ (n, n).
    cross: ⟨u_i, h_j⟩ (n, n).
    anchors: name → ⟨h_i, v⟩ (n,).
    """

    matrix: Floats
    cross: Floats
    anchors: Mapping[str, Floats] = field(default_factory=dict)

    def mixed(self, mixing: Floats) -> History:
        """The history after `mixing` (m, n): rows and histories are mixed alike."""
        anchors = {name: mixing @ products for name, products in self.anchors.items()}
        return History(mixing @ self.matrix @ mixing.T, mixing @ self.cross @ mixing.T, anchors)


@dataclass(frozen=True, eq=False)
class Combination:
    """What a rule decides: the vector Σ weights_i u_i + Σ anchors[name] v_name, plus Gaussian noise.

    weights: (n,) float64.
    anchors: the coefficient of each anchor.
    noise: standard deviation of the noise that is added to every coordinate.
    state: what the rule gets back in the next round as `Context.state`.
    notes: what the run's record should say, e.g. that a search was cut short.
    """

    weights: Floats
    anchors: Mapping[str, float] = field(default_factory=dict)
    noise: float = 0.0
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Centred:
    """The same rows, then the anchors, relative to a common reference vector r: row i is share_i · r + c_i.

    Differences of rows are differences of the c_i, so distances keep their digits however large the common part of all
    updates is.

    products: ⟨c_i, c_j⟩ (N, N), N = rows + anchors.
    with_reference: ⟨c_i, r⟩ (N,).
    squared_norm: ‖r‖².
    share: (N,) share_i.
    """

    products: Floats
    with_reference: Floats
    squared_norm: float
    share: Floats

    def uncentred(self) -> Floats:
        """The Gram matrix (N, N) of the rows themselves. Rows below the rounding error of the reference become zero."""
        cross, common = np.outer(self.with_reference, self.share), self.squared_norm * np.outer(self.share, self.share)
        matrix = self.products + (cross + cross.T) + common
        beside = np.diag(self.products) + np.diag(common)
        lost = (np.diag(matrix) <= ROUNDING * beside) & np.isfinite(beside)
        matrix[lost] = matrix[:, lost] = 0.0
        return matrix

    def mixed(self, mixing: Floats) -> Centred:
        """The centred products of the rows `mixing @ rows`, for a matrix (M, N)."""
        return Centred(
            products=products_mixed(self.products, mixing),
            with_reference=mixing @ self.with_reference,
            squared_norm=self.squared_norm,
            share=mixing @ self.share,
        )


@dataclass(frozen=True, eq=False)
class Gram:
    """The Gram matrix of the updates u_i = local − global, with prior weights, anchors and histories.

    matrix: G_ij = ⟨u_i, u_j⟩ (n, n) float64.
    prior: (n,) sums to 1.
    anchors: name → products with a public vector.
    centred: the same products about a reference, for exact distances; without it the distances come from `matrix`.
    histories: name → products with a history.
    found: what has been computed of this Gram and is asked for more than once, e.g. by a rule and by its scores.

    Arrays are shared, not copied: treat them as read-only.
    """

    matrix: Floats
    prior: Floats
    anchors: Mapping[str, Anchor] = field(default_factory=dict)
    centred: Centred | None = None
    histories: Mapping[str, History] = field(default_factory=dict)
    found: dict[Any, NDArray[Any]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of_norms(cls, figures: Floats, prior: Floats, anchors: Sequence[str]) -> Gram:
        """A Gram for rules that need norms and products with anchors only: the rows' products with each other are NaN.

        figures: (n + 1, 1 + 2A) from `norm_figures`.
        prior: (n,) sums to 1.
        anchors: names of the A anchors. Distances to the first one keep all their digits.
        """
        n, known = len(prior), len(prior) + len(anchors)
        matrix = np.full((n, n), np.nan)
        np.fill_diagonal(matrix, figures[:n, 0])
        found = {name: Anchor(figures[:n, 1 + 2 * k], float(figures[n, 1 + 2 * k])) for k, name in enumerate(anchors)}
        if not anchors:
            return cls(matrix, prior)
        centred = np.full((known, known), np.nan)
        np.fill_diagonal(centred, [*figures[:n, 2], *[0.0] * len(anchors)])
        centred[n], centred[:, n] = 0.0, 0.0
        reference = np.full(known, np.nan)
        reference[:n], reference[n] = figures[:n, 1] - figures[n, 1], 0.0
        return cls(matrix, prior, found, Centred(centred, reference, float(figures[n, 1]), np.ones(known)))

    @classmethod
    def unknown(cls, prior: Floats) -> Gram:
        """A Gram for rules that need a sum only: with `prior` (n,), and NaN for all products."""
        return cls(np.full((len(prior), len(prior)), np.nan), prior)

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(self.matrix)

    def weighted(self, prior: Floats) -> Gram:
        """The same Gram with other prior weights `prior` (n,), scaled to sum to 1."""
        return replace(self, prior=prior / prior.sum())

    def norms(self) -> Floats:
        """‖u_i‖ (n,) float64."""
        return np.sqrt(np.maximum(np.diag(self.matrix), 0.0))

    def distances_squared(self) -> Floats:
        """‖u_i − u_j‖² (n, n) float64, symmetric, with a zero diagonal."""
        view, n = self._view(), self.n
        squares = np.diag(view.products)[:n]
        reference, share = view.with_reference[:n], np.subtract.outer(view.share[:n], view.share[:n])
        distances = np.add.outer(squares, squares) - 2.0 * view.products[:n, :n]
        distances += share * (2.0 * np.subtract.outer(reference, reference) + share * view.squared_norm)
        return np.maximum(distances, 0.0)

    def distances_squared_to(self, point: Combination) -> Floats:
        """‖u_i − z‖² (n,) for the vector z that `point` describes."""
        view, n = self._view(), self.n
        used, coefficients = self._coefficients(point)
        products = view.products[:, used] @ coefficients
        share = view.share[:n] - view.share[used] @ coefficients
        reference = view.with_reference[:n] - view.with_reference[used] @ coefficients
        distances = np.diag(view.products)[:n] - 2.0 * products[:n] + products[used] @ coefficients
        distances += share * (2.0 * reference + share * view.squared_norm)
        return np.maximum(distances, 0.0)

    def squared_norm(self, point: Combination) -> float:
        """‖z‖² of the vector z that `point` describes; exact for small differences of rows, too."""
        view = self._view()
        used, coefficients = self._coefficients(point)
        share, reference = view.share[used] @ coefficients, view.with_reference[used] @ coefficients
        square = coefficients @ view.products[np.ix_(used, used)] @ coefficients
        return max(0.0, float(square + share * (2.0 * reference + share * view.squared_norm)))

    def _coefficients(self, point: Combination) -> tuple[NDArray[np.intp], Floats]:
        """The indices and coefficients of the rows, then anchors, that `point` uses: products of unused anchors may be
        NaN.
        """
        anchors = [point.anchors.get(name, 0.0) for name in self.anchors]
        coefficients = np.concatenate([point.weights, anchors])
        used = np.flatnonzero(coefficients)
        return used, coefficients[used]

    def around(self, weights: Floats) -> Gram:
        """The Gram of the rows u_i − z about z = Σ weights_j u_j, in n² steps, without anchors and histories."""
        view, n = self._view(), self.n
        # One side after the other: where rows are almost equal, the same rounding errors cancel.
        half = view.products[:n, :n] - weights @ view.products[:n, :n]
        products = half - (half @ weights)[:, None]
        about = Centred(
            products=(products + products.T) / 2,
            with_reference=view.with_reference[:n] - view.with_reference[:n] @ weights,
            squared_norm=view.squared_norm,
            share=view.share[:n] - view.share[:n] @ weights,
        )
        return Gram(about.uncentred(), self.prior)

    def mixed(self, mixing: Floats, merged: bool = False) -> Gram:
        """The Gram of the rows `mixing @ rows`.

        mixing: (m, n).
        merged: whether rows are merged, as in buckets; always assumed if m ≠ n.

        Row i keeps prior i. Where rows are merged, the prior of an original row is divided among the mixed rows, in
        proportion to its coefficients in them; so a bucket has the sum of its members' priors.
        """
        m, n = mixing.shape
        prior = self.prior
        if merged or m != n:
            parts = np.abs(mixing)
            totals = parts.sum(axis=0)
            prior = (parts / np.where(totals > 0, totals, 1.0)) @ self.prior
            prior = prior / prior.sum()
        matrix, centred = products_mixed(self.matrix, mixing), None
        if self.centred is not None:
            with_anchors = np.zeros((m + len(self.anchors), n + len(self.anchors)))
            with_anchors[:m, :n] = mixing
            with_anchors[m:, n:] = np.eye(len(self.anchors))
            centred = self.centred.mixed(with_anchors)
            matrix = centred.uncentred()[:m, :m]  # keeps the digits of differences of rows
        return Gram(
            matrix=matrix,
            prior=prior,
            anchors={name: Anchor(mixing @ a.products, a.squared_norm) for name, a in self.anchors.items()},
            centred=centred,
            histories={name: history.mixed(mixing) for name, history in self.histories.items()},
        )

    def _view(self) -> Centred:
        """The centred products, or the plain ones as products about the zero vector."""
        if self.centred is not None:
            return self.centred
        count = self.n + len(self.anchors)
        products = np.full((count, count), np.nan)
        products[: self.n, : self.n] = self.matrix
        for position, anchor in enumerate(self.anchors.values(), start=self.n):
            products[position, : self.n] = products[: self.n, position] = anchor.products
            products[position, position] = anchor.squared_norm
        return Centred(products, np.zeros(count), 0.0, np.ones(count))


def products_mixed(products: Floats, mixing: Floats) -> Floats:
    """The symmetric `mixing` (m, n) @ `products` (n, n) @ mixingᵀ.

    Where each mixed row is a multiple of one row, there is nothing to add up: products stay known beside unknown ones.
    """
    if (np.count_nonzero(mixing, axis=1) == 1).all():
        rows = np.abs(mixing).argmax(axis=1)
        factors = np.take_along_axis(mixing, rows[:, None], axis=1)[:, 0]
        return products[np.ix_(rows, rows)] * np.outer(factors, factors)
    found = mixing @ products @ mixing.T
    return np.asarray((found + found.T) / 2)


def assembled(products: Sequence[Floats], prior: Floats, anchors: Sequence[str], histories: Sequence[str]) -> Gram:
    """The Gram of n = len(prior) updates, from the `centred_products` of all their columns.

    products: (N + 1, N + 1) for each part of the columns. The lines are the n updates, one for each anchor, n for each
        history, and the reference.
    prior: (n,) sums to 1.
    anchors: names of the anchors.
    histories: names of the histories.

    The Gram of the rows themselves is restored from the products with the reference.
    """
    total = np.sum(products, axis=0)  # one part after the other
    total = (total + total.T) / 2
    lines = len(total) - 1
    seen = Centred(total[:lines, :lines], total[lines, :lines], float(total[lines, lines]), np.ones(lines))
    return gram_of_lines(seen, prior, anchors, histories)


def gram_of_lines(seen: Centred, prior: Floats, anchors: Sequence[str], histories: Sequence[str]) -> Gram:
    """The Gram of n = len(prior) updates, from the centred products of N lines.

    seen: the lines: n updates, then one line for each anchor, then n for each history.
    prior: (n,) sums to 1.
    anchors: names of the anchors.
    histories: names of the histories.
    """
    n, known = len(prior), len(prior) + len(anchors)
    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite: the caller looks at the diagonal
        matrix = seen.uncentred()
    return Gram(
        matrix=matrix[:n, :n].copy(),
        prior=prior,
        anchors={
            name: Anchor(matrix[:n, line].copy(), float(matrix[line, line])) for line, name in enumerate(anchors, n)
        },
        centred=Centred(
            seen.products[:known, :known], seen.with_reference[:known], seen.squared_norm, seen.share[:known]
        ),
        histories={
            name: History(
                matrix=matrix[first : first + n, first : first + n],
                cross=matrix[:n, first : first + n],
                anchors={anchor: matrix[first : first + n, line] for line, anchor in enumerate(anchors, n)},
            )
            for first, name in zip(range(known, len(matrix), n), histories, strict=True)
        },
    )
