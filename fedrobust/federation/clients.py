"""A client actor: one worker slot that hosts as many hospitals as the experiment needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fedrobust.aggregation import Layer
from fedrobust.attacks import DataAttack, LocalAttack, LocalView, Pleasing
from fedrobust.data.cache import ArrayFile
from fedrobust.experiment import Experiment
from fedrobust.federation.layout import Layout, questions
from fedrobust.federation.voting import ballot, mean_losses, votes_of
from fedrobust.learning import Encoder
from fedrobust.machine import keep_freed_memory
from fedrobust.secure.sending import Sender
from fedrobust.timeline import Recording, TimedSteps, recording, step
from fedrobust.updates import cut_columns

if TYPE_CHECKING:
    from fedrobust.data.stacks import StackedPatches
    from fedrobust.federation.features import Features
    from fedrobust.learning.constraint import Constraint
    from fedrobust.learning.stacked import StackedTrainer
    from fedrobust.learning.training import LocalResult

Answer = TypeVar("Answer")

STEPS = "steps"
"""Key of what an actor did, beside its results."""


@dataclass(frozen=True)
class Training:
    """What comes back from training besides the updates; a hospital's state may be large."""

    losses: dict[int, float]
    states: dict[int, np.ndarray]
    seconds: float
    steps: TimedSteps | None = None
    """What the actor did, if that is recorded."""


@dataclass(frozen=True)
class _Task:
    """The training of one hospital in one round."""

    client: int
    attack: LocalAttack | None
    state: np.ndarray | None
    """What it keeps from its last round."""
    out: np.ndarray
    """(d,) float32, where its update goes."""

    @property
    def constraint(self) -> Constraint | None:
        return None if self.attack is None else self.attack.constraint


