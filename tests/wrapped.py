"""Rounds of secret shares whose clients send any words: for the tests of what parties may try."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedrobust.aggregation import Combination
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import Kind, run_id
from fedrobust.secure.opening import joined
from fedrobust.secure.ring import FRACTION, Words, encode
from fedrobust.secure.shared_updates import SharedUpdates
from fedrobust.secure.weights import LARGEST_WEIGHT, shortened

RUN = run_id("attacks")
N, D, CLIP = 8, 2_000, 1.0
DEAD = 500
"""So many of the first coordinates are zero in every honest update."""
NAMES = ("shares", "replicated")
VICTIM = 3
"""The client whose update a coordinator wants to read."""
EQUAL = np.full(N, 1 / N)
UNEQUAL = np.arange(10, 10 + N) / np.arange(10, 10 + N).sum()
ODD = (shortened(UNEQUAL)[0] | 1) / LARGEST_WEIGHT
"""Weights that are odd as whole numbers."""

Attack = Callable[[np.ndarray], None]


def honest(n: int = N) -> np.ndarray:
    """Encoded updates (n, D) of norm 0.9 with dead coordinates."""
    rows = np.random.default_rng(0).normal(size=(n, D)) + 0.5
    rows[:, :DEAD] = 0.0
    rows *= 0.9 / np.linalg.norm(rows, axis=1)[:, None]
    return np.stack([encode(row, CLIP) for row in rows])


def at(columns: slice, value: int) -> Attack:
    """Adds `value` mod 2^64 to these columns."""

    def attack(row: np.ndarray) -> None:
        row[columns] += np.array(value, dtype=np.uint64).astype(np.int64)

    return attack


def scaled(row: np.ndarray) -> None:
    """What an honest client's update times a million is in the ring."""
    row *= 1_000_000


WRAPS: dict[str, Attack] = {
    "a dead coordinate at 2^32": at(slice(0, 1), 2**32),
    "256 at 2^28": at(slice(0, 256), 2**28),
    "4 at 2^31": at(slice(0, 4), 2**31),
    "one at 2^60, one at 2^33": lambda row: (at(slice(0, 1), 2**60)(row), at(slice(1, 2), 2**33)(row))[0],
    "1,000 live ones + 2^63": at(slice(600, 1600), 2**63),
    "999 live ones + 2^63": at(slice(600, 1599), 2**63),
    "a million times as long": scaled,
}


def parties(name: str, **options: Any) -> LocalParties:
    """The servers, with the same randomness every time."""
    return LocalParties(name, RUN, D, np.random.default_rng(7).bytes, **options)  # type: ignore[arg-type]


def play(played: LocalParties, rows: Sequence[np.ndarray], round: int = 1) -> SharedUpdates:
    """A round of clients who may send any words."""
    played.receive(round, {client: played.sent(row, round, client) for client, row in enumerate(rows)})
    return SharedUpdates(played, D, CLIP, None, played.servers[0].min_support)


def mean(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean of honest words, with weights of 12 bits."""
    whole, factor = shortened(weights / weights.sum())
    return np.asarray(whole @ rows * (factor * 2.0**-FRACTION))


def named(opened: SharedUpdates) -> set[int]:
    """The clients whose updates were found to be none."""
    long = np.array(opened.clients)[~opened.finite_rows()]
    return {*opened.dropped, *long.tolist()}


def defended(opened: SharedUpdates, weights: np.ndarray) -> np.ndarray:
    """What a coordinator does: it leaves out impossible rows, and opens the sum of the others."""
    rows = opened.subset(np.flatnonzero(opened.finite_rows()))
    own = weights[list(rows.clients)]
    return rows.combine(Combination(own / own.sum()))


def opened_sum(played: LocalParties, chosen: np.ndarray) -> Words:
    """What the coordinator gets for weights of its own choice."""
    return joined(played.ask("combine_share", chosen), played.run, played.round, Kind.AGGREGATE, D)
