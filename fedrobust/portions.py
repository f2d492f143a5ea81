"""A share of so many things, as a whole number: one rule, wherever an experiment gives a share of its hospitals."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal


def portion(share: float, n: int, *, least: bool = False) -> int:
    """How many a share of n is: the nearest whole number, a half upwards; `least`: the smallest that is not below it.

    So who takes part (`participation`), who attacks (`fraction`) and the Byzantine f are counted alike: the same share
    of the same hospitals is the same number. A quorum is a `least`. Reckoned in decimals, as the share is written: 0.29
    of 50 is 14.5, which binary floats put just below, and 0.14 of 50 is 7, which they put just above.
    """
    exact = Decimal(repr(float(share))) * n
    return int(exact.to_integral_value(ROUND_CEILING if least else ROUND_HALF_UP))
