"""One instance of the input of a defence, over several rounds, and the rounds played one after the other: for
`testing`.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation.base import Context, Layer
from fedrobust.aggregation.outcome import Aggregated
from fedrobust.aggregation.pipeline import Pipeline
from fedrobust.seeds import generator
from fedrobust.updates import chunks
from fedrobust.updates.clear import ClearUpdates
from fedrobust.updates.gram import Combination, Floats
from fedrobust.updates.interface import Measure, Updates
from fedrobust.updates.shards import ShardedUpdates, shard_columns

if TYPE_CHECKING:
    from fedrobust.updates.interface import Reduction

Histories = Mapping[str, NDArray[Any]]
Holder = Callable[[Floats, Floats, Histories, NDArray[np.int64]], Updates]
"""Rows (n, d), priors (n,), histories and the rows' clients (n,) → updates that hold them."""

DIGITS = 16
"""Binary digits of a typical coordinate: sums of products are then exact in any order, so that moving, scaling or
cutting the rows neither makes nor breaks a tie."""
HARMLESS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning)
"""Warnings about libraries, not about the numbers."""
ATTACKS: dict[str, Callable[[np.random.Generator, Floats, int], Floats]] = {
    "rows in all directions": lambda rng, centre, f: rng.standard_normal((f, len(centre))),
    "rows in one direction": lambda rng, centre, f: np.tile(rng.standard_normal(len(centre)), (f, 1)),
    "one row": lambda rng, centre, f: rng.standard_normal((f, len(centre))) * (np.arange(f) == 0)[:, None],
    "rows along the mean": lambda rng, centre, f: np.tile(centre, (f, 1)),
    "rows against the mean": lambda rng, centre, f: np.tile(-centre, (f, 1)),
    "rows of all sizes": lambda rng, centre, f: np.outer(10.0 ** -np.arange(f), rng.standard_normal(len(centre))),
}
"""Rows (f, d) of an attacker who knows the mean of the others, to be scaled up."""


@dataclass(frozen=True, eq=False)
class Case:
    """Rows of each round, of which f are Byzantine, and the public data beside them."""

    kind: str
    f: int
    seed: int
    rounds: tuple[Floats, ...]
    clients: tuple[NDArray[np.int64], ...]
    priors: tuple[Floats, ...]
    root: Floats
    layers: tuple[Layer, ...]

    @classmethod
    def of(
        cls,
        kind: str,
        rounds: Sequence[Floats],
        f: int,
        seed: int,
        uneven: bool = False,
        root: Floats | None = None,
    ) -> Case:
        """A case with the same n clients in every round.

        kind: name of the instance, for messages.
        rounds: (n, d) for each round.
        f: number of Byzantine rows.
        seed: of the rule's random draws, and for messages.
        uneven: whether prior weights differ.
        root: (d,) the server's own update; by default a row like those in the middle.
        """
        n, d = rounds[0].shape
        rng = np.random.default_rng([seed, n, d, f])
        rows = tuple(_rounded(each) for each in rounds)
        prior = np.ones(n) + (rng.random(n) if uneven else 0.0)
        server = _rounded(np.median(rows[0], axis=0) + rng.standard_normal(d) if root is None else root)
        same = np.arange(n, dtype=np.int64)
        return cls(kind, f, seed, rows, (same,) * len(rows), (prior,) * len(rows), server, layout(d))

    @property
    def n(self) -> int:
        """Rows of a round."""
        return len(self.rounds[0])

    @property
    def d(self) -> int:
        """Coordinates of a row."""
        return int(self.rounds[0].shape[1])

    def __str__(self) -> str:
        return f"kind {self.kind}, n = {self.n}, d = {self.d}, f = {self.f}, seed = {self.seed}"

    def mapped(self, change: Callable[[Floats], Floats]) -> Case:
        """The same case, with `change` applied to all rows and to the server's own update."""
        return replace(self, rounds=tuple(change(rows) for rows in self.rounds), root=change(self.root))

    def permuted(self, rng: np.random.Generator) -> tuple[Case, list[NDArray[np.int64]]]:
        """The same case with the rows of each round in another random order, drawn by `rng`; and these orders."""
        orders = [rng.permutation(self.n) for _ in self.rounds]
        moved = replace(
            self,
            rounds=tuple(rows[order] for rows, order in zip(self.rounds, orders, strict=True)),
            clients=tuple(ids[order] for ids, order in zip(self.clients, orders, strict=True)),
            priors=tuple(prior[order] for prior, order in zip(self.priors, orders, strict=True)),
        )
        return moved, orders


