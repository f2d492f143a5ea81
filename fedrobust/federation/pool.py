"""Teams of Ray actors: made once, leased to one run at a time, given back.

A team is k client actors with their coordinator, adversary, shards and parties, in one placement group, so that teams
can never starve each other. Importing the stack costs seconds, which a short run must not pay; what only some runs need
(the adversary, the parties) is started by the first one that does. Parallelism = number of teams.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from secrets import token_bytes
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedrobust.errors import FederationError, NoPlaceError
from fedrobust.experiment import Workers
from fedrobust.federation.actors import GONE, ActorDied, answer, in_words, reason
from fedrobust.federation.adversary import Adversary
from fedrobust.federation.clients import ClientHost
from fedrobust.federation.coordinator import Coordinator
from fedrobust.federation.party_host import PartyHost
from fedrobust.federation.shard_hosts import ShardHost
from fedrobust.federation.shared_data import SharedData

PATIENCE = 120.0
"""Seconds for which a team may have no room in the cluster: at first, and after its node has died."""
RESTART = 60.0
"""Seconds within which the actors of a restarted team must answer."""
MOMENT = 1.0
"""Seconds of each wait for room: a Ctrl-C is noticed between two waits."""

logger = logging.getLogger(__name__)

_starting = threading.Lock()
"""Held by a pool while it takes its room: two that start at once would each wait for what the other one has."""
_holders: dict[int, int] = {}
"""The pools of this process that have their room: id → thread."""


@dataclass
class Team:
    """The actors of one run."""

    workers: list[ActorHandle]
    coordinator: ActorHandle
    shards: list[ActorHandle]
    """Actors that hold the updates, some of the columns each; none where the coordinator holds them."""
    group: PlacementGroup
    share: Share
    places: Sequence[str] = ()
    """Custom resources of the nodes that hold the parties; none: on the node of the first client actor."""
    data: SharedData = field(default_factory=SharedData)
    owner: bytes = field(default_factory=partial(token_bytes, 16), repr=False)
    """The key to set parties up, and to see what they remember: see `PartyHost`."""
    lost: str = ""
    """Why the team was incomplete when it was last checked."""
    adversary: ActorHandle | None = None
    """The actor that crafts updates, once a run has needed one."""
    _parties: list[ActorHandle] = field(default_factory=list)

    @property
    def actors(self) -> list[ActorHandle]:
        """All of them."""
        crafting = [] if self.adversary is None else [self.adversary]
        return [*self.workers, self.coordinator, *crafting, *self.shards, *self._parties]

    def start_adversary(self) -> ActorHandle:
        """The actor that crafts updates, started when it is first needed."""
        if self.adversary is None:
            self.adversary = _start(Adversary, self.group, 0, {})
        return self.adversary

    def parties(self, count: int, patience: float) -> list[ActorHandle]:
        """So many actors for the servers and the dealer of a protocol, started when they are first needed.

        count: how many.
        patience: seconds to wait for those that are there.

        Dead ones are replaced; none of them is set up.
        """
        for number, actor in enumerate(self._parties):
            try:
                answer(actor.__ray_ready__.remote(), f"party {number} to be ready", patience)
            except ActorDied:
                self._parties[number] = self._party(number)
        self._parties += [self._party(number) for number in range(len(self._parties), count)]
        return self._parties[:count]

    def _party(self, number: int) -> ActorHandle:
        if not self.places:
            return _start(PartyHost, self.group, 0, {})
        place, known = self.places[number], ray.cluster_resources()
        if place not in known:
            common = ("CPU", "GPU", "memory", "object_store", "node:")
            own = sorted(name for name in known if not name.startswith(common))
            raise FederationError(
                f"workers.parties.{number}: no node of the cluster has the resource '{place}'; "
                f"there are: {', '.join(own) or 'none'}"
            )
        return ray.remote(PartyHost).options(num_cpus=0.0, resources={place: 0.001}).remote()

    def whole(self, patience: float) -> bool:
        """Whether all of its actors answer. At first they have to start, and later to finish work that nobody waits
        for.

        patience: seconds to wait.
        """
        try:
            ray.get([actor.__ray_ready__.remote() for actor in self.actors], timeout=patience)
        except (*GONE, GetTimeoutError) as error:
            self.lost = reason(error)
            return False
        return True

    def mend(self) -> bool:
        """Start all of its actors again, in the room that Ray has found for them; False if there is none yet."""
        self.end()
        try:
            if not self.group.wait(timeout_seconds=0):
                return False
        except Exception:  # Ray raises a bare one if the cluster has forgotten the group
            return False
        new = _actors(self.group, self.share, len(self.shards))
        self.workers, self.coordinator, self.shards = new
        self.adversary = None
        self._parties.clear()
        return self.whole(RESTART)  # fails if the room is on a node that Ray does not yet know to be dead

    def end(self) -> None:
        """End its actors; the room stays reserved. Those of an ended Ray have ended with it."""
        for actor in self.actors if ray.is_initialized() else ():
            with suppress(ValueError):  # it belongs to an earlier Ray
                ray.kill(actor)

    def replace(self, index: int) -> ActorHandle:
        """Start a new client actor instead of a dead one; it is not set up.

        index: the dead one's in `workers`.
        """
        self.workers[index] = _client(self.group, index, self.share)
        return self.workers[index]


@dataclass(frozen=True)
class Share:
    """The part of the machine that each client actor gets."""

    count: int
    cpus: float
    gpus: float
    threads: int


def share(workers: Workers, resources: dict[str, float], clients: int, teams: int = 1) -> Share:
    """Resolve every `auto` of `workers` for a cluster with these resources.

    resources: as `ray.cluster_resources` returns them.
    clients: hospitals of the experiment.
    teams: how many there are at the same time.

    Raises `FederationError` if the cluster cannot hold so many actors.
    """
    cores, cards = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    gpus = workers.gpus if isinstance(workers.gpus, float) else (0.25 if cards else 0.0)
    slots = int(cards) * max(1, int(1 / gpus + 1e-9)) if gpus else int(cores)  # no actor uses two cards
    count = workers.count if isinstance(workers.count, int) else max(1, min(slots // teams, clients))
    cpus = workers.cpus if isinstance(workers.cpus, float) else min(1.0, int(cores / (count * teams) * 1000) / 1000)
    if cpus <= 0:
        raise FederationError(f"workers: the cluster has {cores:g} cores, too few for {count * teams} actors")
    for name, wanted, present in (("cores", cpus, cores), ("GPUs", gpus, cards)):
        if wanted * count * teams > present + 1e-6:
            raise FederationError(
                f"workers: {teams * count} actors with {wanted:g} {name} each need {wanted * count * teams:g}, "
                f"the cluster has {present:g}"
            )
    return Share(count, cpus, gpus, workers.threads)


def teams_that_fit(workers: Workers) -> int:
    """How many teams of one client actor each fit the running Ray cluster; at least one."""
    resources = ray.cluster_resources()
    cards = resources.get("GPU", 0.0) if workers.gpus != 0 else 0.0
    cpus = workers.cpus if isinstance(workers.cpus, float) else 1.0
    room = [resources.get("CPU", 0.0) / cpus]
    if cards:
        room.append(cards / (workers.gpus if isinstance(workers.gpus, float) else 0.25))
    return max(1, int(min(room) + 1e-9))


@dataclass
class Pool:
    """`teams` teams on the running Ray cluster."""

    workers: Workers
    clients: int
    teams: int = 1
    _free: SimpleQueue[Team] = field(default_factory=SimpleQueue, init=False)
    _all: list[Team] = field(default_factory=list, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _working: int = field(default=0, init=False)
    thread: int = field(default_factory=threading.get_ident, init=False)
    """The thread that made it, and that will give its room back."""
    data: SharedData = field(default_factory=SharedData, init=False)
    leaving: threading.Event = field(default_factory=threading.Event, init=False)
    """Set in another thread than the one that enters it, to give up waiting for room."""

    def __enter__(self) -> Pool:
        split = share(self.workers, ray.cluster_resources(), self.clients, self.teams)
        try:
            while not _starting.acquire(timeout=MOMENT):
                self.go_on()
            try:
                for _ in range(self.teams):
                    self._all.append(_team(split, self))
                    self._free.put(self._all[-1])
                _holders[id(self)] = self.thread
            finally:
                _starting.release()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for team in self._all:
            team.end()
            if ray.is_initialized():
                remove_placement_group(team.group)
        _holders.pop(id(self), None)

    def go_on(self) -> None:
        """Raise `FederationError` if whoever made it no longer waits for room."""
        if self.leaving.is_set():
            raise FederationError("the run has ended before there was room for its actors")

    @contextmanager
    def lease(self) -> Iterator[Team]:
        """Lease a team for one run; waits while all are at work.

        If a team has lost actors, with their node say, it is started again as soon as Ray has found room for it; until
        then the other teams are leased.

        Raises `NoPlaceError` if no team has had room for two minutes.
        """
        with in_words():
            team = self._whole()
        try:
            with in_words():
                yield team
        finally:
            with self._lock:
                self._working -= 1
            self._free.put(team)

    def _whole(self) -> Team:
        until = time.monotonic() + PATIENCE
        while True:
            team = self._free.get()
            if team.whole(self.workers.patience) or team.mend():
                with self._lock:
                    self._working += 1
                return team
            self._free.put(team)
            if self._working:
                until = time.monotonic() + PATIENCE
            elif time.monotonic() > until:
                raise NoPlaceError(
                    f"all teams have lost actors, and no new ones could be started for {PATIENCE:g} s: {team.lost}"
                )
            time.sleep(1)


def _actors(
    group: PlacementGroup, split: Share, shards: int
) -> tuple[list[ActorHandle], ActorHandle, list[ActorHandle]]:
    clients = [_client(group, index, split) for index in range(split.count)]
    # They get no core of their own: it would be missing for a client actor.
    coordinator = _start(Coordinator, group, 0, {})
    return clients, coordinator, [_start(ShardHost, group, i % split.count, {}) for i in range(shards)]


def _team(split: Share, pool: Pool) -> Team:
    workers, bundle = pool.workers, {"CPU": split.cpus} | ({"GPU": split.gpus} if split.gpus else {})
    group = _placed([bundle] * split.count, pool)
    clients, coordinator, holders = _actors(group, split, workers.shards if workers.shards > 1 else 0)
    return Team(clients, coordinator, holders, group, split, workers.parties, pool.data)


def _placed(bundles: list[dict[str, float]], pool: Pool) -> PlacementGroup:
    """Room for actors with these resources. If another pool of this process holds it, this waits.

    Raises `FederationError` if there is no room for two minutes, and nobody in this process who will free some.
    """
    group, told = placement_group(bundles, strategy="PACK"), False
    try:
        until = time.monotonic() + PATIENCE
        while not group.wait(timeout_seconds=MOMENT):
            pool.go_on()
            if any(thread != pool.thread for thread in _holders.values()):
                until = time.monotonic() + PATIENCE
                if not told:
                    logger.warning("waiting for %s, which other runs of this process hold", _amounts(bundles))
                told = True
            elif time.monotonic() > until:
                free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
                raise FederationError(
                    f"no room for {len(bundles)} actors with {bundles[0]} each within {PATIENCE:g} s; free: {free}"
                )
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def _amounts(bundles: list[dict[str, float]]) -> str:
    names = {"CPU": "cores", "GPU": "GPUs"}
    return " and ".join(f"{amount * len(bundles):g} {names[name]}" for name, amount in bundles[0].items())


def _client(group: PlacementGroup, index: int, split: Share) -> ActorHandle:
    resources = {"num_cpus": split.cpus, "num_gpus": split.gpus}
    memory = min(split.gpus, 1.0)
    return _start(ClientHost, group, index, resources, split.threads, "cuda" if split.gpus else "cpu", memory)


def _start(
    actor: type, group: PlacementGroup, bundle: int, resources: dict[str, float], *arguments: Any
) -> ActorHandle:
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    options = {"num_cpus": 0.0, "num_gpus": 0.0} | resources
    return ray.remote(actor).options(**options, scheduling_strategy=place).remote(*arguments)
