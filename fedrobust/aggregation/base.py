"""The families of a pipeline's parts: stages that mix rows, rules that combine them, rules that need the rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrobust.errors import ExperimentError, Problem
from fedrobust.options import Options
from fedrobust.updates import Combination, Floats, Gram, Measure, Reduction, Updates
from fedrobust.updates.chunks import Chunk

if TYPE_CHECKING:
    pass


class Layer(NamedTuple):
    """One tensor of the model: the updates hold all of them in order, each flattened."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Context:
    """What a part may know besides the updates; all of it is public.

    `f`: how many rows may be Byzantine. `clients`: (n,) int64 ids of the rows, 0 … n − 1 by default.
    `previous`: the last aggregate (d,), the anchor "momentum". `step`: the last change of the global model (d,), the
    last aggregate by default. `root`: the update (d,) that the server trained on data of its own. `layers`: what the d
    coordinates are; empty: one layer. `state`: what the rule handed on in its last `Combination`.
    """

    f: int
    round: int = 0
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    clients: NDArray[np.int64] | None = None
    previous: np.ndarray | None = None
    step: np.ndarray | None = None
    root: np.ndarray | None = None
    layers: tuple[Layer, ...] = ()
    state: Mapping[str, np.ndarray] = field(default_factory=dict)

    def recalled(self, name: str, n: int, start: float = 0.0) -> Floats:
        """The value (n,) of each row's client in the state array `name` (clients,); `start` for strangers."""
        ids = np.arange(n) if self.clients is None else self.clients
        kept = self.state.get(name, np.zeros(0))
        return np.where(ids < len(kept), np.append(kept, start)[np.minimum(ids, len(kept))], start)

    def remembered(self, name: str, values: Floats, start: float = 0.0) -> Floats:
        """The state array `name` (clients,) with new `values` (n,) for the clients of the rows."""
        ids = np.arange(len(values)) if self.clients is None else self.clients
        kept = self.state.get(name, np.zeros(0))
        grown = np.full(max(len(kept), int(ids.max()) + 1), start)
        grown[: len(kept)] = kept
        grown[ids] = values
        return grown

    def layer_columns(self, d: int) -> list[slice]:
        """The columns of each layer; one layer of all d where nobody said. ExperimentError if they do not add up."""
        if not self.layers:
            return [slice(0, d)]
        ends = np.cumsum([int(np.prod(layer.shape, dtype=np.int64)) for layer in self.layers]).tolist()
        if ends[-1] != d:
            reason = f"their shapes hold {ends[-1]} coordinates, the updates have d = {d}"
            raise ExperimentError(Problem(reason, "layers"))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


class PipelinePart(Options):
    """What stages and rules share."""

    name: str
    """Which one: a name of this package, or `package.module:Class`."""
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    """What must be revealed of the updates: "sum", "gram" or "rows"."""
    weighs: ClassVar[bool] = True
    """Whether prior weights (sample counts, reputation) have a meaning here."""
    per_client: ClassVar[bool] = False
    """Whether row i must be client i's: a rule with a memory of clients cannot follow a stage that merges rows."""
    selects_one: ClassVar[bool] = False
    """Whether the aggregate is one row: to a protocol of secret shares, that row is what must stay hidden."""
    claims: ClassVar[frozenset[str]] = frozenset({"permutation"})
    """What `testing.check_rule` holds it to: "permutation", "translation", "scaling" (equivariance of the aggregate),
    "breakdown" (f rows, however large, do not carry it away)."""

    def bound(self, n: int, f: int) -> str | None:
        """Why n rows of which f are Byzantine are not allowed, e.g. "krum needs n ≥ 2f + 3"; None if they are."""
        return None

    def scores(self, gram: Gram, context: Context) -> Floats | None:
        """What it judges the rows by (n,): the higher, the less it likes a row. None: it judges none."""
        return None


