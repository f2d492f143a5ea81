"""A federation's coordinator, parties and hospitals without Ray: actors that run where the test does.

What an actor answers to whom is on record, and an actor can die at any call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedrobust.errors import FederationError
from fedrobust.experiment import Experiment
from fedrobust.federation.actors import ActorDied
from fedrobust.federation.coordinator import Coordinator
from fedrobust.federation.delivery import Block, delivery
from fedrobust.federation.party_host import PartyHost
from fedrobust.federation.rounds import FederatedTraining
from fedrobust.records import Fields
from fedrobust.secure.messages import OVERHEAD, Message, unpack
from fedrobust.secure.sending import Sender

Arrays = dict[str, np.ndarray]
Dies = Callable[[str, tuple[Any, ...]], bool]


class Reference:
    """What stands for an answer until somebody wants to have it."""

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value, self.error = value, error


class Actor:
    """Stands for an actor's handle. `dies`: by the method and its arguments, whether this call is its death."""

    def __init__(self, made: Any, dies: Dies = lambda method, arguments: False) -> None:
        self.made, self.dies, self.alive = made, dies, True

    def __getattr__(self, name: str) -> Call:
        return Call(self, name)


class Call:
    """A method of an actor. As in Ray, arguments that are references are resolved, those within others are not."""

    def __init__(self, actor: Actor, name: str, returns: int = 1) -> None:
        self._actor, self._name, self._returns = actor, name, returns

    def options(self, num_returns: int) -> Call:
        return Call(self._actor, self._name, num_returns)

    def remote(self, *arguments: Any) -> Any:
        found = self._answered(arguments)
        if self._returns == 1:
            return found
        if found.error is not None:
            return [found] * self._returns
        return [Reference(part) for part in found.value]

    def _answered(self, arguments: Sequence[Any]) -> Reference:
        failed = [each.error for each in arguments if isinstance(each, Reference) and each.error is not None]
        if failed:  # the call never begins
            return Reference(error=failed[0])
        given = tuple(each.value if isinstance(each, Reference) else each for each in arguments)
        self._actor.alive &= not self._actor.dies(self._name, given)
        if not self._actor.alive:
            return Reference(error=ActorDied("the actor died"))
        if self._name == "__ray_ready__":
            return Reference()
        try:
            return Reference(getattr(self._actor.made, self._name)(*given))
        except Exception as error:
            return Reference(error=error)


