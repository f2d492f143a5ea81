"""Help for tests of rules: rows that break careless ones, and `check_rule`, which holds a rule to its word."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedrobust.aggregation.base import AnyRule, Stage
from fedrobust.aggregation.pipeline import Pipeline
from fedrobust.aggregation.testing.checks import Checks
from fedrobust.updates.gram import Floats


def plain(rng: np.random.Generator, n: int, d: int, f: int) -> Floats:
    """Standard normal."""
    return rng.standard_normal((n, d))


def duplicated(rng: np.random.Generator, n: int, d: int, f: int) -> Floats:
    """The last f rows equal the one before: colluders who send the same."""
    rows = rng.standard_normal((n, d))
    rows[n - f :] = rows[n - f - 1]
    return rows


def with_zeros(rng: np.random.Generator, n: int, d: int, f: int) -> Floats:
    """The first f + 1 rows are zero."""
    rows = rng.standard_normal((n, d))
    rows[: f + 1] = 0.0
    return rows


def with_huge(rng: np.random.Generator, n: int, d: int, f: int) -> Floats:
    """The first f rows are huge."""
    rows = rng.standard_normal((n, d))
    rows[:f] *= 1e12
    return rows


def with_common_part(rng: np.random.Generator, n: int, d: int, f: int) -> Floats:
    """All rows share a part a thousand times larger than what sets them apart."""
    return 1e3 * rng.standard_normal(d) + rng.standard_normal((n, d))


def all_equal(rng: np.random.Generator, n: int, d: int, f: int) -> Floats:
    """n copies of one row."""
    return np.tile(rng.standard_normal(d), (n, 1))


INSTANCES: dict[str, Callable[[np.random.Generator, int, int, int], Floats]] = {
    rows.__name__: rows for rows in (plain, duplicated, with_zeros, with_huge, with_common_part, all_equal)
}
"""Generators of n rows of d coordinates, float64, of which f may be Byzantine."""

SHAPES = ((4, 2, 0), (5, 3, 1), (9, 40, 3), (11, 1, 2), (12, 130, 5))
"""(n, d, f) of the instances of `check_rule`."""


def check_rule(
    rule: AnyRule,
    *,
    stages: Sequence[Stage] = (),
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    seed: int = 0,
    claims: frozenset[str] | None = None,
) -> None:
    """Hold a rule, after `stages` if there are any, to what every rule promises, and to its own `claims`.

    Every rule: a bound that says why; finite results without warnings on `INSTANCES` and on degenerate rows; weights
    that make the aggregate; the same bits when asked again, and from shards; the same aggregate however the columns are
    cut, and in float32, float64 and bfloat16; nothing changed of what it is given; rows that are not finite refused.
    Claims: equivariance under permutation of the rows (each round in another order, with the clients' ids), under
    translation and positive scaling of rows and root; breakdown: f rows of any size and direction do not carry the
    aggregate away. A rule that needs a root, layers, a history or several rounds gets them.

    shapes: (n, d, f); f is the largest that the bounds allow, at most this one. claims: hold it to these, e.g. where an
    option takes one away; by default to those that all its parts claim.
    AssertionError names the promise, the instance (kind, n, d, f, seed) and the difference.
    """
    pipeline = Pipeline([*stages, rule])
    held = frozenset.intersection(*(part.claims for part in pipeline.parts)) if claims is None else claims
    Checks(pipeline, INSTANCES, seed).run(shapes, held)
