"""What a server holds of the rows that a Gram matrix is of: its components of [updates; histories], and their sketches.

The rows are the updates of a round, in the order of `clients`, and then the same clients' rows of each history.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from fedrobust.secure.lines import Line, combined, filled, pieces
from fedrobust.secure.ring import Words
from fedrobust.secure.sketch import sketched

CHECKED = 512
"""Columns of the sketch that checks the rows' lengths where the Gram matrix is not one of a sketch."""


class Stack:
    """A server's components of the updates of one round, which `begin` forgets, and of the histories.

    components: those that the server holds; the first is the one that it opens.
    d: coordinates of an update.
    histories: names as in `Updates.remembered`.
    sketch: columns of the sketch that the Gram matrix is of; None: it is of the updates themselves.
    """

    def __init__(self, components: Sequence[int], d: int, histories: Sequence[str], sketch: int | None) -> None:
        self.components, self.d, self.histories, self.sketch = tuple(components), d, tuple(histories), sketch
        self.width = sketch or d
        """Columns of the rows that the Gram matrix is of."""
        self.past: dict[str, dict[int, dict[int, Line]]] = {
            name: {component: {} for component in self.components} for name in self.histories
        }
        """Name of a history → component → client → line."""
        self.begin(b"")

    def begin(self, seed: bytes) -> None:
        """Forget the updates of the last round.

        seed: of the sketch of this round.
        """
        self._seed = seed
        self.clients: tuple[int, ...] = ()
        """Those whose rows the stack has, once the servers have agreed on them."""
        self.current: dict[int, dict[int, Line]] = {component: {} for component in self.components}
        """Component → client → line, of the updates of this round."""
        self._sketched: dict[int, Words] = {}
        self._beside = np.zeros((0, 0), dtype=np.int64)

    @property
    def rows(self) -> int:
        """Number of rows: the updates, and the clients' rows of each history."""
        return len(self.clients) * (1 + len(self.histories))

    def choose(self, clients: Sequence[int]) -> None:
        """Make a stack of the updates of these clients, and drop those of all others."""
        self.clients = tuple(clients)
        self._forget_others()

    def drop(self, clients: Sequence[int]) -> None:
        """Leave out the rows of these clients, also from sketches that have been made."""
        gone = [place for place, client in enumerate(self.clients * (1 + len(self.histories))) if client in clients]
        self._sketched = {component: np.delete(rows, gone, axis=0) for component, rows in self._sketched.items()}
        self.clients = tuple(client for client in self.clients if client not in clients)
        self._forget_others()

    def forget(self, name: str, client: int) -> None:
        """Set a client's history to zero, also in sketches that have been made.

        name: of the history.
        """
        for lines in self.past[name].values():
            lines.pop(client, None)
        if client in self.clients:
            line = len(self.clients) * (1 + self.histories.index(name)) + self.clients.index(client)
            for rows in self._sketched.values():
                rows[line] = 0

    def restore(self, past: Mapping[str, Mapping[int, Mapping[int, Line]]]) -> None:
        """Take earlier histories.

        past: as `self.past` was.
        """
        self.past = {name: {k: dict(lines) for k, lines in parts.items()} for name, parts in past.items()}

    def chunk(self, component: int, columns: slice) -> Words:
        """A component of these columns of the rows (rows, w), or of their sketch, as a copy."""
        if self.sketch:
            return self._sketch_of(component)[:, columns].copy()
        return filled(self._lines_of(component), columns)

    def lines(self, component: int, columns: slice) -> Iterator[Words]:
        """The same line by line (w,). Only read them, and use each before the next one is asked for."""
        if self.sketch:
            return iter(self._sketch_of(component)[:, columns])
        return pieces(self._lines_of(component), columns)

    def sketched_twice(self, seed: bytes) -> Words:
        """Two sketches of each row side by side (rows, 2k), of the component that the server opens: for the check.

        seed: of the sketches, where the Gram matrix is not one of a sketch.
        """
        own = self.components[0]
        if self.sketch:
            return np.hstack([self._sketch_of(own), self._beside])
        return sketched(partial(filled, self._lines_of(own)), self.rows, self.d, CHECKED, seed, twice=True)

    def weighted_sum(self, weights: Words) -> Words:
        """Σ weights_i u_i (d,) mod 2^64 of the updates, of the component that the server opens.

        weights: (n,), one for each of `clients`.
        """
        own, used = self.current[self.components[0]], np.flatnonzero(weights)
        return combined(weights[used], [own[self.clients[row]] for row in used], self.d)

    def _forget_others(self) -> None:
        for lines in self.current.values():
            for client in set(lines) - set(self.clients):
                del lines[client]

    def _sketch_of(self, component: int) -> Words:
        """The sketch (rows, width) of a component of the rows, made when it is first needed."""
        if component not in self._sketched:
            own, lines = component == self.components[0], partial(filled, self._lines_of(component))
            found = sketched(lines, self.rows, self.d, self.width, self._seed, twice=own)
            self._sketched[component] = found[:, : self.width]
            if own:  # a second sketch, for the check alone
                self._beside = found[:, self.width :]
        return self._sketched[component]

    def _lines_of(self, component: int) -> list[Line]:
        lines = [self.current[component][client] for client in self.clients]
        for name in self.histories:
            lines += [self.past[name][component].get(client) for client in self.clients]
        return lines
