"""Help for tests of rules: rows that break careless rules, and `check_rule`, which checks what a rule promises."""

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
    """The last f rows equal the one before them: colluding clients that send the same."""
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
    """All rows share a common part that is a thousand times larger than their differences."""
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
    """Check that a rule, after `stages` if there are any, keeps the promises of every rule and its own `claims`.

    Every rule: a bound that says why; finite results without warnings on `INSTANCES` and on degenerate rows; weights
    that give the aggregate; the same bits in a second call, and from shards; the same aggregate however the columns are
    cut, and in float32, float64 and bfloat16; its arguments are not changed; rows that are not finite are refused.
    Claims: equivariance under permutation of the rows (each round in another order, with the clients' ids), under
    translation and positive scaling of rows and root; breakdown: f rows of any size and direction do not pull the
    aggregate away from the others. A rule that needs a root, layers, a history or several rounds gets them.

    rule: the rule to check.
    stages: the stages before it.
    shapes: (n, d, f); the f used is the largest that the bounds allow, at most this one.
    seed: of the instances.
    claims: the claims to check, e.g. where an option takes one away; by default those that all parts claim.
    Raises `AssertionError`, which names the promise, the instance (kind, n, d, f, seed) and the difference.
    """
    pipeline = Pipeline([*stages, rule])
    held = frozenset.intersection(*(part.claims for part in pipeline.parts)) if claims is None else claims
    Checks(pipeline, INSTANCES, seed).run(shapes, held)
