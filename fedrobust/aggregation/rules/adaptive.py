"""The project's own defence: it judges hospitals by the averages of what they send, and combines what they send now."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.base import Context, Rule
from fedrobust.aggregation.numerics import ranking, shrink
from fedrobust.aggregation.outlyingness import closeness, typical_norm
from fedrobust.aggregation.stages import Clip
from fedrobust.updates.gram import Combination, Floats, Gram
from fedrobust.updates.interface import FORGETTING, clip_factors

KEPT = 0.75
"""The part of the weight that must stay where rows are cleared; else it is the clearing that is doubted."""
LONGEST = 5.0
"""No row counts with more than so many median norms."""
SETTLED = 3
"""Rounds after which averages say who is close to whom."""
TIED = 1e-9
"""Squared distances that differ by less than this part are equal: rows of equal norm after a cut often are."""
STEPS = 50
"""Of Weiszfeld, towards the geometric median."""
NEAREST = 1e-2
"""Distances to the geometric median below this part of the median norm count as that much."""


class Adaptive(Rule):
    """Nearest neighbours and a geometric median of moving averages decide who counts: the project's own, without f.

    v_i = (0.9 h_i + 0.1 c_i u_i) / (1 − 0.9ᵗ), h_i the history "average", c_i what cuts u_i to the round's median norm,
    t the client's rounds with this one. Copies are out of a round: rows nearer to another one, as u or as v, than
    `copies` · the longer norm, if they are a minority. With m rows left:
    1. z_i = (√(1 − a) v_i, √a u_i), v and u cut to their median norms, a = `current`;
    2. twice, each z_i becomes the mean of its m − f nearest (NNM: Allouah et al., AISTATS 2023), f = ⌊(n − 1) / 2⌋ less
       the copies, but for one of each group of them, and at most ⌊(m − 1) / 2⌋;
    3. the weights of their geometric median, on the original rows, are the shares s_i; e_i = min(1, m s_i): nobody
       counts more than an equal share;
    4. w_i = p_i e_i k_i, k_i the client's standing: 1 at first, then k ← `memory` k + (1 − `memory`) e_i;
    5. rows whose v_i is by far nearer to another one than is common (`close`) lose their weight, if 3/4 of all stays;
    6. F(u) = Σ w_i u_i min(1, r / ‖u_i‖) / Σ w_i, r the norm that holds `reach` of the weight, at most 5 medians.
    Needs G and the histories "average"; the Byzantine f plays no part. Prior: p, in step 4.

    In the averages noise is gone and what a client always does is left: honest ones agree better than in any round,
    and so do those who pull together. docs/adaptive.md tells what each step is worth, and where the rule fails.
    """

    name: Literal["adaptive"] = "adaptive"
    histories: ClassVar[tuple[str, ...]] = ("average",)
    per_client: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "breakdown"})
    current: Annotated[float, Field(ge=0, le=1)] = 0.2
    """a: what this round's update counts beside the average. With 0, a client that was honest for long can attack
    unnoticed."""
    copies: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """How near a copy is, as a part of its norm; 0: only equal rows are copies."""
    memory: Annotated[float, Field(ge=0, le=1)] = 0.9
    """What is left of a client's standing after a round; 1: standing plays no part."""
    close: Annotated[float, Field(gt=0)] = 0.5
    """ln of how many times nearer than common the nearest average is of a row that loses its weight."""
    reach: Annotated[float, Field(gt=0, le=1)] = 0.75
    """The part of the weight in rows that are no longer than r."""

    def scores(self, gram: Gram, context: Context) -> Floats:
        """1 − w_i / (p_i · the largest such): 0 for who counts most, 1 for who does not count."""
        weights = self.judged(gram, context)[0] / gram.prior
        return np.asarray(1.0 - weights / weights.max())

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The weights of the cut rows."""
        weights, state = self.judged(gram, context)
        norms = gram.norms()
        radius = min(reached(norms, weights, self.reach), LONGEST * float(np.median(norms)))
        return Combination(weights / weights.sum() * shrink(norms, radius), state=state)

    def judged(self, gram: Gram, context: Context) -> tuple[Floats, dict[str, Floats]]:
        """The weights w (n,) of the rows before they are cut, and the state after the round."""
        rounds, standing = context.recalled("rounds", gram.n) + 1.0, context.recalled("standing", gram.n, 1.0)
        averages = moving_averages(gram, rounds)
        kept, liars = told_apart(alike(gram, self.copies) | alike(averages, self.copies))
        shares, mask = np.zeros(gram.n), np.eye(gram.n)[kept]
        rows, past = gram.mixed(mask), averages.mixed(mask)
        shares[kept] = consensus((1.0 - self.current) * cut(past) + self.current * cut(rows), liars)
        counted = np.minimum(1.0, shares * kept.sum())
        weights = gram.prior * counted * standing
        cleared = np.zeros(gram.n, dtype=bool)
        cleared[kept] = (closeness(past) > self.close) & (rounds[kept] > SETTLED)
        if weights[~cleared].sum() >= KEPT * weights.sum():
            weights = np.where(cleared, 0.0, weights)
        standing = self.memory * standing + (1.0 - self.memory) * counted
        state = {"rounds": context.remembered("rounds", rounds)}
        state["standing"] = context.remembered("standing", np.maximum(standing, 1e-3), 1.0)
        return weights, state


def reached(norms: Floats, weights: Floats, part: float) -> float:
    """The least of the norms (n,) below or at which the rows hold that part of the weights (n,)."""
    order = ranking(norms)
    held = np.cumsum(weights[order]) >= part * weights.sum() * (1.0 - 1e-9)
    return float(norms[order[np.argmax(held)]])


def moving_averages(gram: Gram, rounds: Floats) -> Gram:
    """The Gram of v_i = (0.9 h_i + 0.1 c_i u_i) / (1 − 0.9^rounds_i), c the `clip_factors` of the round's rows."""
    history = gram.histories["average"]
    grown = 1.0 - FORGETTING**rounds
    new, old = (1.0 - FORGETTING) * clip_factors(gram.norms() ** 2) / grown, FORGETTING / grown
    cross = np.outer(new, old) * history.cross
    products = np.outer(new, new) * gram.matrix + cross + cross.T + np.outer(old, old) * history.matrix
    return Gram((products + products.T) / 2, gram.prior)