class ClientHost:
    """Trains hospitals and evaluates models. It runs as a Ray actor, but uses nothing of Ray."""

    def __init__(self, threads: int, device: str, memory: float = 1.0) -> None:
        """`memory`: the part of a GPU's memory that is this actor's; more, and it is refused, not its neighbours."""
        import torch

        import fedrobust.learning.training  # noqa: F401  before the data are here

        torch.set_num_threads(threads)
        keep_freed_memory()
        if device == "cuda" and memory < 1:
            torch.cuda.set_per_process_memory_fraction(memory)
        self._device = device
        self._opened: dict[ArrayFile, np.ndarray] = {}

    def open(self, files: Sequence[ArrayFile]) -> set[ArrayFile]:
        """Open files of arrays for the next `setup`; returns those that are here.

        What is open stays so when its file is removed.
        """
        found = {file: self._opened[file] if file in self._opened else file.opened() for file in files}
        self._opened = {file: array for file, array in found.items() if array is not None}
        return set(self._opened)

    def setup(
        self,
        experiment: Experiment,
        layout: Layout,
        labels: np.ndarray,
        images: np.ndarray | ArrayFile,
        *features: np.ndarray | ArrayFile,
    ) -> list[Layer]:
        """Prepare for an experiment, whatever was run before; returns the layers to which the d trainable parameters
        belong.

        layout: which patches are whose.
        labels: (N,) of the patches.
        images: (N, S, S, 3) uint8; or their file, which `open` has opened.
        features: what a head on a frozen encoder is trained and evaluated on instead, or their files: (N, F) of each
            view of the patches, then (n, F) of the patches with each backdoor's trigger, if there are any.
        """
        from fedrobust.federation.predictor import Predictor
        from fedrobust.learning.training import LocalTrainer
        from fedrobust.learning.vector import parameters_to_vector

        opened, files = self._opened, [each for each in (images, *features) if isinstance(each, ArrayFile)]
        self._opened = {file: opened[file] for file in files}
        images, *tables = (opened[each] if isinstance(each, ArrayFile) else each for each in (images, *features))
        self._experiment, self._layout, self._images, self._labels = experiment, layout, images, labels
        learning = experiment.learning
        network: Any = learning.model.build(layout.classes, images.shape[1], experiment.seed)
        self._network = network
        self._features: Features | None = None
        self._questions = questions(experiment.attacks, labels, layout)
        triggered: dict[str, np.ndarray] = {}
        trained, local = network, learning.local
        if tables:
            import torch

            from fedrobust.federation.features import Features

            asked = [key for key, positions, attack in self._questions if attack is not None and len(positions)]
            views, rest = tables[: learning.views], tables[learning.views :]
            triggered = dict(zip(asked, rest, strict=True))
            self._features = Features(network, views, images, labels, torch.device(self._device))
            trained, local = network.head, local.model_copy(update={"channels_last": False})
        self._trainer = LocalTrainer(trained, local, self._device)
        table = None if self._features is None else self._features.table
        self._predictor = Predictor(self._trainer, images, table, triggered)
        self._stack: tuple[StackedPatches, StackedTrainer] | None = None
        if learning.local.engine == "stacked":
            from fedrobust.data.stacks import StackedPatches
            from fedrobust.learning.stacked import StackedTrainer

            trainer = StackedTrainer(self._trainer, layout.classes, images.shape[1])
            self._stack = StackedPatches(images, labels, self._device), trainer
        self._initial: np.ndarray = parameters_to_vector(network)
        self._attackers = experiment.attackers
        self._sender = Sender(experiment.privacy, experiment.seed)
        named = network.named_parameters()
        return [Layer(name, tuple(parameter.shape)) for name, parameter in named if parameter.requires_grad]

    def encoder(self) -> tuple[str, int]:
        """Digest of what features depend on besides the patches, and how many patches are encoded at once."""
        import torch

        from fedrobust.federation.features import block_on, encoder_digest

        device = torch.device(self._device)
        return encoder_digest(self._network, device, self._kept), block_on(device)

    def encode(self, key: int | str, first: int, last: int) -> np.ndarray:
        """The features (n, F) of a set of images (see `encoding.ImageSet`) from position `first` to `last`."""
        import torch

        from fedrobust.federation.features import encoded, view_of
        from fedrobust.federation.predictor import with_trigger

        if isinstance(key, int):
            images = view_of(self._images[first:last], key)
        else:
            (question,) = (each for each in self._questions if each.key == key)
            images = with_trigger(self._images[question.positions[first:last]], question.attack)
        return encoded(self._network, images, torch.device(self._device), self._kept)

    @property
    def _kept(self) -> np.dtype[Any]:
        """Type in which features are kept."""
        model = self._experiment.learning.model
        assert isinstance(model, Encoder)
        return np.dtype(model.features)

    def send(self, step: str, *arguments: Any) -> Any:
        """Call a step of the protocol for the hospitals here; see `Sender`.

        step: name of the method.
        """
        return getattr(self._sender, step)(*arguments)

    def initial_weights(self) -> np.ndarray:
        """(d,) float32: the model before the first round, the same on every worker."""
        return self._initial

    def train(
        self,
        round: int,
        honest: Sequence[int],
        crafting: Sequence[int],
        weights: np.ndarray,
        states: dict[int, np.ndarray],
        participants: Sequence[int],
        previous: np.ndarray | None,
        columns: Sequence[slice],
    ) -> tuple[np.ndarray | Training, ...]:
        """Train hospitals from the global weights.

        round: number of the round.
        honest: hospitals whose updates are sent as they are.
        crafting: hospitals whose updates the adversary will replace.
        weights: (d,) float32, the global model.
        states: hospital → what it keeps from its last round.
        participants: all hospitals of the round.
        previous: the global weights of the round before; None if there was none, or no attack asks for them.
        columns: how the d coordinates are cut.

        Returns the updates of `honest` (k, d), then those of `crafting` (m, d), float32, each cut into `columns`, and
        last a `Training`.
        """
        start, seen = time.perf_counter(), Recording() if self._experiment.tracking.profile else None
        blocks = [np.empty((len(clients), len(weights)), dtype=np.float32) for clients in (honest, crafting)]
        rows = [row for block in blocks for row in block]
        tasks = [
            _Task(client, self._attack(round, client, participants, weights, previous), states.get(client), row)
            for client, row in zip([*honest, *crafting], rows, strict=True)
        ]
        losses, after = {}, {}
        with recording(seen), step("train", round=round):
            for task, result in self._trained(round, weights, tasks):
                losses[task.client] = result.loss
                if result.state is not None:
                    after[task.client] = result.state
        steps = None if seen is None else seen.recorded()
        return (
            *cut_columns(blocks[0], columns),
            *cut_columns(blocks[1], columns),
            Training(losses, after, time.perf_counter() - start, steps),
        )

    def _trained(self, round: int, weights: np.ndarray, tasks: list[_Task]) -> Iterator[tuple[_Task, LocalResult]]:
        """Each task with its result, in their order."""
        # Constraints hold after every step of one hospital: these attackers train alone.
        together = [task for task in tasks if task.constraint is None] if self._stack is not None else []
        results = self._train_together(round, weights, together)
        for task in tasks:
            if task.client in results:
                yield task, results[task.client]
                continue
            with step("hospital", hospital=task.client):
                result = self._train_one(round, weights, task)
            yield task, result

    def _attack(
        self, round: int, client: int, participants: Sequence[int], weights: np.ndarray, previous: np.ndarray | None
    ) -> LocalAttack | None:
        """What a hospital does in this round if its attack acts during training; None: it trains honestly."""
        attack = self._attackers.attack(client)
        if not isinstance(attack, DataAttack) or not attack.schedule.active(round):
            return None
        group = self._attackers.accomplices(client)
        view = LocalView(
            round=round,
            n=len(participants),
            attackers=len(set(group) & set(participants)),
            rank=group.index(client),
            hospitals=len(group),
            server_lr=getattr(self._experiment.learning.server, "lr", 1.0),
            step=None if previous is None or not attack.needs_step else weights - previous,
        )
        local, known = attack.local(view), self._layout.known
        if not attack.knows_patches:
            return local
        return replace(local, poison=Pleasing(local.poison, self._images[known], self._labels[known], attack.pleasing))

    def _train_one(self, round: int, weights: np.ndarray, task: _Task) -> LocalResult:
        from fedrobust.data.batches import batches
        from fedrobust.seeds import derived_seed

        local, seed = self._experiment.learning.local, self._experiment.seed
        indices = self._layout.indices[task.client]
        steps, poison = local.steps_for(len(indices)), self._poison(task)
        drawn = {"batch_size": local.batch_size, "steps": steps, "seed": seed, "round": round, "client": task.client}
        if self._features is not None:
            stream = self._features.batches(indices, poison, **drawn)
        else:
            stream = batches(
                self._images,
                self._labels,
                indices,
                augment=local.augment,
                poison=poison,
                device=self._device,
                channels_last=local.channels_last,
                **drawn,
            )
        return self._trainer.train(
            weights,
            stream,
            steps,
            self._counts(indices),
            task.state,
            seed=derived_seed(seed, "model", round, task.client),
            out=task.out,
            constraint=task.constraint,
        )

    def _train_together(self, round: int, weights: np.ndarray, tasks: list[_Task]) -> dict[int, LocalResult]:
        """The result of each hospital's task, trained in stacks of hospitals with about the same number of steps."""
        if not tasks:
            return {}
        from fedrobust.data.stacks import HospitalBatches
        from fedrobust.learning.stacked import StackedHospital

        assert self._stack is not None
        (patches, trainer), local = self._stack, self._experiment.learning.local
        found: dict[int, LocalResult] = {}
        steps = {task.client: local.steps_for(len(self._layout.indices[task.client])) for task in tasks}
        ordered = sorted(tasks, key=lambda task: (-steps[task.client], task.client))
        for first in range(0, len(ordered), local.stack):
            stack = ordered[first : first + local.stack]
            own = [self._layout.indices[task.client] for task in stack]
            shares = [
                HospitalBatches(task.client, indices, steps[task.client], self._poison(task))
                for task, indices in zip(stack, own, strict=True)
            ]
            hospitals = [
                StackedHospital(steps[task.client], self._counts(indices), task.state, task.out)
                for task, indices in zip(stack, own, strict=True)
            ]
            stacks = patches.stacks(
                shares, batch_size=local.batch_size, seed=self._experiment.seed, round=round, augment=local.augment
            )
            with step("stack", hospitals=len(stack)):
                results = trainer.train(weights, hospitals, stacks)
            found |= {task.client: result for task, result in zip(stack, results, strict=True)}
        return found

    def _counts(self, indices: np.ndarray) -> np.ndarray:
        """(classes,) the patches of each label."""
        return np.bincount(self._labels[indices], minlength=self._layout.classes)

    def _poison(self, task: _Task) -> Callable[..., tuple[np.ndarray, np.ndarray]] | None:
        return None if task.attack is None else partial(task.attack.poison, classes=self._layout.classes)

    def evaluate(self, weights: np.ndarray, part: int, parts: int) -> dict[str, Any]:
        """Probabilities (n, classes) float32 for one part of the held-out patches.

        weights: (d,) float32, the model.
        part: index of the part.
        parts: how many parts there are.

        Key `clean`: validation, then test patches. Key `trigger/<i>`: the patches that `triggered` returns, with the
        trigger of attack i. Key `STEPS`, if that is recorded: what the actor did.
        """
        seen = Recording() if self._experiment.tracking.profile else None
        with recording(seen), step("evaluate"):
            self._trainer.load(weights)
            found: dict[str, Any] = self._predictor.parts(self._questions, part, parts)
        return found if seen is None else found | {STEPS: seen.recorded()}

    def votes(self, clients: Sequence[int], models: np.ndarray) -> dict[int | str, Any]:
        """How much less hospitals lose with models than with the first, on training patches of their own.

        clients: the hospitals.
        models: (1 + K, d) float32.

        Returns hospital → (K, labels), NaN for labels about which it has no vote. Key `STEPS`, if that is recorded:
        what the actor did.
        """
        jury, seed = self._experiment.trust.jury, self._experiment.seed
        assert jury is not None
        seen = Recording() if self._experiment.tracking.profile else None
        with recording(seen), step("vote"):
            own = {client: self._layout.indices[client] for client in clients}
            ballots = {client: ballot(each, self._labels, jury.patches, seed, client) for client, each in own.items()}
            losses: dict[int, list[np.ndarray]] = {client: [] for client in clients}
            for model in models:
                self._trainer.load(model)
                for client, each in ballots.items():
                    losses[client].append(mean_losses(self._predictor.whole(each), self._labels[each]))
        found: dict[int | str, Any] = {client: votes_of(np.array(each)) for client, each in losses.items()}
        return found if seen is None else found | {STEPS: seen.recorded()}

    def of_model(self, function: Callable[..., Answer], weights: np.ndarray, *arguments: Any) -> Answer:
        """`function` of a new network on the CPU with these `weights` (d,), and of the `arguments`."""
        from fedrobust.learning.vector import with_weights

        model, classes, size = self._experiment.learning.model, self._layout.classes, self._images.shape[1]
        return function(with_weights(model, classes, size, self._experiment.seed, weights), *arguments)
