"""The protocol object of `shares` and `replicated`: what a defence asks for, by way of the servers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation.gram import Combination, Floats, Gram
from fedrobust.aggregation.protocol import Protocol, shortening
from fedrobust.secure.messages import Kind, MessageError
from fedrobust.secure.opening import (
    Verdict,
    dithered,
    encode_anchor,
    fixed_point,
    gram_of_integers,
    joined,
    largest_history_square,
    largest_square,
    open_aggregate,
)
from fedrobust.secure.ring import FRACTION, SEED_BYTES, Entropy, Integers, Words, halved
from fedrobust.secure.server import (
    ADDED,
    HISTORY_FRACTION,
    MIN_SUPPORT,
    PROJECTIONS,
    OpeningError,
    require_support,
)


class Parties(ABC):
    """The servers as the coordinator reaches them, in a round whose shares have arrived; messages are bytes."""

    run: str
    round: int
    clients: tuple[int, ...]
    """Whose shares are at every server."""
    histories: tuple[str, ...] = ()
    commitments: Mapping[int, str] = {}
    """Client → digest of its shares."""

    @abstractmethod
    def gram(self) -> list[bytes]:
        """Has the servers exchange what they need, and gives their `gram_share`."""

    @abstractmethod
    def ask(self, method: str, *arguments: Any) -> list[bytes]:
        """What this method of each server returns, in order of their numbers."""

    @abstractmethod
    def remember(self, rows: Sequence[int], coefficients: Words) -> None:
        """Has the histories grow by these rows."""

    @abstractmethod
    def forget(self, name: str, client: int) -> None:
        """Has a client's history be zero again."""


class _Round:
    """What was opened in a round, once; all subsets of its rows share it."""

    def __init__(self, parties: Parties, d: int, clip: float, entropy: Entropy, min_support: float) -> None:
        self.parties, self.d, self.clip, self.entropy, self.min_support = parties, d, clip, entropy, min_support
        self.n, self.rows = len(parties.clients), len(parties.clients) * (1 + len(parties.histories))
        self.notes: list[str] = []
        self.verdict: Verdict | None = None
        self.opened = 0
        self.vectors: dict[str, tuple[Words, int]] = {}
        self.products: dict[str, Integers] = {}
        words = joined(parties.gram(), parties.run, parties.round, Kind.GRAM, self.rows**2)
        stack = halved(words.reshape(self.rows, self.rows))
        if (stack != stack.T).any():
            raise MessageError("the opened Gram matrix is not symmetric: the shares do not belong together")
        self.stack = self._plausible(stack)
        longest = ((1 << FRACTION) - isqrt(d) - 1) ** 2
        cut = sum(int(stack[row, row] >= longest) for row in range(self.n))
        if 2 * cut > self.n:
            self.notes.append(f"{cut} of {self.n} updates have the norm privacy.clip = {clip:g}: they were cut to it")

    def _plausible(self, stack: Integers) -> Integers:
        """The products with zeros for histories that cannot be: a truncation that failed, or a wrap-around."""
        for place, name in enumerate(self.parties.histories, start=1):
            limit = largest_history_square(name, self.parties.round + 1, self.d)
            for position, client in enumerate(self.parties.clients):
                line = place * self.n + position
                if not 0 <= stack[line, line] <= limit:
                    stack[line, :] = stack[:, line] = 0
                    self.parties.forget(name, client)
                    self.notes.append(f"history {name} of client {client} was not possible and starts again")
        return stack

    def anchor(self, name: str, vector: NDArray[Any]) -> None:
        """Opens the products with a public vector; they are kept under its name."""
        if vector.shape != (self.d,):
            raise ValueError(f"anchor '{name}' has the shape {vector.shape}, the updates have d = {self.d}")
        words, exponent = encode_anchor(vector, self.clip)
        if name not in self.vectors or not np.array_equal(self.vectors[name][0], words):
            opened = self._joined(Kind.ANCHOR, self.parties.ask("anchor_share", words), self.rows)
            self.products[name] = opened.astype(object)
            self.opened += 1
        self.vectors[name] = words, exponent

    def combine(self, weights: Words) -> Verdict:
        """Opens the sum; OpeningError if there was one."""
        if self.verdict is not None:
            raise OpeningError("the sum of this round was opened; a second one would show what differs")
        require_support(weights, self.min_support)
        shares = self.parties.ask("combine_share", weights)
        aggregate, used = self._joined(Kind.AGGREGATE, shares, self.d), np.flatnonzero(weights)

        def project() -> Words:
            seed = self.entropy(SEED_BYTES)
            found = self._joined(Kind.PROJECTION, self.parties.ask("projection_share", seed), len(used) * PROJECTIONS)
            return found.reshape(len(used), PROJECTIONS)

        def term(row: int) -> Words:
            return self._joined(Kind.TERM, self.parties.ask("term_share", row), self.d)

        updates = self.stack[: self.n, : self.n]
        self.verdict = open_aggregate(aggregate, weights, updates, project, term, self.min_support)
        for row in self.verdict.culprits:
            client = self.parties.clients[row]
            self.notes.append(f"client {client} sent an update that wraps around")
            for name in self.parties.histories:
                self.parties.forget(name, client)
        return self.verdict

    def _joined(self, kind: Kind, messages: Sequence[bytes], count: int) -> Words:
        return joined(messages, self.parties.run, self.parties.round, kind, count)


