"""The client actors of a team, set up for one experiment: they train and evaluate, and those that die are replaced."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from fedrobust.aggregation import Layer
from fedrobust.data.hospitals import Hospitals
from fedrobust.data.root import RootPatches
from fedrobust.experiment import Experiment
from fedrobust.federation.actors import ActorDied, answer, setup
from fedrobust.federation.clients import STEPS, Answer, Training
from fedrobust.federation.delivery import Block
from fedrobust.federation.encoding import ImageSet, features_of, trigger_sets, views_of
from fedrobust.federation.layout import layout_of
from fedrobust.federation.pool import Team
from fedrobust.federation.shared_data import SharedArray
from fedrobust.learning import Encoder
from fedrobust.progress import progress_to
from fedrobust.timeline import arrived
from fedrobust.updates import Floats, shard_columns

ATTEMPTS = 3
"""How often a task is tried if the actor that does it dies."""


@dataclass(frozen=True)
class TrainedUpdates:
    """What a round's training left in the object store, and what came back besides."""

    honest: list[Block] = field(default_factory=list)
    crafting: list[Block] = field(default_factory=list)
    """Updates that the adversary will replace."""
    losses: dict[int, float] = field(default_factory=dict)
    states: dict[int, np.ndarray] = field(default_factory=dict)
    late: list[int] = field(default_factory=list)
    """Hospitals whose updates were not back by the deadline."""
    root: list[Any] = field(default_factory=list)
    """A reference to the server's own update (1, d), where the rule wants one."""

    def arrived(self) -> list[int]:
        """The hospitals whose updates are here."""
        return sorted(client for block in self.honest + self.crafting for client in block.clients)


