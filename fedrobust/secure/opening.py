"""What the coordinator's side makes of the numbers that servers open for it: the Gram matrix and one weighted sum.

A client can add 2^32 to a coordinate in which no other update lives, and the square 2^64 is zero in the ring: norms and
angles show nothing. But the sum that is opened must have the norm that the Gram matrix gives it, ‖a‖² = wᵀGw over the
exact integers, unreduced. Modulo 2^64 that always holds; over the integers it says that no wrap-around is in the sum
(but for one that cancels in it, which does no harm). If it fails, random projections that were drawn after all shares
had arrived are opened for each client with weight, and show whose norm is a lie; its term is opened and subtracted. The
weights are never computed again: two sums of one round would differ by the culprit and an honest update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation.gram import Anchor, Centred, Floats, Gram, History
from fedrobust.secure.messages import Kind, expect, server_id, unpack
from fedrobust.secure.ring import FRACTION, LARGEST, Entropy, Integers, Words, encode, quadratic_form, square_sum
from fedrobust.secure.server import HISTORY_FRACTION, MIN_SUPPORT, OpeningError, support, supported

DITHER_BITS = 6
THRESHOLD = 8
"""t of the projections p of a row u, m = 32 of them, with entries −1, 0, 0, 1: an honest row has ‖p‖² ≤ t² ‖u‖².

The mean of ‖p‖² is m‖u‖² / 2, a quarter of that. A projection is sub-Gaussian with its own variance, so a false alarm
has the probability exp(−m/2 (4 − 1 − ln 4)) < 10^-11 (Chernoff). A row whose square was reduced by 2^63 or more has at
least 9 times its claimed square, and stays below the threshold with probability < 0.02, 2·10^-5 at 2^64. If no row is
found, the round is skipped."""


def joined(messages: Sequence[bytes], run: str, round: int, kind: Kind, count: int) -> Words:
    """The `count` words whose shares are the bodies of all servers' messages. MessageError if one does not fit."""
    total = np.zeros(count, dtype=np.int64)
    for number, data in enumerate(messages):
        message = expect(unpack(data), run, round, server_id(number), kind, 8 * count, "coordinator")
        total += np.frombuffer(message.body, dtype="<i8")
    return total


def largest_square(d: int) -> int:
    """The largest squared norm of an honest update of d words: rounding adds up to √d / 2."""
    return ((1 << FRACTION) + isqrt(d) + 1) ** 2


def largest_history_square(name: str, rounds: int, d: int) -> int:
    """The same of a history that has grown for so many rounds; each truncation adds up to √d or so."""
    if name == "last":
        return largest_square(d)
    # "average" keeps nine tenths of earlier errors.
    units, errors = (rounds, 2 * rounds) if name == "sum" else (1, 24)
    bound: int = ((units << HISTORY_FRACTION) + errors * (isqrt(d) + 1)) ** 2
    return min(bound, LARGEST - 1)


def fixed_point(weights: Floats, gram: Integers) -> tuple[Words, int]:
    """Weights (n,) as integers and their fraction bits: as many as leave the sum of such rows below 2^62.

    A sum is at most Σ |w_i| ‖u_i‖: 31 bits or so for rows of the largest norm whose weights add up to 1.
    """
    norms = np.sqrt(np.maximum(np.diag(gram).astype(np.float64), 1.0))
    reach = float(np.abs(weights) @ norms)
    if not np.isfinite(reach):
        raise OpeningError("weights that are not finite cannot be shared")
    bits = int(np.floor(np.log2(LARGEST / reach))) if reach > 0 else 0
    return np.rint(np.ldexp(weights, bits)).astype(np.int64), bits


def dithered(weights: Words, entropy: Entropy) -> Words:
    """The same with random last bits, drawn after the shares have arrived; zeros stay.

    Who knew the weights could search for a wrapped update whose multiple is small, and whose squares add up. Now
    ‖a‖² − wᵀGw, of degree 2 in each weight, would have to vanish for most of its 2^DITHER_BITS values.
    """
    noise = np.frombuffer(entropy(len(weights)), dtype=np.uint8).astype(np.int64) >> 8 - DITHER_BITS
    return np.where(weights == 0, 0, weights + noise - (1 << DITHER_BITS - 1))


