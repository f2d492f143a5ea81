"""The project's own defence: it judges hospitals by the averages of their updates, and combines the updates of the
round.
"""

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
"""The fraction of the weight that must stay where rows lose their weight; otherwise no row loses it."""
LONGEST = 5.0
"""No row counts with a norm of more than this multiple of the median norm."""
SETTLED = 3
"""Rounds after which the averages show which clients are close to each other."""
TIED = 1e-9
"""Squared distances that differ by less than this fraction are equal: rows that were clipped to the same norm often
are."""
STEPS = 50
"""Weiszfeld steps towards the geometric median."""
NEAREST = 1e-2
"""Smaller distances to the geometric median, as a fraction of the median norm, are replaced by this one."""


class Adaptive(Rule):
    """Nearest neighbours and a geometric median of moving averages: the project's own rule, without a Byzantine f.

    v_i = (0.9 h_i + 0.1 c_i u_i) / (1 − 0.9ᵗ), h_i the history "average", c_i the factor that clips u_i to the round's
    median norm, t the client's rounds, this one included. Copies are left out of a round: rows nearer to another one,
    as u or as v, than `copies` · the longer norm, if they are a minority. With m rows left:
    1. z_i = (√(1 − a) v_i, √a u_i), v and u clipped to their median norms, a = `current`;
    2. twice, each z_i becomes the mean of its m − f nearest (NNM: Allouah et al., AISTATS 2023), f = ⌊(n − 1) / 2⌋ less
       the number of copies, one of each group not counted, and at most ⌊(m − 1) / 2⌋;
    3. the weights of their geometric median, on the original rows, are the shares s_i; e_i = min(1, m s_i): no row
       counts more than an equal share;
    4. w_i = p_i e_i k_i, k_i the client's standing: 1 at first, then k ← `memory` k + (1 − `memory`) e_i;
    5. rows whose v_i is much nearer to another one than is common (`close`) lose their weight, if 3/4 of all stays;
    6. F(u) = Σ w_i u_i min(1, r / ‖u_i‖) / Σ w_i, r the norm that holds `reach` of the weight, at most 5 medians.
    Needs G and the histories "average"; the Byzantine f is not used. Prior: p, in step 4.

    In the averages the noise is gone and the constant part of a client's updates is left: honest clients agree better
    than in any round, and so do colluding ones. docs/adaptive.md says what each step gains, and where the rule fails.
    """

    name: Literal["adaptive"] = "adaptive"
    histories: ClassVar[tuple[str, ...]] = ("average",)
    per_client: ClassVar[bool] = True
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "scaling", "breakdown"})
    current: Annotated[float, Field(ge=0, le=1)] = 0.2
    """a: the weight of this round's update beside the average. With 0, a client that was honest for long can attack
    unnoticed."""
    copies: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The largest distance of a copy, as a fraction of the longer norm; 0: only equal rows are copies."""
    memory: Annotated[float, Field(ge=0, le=1)] = 0.9
    """The factor on a client's standing in each round; 1: standing is not used."""
    close: Annotated[float, Field(gt=0)] = 0.5
    """A row loses its weight if its nearest average is exp(`close`) times nearer than is common."""
    reach: Annotated[float, Field(gt=0, le=1)] = 0.75
    """The fraction of the weight that rows of at most norm r hold."""

    def scores(self, gram: Gram, context: Context) -> Floats:
        """1 − w_i / (p_i · the largest such ratio): 0 for rows that count most, 1 for rows that do not count."""
        weights = self.judged(gram, context)[0] / gram.prior
        return np.asarray(1.0 - weights / weights.max())

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The weights of the clipped rows. Arguments as for `Rule.combine`."""
        weights, state = self.judged(gram, context)
        norms = gram.norms()
        radius = min(reached(norms, weights, self.reach), LONGEST * float(np.median(norms)))
        return Combination(weights / weights.sum() * shrink(norms, radius), state=state)

    def judged(self, gram: Gram, context: Context) -> tuple[Floats, dict[str, Floats]]:
        """The weights w (n,) of the rows before they are clipped, and the state after the round. Arguments as for
        `Rule.combine`.
        """
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
    """The smallest of the `norms` (n,) such that the rows up to it hold the fraction `part` of the `weights` (n,)."""
    order = ranking(norms)
    held = np.cumsum(weights[order]) >= part * weights.sum() * (1.0 - 1e-9)
    return float(norms[order[np.argmax(held)]])


def moving_averages(gram: Gram, rounds: Floats) -> Gram:
    """The Gram of v_i = (0.9 h_i + 0.1 c_i u_i) / (1 − 0.9^rounds_i).

    gram: of the u_i, with the history "average" h_i; c are the `clip_factors` of its rows.
    rounds: (n,) how many rounds each client has taken part in, this one included.
    """
    history = gram.histories["average"]
    grown = 1.0 - FORGETTING**rounds
    new, old = (1.0 - FORGETTING) * clip_factors(gram.norms() ** 2) / grown, FORGETTING / grown
    cross = np.outer(new, old) * history.cross
    products = np.outer(new, new) * gram.matrix + cross + cross.T + np.outer(old, old) * history.matrix
    return Gram((products + products.T) / 2, gram.prior)


def alike(gram: Gram, part: float) -> NDArray[np.bool_]:
    """(n, n) bool: whether two different rows of `gram` are nearer to each other than `part` · the longer norm."""
    norms = gram.norms()
    near = gram.distances_squared() <= (part * np.maximum.outer(norms, norms)) ** 2
    np.fill_diagonal(near, False)
    return np.asarray(near)


def told_apart(near: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """The rows (n,) bool that are no copies, and how many malicious ones there may be among them.

    near: (n, n) bool, which rows are copies of each other; see `alike`.

    One of a group of copies may be from an honest hospital that the others have copied. If half of the rows or more
    would be copies, all rows stay.
    """
    from scipy.sparse.csgraph import connected_components  # slow to import

    n, copy = len(near), near.any(axis=1)
    if 2 * copy.sum() >= n:
        return np.ones(n, dtype=bool), (n - 1) // 2
    groups = len(set(connected_components(near)[1][copy].tolist()))
    left = n - int(copy.sum())
    return np.asarray(~copy), min((left - 1) // 2, max(0, (n - 1) // 2 - int(copy.sum()) + groups))


def cut(gram: Gram) -> Floats:
    """The products (n, n) of the rows of `gram`, clipped to their median norm."""
    return gram.mixed(Clip().mix(gram, Context(f=0))).matrix


def neighbours(distances: Floats, count: int, rounding: float) -> Floats:
    """The mixing matrix (n, n) of nearest-neighbour mixing. Rows at equal distance share the weight that is left for
    them.

    distances: (n, n), squared.
    count: how many rows each mean has.
    rounding: distances up to it are rounding errors.
    """
    last = np.sort(distances, axis=1)[:, count - 1 : count]
    gap = TIED * last + rounding
    nearer, within = distances < last - gap, distances <= last + gap
    tied = within & ~nearer
    left = (count - nearer.sum(axis=1, keepdims=True)) / tied.sum(axis=1, keepdims=True)
    return np.asarray((nearer + left * tied) / count)


def consensus(products: Floats, f: int) -> Floats:
    """The weights (n,), with sum 1, of the geometric median after two nearest-neighbour mixings.

    products: (n, n) ⟨z_i, z_j⟩.
    f: the number of Byzantine rows: means are over n − f rows.

    Mixed rows often coincide in groups, so that many points are minima. Weiszfeld's steps from the mean end in a
    minimum that moves little when the rows do.
    """
    n = len(products)
    gram, total = Gram(products, np.full(n, 1.0 / n)), np.eye(n)
    for _ in range(2):
        mixing = neighbours(gram.distances_squared(), n - f, TIED * typical_norm(gram) ** 2)
        gram, total = gram.mixed(mixing), mixing @ total
    mixed, weights = gram.matrix, np.full(n, 1.0 / n)
    least = max((NEAREST * typical_norm(gram)) ** 2, float(np.finfo(np.float64).tiny))
    for _ in range(STEPS):
        products = mixed @ weights
        squares = np.diag(mixed) - 2.0 * products + weights @ products
        nearness = 1.0 / np.sqrt(np.maximum(squares, least))
        weights = nearness / nearness.sum()
    return np.asarray(weights @ total)