class Hosts:
    """The client actors of a leased team."""

    def __init__(
        self,
        experiment: Experiment,
        hospitals: Hospitals,
        team: Team,
        say: Callable[[str], None],
    ) -> None:
        """`say`: called with short texts about what takes long."""
        self._experiment, self._team = experiment, team
        self._patience = experiment.workers.patience
        self._attackers = experiment.attackers
        layout = layout_of(experiment, hospitals)
        self.samples = np.array([len(own) for own in layout.indices[: experiment.federation.clients]])
        """(clients,) int64: training patches of each hospital."""
        self._root: int | None = None
        """The id with which the server trains on its own patches: the one after the last hospital's."""
        if len(layout.indices) > experiment.federation.clients:
            self._root = experiment.federation.clients
        self._sizes = [len(own) for own in layout.indices]
        learning = experiment.learning.model_copy(update={"model": experiment.learning.model.located()})
        self.sent = experiment.model_copy(update={"learning": learning})
        """The experiment as actors on other nodes can use it."""
        images, labels = team.data.of(hospitals)
        self._setup, self._arrays = [self.sent, ray.put(layout), labels], [images]
        self.layers: list[Layer] = self._prepare("the client actors to get ready")
        """Those to which the d coordinates of the updates belong."""
        features: tuple[SharedArray, ...] = ()
        self.encoder = ""
        """Digest of a pretrained encoder, of which the updates have no or not all weights, and of the features that
        training reads; empty for other models."""
        if isinstance(experiment.learning.model, Encoder):
            self.encoder, block = self._asked(0, _ask_encoder, "worker 0 to know the encoder")()
        if experiment.learning.on_features:
            sets = views_of(hospitals, self.encoder, experiment.learning.views)
            features, digest = self._encoded(hospitals, sets, block, say)
            for one in list(trigger_sets(experiment.attacks, hospitals, self.encoder)):
                features += self._encoded(hospitals, [one], block, say)[0]
            say("training")
            self.encoder = f"{self.encoder} {digest}"
            self._arrays += features
            self._prepare("the client actors to take the features")
        self.root: RootPatches | None = None
        """The coordinator's own patches, if it tries models on them."""
        if experiment.trust.own_patches:
            table = features[0].read() if features else None
            self.root = hospitals.root_patches(experiment.data.root, experiment.seed, table)
        d = sum(math.prod(layer.shape) for layer in self.layers)
        self.columns = shard_columns(d, max(1, len(team.shards)))
        """How the d coordinates of the updates are cut: one part, or one for each shard."""

    def initial_weights(self) -> Any:
        """A reference to the model (d,) float32 that the first round starts from."""
        return self._team.workers[0].initial_weights.remote()

    def ask_training(
        self, round: int, clients: list[int], weights: Any, states: dict[int, np.ndarray], previous: Any = None
    ) -> list[_Task]:
        """Start the training of hospitals.

        round: number of the round.
        clients: the hospitals.
        weights: reference to the global weights (d,) float32.
        states: hospital → what it keeps from earlier rounds.
        previous: reference to the global weights of the round before, or None (see `ClientHost.train`).
        """
        tasks, own = [], [] if self._root is None else [self._root]
        known = clients, previous
        for worker, share in enumerate(self._divide([*clients, *own])):
            if self._root in share:
                share.remove(self._root)
                tasks.append(self._ask(worker, round, own, weights, states, known))
            # With a deadline each hospital is one task, so that none is late because of another one.
            parts = [share] if self._experiment.federation.deadline is None else [[client] for client in share]
            tasks += [self._ask(worker, round, part, weights, states, known) for part in parts if part]
        return tasks

    def collect(self, tasks: list[_Task]) -> TrainedUpdates:
        """Wait for the training. If an actor dies, its hospitals are trained again, with the same bits.

        tasks: as `ask_training` returned them.

        Raises `ActorDied` if an actor dies `ATTEMPTS` times in a row.
        """
        found = TrainedUpdates()
        late = self._late(tasks)
        for task in tasks:
            if task in late:
                found.late.extend(task.clients)
                ray.cancel(task.training)  # if it has not begun, it never will
                continue
            done, training = self._finished(task)
            arrived(f"client actor {task.worker}", training.steps)
            found.states.update(training.states)
            if task.clients == [self._root]:
                found.root.extend(done.honest)
                continue
            _, honest, crafting, *_ = done.arguments
            if honest:
                found.honest.append(Block(honest, done.honest, done.actor))
            if crafting:
                found.crafting.append(Block(crafting, done.crafting, done.actor))
            found.losses.update(training.losses)
        return found

    def alive(self, holder: ActorHandle) -> ActorHandle:
        """An actor that can share updates.

        holder: the actor that made them.

        Returns the actor itself. If it is a client actor that has died, returns its replacement or another client
        actor.
        """
        for worker, actor in enumerate(self._team.workers):
            if actor is holder:
                try:
                    answer(actor.__ray_ready__.remote(), f"worker {worker} to answer", self._patience)
                except ActorDied:
                    self._revive(worker, actor)
                return self._team.workers[worker]
        return holder if holder is self._team.adversary else self._team.workers[0]

    def ask_of_model(self, function: Callable[..., Answer], weights: Any, *arguments: Any) -> Callable[[], Answer]:
        """Start `ClientHost.of_model` on a client actor.

        function: of an importable module.
        weights: reference to the weights (d,) of the model.
        arguments: more of the function's.

        Returns a function that waits for the answer. It raises `ActorDied` if an actor dies `ATTEMPTS` times in a row.
        """
        worker = len(self._team.workers) - 1

        def ask(actor: ActorHandle) -> Any:
            return actor.of_model.remote(function, weights, *arguments)

        return self._asked(worker, ask, f"worker {worker} to look at the model")

    def ask_evaluation(self, weights: Any) -> list[Callable[[], Any]]:
        """Start the evaluation of the model on the held-out patches, a part of them on every actor.

        weights: reference to them.
        """
        workers = len(self._team.workers)

        def asked(worker: int) -> Callable[[], Any]:
            def ask(actor: ActorHandle) -> Any:
                return actor.evaluate.remote(weights, worker, workers)

            return self._asked(worker, ask, f"worker {worker} to evaluate")

        return [asked(worker) for worker in range(workers)]

    def collect_evaluation(self, asked: list[Callable[[], Any]]) -> dict[str, np.ndarray]:
        """Wait for the evaluation: probabilities (n, classes) float32 for each key of `ClientHost.evaluate`.

        asked: as `ask_evaluation` returned it.

        Raises `ActorDied` if an actor dies `ATTEMPTS` times in a row.
        """
        answers = [wait() for wait in asked]
        for worker, part in enumerate(answers):
            arrived(f"client actor {worker}", part.pop(STEPS, None))
        return {key: np.concatenate([part[key] for part in answers]) for key in answers[0]}

    def votes(self, clients: Sequence[int], models: Any) -> dict[int, Floats]:
        """The votes of hospitals on models, as `ClientHost.votes` returns them.

        clients: the hospitals.
        models: reference to (1 + K, d) float32.

        Raises `ActorDied` if an actor dies `ATTEMPTS` times in a row.
        """

        def asked(worker: int, own: list[int]) -> Callable[[], Any]:
            def ask(actor: ActorHandle) -> Any:
                return actor.votes.remote(own, models)

            return self._asked(worker, ask, f"worker {worker} to vote")

        shares = {worker: own for worker, own in enumerate(self._divide(list(clients))) if own}
        answers = {worker: asked(worker, own) for worker, own in shares.items()}
        found: dict[int, Floats] = {}
        for worker, wait in answers.items():
            part = wait()
            arrived(f"client actor {worker}", part.pop(STEPS, None))
            found |= part
        return dict(sorted(found.items()))

    def _encoded(
        self, hospitals: Hospitals, sets: list[ImageSet], block: int, say: Callable[[str], None]
    ) -> tuple[tuple[SharedArray, ...], str]:
        """The features of sets of images, and their digest; they are encoded if nobody has done it."""
        make, what = partial(features_of, sets, block), " ".join(each.what for each in sets)
        encode = [partial(self._ask_features, worker) for worker in range(len(self._team.workers))]
        with progress_to(say):
            return self._team.data.features(hospitals, what, encode, make, say)

    def _ask_features(self, worker: int, key: int | str, first: int, last: int) -> Callable[[], np.ndarray]:
        """Start the encoding of a set of images from position `first` to `last`; see `encoding.Encode`."""

        def ask(actor: ActorHandle) -> Any:
            return actor.encode.remote(key, first, last)

        return self._asked(worker, ask, f"worker {worker} to encode patches {first:,} to {last - 1:,}")

    def _asked(self, worker: int, ask: Callable[[ActorHandle], Any], awaited: str) -> Callable[[], Any]:
        """Ask a client actor; the function that is returned waits for the answer. If the actor dies, its replacement is
        asked."""
        actor = self._team.workers[worker]
        reference = ask(actor)

        def wait() -> Any:
            nonlocal actor, reference
            last: ActorDied | None = None
            for attempt in range(ATTEMPTS):
                try:
                    if attempt:
                        self._revive(worker, actor)
                        actor = self._team.workers[worker]
                        reference = ask(actor)
                    return answer(reference, awaited, self._patience)
                except ActorDied as error:
                    last = error
            raise ActorDied(f"{ATTEMPTS} times in a row {last}")

        return wait

    def _late(self, tasks: list[_Task]) -> list[_Task]:
        """The tasks that the round does not wait for: none, unless there is a deadline and a quorum is back by then."""
        settings = self._experiment.federation
        if settings.deadline is None:
            return []
        tasks = [task for task in tasks if task.clients != [self._root]]  # no round without the server's own update
        waiting, missing = [task.training for task in tasks], tasks
        for _ in range(ATTEMPTS):
            _, late = ray.wait(waiting, num_returns=len(waiting), timeout=settings.deadline)
            missing = [task for task in tasks if task.training in late]
            # Absent hospitals have no task. If the others are too few for a quorum, waiting does not help.
            if len(tasks) - len(missing) >= settings.needed() or len(tasks) < settings.needed():
                break
        return missing

    def _divide(self, clients: list[int]) -> list[list[int]]:
        """Hospitals by worker: those with the most work first, each to the worker with the least work."""
        local = self._experiment.learning.local
        labour = {client: local.steps_for(self._sizes[client]) for client in clients}
        shares: list[list[int]] = [[] for _ in self._team.workers]
        load = [0] * len(shares)
        for client in sorted(clients, key=lambda client: (-labour[client], client)):
            least = load.index(min(load))
            shares[least].append(client)
            load[least] += labour[client]
        return [sorted(share) for share in shares]

    def _ask(
        self,
        worker: int,
        round: int,
        clients: list[int],
        weights: Any,
        states: dict[int, np.ndarray],
        known: tuple[list[int], Any],
    ) -> _Task:
        crafting = self._attackers.crafting(clients, round)
        honest = [client for client in clients if client not in crafting]
        own = {client: states[client] for client in clients if client in states}
        columns = [slice(0, self.columns[-1].stop)] if clients == [self._root] else self.columns
        return self._start(worker, (round, honest, crafting, weights, own, *known, columns))

    def _start(self, worker: int, arguments: tuple[Any, ...]) -> _Task:
        actor, parts = self._team.workers[worker], len(arguments[-1])
        *blocks, training = actor.train.options(num_returns=2 * parts + 1).remote(*arguments)
        return _Task(worker, actor, arguments, blocks[:parts], blocks[parts:], training)

    def _finished(self, task: _Task) -> tuple[_Task, Training]:
        awaited, last = f"round {task.arguments[0]}: worker {task.worker} to train", None
        for attempt in range(ATTEMPTS):
            try:
                if attempt:
                    self._revive(task.worker, task.actor)
                    task = self._start(task.worker, task.arguments)
                return task, answer(task.training, awaited, self._patience)
            except ActorDied as error:
                last = error
        raise ActorDied(f"{ATTEMPTS} times in a row {last}")

    def _prepare(self, awaited: str) -> list[Layer]:
        """Set all client actors up; those that die are replaced. Returns the answer of one."""
        last: ActorDied | None = None
        for attempt in range(ATTEMPTS):
            try:
                for actor in self._team.workers if attempt else ():
                    self.alive(actor)
                return self._set_up(self._team.workers, awaited)
            except ActorDied as error:
                last = error
        raise ActorDied(f"{ATTEMPTS} times in a row {last}")

    def _revive(self, worker: int, dead: ActorHandle) -> None:
        """Replace the actor `dead`, unless it has been replaced already: several tasks may have died with it."""
        if self._team.workers[worker] is dead:
            # The coordinator may have died with the same node, and then there is nobody to train for.
            answer(self._team.coordinator.__ray_ready__.remote(), "the coordinator to answer", self._patience)
            self._set_up([self._team.replace(worker)], f"worker {worker} to be replaced")

    def _set_up(self, workers: Sequence[ActorHandle], awaited: str) -> list[Layer]:
        """Set up client actors, each with the patches as it can read them. Returns the answer of one.

        awaited: what an error names.
        """
        files = [array.file for array in self._arrays if array.file is not None]
        asked = {worker: worker.open.remote(files) for worker in workers if files}

        def own(worker: ActorHandle) -> list[Any]:
            opened = answer(asked[worker], awaited, self._patience) if files else set()
            return [array.argument(array.file in opened) for array in self._arrays]

        answers: list[list[Layer]] = setup(list(workers), self._setup, awaited, self._patience, own)
        return answers[0]


def _ask_encoder(actor: ActorHandle) -> Any:
    return actor.encoder.remote()


@dataclass(frozen=True, eq=False)
class _Task:
    """Training on an actor: the arguments of `ClientHost.train`, and references to its results."""

    worker: int
    actor: ActorHandle
    arguments: tuple[Any, ...]
    honest: list[Any]
    crafting: list[Any]
    training: Any

    @property
    def clients(self) -> list[int]:
        return [*self.arguments[1], *self.arguments[2]]
