"""What the coordinator's side computes from the numbers that servers open for it: the Gram matrix and one weighted sum.

A client can add 2^32 to a coordinate in which all other updates are zero, and the square 2^64 is zero in the ring:
norms and angles show nothing. There are two checks against that. Before anything is judged, random combinations of each
row, which only the servers could choose, show rows that are too long (`sketch.too_long`): those are named and left out.
And the opened sum must have the norm that follows from the Gram matrix, as far as the noise in it and the sketch allow;
otherwise the round is skipped. Where no product of two updates is opened, it must be no longer than all updates in one
direction. Nothing else is opened to find the reason: a second sum would show the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.secure.lines import HISTORY_FRACTION
from fedrobust.secure.messages import Kind, expect, server_id, unpack
from fedrobust.secure.ring import FRACTION, LARGEST, Integers, Words, encode, largest_square, quadratic_form, square_sum
from fedrobust.secure.server import NOISE_BITS
from fedrobust.updates.gram import Anchor, Centred, Floats, Gram, History

DEVIATIONS = 8
"""Standard deviations by which noise may change the norm of the sum without an alarm: a false alarm in 10^13 rounds."""


def joined(messages: Sequence[bytes], run: str, round: int, kind: Kind, count: int) -> Words:
    """Add up the shares in all servers' messages: (count,) words.

    messages: one of each server, by number.
    run: a `run_id`.
    round: the number in messages.
    kind: the expected one.

    Raises `MessageError` if a message does not fit.
    """
    total = np.zeros(count, dtype=np.int64)
    for number, data in enumerate(messages):
        message = expect(unpack(data), run, round, server_id(number), kind, 8 * count, "coordinator")
        total += np.frombuffer(message.body, dtype="<i8")
    return total


def largest_history_square(name: str, rounds: int, d: int) -> int:
    """The largest squared norm of a history after so many rounds; a truncation adds up to √d or so.

    name: of the history.
    rounds: for which it has grown.
    d: coordinates of an update.
    """
    if name == "last":
        return largest_square(d)
    # "average" keeps nine tenths of earlier errors.
    units, errors = (rounds, 2 * rounds) if name == "sum" else (1, 24)
    bound: int = ((units << HISTORY_FRACTION) + errors * (isqrt(d) + 1)) ** 2
    return min(bound, LARGEST - 1)


def misfit(aggregate: Words, weights: Words, gram: Integers, servers: int, sketch: int | None) -> str | None:
    """Why an opened sum is not Σ w_i u_i of rows with these products; None if it may be.

    aggregate: (d,) the opened sum.
    weights: (n,) w, whole numbers.
    gram: (n, n) G, the exact products of the rows u_i; or (n,) their squares, or the largest that these may be.
    servers: s, the servers that added noise.
    sketch: columns of the sketch that `gram` is of; None: it is of the updates themselves.

    Let a be the sum without the noise e, whose coordinates are sums of one uniform number in [−R, R) for each of s
    servers, R = 2^16. If nothing wraps around, ‖a‖² = q = wᵀGw over the integers, and

        ‖a + e‖² = q + 2 ⟨a, e⟩ + ‖e‖²,   0 ≤ ‖e‖² ≤ d s² R²,   |E⟨a, e⟩| ≤ s/2 √d ‖a‖.

    By Hoeffding's lemma ⟨a, e⟩ is sub-Gaussian with the variance s R² ‖a‖² at most, so it is further than 8 √s R ‖a‖
    from its mean with a probability below 2 exp(−32) < 10^-13. That is `allowed`. A row of weight w whose square wraps
    around in the Gram matrix, which is read mod 2^63, makes q too small by w² 2^63 at least, and so is found where
    this is more than twice what is allowed. Below that it moves the sum by √allowed at most, less than an honest row.
    This assumes that its products with the other rows are right: a row so long that they wrap around, too, is left out
    before (`sketch.too_long`), so neither check replaces the other.

    Where `gram` is of sketches of k columns, q is ‖aS‖², and ‖a‖ ≤ √q / (1 − √(n/k) − 6/√k) for any a in the span of n
    rows: with normal S but for a probability of 2 exp(−18) (Davidson, Szarek, 2001), and so measured for this S. A sum
    can only be too long then. Where that is no bound, and without G, the sum is compared with the sum of all rows'
    lengths, Σ w_i ‖u_i‖: more than that no aggregate of updates so long can be.
    """
    n, d, most = int(np.count_nonzero(weights)), len(aggregate), servers << NOISE_BITS
    exact = sketch is None or sketch >= d
    square, expected = square_sum(aggregate), None if gram.ndim == 1 else quadratic_form(weights, gram)
    if expected is not None and expected < 0:
        return "the products of the updates are those of no vectors: an update wraps around"
    lengths = [isqrt(max(each, 0)) + 1 for each in (np.diag(gram) if gram.ndim == 2 else gram)]
    longest = float(sum(int(weight) * length for weight, length in zip(weights, lengths, strict=True)))
    if sketch is not None and not exact:
        kept = 1.0 - sqrt(n / sketch) - 6.0 / sqrt(sketch)
        bounds = [(longest, 1.0 - 7.0 / sqrt(sketch)), *([] if expected is None else [(sqrt(expected), kept)])]
        longest = min((bound / part for bound, part in bounds if part > 0), default=float(n << FRACTION + 12))
    size = sqrt(expected) if exact and expected is not None else longest
    allowed = (2 * DEVIATIONS * sqrt(servers) * (1 << NOISE_BITS) + servers * sqrt(d)) * size + d * most**2
    if exact and expected is not None and abs(square - expected) > allowed:
        return "the sum has not the norm that the Gram matrix gives it: an update wraps around"
    if square > longest**2 + allowed:
        return "the sum is longer than updates of such products can make it: an update wraps around"
    return None


def encode_anchor(vector: NDArray[Any], clip: float) -> tuple[Words, int]:
    """A public vector as words (d,) of norm ≤ 1, and a power of two.

    vector: (d,) numbers.
    clip: C of the updates.

    The words stand for the vector divided by `clip` and by this power of two, which is returned as its exponent.
    """
    norm = float(np.linalg.norm(np.asarray(vector, dtype=np.float64)))
    exponent = int(np.ceil(np.log2(norm / clip))) if norm > 0 else 0
    return encode(vector, clip * 2.0**exponent), exponent


def gram_of_squares(exact: Integers, unit: float, prior: Floats, anchors: Sequence[str]) -> Gram:
    """What is known of n updates without products of two of them; arguments as for `gram_of_integers`.

    exact: (n + A, n + A) the products of the updates and the anchors; those of two updates are not used.
    """
    n, count = len(prior), len(anchors)
    rows, public, squares = range(n), range(n, n + count), np.diag(exact)
    figures = np.zeros((n + 1, 1 + 2 * count))
    figures[:n, 0] = [float(squares[row]) for row in rows]
    for place, line in enumerate(public):
        figures[:n, 1 + 2 * place] = [float(exact[row, line]) for row in rows]
        apart = [squares[row] - 2 * exact[row, line] + squares[line] for row in rows]
        figures[:n, 2 + 2 * place] = np.asarray(apart, dtype=np.float64)
        figures[n, 1 + 2 * place] = float(squares[line])
    return Gram.of_norms(figures * unit, prior, anchors)


def gram_of_integers(
    exact: Integers, unit: float, prior: Floats, anchors: Sequence[str], histories: Sequence[str]
) -> Gram:
    """The Gram of n updates from the exact products of lines.

    Differences are taken over the integers, about the row of (lower) median norm, so distances keep all their digits.

    exact: the products of all lines: n updates, the anchors, n rows for each history.
    unit: what one of these integers stands for.
    prior: (n,) prior weights.
    anchors: names of the public vectors.
    histories: names of the histories.
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
