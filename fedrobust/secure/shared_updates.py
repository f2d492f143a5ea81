"""The updates of `shares` and `replicated`, as a defence sees them: it asks, and the servers answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import isqrt, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.secure.lines import ADDED, HISTORY_FRACTION
from fedrobust.secure.messages import Kind, MessageError
from fedrobust.secure.opening import (
    encode_anchor,
    gram_of_integers,
    gram_of_squares,
    joined,
    largest_history_square,
    misfit,
)
from fedrobust.secure.ring import FRACTION, Integers, Words, decode, halved, largest_square
from fedrobust.secure.sketch import PROJECTIONS, stretch, too_long
from fedrobust.secure.stack import CHECKED
from fedrobust.secure.weights import MIN_SUPPORT, OpeningError, require_support, shortened
from fedrobust.updates.demand import Opens
from fedrobust.updates.gram import Combination, Floats, Gram
from fedrobust.updates.interface import Updates, clip_factors


class Parties(ABC):
    """The servers, as the coordinator reaches them in a round whose shares have arrived; messages are bytes."""

    run: str
    round: int
    count: int
    """Number of servers."""
    sketch: int | None
    """Columns of the sketch that the Gram matrix is of; None: it is of the updates themselves."""
    clients: tuple[int, ...]
    """The clients whose shares are at every server."""
    opens: Opens = "gram"
    """What the servers open of the Gram matrix: all, its diagonal, or nothing."""
    histories: tuple[str, ...] = ()
    commitments: Mapping[int, str] = {}
    """Client → digest of its shares."""

    @abstractmethod
    def gram(self) -> list[bytes]:
        """The `gram_share` of each server, after they have exchanged what they need. Only where they open any of it."""

    @abstractmethod
    def ask(self, method: str, *arguments: Any) -> list[bytes]:
        """What this method of each server returns, in the order of their numbers.

        method: name of a step of the protocol.
        arguments: those of the method.
        """

    @abstractmethod
    def drop(self, clients: Sequence[int]) -> None:
        """Leave out clients, before the Gram matrix: they are no longer among `clients`."""

    @abstractmethod
    def remember(self, rows: Sequence[int], coefficients: Words) -> None:
        """Let the histories grow by these rows.

        rows: which of the round's updates.
        coefficients: (k,) one for each of them, at 12 fraction bits.
        """

    @abstractmethod
    def forget(self, name: str, client: int) -> None:
        """Set a client's history to zero.

        name: of the history.
        """


class _Round:
    """What was opened in a round, once; all subsets of its rows share it."""

    def __init__(self, parties: Parties, d: int, clip: float, min_support: float) -> None:
        self.parties, self.d, self.clip, self.min_support = parties, d, clip, min_support
        self._sized()
        self.notes: list[str] = []
        self.dropped: tuple[int, ...] = ()
        """Clients whose updates wrap around: no product with them is opened."""
        self.long: set[int] = set()
        """Rows that are longer than a clipped update."""
        self.vectors: dict[str, tuple[Words, int, int]] = {}
        """Public vector → its words, the power of two to multiply them by, its position in `products`."""
        self.products: list[Integers] = []
        """Products of each public vector with the rows, with the vectors before it, with itself."""
        self.sum: Words | None = None
        combinations = self._joined(Kind.PROJECTIONS, parties.ask("check_share"), self.rows * PROJECTIONS)
        self._drop(combinations.reshape(self.rows, PROJECTIONS))
        self.stack: Integers | None = None
        """The exact products of all lines, where they are opened."""
        if parties.opens == "gram":
            self.stack = halved(self._joined(Kind.GRAM, parties.gram(), self.rows**2).reshape(self.rows, self.rows))
            if (self.stack != self.stack.T).any():
                raise MessageError("the opened Gram matrix is not symmetric: the shares do not belong together")
            self._check(np.diag(self.stack))
            self.squares: Integers = np.diag(self.stack)[: self.n]
        elif parties.opens == "norms":
            self.squares = halved(self._joined(Kind.GRAM, parties.gram(), self.rows))
            self._check(self.squares)
        else:
            self.squares = np.full(self.n, largest_square(d), dtype=object)
            """The exact squares of the rows, or the largest that they may be."""

    def anchor(self, name: str, vector: NDArray[Any]) -> None:
        """Open the products with a public vector; they are kept under its name."""
        if vector.shape != (self.d,):
            raise ValueError(f"anchor '{name}' has the shape {vector.shape}, the updates have d = {self.d}")
        words, exponent = encode_anchor(vector, self.clip)
        before = self.vectors.get(name)
        if before is not None and np.array_equal(before[0], words):
            self.vectors[name] = words, exponent, before[2]
            return
        place = len(self.products)
        opened = self._joined(Kind.ANCHOR, self.parties.ask("anchor_share", words), self.rows + place + 1)
        self.products.append(opened.astype(object))
        self.vectors[name] = words, exponent, place

    def between(self, one: str, other: str) -> int:
        """The product of two public vectors."""
        first, second = sorted((self.vectors[one][2], self.vectors[other][2]))
        return int(self.products[second][self.rows + first])

    def combine(self, weights: Words) -> Words:
        """Open the sum. Raises `OpeningError` if one was opened before, or if it cannot be right."""
        if self.sum is not None:
            raise OpeningError("the sum of this round was opened; a second one would show what differs")
        require_support(weights, self.min_support)
        self.sum = self._joined(Kind.AGGREGATE, self.parties.ask("combine_share", weights), self.d)
        updates = self.squares if self.stack is None else self.stack[: self.n, : self.n]
        sketch = None if self.parties.opens == "sum" else self.parties.sketch
        if reason := misfit(self.sum, weights, updates, self.parties.count, sketch):
            raise OpeningError(reason)
        return self.sum

    def _sized(self) -> None:
        """How many updates there are, and how many lines with their histories."""
        self.n = len(self.parties.clients)
        self.rows = self.n * (1 + len(self.parties.histories))

    def _drop(self, combinations: Words) -> None:
        """Leave out clients whose rows are too long, and let histories that are too long start again."""
        parties, k = self.parties, self.parties.sketch or CHECKED
        names = [None, *parties.histories]
        limits = [largest_square(self.d), *(self._history_limit(name) for name in parties.histories)]
        long = [
            (name, client)
            for place, (name, limit) in enumerate(zip(names, limits, strict=True))
            for row, client in enumerate(parties.clients, start=place * self.n)
            if too_long(combinations[row], limit, parties.count, k)
        ]
        for name, client in long:
            if name is not None:
                self._forget(name, client)
        self.dropped = tuple(client for name, client in long if name is None)
        if self.dropped:
            parties.drop(self.dropped)
            self._sized()
            if not self.n:
                raise OpeningError("every update wraps around")

    def _check(self, squares: Integers) -> None:
        """Find rows and histories whose squares, those of all lines, are too large for clipped updates."""
        columns = self.parties.sketch or self.d
        stretched, limit = stretch(columns) if columns < self.d else 1.0, largest_square(self.d)
        self.long = {row for row in range(self.n) if not 0 <= squares[row] <= stretched * limit}
        for place, name in enumerate(self.parties.histories, start=1):
            for line, client in enumerate(self.parties.clients, start=place * self.n):
                if not 0 <= squares[line] <= stretched * self._history_limit(name):
                    self._forget(name, client)
                    if self.stack is not None:
                        self.stack[line, :] = self.stack[:, line] = 0
        exact = ((1 << FRACTION) - isqrt(self.d) - 1) ** 2
        longest = exact if columns >= self.d else exact * max(0.0, 1.0 - 2.0 * sqrt(2.0 / columns))
        cut = sum(int(squares[row] >= longest) for row in range(self.n))
        if 2 * cut > self.n:
            reached = f"have the norm privacy.clip = {self.clip:g}: they were cut to it"
            self.notes.append(f"{cut} of {self.n} updates {reached}")

    def _history_limit(self, name: str) -> int:
        return largest_history_square(name, self.parties.round + 1, self.d)

    def _forget(self, name: str, client: int) -> None:
        self.parties.forget(name, client)
        self.notes.append(f"history {name} of client {client} was not possible and starts again")

    def _joined(self, kind: Kind, messages: Sequence[bytes], count: int) -> Words:
        return joined(messages, self.parties.run, self.parties.round, kind, count)


class SharedUpdates(Updates):
    """n updates that servers hold as shares: the coordinator learns their Gram matrix, or its diagonal, or none of it,
    and one weighted sum.

    parties: the servers.
    d: coordinates of an update.
    clip: row i is the update of `clients[i]`, clipped to this norm.
    prior: prior weights of all `parties.clients`.
    min_support: least Σw²/max w² of a sum.

    Clients whose updates wrap around are `dropped` before anything else is opened. Histories stay at the servers:
    `remembered` returns nothing. Make one object for a round. It opens what it `reveals` of the Gram matrix at once:
    that of sketches, where the servers make them.
    """

    unusable = "longer than an update that was cut to the clip"

    def __init__(
        self,
        parties: Parties,
        d: int,
        clip: float,
        prior: Sequence[float] | Floats | None = None,
        min_support: float = MIN_SUPPORT,
    ) -> None:
        if not parties.clients:
            raise OpeningError("no client's shares have reached every server")
        given = dict(zip(parties.clients, np.ones(len(parties.clients)) if prior is None else prior, strict=True))
        self._round = _Round(parties, d, clip, min_support)
        self._keep = np.arange(self._round.n)
        self.n, self.d, self.reveals = self._round.n, d, frozenset({"sum", parties.opens})
        self.prior = np.array([given[client] for client in parties.clients], dtype=np.float64)
        self.prior = self.prior / self.prior.sum()
        self._anchors: dict[str, NDArray[Any]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the run's record should say of this round."""
        return tuple(self._round.notes)

    @property
    def clients(self) -> tuple[int, ...]:
        """The clients of its rows."""
        return tuple(self._round.parties.clients[row] for row in self._keep)

    @property
    def dropped(self) -> tuple[int, ...]:
        """The clients whose updates wrap around; they have no row."""
        return self._round.dropped

    def subset(self, keep: NDArray[Any]) -> SharedUpdates:
        """The same updates without the rows that are not in `keep`, a mask (n,) or indices; priors are rescaled."""
        other = object.__new__(SharedUpdates)
        other._round, other._anchors, other.d, other.reveals = self._round, dict(self._anchors), self.d, self.reveals
        other._keep, other.prior = self._keep[keep], self.prior[keep] / self.prior[keep].sum()
        other.n = len(other._keep)
        return other

    def finite_rows(self) -> NDArray[np.bool_]:
        """(n,) whether each row is no longer than a clipped update, as far as its square shows, if it is opened."""
        return np.array([row not in self._round.long for row in self._keep], dtype=bool)

    def gram(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> Gram:
        """From exact integers: it differs from the clear only by the rounding of the shared updates to 30 bits.

        anchors: public vectors (d,) by name.
        histories: names of the histories.

        Raises `NotRevealed` where no more than norms are opened.
        """
        if self._round.stack is None:
            raise self._not_revealed()
        self._open(anchors)
        if unknown := set(histories) - set(self._round.parties.histories):
            raise ValueError(f"the servers do not keep the histories {', '.join(sorted(unknown))}")
        exact, unit = self._lines(histories)
        return gram_of_integers(exact, unit, self.prior, list(self._anchors), histories)

    def norms(self, anchors: Mapping[str, np.ndarray] | None = None) -> Gram:
        """The same without products of two rows, where these are not opened.

        anchors: as for `gram`.

        Raises `NotRevealed` where not even norms are opened.
        """
        if self._round.parties.opens == "sum":
            raise self._not_revealed()
        if self._round.stack is not None:
            return self.gram(anchors)
        self._open(anchors)
        return gram_of_squares(*self._lines(()), self.prior, list(self._anchors))

    def combine(self, combination: Combination) -> NDArray[np.float32]:
        """The aggregate (d,) float32, except for the servers' noise and weights of 12 bits.

        combination: the weights of the rows.

        Raises `OpeningError` if a sum was opened before, rests on too few updates, or cannot be right.
        """
        state, result = self._round, np.zeros(self.d)
        weights, factor = shortened(self._all(combination.weights))
        if weights.any():
            result += decode(state.combine(weights), state.clip * factor)
        for name, coefficient in combination.anchors.items():
            if coefficient:
                result += coefficient * np.asarray(self._anchors[name], dtype=np.float64)
        return result.astype(np.float32)

    def remembered(self, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Let the servers' histories grow by these rows; once, before or after `combine`. Returns nothing.

        names: of the histories.
        """
        if names:
            squares = self._round.squares[self._keep].astype(np.float64)
            coefficients = np.rint(ADDED * clip_factors(np.maximum(squares, 0.0))).astype(np.int64)
            self._round.parties.remember(self._keep.tolist(), coefficients)
        return {}

    def _open(self, anchors: Mapping[str, np.ndarray] | None) -> None:
        """Open the products with public vectors."""
        self._anchors = dict(anchors or {})
        for name, vector in self._anchors.items():
            self._round.anchor(name, vector)

    def _all(self, weights: Floats) -> Floats:
        """Weights of these rows as weights of all."""
        whole = np.zeros(self._round.n)
        whole[self._keep] = weights
        return whole

    def _lines(self, histories: Sequence[str]) -> tuple[Integers, float]:
        """The exact products of rows, anchors and rows of histories in one unit, and this unit; 0 for those of two rows
        that are not opened."""
        state, n, anchors = self._round, self._round.n, list(self._anchors)
        places = [0, *(1 + state.parties.histories.index(name) for name in histories)]
        held = np.concatenate([place * n + self._keep for place in places])
        known, count = self.n + len(anchors), len(held) + len(anchors)
        lines = np.concatenate([np.arange(self.n), np.arange(known, count)])
        exact: Integers = np.zeros((count, count), dtype=object)
        if state.stack is None:
            exact[lines, lines] = state.squares[held]
        else:
            exact[np.ix_(lines, lines)] = state.stack[np.ix_(held, held)]
        for line, name in enumerate(anchors, self.n):
            exact[lines, line] = exact[line, lines] = state.products[state.vectors[name][2]][held]
            for other, second in enumerate(anchors, self.n):
                exact[line, other] = state.between(name, second)
        bits = [0] * self.n + [state.vectors[name][1] for name in anchors]
        for name in histories:
            bits += [0 if name == "last" else FRACTION - HISTORY_FRACTION] * self.n
        finest = min(bits)
        scale = np.array([1 << (each - finest) for each in bits], dtype=object)
        return exact * np.outer(scale, scale), state.clip**2 * 2.0 ** (2 * (finest - FRACTION))
