"""The measured robustness of a rule: the worst ratio that a search for adversarial updates finds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation.base import AnyRule, Context, Stage
from fedrobust.aggregation.pipeline import Pipeline
from fedrobust.aggregation.testing.cases import layout
from fedrobust.errors import ExperimentError
from fedrobust.updates import chunks
from fedrobust.updates.gram import Combination, Floats, Gram, assembled
from fedrobust.updates.interface import Measure, Updates

if TYPE_CHECKING:
    from fedrobust.updates.interface import Reduction

UNBOUNDED = 1e4
"""A coefficient above it counts as infinite."""
FLAT = 1e-3
"""The least root mean square spread of S, beside structured instances of size 1. Below it are roundings, and the
effects of a rule's own small constants."""
SCALES = (0.0, 0.1, 0.3, 0.6, 0.99, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0)
"""The distances of the Byzantine rows in the structured instances."""
STEPS = 2000
"""Steps of one random search."""


def robustness(
    rule: AnyRule,
    n: int,
    f: int,
    *,
    stages: Sequence[Stage] = (),
    d: Sequence[int] | None = None,
    seed: int = 0,
    restarts: int = 6,
    seconds: float = 5.0,
) -> float:
    """The measured robustness coefficient κ̂ of a rule, after `stages` if there are any: a lower estimate of κ.

    A rule F is (f, κ)-robust if ‖F(u) − ū_S‖² ≤ κ · mean over i ∈ S of ‖u_i − ū_S‖² for all rows u and every S of n − f
    of them (Allouah et al., AISTATS 2023); no rule has κ < f / (n − 2f). κ̂ is the greatest ratio that a search finds:
    structured instances that are known to be bad, each over a range of scales, then a random search from the worst of
    them. The true κ is at least that; a search cannot show that it is no greater. Values above 10⁴ are returned as
    infinite. The rows of S count as at least 10⁻³ from their mean (root mean square): below that, small constants such
    as ν of the geometric median determine the result.

    The other inputs of a rule are as good as an honest client's: the server's own update and the last aggregate are one
    row of S, and every client sent the same before. The attacker knows the random choices of a rule.

    rule: the rule to measure.
    n: number of rows.
    f: number of Byzantine rows.
    stages: the stages before the rule.
    d: the dimensions searched; 1, 2, 3 and n by default.
    seed: of the search.
    restarts: from how many of the worst instances a random search starts.
    seconds: of processor time, after which the search stops; a fast rule ends sooner, and its result depends on the
        seed alone.
    Raises `ExperimentError` where the bounds do not allow n and f, or f = 0.
    """
    if f < 1:
        raise ExperimentError(f"a robustness coefficient needs f ≥ 1: f = {f}")
    search = _Search(Pipeline([*stages, rule]), n, f, np.random.default_rng([seed, n, f]))
    return search.run(d or (1, 2, 3, n), restarts, seconds)


@dataclass(frozen=True, eq=False)
class _Found:
    """Rows (n, d), of which `honest` (n − f,) are S, and their ratio."""

    ratio: float
    rows: Floats
    honest: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class _Start:
    """Honest rows (n − f, d); where the others start, (d,) or (f, d), and how they move as the scale grows."""

    honest: Floats
    others: Floats
    direction: Floats
    drift: Floats | float = 0.0

    def rows(self, n: int, scale: float) -> Floats:
        """(n, d), the honest ones first."""
        others = np.broadcast_to(self.others + scale * self.direction, (n - len(self.honest), self.honest.shape[1]))
        return np.vstack([self.honest + scale * self.drift, others])


