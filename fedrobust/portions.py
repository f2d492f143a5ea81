"""A share of n things as a whole number: the same rounding wherever an experiment gives a share of its hospitals."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal


def portion(share: float, n: int, *, least: bool = False) -> int:
    """Round a `share` of `n` to the nearest whole number, halves upwards; with `least`, up to the next whole number.

    So `participation`, `fraction` (attackers) and the Byzantine f are counted alike: the same share of the same
    hospitals is the same number. A quorum uses `least`. The arithmetic is decimal, like the written share: 0.29 of 50
    is 14.5, which binary floats put just below, and 0.14 of 50 is 7, which they put just above.
    """
    exact = Decimal(repr(float(share))) * n
    return int(exact.to_integral_value(ROUND_CEILING if least else ROUND_HALF_UP))