class Answers:
    """Takes the place of `actors.answer`; `seen` is all that was answered."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[Any] = []
        for room in ("actors", "delivery", "masked_rounds", "message_arrival", "parties", "rounds"):
            patch.setattr(f"fedrobust.federation.{room}.answer", self)

    def __call__(
        self, reference: Reference, awaited: str, patience: float, passed_on: tuple[type[Exception], ...] = ()
    ) -> Any:
        error = reference.error
        if error is None:
            self.seen.append(reference.value)
            return reference.value
        if isinstance(error, (ActorDied, *passed_on)):
            raise error
        raise FederationError(f"{awaited} failed: {type(error).__name__}: {error}") from error


class Hospitals:
    """What holds the updates of some hospitals, and sends them as the protocol says."""

    def __init__(self, experiment: Experiment) -> None:
        self._sender = Sender(experiment.privacy, experiment.seed)

    def send(self, step: str, *arguments: Any) -> Any:
        return getattr(self._sender, step)(*arguments)


class House:
    """A federation with the hospitals on `workers` actors, whose updates the test gives."""

    def __init__(
        self,
        options: dict[str, Any],
        d: int,
        patch: pytest.MonkeyPatch,
        workers: int = 2,
        ledgers: Path | None = None,
    ) -> None:
        patch.setattr("fedrobust.federation.delivery.LEDGERS", ledgers)
        self.experiment = Experiment.model_validate(options)
        self.answers, self.d = Answers(patch), d
        clients = self.experiment.federation.clients
        self.samples = 10 + np.arange(clients)
        self.coordinator = Coordinator()
        self.hospitals = [Actor(Hospitals(self.experiment)) for _ in range(workers)]
        self.parties: list[Actor] = []
        self.arrays: Arrays = {"weights": np.zeros(d, dtype=np.float32)}
        self.records: list[Fields] = []
        self.federation = FederatedTraining.__new__(FederatedTraining)
        team = SimpleNamespace(parties=self._found, owner=b"o" * 16, shards=[], coordinator=Actor(self.coordinator))
        way = delivery(
            self.experiment,
            team,  # type: ignore[arg-type]
            [slice(0, d)],
            "a run",
            self.samples,
            self.experiment.demand(),
            self._alive,
        )
        vars(self.federation).update(
            experiment=self.experiment,
            hosts=SimpleNamespace(layers=[], sent=self.experiment, root=None),
            _team=team,
            _delivery=way,
            _samples=self.samples,
            _patience=1.0,
        )
        self.start(0)

    @property
    def way(self) -> Any:
        return self.federation._delivery

    def start(self, round: int) -> None:
        """Get ready to go on after `round`, as a run that is begun or resumed does."""
        self.federation._start(round, self.arrays)

    def round(
        self, updates: np.ndarray, root: np.ndarray | None = None, clients: Sequence[int] | None = None
    ) -> Fields:
        """A round with the rows of `updates` (n, d) as those of `clients`; returns its record."""
        number, ids = len(self.records) + 1, list(range(len(updates)) if clients is None else clients)
        blocks = []
        for worker, holder in enumerate(self.hospitals):
            own = ids[worker :: len(self.hospitals)]
            rows = Reference(np.ascontiguousarray(updates[[ids.index(client) for client in own]], dtype=np.float32))
            blocks.append(Block(own, [rows], holder))
        own_update = None if root is None else root[None].astype(np.float32)
        record, (weights, _), kept = self.federation._aggregated(number, blocks, [], own_update, self.arrays, [])
        self.arrays = {name: np.array(array) for name, array in ({"weights": weights} | kept).items()}
        self.records.append(record)
        return record

    def _found(self, count: int, patience: float) -> list[Actor]:
        """`Team.parties`: the dead are replaced."""
        fresh = [Actor(PartyHost()) for _ in range(count - len(self.parties))]
        self.parties = [each if each.alive else Actor(PartyHost()) for each in [*self.parties, *fresh]]
        return self.parties[:count]

    def _alive(self, holder: Any) -> Any:
        """`Hosts.alive`."""
        if not holder.alive:
            self.hospitals[self.hospitals.index(holder)] = holder = Actor(Hospitals(self.experiment))
        return holder


def updates(seed: int = 0, n: int = 8, d: int = 3_000, malicious: Sequence[int] = ()) -> np.ndarray:
    """Rows (n, d) float32 around a common direction, those of `malicious` turned around and longer."""
    draw = np.random.default_rng(seed)
    rows = np.random.default_rng(99).normal(size=d) + draw.normal(size=(n, d))
    rows *= draw.uniform(0.4, 0.6, size=(n, 1)) / np.linalg.norm(rows, axis=1, keepdims=True)
    rows[list(malicious)] *= -3
    return rows.astype(np.float32)


def options(privacy: Any, rule: Any = "mean", n: int = 8, **more: Any) -> dict[str, Any]:
    """An experiment of n hospitals; secret shares without a sketch and repeatable, if nothing else is said."""
    named = privacy if isinstance(privacy, dict) else {"name": privacy}
    if named["name"] in ("shares", "replicated"):
        privacy = {"sketch": None, "randomness": "seed"} | named
    aggregation = rule if isinstance(rule, dict) else {"rule": rule}
    return {"seed": 3, "federation": {"clients": n}, "aggregation": aggregation, "privacy": privacy} | more


def messages(house: House) -> list[Message]:
    """All messages that the coordinator or the loop was answered with."""
    return [unpack(data) for data in flat(house.answers.seen) if isinstance(data, bytes) and len(data) >= OVERHEAD]


def flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [part for each in value for part in flat(each)]
    return [value]
