"""Local training of many hospitals at once: their parameters are rows of one matrix, a step is one call of torch.

Hospital after hospital, a GPU waits for the next small kernel most of the time. Here a step of all hospitals takes as
many kernels as the step of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedrobust.arrays import Vector
from fedrobust.errors import ExperimentError
from fedrobust.learning.local import LocalTraining
from fedrobust.learning.training import LocalResult, LocalTrainer
from fedrobust.learning.vector import parameters_to_vector, trainable

Stacks = Iterable[tuple[Tensor, Tensor]]
"""Step by step: images (k, B, 3, H, W) float32 and labels (k, B) int64 of the first k hospitals; a label of -100
belongs to no patch."""

TOLERANCE = 0.1
"""Of the check that a model can be stacked, relative to the norm of the update: rounding is far below, a layer that
mixes the patches of a batch far above."""


@dataclass(frozen=True)
class StackedHospital:
    """What the training of one hospital needs besides its batches; see `LocalTrainer.train`."""

    steps: int
    class_counts: NDArray[np.integer]
    state: Vector | None = None
    out: Vector | None = None


class StackedTrainer:
    """Trains hospitals together, each with a model of its own: what `LocalTrainer` computes, to rounding.

    In float32 an update differs by some 1e-6 of its norm, and by up to 1e-3 where rounding decides a ReLU or a maximum
    the other way.

    trainer: its network, options and device are used; the network keeps its parameters.
    classes: number of labels.
    side: side of an image, in pixels.

    Raises `ExperimentError` for a network that cannot be stacked: one that draws random numbers (dropout), or whose
    result for a patch depends on the others of its batch.
    """

    def __init__(self, trainer: LocalTrainer, classes: int, side: int) -> None:
        self.options: LocalTraining = trainer.options
        self.device = trainer.device
        self._network: nn.Module = trainer.network
        self._names = [name for name, each in self._network.named_parameters() if each.requires_grad]
        self._shapes = [each.shape for each in trainable(self._network)]
        self._edges = np.cumsum([0, *(shape.numel() for shape in self._shapes)]).tolist()
        self._check(trainer, classes, side)

    def train(self, weights: Vector, hospitals: Sequence[StackedHospital], stacks: Stacks) -> list[LocalResult]:
        """The local training of several hospitals.

        weights: (d,) float32 global weights; may be read-only.
        hospitals: those with the most steps first.
        stacks: their batches, as many as the first has steps.

        The result depends only on the arguments, up to rounding: the last bits also depend on which hospitals are
        trained together. A loss that is not finite gives an update that is not finite, of that hospital alone.

        Raises `ValueError` where arrays do not fit the model, or where batches are missing.
        """
        steps = [hospital.steps for hospital in hospitals]
        assert steps == sorted(steps, reverse=True), "a stack shrinks from its end"
        if weights.shape != (self._edges[-1],):
            raise ValueError(f"the vector has shape {weights.shape}, the parameters need ({self._edges[-1]},)")
        start = torch.tensor(weights, device=self.device)
        rows = _Rows(start, len(hospitals), self._loaded(hospitals))
        counts = torch.tensor(
            np.stack([hospital.class_counts for hospital in hospitals]), dtype=torch.float32, device=self.device
        )
        losses = torch.zeros((len(hospitals), max(steps)), dtype=torch.float64, device=self.device)
        self._network.train()
        done = 0
        deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        with deterministic, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # advice on operations that torch has no stacked version of
            for step, (images, labels) in zip(range(max(steps)), stacks, strict=False):
                active = len(images)
                if active != rows.active:
                    rows.shrink(active, self.options)
                losses[:active, step] = self._gradients(rows, start, images, labels, counts[:active])
                rows.step()
                done = step + 1
        if done != max(steps):
            raise ValueError(f"{max(steps)} steps were asked for, but there were {done} stacks")
        return self._results(rows, rows.weights - start, hospitals, losses)

    def _gradients(self, rows: _Rows, start: Tensor, images: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        """The losses (k,); the gradients are then in `rows`."""
        pieces = {}
        for name, shape, first, last in zip(self._names, self._shapes, self._edges, self._edges[1:], strict=False):
            piece = rows.weights[: rows.active, first:last].view(-1, *shape).detach().requires_grad_()
            piece.grad = rows.gradients[: rows.active, first:last].view(-1, *shape)
            pieces[name] = piece
        rows.gradients.zero_()

        def loss(own: dict[str, Tensor], images: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
            return self.options.loss.loss(functional_call(self._network, own, (images,)), labels, counts)

        found: Tensor = vmap(loss)(pieces, images, labels, counts)
        found.sum().backward()  # type: ignore[no-untyped-call]
        found = found.detach().double()
        if self.options.proximal:
            moved = rows.weights[: rows.active] - start
            rows.gradients[: rows.active].add_(moved, alpha=self.options.proximal)
            found = found + self.options.proximal / 2 * moved.square().sum(dim=1)
        return found

    def _loaded(self, hospitals: Sequence[StackedHospital]) -> dict[str, Tensor]:
        """The optimiser's state by name: (n, d), or a count."""
        names = self.options.optimizer.state_names()
        state = {
            name: torch.zeros((), device=self.device)
            if name == "step"
            else torch.zeros((len(hospitals), self._edges[-1]), device=self.device)
            for name in names
        }
        carried = [name for name in names if name != "step"]
        for row, hospital in enumerate(hospitals):
            if hospital.state is not None:
                if hospital.state.shape != (len(carried) * self._edges[-1],):
                    raise ValueError(f"the optimiser's state has shape {hospital.state.shape}, which does not fit")
                for name, part in zip(carried, np.split(hospital.state, len(carried)), strict=True):
                    state[name][row] = torch.tensor(part)
        return state

    def _results(
        self, rows: _Rows, updates: Tensor, hospitals: Sequence[StackedHospital], losses: Tensor
    ) -> list[LocalResult]:
        means, results = losses.cpu().numpy(), []
        carried = self.options.optimizer.state_names() if self.options.carry_momentum else ()
        state = [rows.state[name].cpu().numpy() for name in carried]
        for row, hospital in enumerate(hospitals):
            update = np.empty(self._edges[-1], dtype=np.float32) if hospital.out is None else hospital.out
            torch.from_numpy(update).copy_(updates[row])
            results.append(
                LocalResult(
                    update=update,
                    loss=float(means[row, : hospital.steps].mean()),
                    state=np.concatenate([each[row] for each in state]) if state else None,
                )
            )
        return results

    def _check(self, trainer: LocalTrainer, classes: int, side: int) -> None:
        """A step of two hospitals, one of them with a smaller batch, together and one after the other."""
        draw = torch.Generator().manual_seed(0)
        images = torch.randn((2, 2, 3, side, side), generator=draw)
        labels = torch.randint(classes, (2, 2), generator=draw)
        labels[1, 1] = -100
        before, counts = parameters_to_vector(self._network), np.ones(classes, dtype=np.int64)
        try:
            stack = images.to(self.device), labels.to(self.device)
            together = self.train(before, [StackedHospital(1, counts)] * 2, [stack])
        except RuntimeError as error:
            raise _refusal(str(error).strip().splitlines()[0]) from error
        for row in range(2):
            alone = trainer.train(before, [(images[row, : 2 - row], labels[row, : 2 - row])], 1, counts, seed=0).update
            difference = np.linalg.norm(together[row].update - alone)
            if np.isfinite(alone).all() and not difference <= TOLERANCE * np.linalg.norm(alone):
                raise _refusal("its result for a patch depends on the other patches of the batch, or on chance")
        trainer.load(before)


def _refusal(reason: str) -> ExperimentError:
    return ExperimentError(f"learning.local.engine: stacked cannot train this model ({reason}); use engine: lean")


@dataclass
class _Rows:
    """The hospitals' parameters, gradients and optimiser state as rows; the first `active` of them still train."""

    start: Tensor
    count: int
    state: dict[str, Tensor]
    active: int = 0
    weights: Tensor = field(init=False)
    gradients: Tensor = field(init=False)
    _optimizer: torch.optim.Optimizer | None = None

    def __post_init__(self) -> None:
        self.weights = self.start.repeat(self.count, 1)
        self.gradients = torch.zeros_like(self.weights)

    def shrink(self, active: int, options: LocalTraining) -> None:
        """From now on only the first `active` hospitals move."""
        self.active = active
        moving = nn.Parameter(self.weights[:active], requires_grad=True)
        moving.grad = self.gradients[:active]
        self._optimizer = options.optimizer.build([moving])
        if self.state:
            views = {name: each if name == "step" else each[:active] for name, each in self.state.items()}
            self._optimizer.state[moving] = views

    def step(self) -> None:
        """One step of the optimiser, which treats every element alike and so does not know the hospitals."""
        assert self._optimizer is not None
        self._optimizer.step()
