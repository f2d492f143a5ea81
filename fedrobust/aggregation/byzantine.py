"""What is decided before rows are aggregated: whether the parts fit, the Byzantine f and the prior weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.base import AnyRule, PipelinePart, Stage, honest_majority
from fedrobust.errors import ExperimentError, Problem
from fedrobust.portions import portion
from fedrobust.updates.gram import Floats, Gram

ByzantineF = int | float | Literal["largest", "auto"]
"""A count, a fraction of the clients that were asked for an update, "largest" (the most that the parts allow) or "auto"
(estimated)."""


Cap = Annotated[float, Field(ge=1)] | Literal["auto"] | None
"""The most that a sample count counts: a multiple of the median, "auto" (see `capped_prior`), or None: no limit."""
HELD = 1 / 3
"""With a cap of "auto", the share of the weight that the f largest claims may hold."""


def capped_prior(samples: Sequence[float] | NDArray[Any] | None, n: int, cap: Cap = 2.0, f: int = 0) -> Floats:
    """Sample counts as prior weights (n,) float64 that sum to 1.

    samples: (n,) positive sample counts; None: uniform weights.
    n: number of rows.
    cap: a count is a client's own claim, so each counts up to this multiple of the median; None: without limit; "auto":
        up to the largest value at which the f largest counts hold a third of the weight at most, or what they hold with
        equal weights, if that is more. Whoever the f malicious clients are, and whatever they claim, they hold no more.
    f: the Byzantine f, for "auto".

    Raises `ExperimentError` unless there are n finite, positive counts.
    """
    counts = np.asarray(np.ones(n) if samples is None else samples, dtype=np.float64)
    if counts.shape != (n,) or not np.isfinite(counts).all() or (counts <= 0).any():
        raise ExperimentError(Problem(f"there must be {n} positive numbers", "samples", str(samples)))
    limit = _held_limit(counts, f) if cap == "auto" else np.inf if cap is None else cap * float(np.median(counts))
    capped = np.minimum(counts, limit)
    return np.asarray(capped / capped.sum(), dtype=np.float64)


def _held_limit(counts: Floats, f: int) -> float:
    """The largest value, up to which counts (n,) count, with which the f largest hold no more than `HELD` of their sum,
    or f / n if that is more.
    """
    from scipy.optimize import brentq  # slow to import

    ordered = np.sort(counts)

    def excess(limit: float) -> float:  # grows with the limit
        capped = np.minimum(ordered, limit)
        return float(capped[len(counts) - f :].sum() - max(HELD, f / len(counts)) * capped.sum())

    least, most = float(ordered[0]), float(ordered[-1])
    if excess(most) <= 0 or excess(least) >= 0:
        return most if excess(most) <= 0 else least
    return float(brentq(excess, least, most))


def resolve_f(f: ByzantineF, n: int, rule: AnyRule, stages: Sequence[Stage] = (), gram: Gram | None = None) -> int:
    """The Byzantine f as a number of rows: a count, a `portion` of n, the largest, or an estimate.

    f: a count, a fraction of n, "largest" or "auto".
    n: number of rows.
    rule: the rule, which limits f by its own bound.
    stages: the stages before it, which limit f by theirs.
    gram: the Gram of the rows, for the estimate of "auto", at most the largest f allowed; without it, "auto" is the
        largest.

    An honest majority, n > 2f, is always needed. Raises `ExperimentError`, which names the bound, where f breaks one.
    """
    parts = (*stages, rule)
    if isinstance(f, int) and 0 <= 2 * f < n and violation(parts, n, f) is None:
        return f
    allowed = [k for k in range((n + 1) // 2) if violation(parts, n, k) is None]
    if f == "largest" or (f == "auto" and (gram is None or not allowed)):
        wanted = max(allowed, default=0)
    elif f == "auto":
        assert gram is not None
        wanted = max(k for k in allowed if k <= max(estimated_f(gram), allowed[0]))
    elif isinstance(f, float):
        wanted = portion(f, n)
    else:
        wanted = int(f)
    if wanted in allowed:
        return wanted
    reason = violation(parts, n, wanted) or honest_majority(rule.name, n, wanted) or f"f = {wanted}"
    largest = f"largest f here: {max(allowed)}" if allowed else "too few updates for any f"
    raise ExperimentError(Problem(reason, hint=largest))


def misfit(parts: Sequence[PipelinePart]) -> str | None:
    """Why these parts cannot follow each other; None if they can.

    parts: the stages, then the rule.
    """
    merging = [part.name for part in parts if isinstance(part, Stage) and part.merges]
    remembers = parts[-1].per_client or bool(getattr(parts[-1], "histories", ()))
    if merging and remembers:
        return f"{parts[-1].name} remembers clients; after {', '.join(merging)} a row is no single client's"
    return None


def cannot_weigh(parts: Sequence[PipelinePart]) -> str:
    """Why prior weights cannot be used: the names of the parts that cannot use them; empty if all can."""
    unable = [part.name for part in parts if not part.weighs]
    return f"{', '.join(unable)} cannot weigh updates by sample counts" if unable else ""


def violation(parts: Sequence[PipelinePart], n: int, f: int) -> str | None:
    """The first bound that n rows with f Byzantine ones violate on their way through the parts; None if they violate
    none.
    """
    for part in parts:
        if reason := part.bound(n, f):
            return reason
        if isinstance(part, Stage):
            n = part.rows(n)
    return None


def estimated_f(gram: Gram) -> int:
    """The number of rows that are apart from the majority: those above the largest gap of the sorted scores.

    The score of a row is its distance to the ⌊n/2⌋-th nearest other row. A minority cannot make it small by being
    alike. Only gaps above the median score are considered, measured in log score. The largest of them counts if the
    score grows there by a quarter at least; otherwise the estimate is 0. So the estimate counts rows that are far away;
    it does not see malicious rows within the spread of the honest ones.
    """
    n = gram.n
    if n < 3:
        return 0
    scores = np.sort(np.sort(np.sqrt(gram.distances_squared()), axis=1)[:, n // 2])
    floor = max(float(scores[(n - 1) // 2]), 1e-9 * float(gram.norms().max()), np.finfo(float).tiny)
    upper = np.log(np.maximum(scores, floor))[(n - 1) // 2 :]
    gaps = np.diff(upper)
    widest = int(np.argmax(gaps)) if len(gaps) else 0
    return n - ((n - 1) // 2 + widest + 1) if len(gaps) and gaps[widest] > np.log(1.25) else 0
