"""What a client actor's model says about patches: of the evaluation, and of its hospitals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrobust.attacks import Backdoor
from fedrobust.data.batches import to_tensor
from fedrobust.federation.features import FeatureRows
from fedrobust.federation.layout import Question
from fedrobust.learning.evaluation import LARGEST_BATCH, evaluation_batch, predict
from fedrobust.learning.training import LocalTrainer


class Predictor:
    """Probabilities under the model that a trainer has.

    trainer: its weights may change between calls.
    images: (N, S, S, 3) uint8 of all patches.
    table: (N, F) features that the model gets instead of the patches; None: it gets these.
    triggered: key of a question → (n, F) the features of its patches, which have a trigger.
    """

    def __init__(
        self,
        trainer: LocalTrainer,
        images: NDArray[np.uint8],
        table: FeatureRows | None,
        triggered: Mapping[str, FeatureRows],
    ) -> None:
        self._trainer, self._images, self._table, self._triggered = trainer, images, table, triggered

    def parts(self, asked: Sequence[Question], part: int, parts: int) -> dict[str, NDArray[np.float32]]:
        """Key → probabilities (n, classes) for one part of the patches of each question. Batches are cut at fixed
        positions, whatever the number of parts.

        asked: the questions.
        part: index of the part.
        parts: how many parts there are.
        """
        found, batch = {}, LARGEST_BATCH
        if self._table is None:
            batch = evaluation_batch(self._trainer.network, self._images.shape[1])
        for key, positions, attack in asked:
            batch_count = -(-len(positions) // batch)
            first, last = (batch_count * edge // parts * batch for edge in (part, part + 1))
            rows, to_input = self._input(key, positions, slice(first, last), attack)
            found[key] = predict(self._trainer.module, rows, to_input, batch)
        return found

    def whole(self, positions: NDArray[np.integer]) -> NDArray[np.float32]:
        """(n, classes) probabilities of the patches at these positions."""
        return self.parts([Question("clean", positions, None)], 0, 1)["clean"]

    def _input(
        self, key: str, positions: NDArray[np.integer], part: slice, attack: Backdoor | None
    ) -> tuple[np.ndarray, Callable[[np.ndarray], Tensor]]:
        """What is evaluated, and what turns a part of it into the network's input: positions, because the patches of
        all of them at once may be a large part of the machine's memory, or features of patches with a trigger."""
        if self._table is None:
            return positions[part], lambda own: to_tensor(with_trigger(self._images[own], attack))
        if attack is None:
            table = self._table
            return positions[part], lambda own: torch.from_numpy(table[own]).float()
        rows = self._triggered.get(key, self._table[:0])
        return rows[part], lambda own: torch.from_numpy(np.array(own, dtype=np.float32))


def with_trigger(images: NDArray[np.uint8], attack: Backdoor | None) -> NDArray[np.uint8]:
    """Images (n, S, S, 3) with the trigger of a backdoor; None leaves them as they are."""
    return images if attack is None else attack.trigger(images)