class Opened(Protocol):
    """n updates that lie at servers as shares: the coordinator learns their Gram matrix and one weighted sum.

    Row i is the update of `parties.clients[i]`, clipped to the norm `clip`. `entropy` draws the projections. `notes`
    and `verdict` say what was found, `culprits` the clients whose updates were no vectors of that norm. Histories stay
    at the servers: `remembered` returns nothing. It is made once for a round, and opens the Gram matrix at once.
    """

    reveals: ClassVar[frozenset[str]] = frozenset({"sum", "gram"})

    def __init__(
        self,
        parties: Parties,
        d: int,
        clip: float,
        prior: Sequence[float] | Floats | None = None,
        entropy: Entropy = os.urandom,
        min_support: float = MIN_SUPPORT,
    ) -> None:
        if not parties.clients:
            raise OpeningError("no client's shares have reached every server")
        self._round = _Round(parties, d, clip, entropy, min_support)
        self._keep = np.arange(self._round.n)
        self.n, self.d = self._round.n, d
        self.prior = np.full(self.n, 1.0) if prior is None else np.asarray(prior, dtype=np.float64)
        self.prior = self.prior / self.prior.sum()
        self._anchors: dict[str, NDArray[Any]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the run's record should say of this round."""
        return tuple(self._round.notes)

    @property
    def verdict(self) -> Verdict | None:
        """What came of the sum; its rows are those of `parties.clients`."""
        return self._round.verdict

    @property
    def culprits(self) -> tuple[int, ...]:
        """The ids of the clients whose terms were found to wrap around."""
        verdict = self._round.verdict
        return tuple(self._round.parties.clients[row] for row in verdict.culprits) if verdict else ()

    @property
    def functionals(self) -> int:
        """Linear functionals of every update that were opened in this round: public vectors and projections."""
        verdict = self._round.verdict
        return self._round.opened + (PROJECTIONS if verdict and verdict.projected else 0)

    def subset(self, keep: NDArray[Any]) -> Opened:
        """The same without the rows that are not in `keep`, a mask (n,) or indices; priors are rescaled."""
        other = object.__new__(Opened)
        other._round, other._anchors, other.d = self._round, dict(self._anchors), self.d
        other._keep, other.prior = self._keep[keep], self.prior[keep] / self.prior[keep].sum()
        other.n = len(other._keep)
        return other

    def finite_rows(self) -> NDArray[np.bool_]:
        """(n,) whether the squared norm is one that a clipped update can have."""
        squares, limit = np.diag(self._round.stack)[self._keep], largest_square(self.d)
        return np.array([0 <= square <= limit for square in squares], dtype=bool)

    def gram(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> Gram:
        """From exact integers: all that differs from the clear is the rounding of the shared updates to 30 bits."""
        self._anchors = dict(anchors or {})
        for name, vector in self._anchors.items():
            self._round.anchor(name, vector)
        if unknown := set(histories) - set(self._round.parties.histories):
            raise ValueError(f"the servers do not keep the histories {', '.join(sorted(unknown))}")
        exact, unit = self._lines(histories)
        return gram_of_integers(exact, unit, self.prior, list(self._anchors), histories)

    def combine(self, combination: Combination) -> NDArray[np.float32]:
        """The aggregate (d,) float32. OpeningError if there was one, if it rests on too few updates, or if it is wrong
        and cannot be mended."""
        state, result = self._round, np.zeros(self.d)
        weights, bits = fixed_point(self._all(combination.weights), state.stack[: state.n, : state.n])
        if weights.any():
            verdict = state.combine(dithered(weights, state.entropy))
            if verdict.aggregate is None:
                raise OpeningError(verdict.reason)
            result += np.ldexp(verdict.aggregate * (state.clip * verdict.factor), -FRACTION - bits)
        for name, coefficient in combination.anchors.items():
            if coefficient:
                result += coefficient * np.asarray(self._anchors[name], dtype=np.float64)
        return result.astype(np.float32)

    def remembered(self, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Has the servers' histories grow by these rows, once, before or after `combine`; nothing comes back.

        Culprits that `combine` finds lose theirs.
        """
        squares = np.diag(self._round.stack)[self._keep].astype(np.float64)
        coefficients = np.rint(ADDED * shortening(np.maximum(squares, 0.0))).astype(np.int64)
        lost = self._round.verdict.culprits if self._round.verdict else ()
        kept = [place for place, row in enumerate(self._keep) if row not in lost]
        if names:
            self._round.parties.remember(self._keep[kept].tolist(), coefficients[kept])
        return {}

    def _all(self, weights: Floats) -> Floats:
        """Weights of these rows as weights of all."""
        whole = np.zeros(self._round.n)
        whole[self._keep] = weights
        return whole

    def _lines(self, histories: Sequence[str]) -> tuple[Integers, float]:
        """The exact products of rows, anchors, rows of histories on one grid, and the unit they are counted in."""
        state, n, anchors = self._round, self._round.n, list(self._anchors)
        places = [0, *(1 + state.parties.histories.index(name) for name in histories)]
        held = np.concatenate([place * n + self._keep for place in places])
        known, count = self.n + len(anchors), len(held) + len(anchors)
        lines = np.concatenate([np.arange(self.n), np.arange(known, count)])
        exact: Integers = np.zeros((count, count), dtype=object)
        exact[np.ix_(lines, lines)] = state.stack[np.ix_(held, held)]
        for line, name in enumerate(anchors, self.n):
            exact[lines, line] = exact[line, lines] = state.products[name][held]
            for other, second in enumerate(anchors, self.n):
                exact[line, other] = int(state.vectors[name][0] @ state.vectors[second][0])
        bits = [0] * self.n + [state.vectors[name][1] for name in anchors]
        for name in histories:
            bits += [0 if name == "last" else FRACTION - HISTORY_FRACTION] * self.n
        finest = min(bits)
        scale = np.array([1 << (each - finest) for each in bits], dtype=object)
        return exact * np.outer(scale, scale), state.clip**2 * 2.0 ** (2 * (finest - FRACTION))
