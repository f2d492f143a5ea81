"""Updates on several actors: each holds some columns of all rows, so that none holds the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.actor import ActorHandle

from fedrobust.federation.actors import answer
from fedrobust.federation.arrival import Arrival, Received, in_order
from fedrobust.machine import usable_cores
from fedrobust.updates import ClearUpdates, ShardedUpdates
from fedrobust.updates.gram import Floats


class ShardHost:
    """Holds some columns of all updates of a round, and their histories. It runs as a Ray actor, but uses nothing of
    Ray."""

    def setup(self, histories: dict[str, np.ndarray]) -> None:
        """Prepare for a run.

        histories: its columns of the checkpoint's histories, by name.
        """
        self._histories: Mapping[str, np.ndarray] = histories

    def receive(
        self, order: np.ndarray, prior: Floats, clients: np.ndarray, columns: tuple[int, int], *blocks: np.ndarray
    ) -> None:
        """Take its columns of this round's updates.

        order: (n,) positions of the rows in all blocks, one after the other.
        prior: (n,) prior weights.
        clients: (n,) ids.
        columns: its first column, and the number of coordinates of an update.
        blocks: its parts of the blocks (k, d_j).
        """
        self._updates = ClearUpdates(blocks, order, prior, self._histories, clients, columns, usable_cores(), True)

    def subset(self, keep: NDArray[Any]) -> Floats:
        """Keep only the rows in `keep`; returns their prior weights."""
        self._updates = self._updates.subset(keep)
        return self._updates.prior

    def ask(self, method: str, *arguments: Any) -> Any:
        """The answer of a method of the updates."""
        return getattr(self._updates, method)(*arguments)

    def remember(self, names: Sequence[str], factors: Floats | None) -> None:
        """Keep the histories that the next round needs; arguments as for `ClearUpdates.remembered`."""
        self._histories = self._updates.remembered(names, factors)

    def histories(self) -> dict[str, np.ndarray]:
        """What goes into the checkpoint."""
        return dict(self._histories)


class RemoteShardedUpdates(ShardedUpdates):
    """The updates that shard actors hold."""

    def __init__(self, actors: Sequence[ActorHandle], widths: Sequence[int], prior: Floats, patience: float) -> None:
        self._actors, self._widths, self._patience = list(actors), list(widths), patience
        self._describe(widths, prior)

    def _ask(self, method: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        each = arguments or [()] * len(self._actors)
        return self._call("ask", [(method, *given) for given in each])

    def _call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        calls = [getattr(actor, method).remote(*own) for actor, own in zip(self._actors, arguments, strict=True)]
        return [answer(call, f"shard {shard} to {method}", self._patience) for shard, call in enumerate(calls)]

    def subset(self, keep: NDArray[Any]) -> RemoteShardedUpdates:
        """The same actors without the rows that are not in `keep`."""
        priors = self._call("subset", [(keep,)] * len(self._actors))
        return RemoteShardedUpdates(self._actors, self._widths, priors[0], self._patience)

    def remembered(self, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Histories stay with the columns: the actors keep them, and nothing is returned."""
        if names:
            self._call("remember", [(tuple(names), self._clip_factors(names))] * len(self._actors))
        return {}


@dataclass(frozen=True, eq=False)
class ShardedArrival(Arrival):
    """In the clear, in columns: for each shard actor its columns, and references to its parts of the blocks."""

    actors: list[ActorHandle]
    columns: list[slice]
    blocks: list[list[Any]]
    patience: float

    def receive(
        self,
        ids: Sequence[Sequence[int]],
        weigh: Callable[[NDArray[np.int64]], Floats],
        too_few: Callable[[int], str | None],
        histories: Mapping[str, np.ndarray],
    ) -> Received:
        """Let the actors fetch their parts; arguments as for `Arrival.receive`."""
        clients, order = in_order(ids)
        d, prior = self.columns[-1].stop, weigh(clients)
        calls = [
            actor.receive.remote(order, prior, clients, (part.start, d), *blocks)
            for actor, part, blocks in zip(self.actors, self.columns, self.blocks, strict=True)
        ]
        for shard, call in enumerate(calls):
            answer(call, f"shard {shard} to receive the updates", self.patience)
        widths = [part.stop - part.start for part in self.columns]
        updates = RemoteShardedUpdates(self.actors, widths, prior / prior.sum(), self.patience)
        self.commitments.update(zip(clients.tolist(), updates.digests(), strict=True))
        return Received(updates, clients)
