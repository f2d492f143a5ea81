"""Updates in the clear whose columns are spread over several shards, e.g. processes or GPUs. No shard holds a whole
row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.updates.clear import LARGEST_SQUARE, ClearUpdates, joined_digests
from fedrobust.updates.gram import Combination, Floats, Gram, assembled
from fedrobust.updates.interface import Measure, Updates, clip_factors, sections


def shard_columns(d: int, shards: int) -> list[slice]:
    """The columns of each shard: whole sections, divided as evenly as possible.

    d: number of columns.
    shards: number of shards; there are fewer where d is small.
    """
    cuts = sections(d)
    count = min(shards, len(cuts))
    edges = [len(cuts) * shard // count for shard in range(count + 1)]
    return [slice(cuts[a].start, cuts[b - 1].stop) for a, b in pairwise(edges)]


def cut_columns(block: NDArray[Any], columns: Sequence[slice]) -> list[NDArray[Any]]:
    """The block (k, d) cut at `columns`: a contiguous array for each slice; the block itself if there is one slice."""
    return [block] if len(columns) == 1 else [np.ascontiguousarray(block[:, part]) for part in columns]


class ShardedUpdates(Updates):
    """n updates whose columns are divided among parts as `shard_columns` says.

    parts: the columns of each shard, in order.

    The products of all parts are added up, and each part combines its own columns with the same weights. Parts hold
    whole sections, and the sums over sections are added last, so the bits are those of one `ClearUpdates` with all
    columns.
    """

    reveals = ClearUpdates.reveals

    def __init__(self, parts: Sequence[ClearUpdates]) -> None:
        self._parts = list(parts)
        self._describe([part.d for part in self._parts], self._parts[0].prior)

    @classmethod
    def of(cls, updates: Sequence[Any], prior: Sequence[float] | Floats | None = None) -> ShardedUpdates:
        """Updates from arrays or tensors that each hold some columns.

        updates: (n, d_k) each, side by side; each may be on its own device.
        prior: (n,) positive, scaled to sum to 1; uniform by default.
        """
        d, first, parts = sum(part.shape[1] for part in updates), 0, []
        for part in updates:
            parts.append(ClearUpdates([part], prior=prior, columns=(first, d)))
            first += part.shape[1]
        return cls(parts)

    def _describe(self, widths: Sequence[int], prior: Floats) -> None:
        edges = np.cumsum([0, *widths]).tolist()
        self._columns = [slice(a, b) for a, b in pairwise(edges)]
        self.n, self.d, self.prior = len(prior), edges[-1], prior

    def _ask(self, method: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """The results of each part's `method`, called with its own arguments."""
        each = arguments or [()] * len(self._columns)
        return [getattr(part, method)(*given) for part, given in zip(self._parts, each, strict=True)]

    def subset(self, keep: NDArray[Any]) -> ShardedUpdates:
        """The rows in `keep`, a mask (n,) or indices; priors are rescaled."""
        return ShardedUpdates(self._ask("subset", [(keep,)] * len(self._columns)))

    def digests(self) -> list[str]:
        """(n,) a digest of each row, as `ClearUpdates.digests`."""
        return joined_digests([section for part in self._ask("section_digests") for section in part])

    def finite_rows(self) -> NDArray[np.bool_]:
        """(n,) bool: whether a row can be aggregated: no NaN, no Inf, and a squared norm that float64 can hold."""
        return np.asarray(self._squares() <= LARGEST_SQUARE)

    def gram(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> Gram:
        """The Gram: the sum of the parts' products. Arguments and errors as for `ClearUpdates.gram`."""
        own = [(vectors, tuple(histories)) for vectors in self._cut(anchors)]
        products = [section for part in self._ask("products", own) for section in part]
        return assembled(products, self.prior, list(anchors or {}), histories)

    def norms(self, anchors: Mapping[str, np.ndarray] | None = None) -> Gram:
        """Norms and products with anchors: the sums of the parts'. Arguments and errors as for `ClearUpdates.gram`."""
        figures = self._ask("section_norms", [(vectors,) for vectors in self._cut(anchors)])
        sums = np.sum([section for part in figures for section in part], axis=0)
        return Gram.of_norms(sums, self.prior, list(anchors or {}))

    def _cut(self, anchors: Mapping[str, np.ndarray] | None) -> list[dict[str, np.ndarray]]:
        """The anchors of each part. Raises `ValueError` for one of another length."""
        for name, vector in (anchors or {}).items():
            if vector.shape != (self.d,):
                raise ValueError(f"anchor '{name}' has the shape {vector.shape}, the updates have d = {self.d}")
        return [{name: vector[part] for name, vector in (anchors or {}).items()} for part in self._columns]

    def combine(self, combination: Combination) -> NDArray[np.float32]:
        """The parts' aggregates, side by side."""
        return np.concatenate(self._ask("combine", [(combination,)] * len(self._columns)))

    def total(self, measure: Measure, mixing: Floats | None = None) -> NDArray[Any]:
        """The sum over all chunks of all parts."""
        found = self._ask("totals", [(measure, mixing)] * len(self._columns))
        return np.asarray(np.sum([section for part in found for section in part], axis=0))

    def reduce(self, reduction: Any, mixing: Floats | None = None) -> NDArray[np.float32]:
        """The parts' results, side by side."""
        return np.concatenate(self._ask("reduce", [(reduction, mixing)] * len(self._columns)))

    def remembered(self, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The parts' histories, side by side."""
        parts = self._ask("remembered", [(tuple(names), self._clip_factors(names))] * len(self._columns))
        return {name: np.hstack([part[name] for part in parts]) for name in names}

    def _clip_factors(self, names: Sequence[str]) -> Floats | None:
        """The `clip_factors` of the whole rows, if a history needs it."""
        return clip_factors(self._squares()) if "average" in names else None

    def _squares(self) -> Floats:
        sections = [section for part in self._ask("section_squares") for section in part]
        return np.asarray(np.sum(sections, axis=0))
