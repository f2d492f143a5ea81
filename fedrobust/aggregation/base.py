"""The families of a pipeline's parts: stages that mix rows, rules that combine them, rules that need coordinates."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedrobust.aggregation.gram import Combination, Floats, Gram
from fedrobust.options import Options

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Context:
    """What a part may know besides the updates.

    `f` is the declared number of Byzantine rows, `previous` the last aggregate (d,), which is the anchor "momentum".
    """

    f: int
    round: int = 0
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    previous: np.ndarray | None = None


class Part(Options):
    """What stages and rules share."""

    name: str
    """Which one: a name of this package, or `package.module:Class`."""
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    """What the protocol must reveal: "sum", "gram" or "rows"."""
    weighs: ClassVar[bool] = True
    """Whether prior weights (sample counts, reputation) have a meaning here."""

    def bound(self, n: int, f: int) -> str | None:
        """Why n rows of which f are Byzantine are not allowed, e.g. "krum needs n ≥ 2f + 3"; None if they are."""
        return None


class Stage(Part):
    """A pre-aggregation: it replaces the n rows by m mixed ones."""

    @abstractmethod
    def mix(self, gram: Gram, context: Context) -> Floats:
        """The mixing matrix (m, n)."""

    def rows(self, n: int) -> int:
        """How many rows are left of n."""
        return n


class Rule(Part):
    """A rule that decides from the Gram matrix alone, and returns a linear combination of the rows."""

    anchors: ClassVar[tuple[str, ...]] = ()
    """The anchors that the rule asks for; one that is missing (no last aggregate yet) is the zero vector."""

    @abstractmethod
    def combine(self, gram: Gram, context: Context) -> Combination:
        """The weights (n,) of the rows, and the coefficients of the anchors."""


class CoordinateRule(Part):
    """A rule that looks at each coordinate of the rows by itself."""

    needs: ClassVar[frozenset[str]] = frozenset({"rows"})
    weighs: ClassVar[bool] = False

    @abstractmethod
    def reduce(self, rows: Tensor, context: Context) -> Tensor:
        """Rows (m, w) float32 or float64, a chunk of columns that may be overwritten → (w,)."""
