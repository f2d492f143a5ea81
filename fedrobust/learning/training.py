"""Local training: from global weights and a hospital's batches to its update."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as lightning
import torch
from numpy.typing import NDArray
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from fedrobust.arrays import Vector
from fedrobust.errors import ExperimentError
from fedrobust.learning.constraint import Constraint
from fedrobust.learning.local import LocalTraining
from fedrobust.learning.module import TissueClassifier
from fedrobust.learning.vector import load_optimizer, load_vector, optimizer_to_vector, parameters_to_vector

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LocalResult:
    """The result of a hospital's training.

    update: (d,) float32 = local − global weights.
    loss: the mean training loss over the steps.
    state: of the optimiser, if it is carried to the hospital's next round.
    """

    update: Vector
    loss: float
    state: Vector | None


class LocalTrainer:
    """Trains one hospital after another on the same module, without any set-up between them.

    With `engine: stacked`, it trains like `lean`; `StackedTrainer` trains hospitals together.

    model: the network; it is moved to `device`, and kept as `network`, inside the Lightning `module`.
    options: how to train.
    device: as torch spells it.

    Raises `ExperimentError` if the device cannot train in the requested precision.
    """

    def __init__(self, model: nn.Module, options: LocalTraining, device: str = "cpu") -> None:
        self.options = options
        self.device = torch.device(device)
        if options.precision == "16-mixed" and self.device.type == "cpu":
            raise ExperimentError("local.precision: 16-mixed needs a GPU; use bf16-mixed or 32-true on a CPU")
        self._format = torch.channels_last if options.channels_last else torch.contiguous_format
        self.network = model
        self.module = TissueClassifier(model, options)
        self._place()
        self._optimizer = self.module.configure_optimizers()
        self._fit: tuple[lightning.Trainer, _Recorder] | None = None

    def load(self, weights: Vector) -> None:
        """Copy the global weights (d,) float32, which may be read-only, into `network`."""
        load_vector(self.network, weights)

    def train(
        self,
        weights: Vector,
        batches: Batches,
        steps: int,
        class_counts: NDArray[np.integer],
        state: Vector | None = None,
        *,
        seed: int,
        out: Vector | None = None,
        constraint: Constraint | None = None,
    ) -> LocalResult:
        """One hospital's local training.

        weights: (d,) float32 global weights; may be read-only.
        batches: at least `steps` batches of (B, 3, H, W) float32 images and (B,) int64 labels.
        steps: number of batches to train on.
        class_counts: (classes,) the hospital's training patches of each label.
        state: the optimiser's state from the hospital's last round; None: a fresh optimiser.
        seed: for the model's random draws (dropout); from the run's seed, the round and the client.
        out: (d,) float32, where to write the update; a new array by default.
        constraint: of an attacker's training; it also turns the update into the one that is sent.

        The result depends only on the arguments: not on earlier trainings of this object, nor on torch's global
        generator, which is not changed. A loss that is not finite gives an update that is not finite.

        Raises `ValueError` where `weights`, `state` or a mask do not fit the model, or where there are fewer than
        `steps` batches.
        """
        self.load(weights)
        self.module.begin(class_counts, constraint)
        self.module.train()
        devices = [self.device] if self.device.type == "cuda" else []
        deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        with torch.random.fork_rng(devices=devices), deterministic:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack trace where CUDA is idle
            if devices:
                torch.cuda.manual_seed_all(seed)
            placed = self._placed(itertools.islice(batches, steps))
            if self.options.engine == "trainer":
                losses, optimizer = self._trainer(placed, state, steps)
            else:
                losses, optimizer = self._lean(placed, state)
        if len(losses) != steps:
            raise ValueError(f"{steps} steps were asked for, but there were {len(losses)} batches")
        carried = self.options.optimizer.state_names() if self.options.carry_momentum else ()
        update = np.subtract(parameters_to_vector(self.network), weights, out=out)
        if constraint is not None:
            constraint.finish(update)
        return LocalResult(
            update=update,
            loss=float(torch.stack(losses).double().mean()),
            state=optimizer_to_vector(optimizer, carried),
        )

    def _placed(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            placed = images.to(self.device, non_blocking=True).contiguous(memory_format=self._format)
            yield placed, labels.to(self.device, non_blocking=True)

    def _lean(
        self, batches: Iterator[tuple[Tensor, Tensor]], state: Vector | None
    ) -> tuple[list[Tensor], torch.optim.Optimizer]:
        optimizer, losses = self._optimizer, []
        load_optimizer(optimizer, self.options.optimizer.state_names(), state)
        for index, batch in enumerate(batches):
            optimizer.zero_grad()
            loss = self.module.training_step(batch, index)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self.module.project()
            losses.append(loss.detach())
        return losses, optimizer

    def _trainer(
        self, batches: Iterator[tuple[Tensor, Tensor]], state: Vector | None, steps: int
    ) -> tuple[list[Tensor], torch.optim.Optimizer]:
        with _silenced():
            # Making a Trainer takes longer than what it does in a few steps: it is kept, unless a fit failed. A user's
            # callbacks are made anew for each hospital and may look at the Trainer, so with them it is new, too.
            trainer, recorder = self._fit or self._new_trainer()
            self._fit = None
            recorder.begin(state)
            trainer.fit_loop.max_epochs = trainer.current_epoch + 1
            trainer.fit(self.module, _Sized(batches, steps))
        if self.device.type != "cpu" or self.options.precision != "32-true":
            self._place()  # Lightning has moved the module to the CPU, and left it in the Trainer's precision
        self._fit = None if self.options.callbacks else (trainer, recorder)
        return recorder.losses, trainer.optimizers[0]

    def _new_trainer(self) -> tuple[lightning.Trainer, _Recorder]:
        recorder = _Recorder(self.options.optimizer.state_names())
        cuda = self.device.type == "cuda"
        trainer = lightning.Trainer(
            accelerator=self.device.type,
            devices=[self.device.index or 0] if cuda else 1,
            precision=self.options.precision,
            max_epochs=1,
            callbacks=[recorder, *(callback.build() for callback in self.options.callbacks)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[LightningEnvironment()],  # a job scheduler that started this process is ignored
        )
        return trainer, recorder

    def _place(self) -> None:
        self.module.to(device=self.device, dtype=torch.float32, memory_format=self._format)


@dataclass(frozen=True)
class _Sized:
    """Batches of a known number: Lightning then fetches none in advance, which a second fit would drop (2.6)."""

    batches: Iterator[tuple[Tensor, Tensor]]
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches


class _Recorder(lightning.Callback):
    """Sets the optimiser's state when training starts, applies the constraint, and records the losses."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.begin(None)

    def begin(self, state: Vector | None) -> None:
        """Get ready for a hospital, with the `state` of its optimiser."""
        self.state = state
        self.losses: list[Tensor] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        load_optimizer(trainer.optimizers[0], self.names, self.state)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: dict[str, Tensor],
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
    ) -> None:
        pl_module.project()
        self.losses.append(outputs["loss"].detach().clone())


@contextmanager
def _silenced() -> Iterator[None]:
    """Hides Lightning's warnings, and its messages about accelerators and workers for good.

    The level stays: each change of it clears the caches of all loggers of the process, at every hospital.
    """
    logger = logging.getLogger("pytorch_lightning")
    if logger.level != logging.ERROR:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
