"""The base classes of a pipeline's parts: stages mix rows, rules combine them; some rules need the rows themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrobust.errors import ExperimentError, Problem
from fedrobust.options import Options
from fedrobust.updates import Combination, Floats, Gram, Measure, Reduction, Updates
from fedrobust.updates.chunks import Chunk


class Layer(NamedTuple):
    """One tensor of the model. An update holds all of them in order, each flattened."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Context:
    """What a part may use besides the updates. All of it is public.

    f: how many rows may be Byzantine.
    round: the number of the round.
    generator: for the random draws of the parts.
    clients: (n,) int64 client ids of the rows, 0 … n − 1 by default.
    previous: (d,) the last aggregate, the anchor "momentum".
    step: (d,) the last change of the global model, the last aggregate by default.
    root: (d,) the update that the server trained on its own data.
    layers: the tensors that the d coordinates belong to; empty: one layer.
    state: the `Combination.state` that the rule returned in the last round.
    descents: (labels, d) for each label, the direction in which the loss of the server's own patches of it falls.
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
    descents: np.ndarray | None = None

    def recalled(self, name: str, n: int, start: float = 0.0) -> Floats:
        """The value (n,) float64 of each row's client in a state array.

        name: key of the array (clients,) in `state`; the client id is the index.
        n: number of rows.
        start: the value of clients that the array does not have.
        """
        ids = np.arange(n) if self.clients is None else self.clients
        kept = self.state.get(name, np.zeros(0))
        return np.where(ids < len(kept), np.append(kept, start)[np.minimum(ids, len(kept))], start)

    def remembered(self, name: str, values: Floats, start: float = 0.0) -> Floats:
        """The state array (clients,) with new values for the clients of the rows. The array in `state` is not changed.

        name: key of the array in `state`.
        values: (n,) the new values, one for each row.
        start: the value of clients that have none yet.
        """
        ids = np.arange(len(values)) if self.clients is None else self.clients
        kept = self.state.get(name, np.zeros(0))
        grown = np.full(max(len(kept), int(ids.max()) + 1), start)
        grown[: len(kept)] = kept
        grown[ids] = values
        return grown

    def layer_columns(self, d: int) -> list[slice]:
        """The columns of each layer, as slices of the d columns; one layer of all d columns where `layers` is empty.

        Raises `ExperimentError` where the shapes of the layers do not add up to d.
        """
        if not self.layers:
            return [slice(0, d)]
        ends = np.cumsum([int(np.prod(layer.shape, dtype=np.int64)) for layer in self.layers]).tolist()
        if ends[-1] != d:
            reason = f"their shapes hold {ends[-1]} coordinates, the updates have d = {d}"
            raise ExperimentError(Problem(reason, "layers"))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


class PipelinePart(Options):
    """What stages and rules have in common."""

    name: str
    """Which one: a name of this package, or `package.module:Class`."""
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    """What the updates must reveal: "sum"; "norms", with the products of rows and anchors; "gram"; or "rows"."""
    weighs: ClassVar[bool] = True
    """Whether the part can use prior weights (sample counts, reputation)."""
    per_client: ClassVar[bool] = False
    """Whether row i must belong to client i. A rule that remembers clients cannot follow a stage that merges rows."""
    selects_one: ClassVar[bool] = False
    """Whether the aggregate is one of the rows. Where secret shares hide the rows, that row must stay hidden."""
    claims: ClassVar[frozenset[str]] = frozenset({"permutation"})
    """The properties that `testing.check_rule` checks: "permutation", "translation", "scaling" (equivariance of the
    aggregate), "breakdown" (f rows of any size cannot pull the aggregate away from the other rows)."""

    def asks(self) -> frozenset[str]:
        """What it needs with the options that it has: `needs`, or less."""
        return self.needs

    def bound(self, n: int, f: int) -> str | None:
        """Why n rows with f Byzantine ones are not allowed, e.g. "krum needs n ≥ 2f + 3"; None if they are allowed."""
        return None

    def scores(self, gram: Gram, context: Context) -> Floats | None:
        """A score (n,) for each row, higher is worse; None if the part does not score rows.

        gram: the Gram of the n rows that reach this part.
        context: what is public in this round.
        """
        return None


def honest_majority(name: str, n: int, f: int) -> str | None:
    """Why n and f break n ≥ 2f + 1, needed by every honest-majority rule; None if they do not.

    name: the part that the text names.
    """
    return None if n > 2 * f else f"{name} needs n ≥ 2f + 1: n = {n}, f = {f}"


class Stage(PipelinePart):
    """A pre-aggregation: it replaces the n rows by m mixed rows."""

    merges: ClassVar[bool] = False
    """Whether it returns fewer rows than it gets. Those rows then belong to no single client."""
    spreads: ClassVar[bool] = False
    """Whether each of its rows is a mean of several."""

    @abstractmethod
    def mix(self, gram: Gram, context: Context) -> Floats:
        """The mixing matrix (m, n) float64, which turns the n rows into m rows.

        gram: the Gram of the n rows that reach this stage.
        context: what is public in this round.
        """

    def rows(self, n: int) -> int:
        """How many rows the stage returns for n rows."""
        return n


class Rule(PipelinePart):
    """A rule that needs only the Gram matrix. It returns a linear combination of the rows."""

    anchors: ClassVar[tuple[str, ...]] = ()
    """The public vectors that the rule needs in the Gram. "momentum" is missing in the first round, and counts as zero.
    """
    histories: ClassVar[tuple[str, ...]] = ()
    """The histories that the rule needs in the Gram: "sum" or moving "average" of a client's earlier updates, or the
    "last" one; see `Updates.remembered`."""

    @abstractmethod
    def combine(self, gram: Gram, context: Context) -> Combination:
        """The weights (n,) of the rows, and the coefficients of the anchors.

        gram: the Gram of the n rows after the stages, with the anchors and histories that the rule needs.
        context: what is public in this round.
        """

    def vectors(self, context: Context) -> dict[str, np.ndarray]:
        """The rule's anchors that `context` has: name → (d,).

        Raises `ExperimentError` if the rule needs the server's own update and `context.root` is None.
        """
        if "root" in self.anchors and context.root is None:
            raise ExperimentError(
                Problem(f"{self.name} needs an update that the server trained on its own data", "root")
            )
        known = {"momentum": context.previous, "root": context.root}
        return {name: vector for name in self.anchors if (vector := known.get(name)) is not None}


class Rows:
    """The rows that a `RowRule` sees: m rows of d coordinates after the stages, chunk by chunk of columns."""

    def __init__(self, updates: Updates, mixing: Floats | None, gram: Gram | None) -> None:
        self._updates, self._mixing, self._gram = updates, mixing, gram
        self.n = updates.n if mixing is None else len(mixing)
        self.d = updates.d

    @property
    def gram(self) -> Gram:
        """The Gram of the rows, computed at the first access."""
        if self._gram is None:
            self._gram = self._updates.gram()
        return self._gram

    @property
    def prior(self) -> Floats:
        """The prior weights (m,) of the rows."""
        if self._gram is None and self._mixing is None:
            return self._updates.prior
        return self.gram.prior

    def total(self, measure: Measure) -> NDArray[Any]:
        """The sum of the arrays that `measure` returns for each chunk of columns.

        measure: a function that is sent to the processes that hold the columns, so it must pickle.
        """
        return self._updates.total(measure, self._mixing)


class RowRule(PipelinePart):
    """A rule that needs the rows themselves. It sees them in chunks of columns, and runs in the clear only."""

    needs: ClassVar[frozenset[str]] = frozenset({"rows"})
    weighs: ClassVar[bool] = False

    @abstractmethod
    def decide(self, rows: Rows, context: Context) -> Combination | Reduction:
        """The weights of the rows, or a function that computes the aggregate of a chunk of columns.

        rows: the m rows after the stages.
        context: what is public in this round.
        """


class CoordinateRule(RowRule):
    """A rule that treats each coordinate separately."""

    @abstractmethod
    def reduce(self, rows: Chunk, context: Context) -> Chunk:
        """The aggregate (w,) of a chunk of w columns.

        rows: (m, w) float32 or float64, which may be overwritten: a NumPy array, or a torch tensor if the updates are
            on a GPU; `updates.chunks` has functions for both. It is called from several threads at once.
        context: only its `f` and `round` are set.
        """

    def decide(self, rows: Rows, context: Context) -> Reduction:
        """`reduce`, to be called for every chunk."""
        return partial(self._reduce_columns, context=Context(context.f, context.round))

    def _reduce_columns(self, rows: Chunk, columns: slice, context: Context) -> Chunk:
        return self.reduce(rows, context)


AnyRule = Rule | RowRule