def layout(d: int) -> tuple[Layer, ...]:
    """A linear layer of d parameters, weights (k, h) and k biases, with k as near to √d as it can be."""
    k = max(k for k in range(1, d + 1) if d % k == 0 and k * k <= d)
    weights = (Layer("head.weight", (k, d // k - 1)),) if d > k else ()
    return (*weights, Layer("head.bias", (k,)))


class Exact(ClearUpdates):
    """Updates in the clear, whose aggregate stays in float64."""

    def __init__(self, rows: Floats, prior: Floats, histories: Histories, clients: NDArray[np.int64]) -> None:
        super().__init__([rows], prior=prior, histories=histories, clients=clients)

    def combine(self, combination: Combination) -> NDArray[Any]:
        """The aggregate (d,)."""
        return chunks.host(self.weighted_sum(combination))

    def reduce(self, reduction: Reduction, mixing: Floats | None = None) -> NDArray[Any]:
        """The aggregate (d,)."""
        return chunks.host(self.reduced(reduction, mixing))


class Cut(Exact):
    """The same, with the columns cut at odd indices; the functions that each piece gets have been pickled."""

    def __init__(self, rows: Floats, prior: Floats, histories: Histories, clients: NDArray[np.int64]) -> None:
        super().__init__(rows, prior, histories, clients)
        edges = sorted({0, 1, 8, self.d // 3, self.d - 1, self.d})
        self._sections = [slice(a, b) for a, b in pairwise(edges) if b <= self.d]

    def totals(self, measure: Measure, mixing: Floats | None = None) -> list[NDArray[Any]]:
        """See `ClearUpdates.totals`; `measure` is pickled, as if sent to another process."""
        return super().totals(pickle.loads(pickle.dumps(measure)), mixing)

    def reduce(self, reduction: Reduction, mixing: Floats | None = None) -> NDArray[Any]:
        """See `ClearUpdates.reduce`; `reduction` is pickled, as if sent to another process."""
        return super().reduce(pickle.loads(pickle.dumps(reduction)), mixing)


def clear(rows: Floats, prior: Floats, histories: Histories, clients: NDArray[np.int64]) -> ClearUpdates:
    """The rows in one `ClearUpdates`."""
    return ClearUpdates([rows], prior=prior, histories=histories, clients=clients)


def sharded(rows: Floats, prior: Floats, histories: Histories, clients: NDArray[np.int64]) -> ShardedUpdates:
    """The rows with their columns in up to three shards."""
    parts = []
    for columns in shard_columns(rows.shape[1], 3):
        past = {name: history[:, columns] for name, history in histories.items()}
        place = (columns.start, rows.shape[1])
        parts.append(ClearUpdates([rows[:, columns]], prior=prior, histories=past, clients=clients, columns=place))
    return ShardedUpdates(parts)


def play(pipeline: Pipeline, case: Case, hold: Holder = Exact) -> list[Aggregated]:
    """The results of the rounds; of the first one alone where no part remembers anything.

    pipeline: what is played.
    case: the rounds.
    hold: makes the updates of each round.
    """
    carries = pipeline.histories or set(pipeline.anchors) - {"root"}
    results: list[Aggregated] = []
    for number, rows in enumerate(case.rounds):
        histories = remembered(pipeline, case, number)
        rows.flags.writeable = False
        held = hold(rows, case.priors[number], histories, case.clients[number])
        context = context_of(case, number, results[-1] if results else None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for category in HARMLESS:
                warnings.simplefilter("ignore", category)
            results.append(pipeline.run(held, context))
        if not (carries or results[-1].state):
            break
    return results


def context_of(case: Case, number: int, last: Aggregated | None) -> Context:
    """The context of the parts in round `number` of `case`, after the last round's result."""
    previous = None if last is None else last.aggregate
    return Context(
        f=case.f,
        round=number,
        generator=generator(case.seed, "aggregation", number),
        clients=case.clients[number],
        previous=previous,
        step=previous,
        root=case.root.copy(),  # a rule that overwrites it must not spoil the case
        layers=case.layers,
        state={} if last is None else last.state,
    )


def remembered(pipeline: Pipeline, case: Case, number: int) -> Histories:
    """The clients' histories before round `number` of `case`, as far as the pipeline uses them."""
    histories: Histories = {}
    for earlier in range(number if pipeline.histories else 0):
        held = ClearUpdates([case.rounds[earlier]], histories=histories, clients=case.clients[earlier])
        histories = held.remembered(pipeline.histories)
    return histories


def _rounded(rows: Floats) -> Floats:
    """The rows, rounded to multiples of 2⁻¹⁶ of the typical coordinate's power of two."""
    typical = np.median(np.abs(rows[rows != 0])) if rows.any() else 1.0
    step = 2.0 ** (np.round(np.log2(typical)) - DIGITS)
    return np.asarray(np.round(rows / step) * step)
