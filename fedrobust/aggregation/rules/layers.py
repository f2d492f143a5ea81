"""Rules that look at the layers of the model; they need the rows, so they run in the clear only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.base import Context, RowRule, honest_majority
from fedrobust.aggregation.numerics import cosine_distances, shrink
from fedrobust.errors import ExperimentError, Problem
from fedrobust.updates import chunks
from fedrobust.updates.chunks import Chunk
from fedrobust.updates.gram import Combination, Floats, Gram
from fedrobust.updates.interface import Reduction

if TYPE_CHECKING:
    from fedrobust.aggregation.base import Rows

DIGIT = 8
"""Bits of a magnitude that one pass over the rows determines."""
Whole = NDArray[np.int64]


def _digits(rows: Chunk, columns: slice, leading: Whole, shift: int) -> Whole:
    """How many of the magnitudes that begin with `leading` (m,) have each possible next digit: (m, 2^DIGIT)."""
    m, values = len(rows), 1 << DIGIT
    top = chunks.host(chunks.magnitudes(rows)) >> shift
    bins = np.where((top >> DIGIT) != leading[:, None], values, top & (values - 1))
    bins += np.arange(m)[:, None] * (values + 1)
    return np.bincount(bins.ravel(), minlength=m * (values + 1)).reshape(m, values + 1)[:, :values]


def magnitude_ranked(rows: Rows, rank: int) -> Whole:
    """The `magnitudes` (m,) of one coordinate in each row: the one with `rank` others below it. It is found digit by
    digit.

    rows: the m rows.
    rank: 0 … d − 1.
    """
    found, rank_left = np.zeros(rows.n, dtype=np.int64), np.full((rows.n, 1), rank)
    for shift in range(32 - DIGIT, -1, -DIGIT):
        counts = rows.total(partial(_digits, leading=found, shift=shift))
        upto = np.cumsum(counts, axis=1)
        digit = np.argmax(upto > rank_left, axis=1)[:, None]
        rank_left = rank_left - np.take_along_axis(upto - counts, digit, axis=1)
        found = (found << DIGIT) + digit[:, 0]
    return found


def _sparse(rows: Chunk, least: Whole) -> Chunk:
    """`rows` with zeros where the magnitude is below `least` (m,)."""
    found = chunks.magnitudes(rows)
    return chunks.where(found < chunks.like(found, least)[:, None], 0.0, rows)


def _by_layer(rows: Chunk, columns: slice, edges: Whole) -> Iterator[tuple[int, slice]]:
    """The layers that a chunk has a part of, and the columns of the chunk that belong to each."""
    first = int(np.searchsorted(edges, columns.start, side="right")) - 1
    for layer in range(first, len(edges) - 1):
        part = slice(max(int(edges[layer]), columns.start) - columns.start, int(edges[layer + 1]) - columns.start)
        if part.start >= rows.shape[1]:
            break
        if part.start < part.stop:
            yield layer, part


def _layer_figures(rows: Chunk, columns: slice, least: Whole, edges: Whole) -> Floats:
    """Of each layer of the sparse rows: the sum of squares, the sum of signs, the number of signs (3, layers, m)."""
    rows = _sparse(rows, least)
    figures = np.zeros((3, len(edges) - 1, len(rows)))
    for layer, part in _by_layer(rows, columns, edges):
        values = rows[:, part]
        figures[0, layer] = chunks.row_squares(values)
        signs = chunks.sign(values)
        figures[1, layer] = chunks.host(chunks.total(signs, 1))
        figures[2, layer] = chunks.host(chunks.total(abs(signs), 1))
    return figures


def _layer_means(rows: Chunk, columns: slice, least: Whole, edges: Whole, weights: Floats) -> Chunk:
    """The sparse rows combined with the weights (layers, m) of the layer that a column is in."""
    rows = chunks.double(_sparse(rows, least))
    result = chunks.filled(rows[0], 0.0)
    for layer, part in _by_layer(rows, columns, edges):
        result[part] = chunks.combined(rows[:, part], weights[layer])
    return result


def deviations(values: Floats) -> Floats:
    """|value − median| / standard deviation along the last axis; 0 where the values are equal (to 9 digits)."""
    spread = values.std(axis=-1, keepdims=True)
    apart = spread > 1e-9 * np.abs(values).max(axis=-1, keepdims=True)
    off = np.abs(values - np.median(values, axis=-1, keepdims=True))
    return np.asarray(np.divide(off, spread, out=np.zeros_like(values), where=apart))


class LASA(RowRule):
    """The mean of each layer, over the rows whose layer has a usual norm and sign (Xu, Zhang and Hu, WACV 2025).

    Each row is clipped to the median norm and keeps its k largest magnitudes: û_i, k = d − ⌊sparsity · d⌋. In layer l,
    F(u)_l = Σ_{i ∈ S_l} p_i û_il / Σ_{i ∈ S_l} p_i, S_l the rows with |x_i − median x| ≤ λ σ(x) for both x_i = ‖û_il‖
    (λ_n) and x_i = ½ (1 + Σ sgn û_il / Σ |sgn û_il|) (λ_s), the purity of signs, ½ for a layer of zeros; σ is the
    standard deviation over the n rows. All rows if none is left. Needs G, the rows, and the layers of the model (one
    layer by default); n ≥ 2f + 1. Prior: medians, σ and S_l count rows, the mean weighs them.

    The clipping is that of the authors' implementation. Magnitudes are compared in float32, and all that equal the k-th
    are kept. With λ = 1 each of the two filters also takes a third of the honest rows, where their figures are normally
    distributed. Each layer has its own weights, so the result has no weights of rows.
    """

    name: Literal["lasa"] = "lasa"
    needs: ClassVar[frozenset[str]] = frozenset({"rows", "gram"})
    weighs: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "breakdown"})
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """The share of the coordinates that is set to zero in each row."""
    lambda_n: Annotated[float, Field(gt=0)] = 1.0
    """λ_n: how many standard deviations a layer's norm may be away from the median."""
    lambda_s: Annotated[float, Field(gt=0)] = 1.0
    """λ_s: how many standard deviations a layer's purity of signs may be away from the median."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def decide(self, rows: Rows, context: Context) -> Reduction:
        """The mean of each layer."""
        cuts = context.layer_columns(rows.d)
        edges = np.array([0, *(cut.stop for cut in cuts)], dtype=np.int64)
        norms = rows.gram.norms()
        clip = shrink(norms, float(np.median(norms)))
        dropped = math.floor(self.sparsity * rows.d + 1e-9)  # 0.29 · 100 is a little below 29
        least = magnitude_ranked(rows, dropped) if dropped else np.zeros(rows.n, dtype=np.int64)
        squares, signs, count = rows.total(partial(_layer_figures, least=least, edges=edges))
        purity = 0.5 * (1.0 + np.divide(signs, count, out=np.zeros_like(signs), where=count > 0))
        slack = 1.0 + 1e-9  # with two rows, both are exactly one deviation away
        kept = deviations(clip * np.sqrt(squares)) <= self.lambda_n * slack
        kept &= deviations(purity) <= self.lambda_s * slack
        kept |= ~kept.any(axis=1, keepdims=True)
        weights = kept * rows.gram.prior
        weights = weights / weights.sum(axis=1, keepdims=True) * clip
        return partial(_layer_means, least=least, edges=edges, weights=weights)


def _last_figures(rows: Chunk, columns: slice, weight: int, bias: int, classes: int) -> Floats | None:
    """Of each output of the last layer: Σ |weight|, which starts at column `weight`, and the bias (2, m, classes)."""
    if columns.stop <= weight:
        return None
    start = max(columns.start, weight)
    rows = rows[:, start - columns.start :]
    figures = np.zeros((2, len(rows), classes))
    edges = np.append(np.linspace(weight, bias, classes + 1, dtype=np.int64), bias + classes)  # each output's weights
    for output, part in _by_layer(rows, slice(start, columns.stop), edges):
        values = rows[:, part]
        if output < classes:
            figures[0, :, output] = chunks.host(chunks.total(abs(values), 1))
        else:
            first = start + part.start - bias
            figures[1, :, first : first + values.shape[1]] = chunks.host(values)
    return figures


def _clusters(distances: Floats, smallest: int) -> NDArray[np.intp]:
    """The number of each row's cluster by HDBSCAN; a row in no cluster gets a number of its own."""
    from sklearn.cluster import HDBSCAN

    n = len(distances)
    labels = np.full(n, -1)
    if n >= smallest:
        labels = HDBSCAN(min_cluster_size=smallest, metric="precomputed", copy=True).fit(distances).labels_
    return np.where(labels >= 0, labels, n + np.arange(n))


