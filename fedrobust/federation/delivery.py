"""How updates get from the actors that made them to the coordinator: one class for each way that a protocol takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ray.actor import ActorHandle

from fedrobust.arrays import Arrays
from fedrobust.experiment import Experiment
from fedrobust.federation.actors import answer, setup
from fedrobust.federation.masked_rounds import MasksArrival
from fedrobust.federation.message_arrival import MessageArrival
from fedrobust.federation.parties import PartyTeam
from fedrobust.federation.pool import Team
from fedrobust.federation.shard_hosts import ShardedArrival
from fedrobust.records import below
from fedrobust.secure import OneMessage, PairwiseMasking, SecretSharing
from fedrobust.secure.masked_updates import draw_groups
from fedrobust.updates import Demand

LEDGERS: Path | None = Path("mlruns/parties")
"""Where servers of secret shares keep their ledgers, below the working folder; None: nowhere."""


class Block(NamedTuple):
    """Updates of `clients`: references to their parts (k, d_j), and the actor on which they were made."""

    clients: list[int]
    parts: list[Any]
    holder: ActorHandle


class Delivery(ABC):
    """The way of one run's updates. `attempts`: how often a round is tried if an actor on the way dies."""

    attempts = 1

    def setup(self, round: int, arrays: Arrays) -> Arrays:
        """Prepare to go on after `round`.

        arrays: those of a checkpoint, without model weights and client states.

        Returns those of them that belong to the coordinator.
        """
        return arrays

    @abstractmethod
    def send(self, round: int, attempt: int, blocks: Sequence[Block]) -> list[Any]:
        """Start to send a round's updates.

        attempt: 0 at first; more if the round is repeated.
        blocks: the updates.

        Returns the arguments for the coordinator: an `Arrival`, or references to whole blocks.
        """

    def arrays(self) -> Arrays:
        """What actors other than the coordinator keep between rounds, for the checkpoint."""
        return {}

    def histories(self, arrays: Arrays) -> Arrays:
        """The histories (clients, d) of a checkpoint in the clear, for attackers that know everything.

        arrays: those of the checkpoint.
        """
        return below(arrays, "history")


class ToCoordinator(Delivery):
    """In the clear, whole."""

    def send(self, round: int, attempt: int, blocks: Sequence[Block]) -> list[Any]:
        return [block.parts[0] for block in blocks]


class ToShards(Delivery):
    """In the clear, some of the columns to each shard."""

    def __init__(self, shards: Sequence[ActorHandle], columns: Sequence[slice], keeps: bool, patience: float) -> None:
        self._shards, self._columns, self._keeps, self._patience = list(shards), list(columns), keeps, patience

    def setup(self, round: int, arrays: Arrays) -> Arrays:
        for shard, columns in zip(self._shards, self._columns, strict=True):
            own = {name: np.ascontiguousarray(rows[:, columns]) for name, rows in below(arrays, "history").items()}
            setup([shard], [own], "a shard to get ready", self._patience)
        return {name: array for name, array in arrays.items() if not name.startswith("history/")}

    def send(self, round: int, attempt: int, blocks: Sequence[Block]) -> list[Any]:
        parts = [[block.parts[shard] for block in blocks] for shard in range(len(self._columns))]
        return [ShardedArrival(self._shards, self._columns, parts, self._patience)]

    def arrays(self) -> Arrays:
        if not self._keeps:
            return {}
        asked = [shard.histories.remote() for shard in self._shards]
        parts = [answer(reference, "a shard's histories", self._patience) for reference in asked]
        return {f"history/{name}": np.hstack([part[name] for part in parts]) for name in parts[0]}


class ToParties(Delivery):
    """As secret shares, to the servers of a protocol."""

    attempts = PartyTeam.ATTEMPTS

    def __init__(self, parties: PartyTeam, alive: Callable[[ActorHandle], ActorHandle]) -> None:
        self._parties, self._alive = parties, alive

    def setup(self, round: int, arrays: Arrays) -> Arrays:
        self._parties.setup(round, below(arrays, "party"))
        return {name: array for name, array in arrays.items() if not name.startswith("party/")}

    def send(self, round: int, attempt: int, blocks: Sequence[Block]) -> list[Any]:
        held = [(clients, parts[0], self._alive(holder) if attempt else holder) for clients, parts, holder in blocks]
        return [self._parties.send(round, attempt, held)]

    def arrays(self) -> Arrays:
        return {f"party/{name}": array for name, array in self._parties.arrays().items()}

    def histories(self, arrays: Arrays) -> Arrays:
        return self._parties.histories(below(arrays, "party"))


class ByMessage(Delivery):
    """One message of each hospital to the coordinator."""

    def __init__(self, privacy: OneMessage, d: int, patience: float) -> None:
        self._privacy, self._d, self._patience = privacy, d, patience

    def send(self, round: int, attempt: int, blocks: Sequence[Block]) -> list[Any]:
        asked = [(own, holder.send.remote("write", round, own, parts[0])) for own, parts, holder in blocks]
        return [MessageArrival(self._privacy, self._d, asked, self._patience)]


class ByMasks(Delivery):
    """Under pairwise masks, in one group, or in several groups that are drawn anew in each round."""

    def __init__(self, experiment: Experiment, run: str, d: int, samples: np.ndarray) -> None:
        assert isinstance(experiment.privacy, PairwiseMasking)
        self._experiment, self._privacy, self._run, self._d = experiment, experiment.privacy, run, d
        self._counts = dict(enumerate(samples.tolist()))

    def send(self, round: int, attempt: int, blocks: Sequence[Block]) -> list[Any]:
        clients = sorted(client for block in blocks for client in block.clients)
        groups: tuple[tuple[int, ...], ...] = (tuple(clients),)
        size = getattr(self._privacy, "size", None)
        if size is not None and len(clients) >= size:
            groups = draw_groups(clients, size, self._experiment.seed, round)
        place = {client: index for index, group in enumerate(groups) for client in group}
        holders = []
        for own, parts, holder in blocks:
            counts = {client: self._counts[client] for client in own}
            first = holder.send.remote("begin", self._run, round, place, own, counts, parts[0])
            holders.append((own, holder, first))
        return [
            MasksArrival(self._privacy, self._run, round, groups, holders, self._d, self._experiment.workers.patience)
        ]


def delivery(
    experiment: Experiment,
    team: Team,
    columns: Sequence[slice],
    run: str,
    samples: np.ndarray,
    demand: Demand,
    alive: Callable[[ActorHandle], ActorHandle],
) -> Delivery:
    """The way of the experiment's protocol.

    team: the actors of the run.
    columns: how the d coordinates are cut.
    run: the run's id.
    samples: (ids,) training patches of each.
    demand: what the defence asks of the updates.
    alive: an actor → itself, or another one that can share updates instead of it.
    """
    privacy, patience, d = experiment.privacy, experiment.workers.patience, columns[-1].stop
    if isinstance(privacy, SecretSharing):
        actors = partial(team.parties, privacy.parties, patience)
        limit = privacy.limit(demand, experiment.federation.rounds)
        place = None if LEDGERS is None else str(LEDGERS.resolve())
        parties = PartyTeam(privacy, experiment.seed, run, d, demand, actors, patience, team.owner, limit, place)
        return ToParties(parties, alive)
    if isinstance(privacy, OneMessage):
        return ByMessage(privacy, d, patience)
    if isinstance(privacy, PairwiseMasking):
        return ByMasks(experiment, run, d, samples)
    if team.shards:
        return ToShards(team.shards[: len(columns)], columns, bool(demand.histories), patience)
    return ToCoordinator()