def alike(gram: Gram, part: float) -> NDArray[np.bool_]:
    """(n, n) which other rows a row is nearer to than `part` of the longer norm."""
    norms = gram.norms()
    near = gram.distances_squared() <= (part * np.maximum.outer(norms, norms)) ** 2
    np.fill_diagonal(near, False)
    return np.asarray(near)


def told_apart(near: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """The rows (n,) that are no copies, and how many malicious ones there may be among them.

    Of a group of copies one may be an honest hospital's, which the others have copied. Where copies would be half of
    the rows or more, nobody is told apart.
    """
    from scipy.sparse.csgraph import connected_components  # slow to import

    n, copy = len(near), near.any(axis=1)
    if 2 * copy.sum() >= n:
        return np.ones(n, dtype=bool), (n - 1) // 2
    groups = len(set(connected_components(near)[1][copy].tolist()))
    left = n - int(copy.sum())
    return np.asarray(~copy), min((left - 1) // 2, max(0, (n - 1) // 2 - int(copy.sum()) + groups))


def cut(gram: Gram) -> Floats:
    """The products (n, n) of the rows cut to their median norm."""
    return gram.mixed(Clip().mix(gram, Context(f=0))).matrix


def neighbours(distances: Floats, count: int, rounding: float) -> Floats:
    """The mixing matrix (n, n) of nearest-neighbour mixing with `count` rows; those equally far share what is left."""
    last = np.sort(distances, axis=1)[:, count - 1 : count]
    gap = TIED * last + rounding
    nearer, within = distances < last - gap, distances <= last + gap
    tied = within & ~nearer
    left = (count - nearer.sum(axis=1, keepdims=True)) / tied.sum(axis=1, keepdims=True)
    return np.asarray((nearer + left * tied) / count)


def consensus(products: Floats, f: int) -> Floats:
    """The weights (n,), which sum to 1, of the geometric median after two nearest-neighbour mixings.

    Mixed rows often coincide, two here and two there: then many points are minima. Weiszfeld's steps from the mean end
    in one that moves little when the rows do.
    """
    n = len(products)
    gram, total = Gram(products, np.full(n, 1.0 / n)), np.eye(n)
    for _ in range(2):
        mixing = neighbours(gram.distances_squared(), n - f, TIED * typical_norm(gram) ** 2)
        gram, total = gram.mixed(mixing), mixing @ total
    mixed, weights, least = gram.matrix, np.full(n, 1.0 / n), NEAREST * typical_norm(gram)
    for _ in range(STEPS):
        products = mixed @ weights
        squares = np.diag(mixed) - 2.0 * products + weights @ products
        nearness = 1.0 / np.sqrt(np.maximum(squares, least**2))
        weights = nearness / nearness.sum()
    return np.asarray(weights @ total)