class DeepSight(RowRule):
    """The clipped mean of the clusters with few rows of one-sided data, by the last layer (Rieger et al., NDSS 2022).

    The energy of output p is E_ip = |b_ip| + Σ_h |w_iph| for the update (w, b) of the last layer, C_ip = E_ip² / Σ_q
    E_iq². Row i has t_i threshold exceedings, the outputs with C_ip > max(0.01, 1/P) max_q C_iq; it is suspected if
    t_i ≤ ½ median t. HDBSCAN clusters the rows by ‖C_i − C_j‖ and by the cosine distance of the b_i; rows that are
    together in both are a cluster, a row that is noise in one is a cluster alone. Clusters with at least a third of
    suspected rows are dropped: F(u) = Σ_{i ∈ S} p_i u_i min(1, M / ‖u_i‖) / Σ_{i ∈ S} p_i, S the rows that are left, M
    the median norm; 0 if all are dropped.
    Needs G, the rows, and the layers of the model, of which the last two are the weight and the bias of the outputs,
    two at least; n ≥ 2f + 1. Prior: clusters and suspects count rows, the mean weighs them.

    DDifs are left out: they need forward passes through every client's model. The paper clusters once more, by the mean
    over its clusterings of 0 for "together" and 1 for "apart"; without DDifs that mean is 0, ½ or 1, and the clusters
    of 0 are the most stable. An honest client with few of the classes is suspected too. With P = 2 the outputs of a
    softmax mirror each other, and t says nothing.
    """

    name: Literal["deepsight"] = "deepsight"
    needs: ClassVar[frozenset[str]] = frozenset({"rows", "gram"})
    weighs: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "breakdown"})
    tolerated: Annotated[float, Field(gt=0, le=1)] = 1 / 3
    """The share of suspected rows from which on a cluster is dropped."""
    smallest: Annotated[int, Field(ge=2)] = 2
    """The least number of rows in a cluster. HDBSCAN's own default is 5, which finds nothing among ten hospitals."""

    def bound(self, n: int, f: int) -> str | None:
        """Ensure n ≥ 2f + 1."""
        return honest_majority(self.name, n, f)

    def decide(self, rows: Rows, context: Context) -> Combination:
        """The clipped priors of the rows in the clusters that are left."""
        classes = self._classes(context)
        weight, bias = (columns.start for columns in context.layer_columns(rows.d)[-2:])
        sums, biases = rows.total(partial(_last_figures, weight=weight, bias=bias, classes=classes))
        shares = energy_shares(sums + np.abs(biases))
        limits = max(0.01, 1.0 / classes) * shares.max(axis=1, keepdims=True)
        exceedings = (shares > limits * (1.0 + 1e-12)).sum(axis=1)
        middle = np.median(exceedings)
        suspected = (exceedings <= middle / 2) & (exceedings < middle)
        by_energy = _clusters(np.linalg.norm(shares[:, None] - shares[None], axis=2).round(12), self.smallest)
        angles = cosine_distances(Gram(biases @ biases.T, rows.gram.prior))
        together = np.stack([by_energy, _clusters(angles, self.smallest)], axis=1)
        _, cluster = np.unique(together, axis=0, return_inverse=True)
        guilty = np.bincount(cluster, weights=suspected) >= self.tolerated * np.bincount(cluster)
        weights = np.where(guilty[cluster], 0.0, rows.gram.prior)
        if not weights.any():
            return Combination(weights, notes=("deepsight dropped every cluster: the aggregate is zero",))
        norms = rows.gram.norms()
        return Combination(weights / weights.sum() * shrink(norms, float(np.median(norms))))

    def _classes(self, context: Context) -> int:
        """The number of outputs of the last layer; ExperimentError unless it is a weight and a bias."""
        shapes = [layer.shape for layer in context.layers[-2:]]
        if len(shapes) == 2 and len(shapes[0]) >= 2 and shapes[1] == shapes[0][:1] and shapes[0][0] >= 2:
            return shapes[0][0]
        found = ", ".join(f"{layer.name} {layer.shape}" for layer in context.layers[-2:]) or "none"
        reason = (
            f"{self.name} needs the names and shapes of the model's tensors, of which the last two are the "
            "weight (classes, features) and the bias (classes,) of two classes at least"
        )
        raise ExperimentError(Problem(reason, "layers", found))


def energy_shares(energies: Floats) -> Floats:
    """The squares of the `energies` (n, P), as shares of their sum in each row; zeros for a row of zeros."""
    largest = energies.max(axis=1, keepdims=True)
    squares = np.divide(energies, largest, out=np.zeros_like(energies), where=largest > 0) ** 2
    total = squares.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(squares, total, out=np.zeros_like(squares), where=total > 0))
