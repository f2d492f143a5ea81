"""What the coordinator does with patches of its own: it tries models on them, and repairs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedrobust.arrays import Vector
from fedrobust.data.batches import to_tensor
from fedrobust.data.root import RootPatches
from fedrobust.errors import FederationError
from fedrobust.experiment import Learning
from fedrobust.federation.features import encoded
from fedrobust.learning.vector import flatten, load_vector, parameters_to_vector, trainable
from fedrobust.seeds import generator
from fedrobust.trust.augmentation import augmented, mirrored
from fedrobust.trust.referee import shares
from fedrobust.trust.repair import Repair

BATCH = 64
"""Patches that are classified at once."""
SMOOTHING = 0.98
"""The moving average of a repair's weights is that of about 50 steps."""
VIEWS = 8
"""How often the patches are changed and encoded, for a head that is trained on features."""


class Repaired(NamedTuple):
    """The result of a repair."""

    weights: Vector
    steps: int
    """How many were made."""
    losses: NDArray[np.float64] | None = None
    """(m,) of each patch after so many steps on other patients' patches; None without steps."""


class RootModel:
    """A network of the coordinator's own, for patches of its own.

    learning: the experiment's; its model is built.
    root: the patches.
    seed: the experiment's.
    threads: of torch in this process.
    """

    def __init__(self, learning: Learning, root: RootPatches, seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._root, self._seed = root, seed
        built: Any = learning.model.build(root.classes, root.images.shape[1], seed)
        self._network: nn.Module = (built if root.features is None else built.head).eval()
        self._whole = built
        self._labels = torch.from_numpy(np.array(root.labels, dtype=np.int64))
        self._inputs = to_tensor(root.images) if root.features is None else torch.tensor(root.features).float()
        self._views: Tensor | None = None

    def losses(self, weights: Vector) -> NDArray[np.float64]:
        """(m,) the cross entropy of each patch under a model.

        weights: (d,) float32 of the model.
        """
        load_vector(self._network, weights)
        found: NDArray[np.float64] = self._marks(np.arange(len(self._labels)))[0]
        return found

    def descents(self, weights: Vector) -> NDArray[np.float32]:
        """(labels, d) for each label of the patches, ascending, the negative gradient of their loss under a model.

        weights: (d,) float32 of the model.
        """
        load_vector(self._network, weights)
        moved = trainable(self._network)
        found = []
        for label in torch.unique(self._labels):
            own = self._labels == label
            loss = nn.functional.cross_entropy(self._network(self._inputs[own]), self._labels[own])
            found.append(-flatten(torch.autograd.grad(loss, moved)))
        return np.stack(found)

    def repaired(self, weights: Vector, repair: Repair, round: int) -> Repaired:
        """The model after as many steps as do no harm.

        weights: (d,) float32 of the model.
        repair: how.
        round: after which it is repaired.
        """
        tried, everything = repair.tried(), np.arange(len(self._labels))
        load_vector(self._network, weights)
        before = self._marks(everything)
        after = {steps: np.array(before) for steps in tried}
        drawn = generator(self._seed, "repair", round)
        names, patient = np.unique(self._root.patients, return_inverse=True)
        fold = drawn.permutation(np.arange(len(names)) % repair.folds)[patient]
        for left_out in np.unique(fold):
            out, rest = np.flatnonzero(fold == left_out), np.flatnonzero(fold != left_out)
            if len(rest) == 0:
                return Repaired(weights, 0)
            load_vector(self._network, weights)
            for steps in self._fitted(rest, tried, repair, drawn):
                after[steps][:, out] = self._marks(out)
        chosen = repair.chosen(before, after, self._root.labels, self._root.patients)
        if chosen == 0:
            return Repaired(weights, 0)
        load_vector(self._network, weights)
        for _ in self._fitted(everything, [chosen], repair, drawn):
            pass
        found = parameters_to_vector(self._network)
        return Repaired(found, chosen, after[chosen][0]) if np.isfinite(found).all() else Repaired(weights, 0)

    def _marks(self, positions: NDArray[np.integer]) -> NDArray[np.float64]:
        """(2, n) loss and error (0 or 1) of the patches at these positions, under the network as it is."""
        parts = torch.split(torch.from_numpy(np.array(positions)), BATCH)
        with torch.inference_mode():
            logits = torch.cat([self._network(self._inputs[part]) for part in parts])
            labels = self._labels[torch.from_numpy(np.array(positions))]
            losses = nn.functional.cross_entropy(logits, labels, reduction="none")
            wrong = logits.argmax(dim=1) != labels
        return torch.stack([losses.double(), wrong.double()]).numpy()

    def _fitted(
        self, rows: NDArray[np.integer], stops: Sequence[int], repair: Repair, drawn: np.random.Generator
    ) -> Iterator[int]:
        """Train on these patches; at each of the numbers of steps in `stops` it yields, with the network at the moving
        average of its weights.

        Statistics of batches and dropout stay off, as in an evaluation: neither is part of the weights.
        """
        targets = self._targets(repair.distillation)
        pruned = self._least_active(rows, repair.prune)
        pruned()
        moved = trainable(self._network)
        average = [each.detach().clone() for each in moved]
        optimizer = torch.optim.SGD(moved, lr=repair.lr, momentum=0.9)
        share = torch.from_numpy(shares(self._root.labels[rows]) * len(rows)).float()
        for step in range(1, stops[-1] + 1):
            picked = drawn.integers(len(rows), size=min(repair.batch_size, len(rows)))
            inputs = self._batch(rows[picked], repair, drawn)
            each = nn.functional.cross_entropy(self._network(inputs), targets[rows[picked]], reduction="none")
            optimizer.zero_grad()
            (each * share[picked]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            pruned()
            for mean, weight in zip(average, moved, strict=True):
                mean.lerp_(weight.detach(), 1 - SMOOTHING)
            if step in stops:
                last = parameters_to_vector(self._network)
                load_vector(self._network, flatten(average))
                yield step
                if step != stops[-1]:
                    load_vector(self._network, last)

    def _targets(self, own: float) -> Tensor:
        """(m, classes) the labels, mixed with the predictions of the network as it is, of which the share is `own`."""
        labels = nn.functional.one_hot(self._labels, self._root.classes).float()
        with torch.inference_mode():
            parts = torch.split(self._inputs, BATCH)
            predicted = torch.cat([torch.softmax(self._network(part), dim=1) for part in parts])
        return own * predicted.clone() + (1 - own) * labels

    def _least_active(self, rows: NDArray[np.integer], part: float) -> Callable[[], None]:
        """What sets the weights of this `part` of the last layer's inputs to 0: those that are least active."""
        layers = [each for each in self._network.modules() if isinstance(each, nn.Linear)]
        if part == 0:
            return lambda: None
        if not layers:
            reason = "the model has no linear layer whose inputs could be pruned"
            raise FederationError(f"trust.repair.prune: {reason}")
        seen: list[Tensor] = []
        hook = layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().mean(dim=0)))
        with torch.inference_mode():
            self._network(self._inputs[torch.from_numpy(np.array(rows))])
        hook.remove()
        least = torch.argsort(seen[0])[: int(part * len(seen[0]))].clone()

        def pruned() -> None:
            with torch.no_grad():
                layers[-1].weight[:, least] = 0.0

        return pruned

    def _batch(self, positions: NDArray[np.integer], repair: Repair, drawn: np.random.Generator) -> Tensor:
        if self._root.features is None:
            change = augmented if repair.erasing else mirrored
            return to_tensor(change(self._root.images[positions], drawn))
        if not repair.erasing:
            return self._inputs[torch.from_numpy(positions)]
        if self._views is None:
            own = generator(self._seed, "repair views")
            kept = self._root.features.dtype
            views = [augmented(self._root.images, own) for _ in range(VIEWS)]
            encodings = [encoded(self._whole, view, torch.device("cpu"), kept) for view in views]
            self._views = torch.from_numpy(np.stack(encodings)).float()
        return self._views[drawn.integers(VIEWS, size=len(positions)), torch.from_numpy(positions)]
