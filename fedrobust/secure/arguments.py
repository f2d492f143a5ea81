"""Checks of the arguments that a party is called with: anybody who has its handle may call it with anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from fedrobust.secure.lines import COEFFICIENT_FRACTION
from fedrobust.secure.ring import Words
from fedrobust.secure.weights import OpeningError


def is_number(value: object, limit: int = 1 << 63) -> TypeGuard[int]:
    """Whether `value` is a whole number from 0 to limit − 1; True and False do not count."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(0 <= value < limit)


def are_numbers(found: object, limit: int = 1 << 63) -> bool:
    """Whether `found` is a list, tuple or range of different whole numbers from 0 to limit − 1."""
    if not isinstance(found, (list, tuple, range)):
        return False
    return all(is_number(each, limit) for each in found) and len(set(found)) == len(found)


def are_words(found: object, count: int) -> TypeGuard[Words]:
    """Whether `found` is a plain int64 array (count,): an array of a subclass could hide some words from a check."""
    return type(found) is np.ndarray and found.dtype == np.int64 and found.shape == (count,)


def require_rows(rows: Sequence[int], coefficients: Words, n: int) -> None:
    """Check the rows that histories grow by.

    rows: different row numbers from 0 to n − 1.
    coefficients: (k,) one for each of the rows, from 0 to 2^12, which stands for 1.

    Raises `OpeningError` otherwise.
    """
    if not are_numbers(rows, n) or not are_words(coefficients, len(rows)):
        raise OpeningError(f"histories grow by different rows of {n}, with a coefficient for each")
    if len(rows) and not (coefficients.min() >= 0 and coefficients.max() <= 1 << COEFFICIENT_FRACTION):
        raise OpeningError("a coefficient must be from 0 to 1")