class _Search:
    """The search for the rows and the S of the greatest ratio."""

    def __init__(self, pipeline: Pipeline, n: int, f: int, rng: np.random.Generator) -> None:
        self.pipeline, self.n, self.f, self.rng = pipeline, n, f, rng

    def run(self, dimensions: Sequence[int], restarts: int, seconds: float) -> float:
        """The structured instances in half of the time at most, then random searches from the worst of them."""
        start = time.process_time()
        worst: list[_Found] = []
        fitting = [d for d in dimensions if self.fits(d)] or list(dimensions)
        for family in (family for d in fitting for family in self.starts(d)):
            if worst and time.process_time() > start + seconds / 2:
                break
            worst.append(self.line(family, self.rng.permutation(self.n), start + seconds / 2))
            if worst[-1].ratio > UNBOUNDED:
                return math.inf
        worst.sort(key=lambda found: -found.ratio)
        worst = list({(found.rows.shape[1], round(found.ratio, 9)): found for found in worst}.values())
        for place, found in enumerate(worst[:restarts]):
            now = time.process_time()
            worst[place] = self.climb(found, now + (start + seconds - now) / (min(restarts, len(worst)) - place))
        best = max(found.ratio for found in worst)
        return best if best <= UNBOUNDED else math.inf

    def fits(self, d: int) -> bool:
        """Whether d coordinates can be layers as the rule needs them."""
        try:
            self.found(np.ones((self.n, d)), np.arange(self.n - self.f))
        except ExperimentError as error:
            return all(each.path != "layers" for each in error.problems)
        return True

    def starts(self, d: int) -> Iterator[_Start]:
        """Instances that are bad for one rule or another."""
        f, rng, still = self.f, self.rng, np.zeros(d)
        h = self.n - f
        along, place = np.eye(1, d)[0], np.arange(h)[:, None]
        for few in dict.fromkeys([f, h, 1, h - f, h // 2, h - 1]):  # at most two clusters, the others on their line
            clusters = np.where(place < few, along, still)
            yield _Start(clusters, still, along)
            yield _Start(clusters, still, -along)
        yield _Start(np.tile(along, (h, 1)), along, np.roll(along, 1))  # honest rows agree, the others go aside
        yield _Start(place * along, (h - 1) * along, along)
        yield _Start(2.0**place * along, still, along)
        corners = np.sqrt(h) * np.eye(h, d)  # as far from each other as possible
        yield _Start(corners, still, corners.mean(axis=0))
        yield _Start(corners, corners[0], -corners[0])
        honest, aside, scattered = rng.standard_normal((h, d)), rng.standard_normal(d), rng.standard_normal((f, d))
        mean, extreme = honest.mean(axis=0), honest[np.argmax(honest @ aside)]
        yield _Start(honest, mean, aside / np.linalg.norm(aside))
        yield _Start(honest, mean, -honest.std(axis=0))  # ALIE
        yield _Start(honest + 10.0 * aside, still, -(mean + 10.0 * aside))  # IPM
        yield _Start(honest, mean, extreme - mean)  # at 1: mimic
        yield _Start(honest, mean, scattered)
        yield _Start(honest, still, still, drift=aside)

    def line(self, start: _Start, order: NDArray[np.intp], deadline: float) -> _Found:
        """The worst of the scales of a start."""
        honest = np.flatnonzero(order < self.n - self.f)
        worst = self.found(start.rows(self.n, SCALES[0])[order], honest)
        for scale in SCALES[1:]:
            if time.process_time() > deadline:
                break
            worst = max(worst, self.found(start.rows(self.n, scale)[order], honest), key=lambda found: found.ratio)
        return worst

    def climb(self, found: _Found, deadline: float) -> _Found:
        """Random changes of the rows, kept where they increase the ratio."""
        rng, step = self.rng, 0.3
        for _ in range(STEPS):
            if time.process_time() > deadline or found.ratio > UNBOUNDED:
                break
            rows, honest = found.rows.copy(), found.honest
            others = np.delete(np.arange(self.n), honest)
            size = step * float(np.sqrt(rows[honest].var(axis=0).sum()) + 1e-3 * np.abs(rows[honest]).max())
            kind, one = rng.integers(7), rng.integers(self.n)
            if kind == 0:
                rows[one] += size * rng.standard_normal(rows.shape[1])
            elif kind == 1:
                rows[others] += size * rng.standard_normal(rows.shape[1])
            elif kind == 2:
                rows[others] += size * rng.standard_normal((self.f, rows.shape[1]))
            elif kind == 3:
                rows += size * rng.standard_normal(rows.shape)
            elif kind == 4:
                rows[one] = rows[rng.integers(self.n)]
            elif kind == 5:
                centre = rows[honest].mean(axis=0)
                rows[others] = centre + np.exp(step * rng.standard_normal()) * (rows[others] - centre)
            else:
                centre, group = rows[honest].mean(axis=0), rng.random(self.n) < 0.5
                rows[group] = centre + np.exp(step * rng.standard_normal()) * (rows[group] - centre)
            tried = self.found(rows, honest)
            better = tried.ratio > found.ratio
            found = tried if better else found
            step = min(1.0, 1.5 * step) if better else 0.97 * step
            if step < 1e-3:
                step = 0.3
        return found

    def found(self, rows: Floats, honest: NDArray[np.intp]) -> _Found:
        """The greatest ratio of these rows over the sets S that are tried: the given one, and others like it."""
        public = rows[honest[0]]
        context = Context(self.f, previous=public, step=public, root=public, layers=layout(rows.shape[1]))
        with np.errstate(all="ignore"):
            aggregate = self.pipeline.run(_Small(rows), context).aggregate
        if not np.isfinite(aggregate).all():
            return _Found(math.inf, rows, honest)
        sets = honest[None]
        if not self.pipeline.anchors:  # they would have to be of the other set
            apart = aggregate - rows[honest].mean(axis=0)
            sorted_along = np.argsort(rows @ apart)
            windows = [sorted_along[first : first + len(honest)] for first in range(self.f + 1)]
            near = np.argsort(np.linalg.norm(rows[:, None] - rows, axis=2), axis=1)[:, : len(honest)]
            sets = np.vstack([sets, windows, near])
        members = rows[sets] - aggregate  # (sets, n − f, d)
        means = members.mean(axis=1)
        spreads = ((members - means[:, None]) ** 2).sum(axis=2).mean(axis=1)
        least = FLAT**2 + 1e-12 * (rows**2).sum(axis=1).max()
        ratios = (means**2).sum(axis=1) / np.maximum(spreads, least)
        worst = int(np.argmax(ratios))
        return _Found(float(ratios[worst]), rows, np.sort(sets[worst]))


class _Small(Updates):
    """A few short rows, in one array; every client has sent the same before."""

    reveals = frozenset({"sum", "gram", "rows"})

    def __init__(self, rows: Floats) -> None:
        self.rows, (self.n, self.d) = rows, rows.shape
        self.prior = np.full(self.n, 1.0 / self.n)
        self.anchors: Mapping[str, np.ndarray] = {}

    def gram(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> Gram:
        """As `ClearUpdates` makes it."""
        self.anchors = anchors or {}
        middle = self.rows[np.argsort(np.linalg.norm(self.rows, axis=1))[(self.n - 1) // 2]]
        lines = np.vstack([self.rows, *self.anchors.values(), *[self.rows] * len(histories), middle])
        lines[:-1] -= middle
        return assembled([lines @ lines.T], self.prior, list(self.anchors), histories)

    def combine(self, combination: Combination) -> NDArray[Any]:
        """The aggregate (d,)."""
        total = combination.weights @ self.rows
        for name, value in combination.anchors.items():
            total = total + value * self.anchors[name]
        return total

    def total(self, measure: Measure, mixing: Floats | None = None) -> NDArray[Any]:
        """Of the one chunk."""
        found = measure(self._mixed(mixing), slice(0, self.d))
        return np.asarray(found)

    def reduce(self, reduction: Reduction, mixing: Floats | None = None) -> NDArray[Any]:
        """Of the one chunk."""
        return chunks.host(reduction(self._mixed(mixing), slice(0, self.d)))

    def finite_rows(self) -> NDArray[np.bool_]:
        """All of them."""
        return np.ones(self.n, dtype=bool)

    def subset(self, keep: NDArray[Any]) -> Updates:
        """The same without the others."""
        return _Small(self.rows[keep])

    def _mixed(self, mixing: Floats | None) -> Floats:
        return self.rows.copy() if mixing is None else mixing @ self.rows
