"""Rows that are linear combinations of given lines: a defence can judge them by algebra, without reading the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.updates.clear import ClearUpdates
from fedrobust.updates.gram import Combination, Floats, Gram, gram_of_lines
from fedrobust.updates.interface import Measure, Reduction, Updates


class Span:
    """L lines (d,), the histories of n clients, and their products. The lines are read once for each set of anchors.

    lines: the same as the blocks of `ClearUpdates`.
    histories: name → (clients, d).
    clients: (n,) int64 client ids of the rows to come.
    """

    def __init__(self, lines: Sequence[Any], histories: Mapping[str, NDArray[Any]], clients: NDArray[np.int64]) -> None:
        self.lines, self.histories, self.clients = ClearUpdates(lines), dict(histories), clients
        self._known: dict[tuple[str, ...], Gram] = {}

    def gram(self, anchors: Mapping[str, np.ndarray], histories: Sequence[str]) -> Gram:
        """The Gram of the lines. Its anchors are the given anchors, then the clients' histories.

        anchors: name → (d,), public vectors. Results are kept by name: a name always means the same vector.
        histories: names of histories.
        """
        key = (*anchors, "", *histories)
        if key not in self._known:
            past = {f"{name} {client}": self._past(name, int(client)) for name in histories for client in self.clients}
            self._known[key] = self.lines.gram({**anchors, **past})
        return self._known[key]

    def rows(self, coefficients: Floats, prior: Floats) -> SpannedUpdates:
        """The rows `coefficients` (n, L) @ lines, with prior weights `prior` (n,)."""
        return SpannedUpdates(self, coefficients, prior)

    def _past(self, name: str, client: int) -> NDArray[Any]:
        kept = self.histories.get(name, ())
        return np.asarray(kept[client]) if client < len(kept) else np.zeros(self.lines.d, dtype=np.float32)


class SpannedUpdates(Updates):
    """The rows `coefficients` (n, L) @ lines as updates in the clear."""

    reveals = ClearUpdates.reveals

    def __init__(self, span: Span, coefficients: Floats, prior: Floats) -> None:
        self._span, self.coefficients = span, coefficients
        self.n, self.d, self.prior = len(coefficients), span.lines.d, prior / prior.sum()
        self._anchors: dict[str, np.ndarray] = {}
        self._lines: Gram | None = None

    def gram(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> Gram:
        """The Gram of the rows, from the Gram of the lines; arguments as for `Updates.gram`."""
        self._anchors = dict(anchors or {})
        self._lines = self._span.gram(self._anchors, histories)
        assert self._lines.centred is not None
        others = len(self._lines.anchors)
        mixing = np.zeros((self.n + others, self._lines.n + others))
        mixing[: self.n, : self._lines.n] = self.coefficients
        mixing[self.n :, self._lines.n :] = np.eye(others)
        return gram_of_lines(self._lines.centred.mixed(mixing), self.prior, list(self._anchors), histories)

    def combine(self, combination: Combination) -> NDArray[np.float32]:
        """The aggregate (d,) float32 that `combination` describes."""
        if self._lines is None:
            self.gram()
        lines = Combination(combination.weights @ self.coefficients, combination.anchors)
        return self._span.lines.combine(lines)

    def squared_distance(self, combination: Combination, point: Floats) -> float:
        """‖z − p‖² of the aggregate z that `combination` describes and p = `point` (L,) @ lines. Call `gram` first."""
        assert self._lines is not None
        return self._lines.squared_norm(
            Combination(combination.weights @ self.coefficients - point, combination.anchors)
        )

    def finite_rows(self) -> NDArray[np.bool_]:
        """(n,) bool: whether the coefficients of a row are finite. The lines are."""
        return np.asarray(np.isfinite(self.coefficients).all(axis=1))

    def subset(self, keep: NDArray[Any]) -> Updates:
        """The rows in `keep`, a mask (n,) or indices, and no others."""
        span = Span(self._span.lines.blocks, self._span.histories, self._span.clients[keep])
        return SpannedUpdates(span, self.coefficients[keep], self.prior[keep])

    def total(self, measure: Measure, mixing: Floats | None = None) -> NDArray[Any]:
        """See `Updates.total`: `measure` of the rows, or of `mixing @ rows`."""
        return self._span.lines.total(measure, self._mixed(mixing))

    def reduce(self, reduction: Reduction, mixing: Floats | None = None) -> NDArray[np.float32]:
        """See `Updates.reduce`: `reduction` of the rows, or of `mixing @ rows`."""
        return self._span.lines.reduce(reduction, self._mixed(mixing))

    def _mixed(self, mixing: Floats | None) -> Floats:
        return self.coefficients if mixing is None else mixing @ self.coefficients
