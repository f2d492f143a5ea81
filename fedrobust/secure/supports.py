"""On how many updates the weights of a defence lie in rounds that might occur: trial rounds, made of random updates.

Servers of secret shares open no sum that rests on fewer updates than `min_support`. Whether the rounds of an experiment
will be made depends on its stages, its rule, the number of updates n and the Byzantine f. So the stages and the rule
themselves are asked, in trial rounds whose updates are unlike, alike, of one length or of many, with malicious ones
among them or without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation import Aggregation, Context, Pipeline
from fedrobust.errors import ExperimentError
from fedrobust.secure.weights import OpeningError, shortened, support
from fedrobust.seeds import generator
from fedrobust.updates import Combination, Floats, Gram, Updates
from fedrobust.updates.gram import Centred, gram_of_lines
from fedrobust.updates.interface import FORGETTING, clip_factors

COSINES = (0.0, 0.3, 0.6, 0.95)
"""Cosines of two honest updates, in the mean."""
SPREADS = (0.4, 0.0)
"""Standard deviations of the logarithm of their norms; with 0, all norms and all cosines are equal."""
ROUNDS = 3
MOST = 64
"""The most updates for which trials are made; for more, they take too long."""


def supports(aggregation: Aggregation, n: int, asked: int | None = None, rounds: int = ROUNDS) -> Iterator[float]:
    """Σw² / max w² of each trial round: 0 if weights are negative or not finite, because no server opens such a sum;
    infinite if all weights are zero, because nothing has to be opened then.

    aggregation: stages and rule, which need no more than a Gram matrix.
    n: updates in a round.
    asked: hospitals that are drawn for it, n by default; a fraction f refers to them.
    rounds: successive rounds of each kind, for rules that remember.

    There are no trials if n updates cannot be aggregated, or are more than `MOST`.
    """
    if not 1 <= n <= MOST or aggregation.refusal(n, asked) is not None:
        return
    f = aggregation.byzantine_f(n, asked)
    kinds = [(cosine, spread, bad) for spread in SPREADS for cosine in COSINES for bad in dict.fromkeys((0, f))]
    for number, kind in enumerate(kinds):
        yield from _successive(aggregation, n, asked, rounds, number, *kind)


@dataclass(frozen=True)
class Prospect:
    """What the trial rounds say of an experiment's rounds.

    supports: of each trial round, in ascending order.
    least: on how many updates the weights must lie.
    """

    supports: tuple[float, ...]
    least: float

    @property
    def refused(self) -> float:
        """The share of the trial rounds that the servers would refuse."""
        return float(np.mean([below(each, self.least) for each in self.supports])) if self.supports else 0.0

    @property
    def middle(self) -> float:
        """The median."""
        return float(np.median(self.supports))


def prospect(aggregation: Aggregation, n: int, least: float, asked: int | None = None) -> Prospect:
    """All trial rounds; arguments as for `supports`.

    least: on how many updates the weights must lie.
    """
    return Prospect(tuple(sorted(supports(aggregation, n, asked))), least)


def always_below(aggregation: Aggregation, n: int, least: float, asked: int | None = None) -> float | None:
    """The support of every round, if it is the same in all trial rounds and below `least`; else None.

    So it is where a rule picks a fixed number of updates, or always gives negative weights. Arguments as for
    `prospect`.
    """
    first = None
    for each in supports(aggregation, n, asked):
        first = each if first is None else first
        if not below(each, least) or abs(each - first) > 0.001 * least:
            return None
    return first


def below(support: float, least: float) -> bool:
    """Whether the servers refuse a sum; rounding errors do not count."""
    return support < 0.999 * least


def _successive(
    aggregation: Aggregation,
    n: int,
    asked: int | None,
    rounds: int,
    number: int,
    cosine: float,
    spread: float,
    bad: int,
) -> Iterator[float]:
    """The supports of successive rounds of one kind."""
    pipeline, draw, d = aggregation.pipeline(), generator(number, "trial rounds", n), 4 * n + 32
    prior = aggregation.prior(np.exp(0.5 * draw.standard_normal(n)), n, asked)
    state, previous = dict[str, NDArray[Any]](), np.zeros(d)
    histories = {name: np.zeros((n, d)) for name in pipeline.histories}
    for round in range(1, rounds + 1):
        rows, root = _drawn(draw, n, d, cosine, spread, bad)
        updates = _Trial(rows, prior, histories)
        context = Context(0, round, draw, np.arange(n), previous if round > 1 else None, previous, root, (), state)
        try:
            found = _decided(aggregation, pipeline, updates, context, asked)
        except ExperimentError:  # another reason than the weights
            return
        try:
            whole, _ = shortened(found.weights)
            yield support(whole) if whole.any() else inf
        except OpeningError:
            yield 0.0
        if not (histories or found.state or "momentum" in pipeline.anchors):
            return  # the next rounds are no different
        previous, state, histories = updates.combine(found).astype(np.float64), dict(found.state), updates.grown()


def _decided(
    aggregation: Aggregation, pipeline: Pipeline, updates: _Trial, context: Context, asked: int | None
) -> Combination:
    gram = pipeline.gram(updates, context)
    context = replace(context, f=aggregation.byzantine_f(updates.n, asked, gram=gram))
    decided = pipeline.decide(updates, context, gram).decided
    assert isinstance(decided, Combination), "a rule on rows does not work with secret shares"
    return decided


def _drawn(draw: np.random.Generator, n: int, d: int, cosine: float, spread: float, bad: int) -> tuple[Floats, Floats]:
    """Updates (n, d), and one of the server (d,)."""
    own = draw.standard_normal((n + 2, d))
    if not spread:
        own = np.linalg.qr(own.T)[0].T  # orthogonal, so that no two updates are nearer to each other than others
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    found = sqrt(cosine) * own[0] + sqrt(1.0 - cosine) * own[1:]
    found[1:] *= np.exp(spread * draw.standard_normal((n, 1)))
    found[1 + draw.permutation(n)[:bad]] *= -3.0
    return found[1:], found[0]


@dataclass(eq=False)
class _Trial(Updates):
    """Updates (n, d) float64 in NumPy alone: reading an experiment must not import torch."""

    rows: Floats
    prior: Floats
    histories: Mapping[str, Floats]
    reveals = frozenset({"sum", "gram"})
    _anchors: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.n, self.d = self.rows.shape

    def gram(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> Gram:
        self._anchors = dict(anchors or {})
        lines = np.concatenate([self.rows, *(each[None] for each in self._anchors.values()), *self.histories.values()])
        seen = Centred(lines @ lines.T, np.zeros(len(lines)), 0.0, np.ones(len(lines)))
        return gram_of_lines(seen, self.prior, list(self._anchors), histories)

    def combine(self, combination: Combination) -> NDArray[np.float32]:
        found = combination.weights @ self.rows
        for name, coefficient in combination.anchors.items():
            found = found + coefficient * self._anchors[name] if coefficient else found
        return np.asarray(found, dtype=np.float32)

    def finite_rows(self) -> NDArray[np.bool_]:
        return np.ones(self.n, dtype=np.bool_)

    def subset(self, keep: NDArray[Any]) -> _Trial:
        kept = {name: rows[keep] for name, rows in self.histories.items()}
        return _Trial(self.rows[keep], self.prior[keep] / self.prior[keep].sum(), kept)

    def grown(self) -> dict[str, Floats]:
        """The histories after this round, see `Updates.remembered`."""
        clipped = clip_factors(np.square(self.rows).sum(axis=1))[:, None] * self.rows
        grown = dict[str, Floats]()
        for name, old in self.histories.items():
            averaged = FORGETTING * old + (1.0 - FORGETTING) * clipped
            grown[name] = self.rows if name == "last" else averaged if name == "average" else old + self.rows
        return grown
