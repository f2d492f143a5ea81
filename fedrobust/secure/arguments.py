"""Whether what a party is asked with is what it says: whoever has a party's handle may ask it for anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from fedrobust.secure.lines import COEFFICIENT_FRACTION
from fedrobust.secure.ring import Words
from fedrobust.secure.weights import OpeningError


def is_number(value: object, limit: int = 1 << 63) -> TypeGuard[int]:
    """Whether it is a whole number from 0 to limit − 1; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(0 <= value < limit)


def are_numbers(found: object, limit: int = 1 << 63) -> bool:
    """Whether these are different whole numbers from 0 to limit − 1, one after the other."""
    if not isinstance(found, (list, tuple, range)):
        return False
    return all(is_number(each, limit) for each in found) and len(set(found)) == len(found)


def are_words(found: object, count: int) -> TypeGuard[Words]:
    """Whether this is a plain array of `count` words: one of a kind of its own may hide some of them from a check."""
    return type(found) is np.ndarray and found.dtype == np.int64 and found.shape == (count,)


def require_rows(rows: Sequence[int], coefficients: Words, n: int) -> None:
    """OpeningError unless these are different rows of n, with a coefficient from 0 to 2^12 for each."""
    if not are_numbers(rows, n) or not are_words(coefficients, len(rows)):
        raise OpeningError(f"histories grow by different rows of {n}, with a coefficient for each")
    if len(rows) and not (coefficients.min() >= 0 and coefficients.max() <= 1 << COEFFICIENT_FRACTION):
        raise OpeningError("a coefficient must be from 0 to 1")