def fits(aggregate: Words, weights: Words, gram: Integers) -> bool:
    """Whether ‖a‖² = wᵀGw, over the integers, and not more than updates of such norms can have."""
    square = square_sum(aggregate)
    reach = sum(abs(int(weight)) * (isqrt(max(gram[row, row], 0)) + 1) for row, weight in enumerate(weights))
    return square == quadratic_form(weights, gram) and square <= reach**2


def culprits(projections: Words, rows: Sequence[int], gram: Integers) -> list[int]:
    """Those of `rows` whose projections (len(rows), PROJECTIONS) are too long for their squares in the Gram matrix."""
    return [row for row, own in zip(rows, projections, strict=True) if square_sum(own) > THRESHOLD**2 * gram[row, row]]


@dataclass(frozen=True, eq=False)
class Verdict:
    """What came of opening a sum.

    `aggregate` (d,) words, None if the round must be skipped; `factor` makes up for the terms that were subtracted;
    `culprits` the rows they were of; `projected` whether projections of all rows with weight were opened.
    """

    aggregate: Words | None
    weights: Words
    factor: float = 1.0
    culprits: tuple[int, ...] = ()
    projected: bool = False
    reason: str = ""


def open_aggregate(
    aggregate: Words,
    weights: Words,
    gram: Integers,
    project: Callable[[], Words],
    term: Callable[[int], Words],
    min_support: float = MIN_SUPPORT,
) -> Verdict:
    """Judge an opened sum; `project` opens the projections of the rows with weight, `term` a row's w_i u_i."""
    if fits(aggregate, weights, gram):
        return Verdict(aggregate, weights)
    found = tuple(culprits(project(), np.flatnonzero(weights).tolist(), gram))
    if not found:
        return Verdict(None, weights, projected=True, reason="the sum does not fit the Gram matrix; no row explains it")
    rest = weights.copy()
    rest[list(found)] = 0
    if not supported(rest, min_support):
        reason = f"without rows {', '.join(map(str, found))} the weights lie on {support(rest):.2f} updates"
        return Verdict(None, weights, culprits=found, projected=True, reason=reason)
    cleaned = aggregate.copy()
    for row in found:
        cleaned -= term(row)
    if not fits(cleaned, rest, gram):
        reason = f"the sum does not fit the Gram matrix without rows {', '.join(map(str, found))}"
        return Verdict(None, weights, culprits=found, projected=True, reason=reason)
    share_out = (weights >= 0).all()
    factor = float(weights.astype(np.float64).sum() / rest.astype(np.float64).sum()) if share_out else 1.0
    return Verdict(cleaned, rest, factor, found, projected=True)


def encode_anchor(vector: NDArray[Any], clip: float) -> tuple[Words, int]:
    """A public vector as words of norm ≤ 1, and the power of two that they are to be multiplied with beside clip."""
    norm = float(np.linalg.norm(np.asarray(vector, dtype=np.float64)))
    exponent = int(np.ceil(np.log2(norm / clip))) if norm > 0 else 0
    return encode(vector, clip * 2.0**exponent), exponent


def gram_of_integers(
    exact: Integers, unit: float, prior: Floats, anchors: Sequence[str], histories: Sequence[str]
) -> Gram:
    """The Gram of n = len(prior) updates from the products of lines: updates, anchors, n for each history.

    Differences are taken over the integers, about the row of (lower) median norm, so distances keep all their digits.
    """
    n, known = len(prior), len(prior) + len(anchors)
    middle = sorted(range(n), key=lambda row: exact[row, row])[(n - 1) // 2]
    seen, beside, square = exact[:known, :known], exact[:known, middle], exact[middle, middle]

    def floats(integers: Any) -> Floats:
        return np.asarray(integers, dtype=np.float64) * unit

    matrix = floats(exact)
    return Gram(
        matrix=matrix[:n, :n].copy(),
        prior=prior,
        anchors={
            name: Anchor(matrix[:n, line].copy(), float(matrix[line, line])) for line, name in enumerate(anchors, n)
        },
        centred=Centred(
            products=floats(seen - beside[:, None] - beside[None, :] + square),
            with_reference=floats(beside - square),
            squared_norm=float(floats(square)),
            share=np.ones(known),
        ),
        histories={
            name: History(
                matrix=matrix[first : first + n, first : first + n].copy(),
                cross=matrix[:n, first : first + n].copy(),
                anchors={anchor: matrix[first : first + n, line].copy() for line, anchor in enumerate(anchors, n)},
            )
            for first, name in zip(range(known, len(matrix), n), histories, strict=True)
        },
    )