def honest_majority(name: str, n: int, f: int) -> str | None:
    """Why n and f break n ≥ 2f + 1, needed by every honest-majority rule; None if they do not."""
    return None if n > 2 * f else f"{name} needs n ≥ 2f + 1: n = {n}, f = {f}"


class Stage(PipelinePart):
    """A pre-aggregation: it replaces the n rows by m mixed ones."""

    merges: ClassVar[bool] = False
    """Whether it returns fewer rows than it gets, which are then no single client's."""
    spreads: ClassVar[bool] = False
    """Whether each of its rows is a mean of several."""

    @abstractmethod
    def mix(self, gram: Gram, context: Context) -> Floats:
        """The mixing matrix (m, n)."""

    def rows(self, n: int) -> int:
        """How many rows are left of n."""
        return n


class Rule(PipelinePart):
    """A rule that decides from the Gram matrix alone, and returns a linear combination of the rows."""

    anchors: ClassVar[tuple[str, ...]] = ()
    """The public vectors that it wants in the Gram; "momentum" is missing, and counts as zero, in the first round."""
    histories: ClassVar[tuple[str, ...]] = ()
    """The histories that it wants in the Gram: "sum" or moving "average" of a client's earlier updates, or the
    "last" one; see `Updates.remembered`."""

    @abstractmethod
    def combine(self, gram: Gram, context: Context) -> Combination:
        """The weights (n,) of the rows, and the coefficients of the anchors."""

    def vectors(self, context: Context) -> dict[str, np.ndarray]:
        """The anchors (d,) that it wants and that are known. ExperimentError if the server's own update is missing."""
        if "root" in self.anchors and context.root is None:
            raise ExperimentError(
                Problem(f"{self.name} needs an update that the server trained on its own data", "root")
            )
        known = {"momentum": context.previous, "root": context.root}
        return {name: vector for name in self.anchors if (vector := known.get(name)) is not None}


class Rows:
    """What a `RowRule` sees: m rows of d coordinates after the stages, chunk by chunk of columns."""

    def __init__(self, updates: Updates, mixing: Floats | None, gram: Gram | None) -> None:
        self._updates, self._mixing, self._gram = updates, mixing, gram
        self.n = updates.n if mixing is None else len(mixing)
        self.d = updates.d

    @property
    def gram(self) -> Gram:
        """Their Gram; made when it is first asked for."""
        if self._gram is None:
            self._gram = self._updates.gram()
        return self._gram

    @property
    def prior(self) -> Floats:
        """Their prior weights (m,)."""
        if self._gram is None and self._mixing is None:
            return self._updates.prior
        return self.gram.prior

    def total(self, measure: Measure) -> NDArray[Any]:
        """The sum of what `measure` says of each chunk. It is sent to whoever holds the columns, so it must pickle."""
        return self._updates.total(measure, self._mixing)


class RowRule(PipelinePart):
    """A rule that needs the rows themselves, which it sees in chunks of columns: it runs in the clear only."""

    needs: ClassVar[frozenset[str]] = frozenset({"rows"})
    weighs: ClassVar[bool] = False

    @abstractmethod
    def decide(self, rows: Rows, context: Context) -> Combination | Reduction:
        """Weights of the rows, or what makes the aggregate of a chunk of columns."""


class CoordinateRule(RowRule):
    """A rule that looks at each coordinate of the rows by itself."""

    @abstractmethod
    def reduce(self, rows: Chunk, context: Context) -> Chunk:
        """Rows (m, w) float32 or float64, a chunk of columns that may be overwritten → (w,).

        A torch tensor, or a NumPy array where torch is not installed; `updates.chunks` has functions for both.
        """

    def decide(self, rows: Rows, context: Context) -> Reduction:
        """`reduce`, for every chunk."""
        return partial(self._reduce_columns, context=Context(context.f, context.round))

    def _reduce_columns(self, rows: Chunk, columns: slice, context: Context) -> Chunk:
        return self.reduce(rows, context)


AnyRule = Rule | RowRule
