"""Features of a frozen encoder in place of patches: each patch is looked at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedrobust.data.batches import BatchPoison, draws, to_tensor
from fedrobust.federation.encoding import kept_features
from fedrobust.learning.encoders import EncoderNetwork
from fedrobust.learning.models import state_digest
from fedrobust.seeds import generator

BLOCK = 32
"""Patches that are encoded at once, from fixed positions on: the last bits of features may depend on their block."""
KEPT = 20_000
"""Changed patches whose features are kept in memory."""


_digests: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Of frozen encoders, which runs share: a large one takes a second."""
_changed: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
"""Features of the last changed patches, by digests of encoder and patch: other runs of this process have the same."""


def encoder_digest(network: EncoderNetwork) -> str:
    """What features depend on besides the patches: the encoder's weights, and how it gets its images."""
    (encoder,) = network.source
    frozen = not any(each.requires_grad for each in encoder.parameters())
    state = _digests.get(encoder) if frozen else None
    if state is None:
        state = state_digest(encoder)
        if frozen:
            _digests[encoder] = state
    scaling = b"".join(each.cpu().numpy().tobytes() for each in (network.scale, network.shift))
    rest = f"{network.size} {BLOCK} {type(encoder).__name__}"
    return sha256(state.encode() + scaling + rest.encode()).hexdigest()


def encoded_blocks(
    network: EncoderNetwork, images: NDArray[np.uint8], device: torch.device
) -> Iterator[NDArray[np.float32]]:
    """The features (n, F) of images (N, S, S, 3), `BLOCK` of them at once."""
    network.eval()
    if device.type != "cpu":  # there it is already, and `to` would copy a shared encoder
        network.to(device)
    for first in range(0, len(images), BLOCK):
        with torch.inference_mode():
            block = network.features(to_tensor(images[first : first + BLOCK], device)).float().cpu().numpy()
        yield block


def encoded(network: EncoderNetwork, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """The features (N, F) of images (N, S, S, 3)."""
    return np.concatenate(list(encoded_blocks(network, images, device)))


class Features:
    """The features of all patches, and of what attackers make of them, encoded when it is first needed.

    network: the encoder with its head.
    table: (N, F) float32 of all patches.
    images: (N, S, S, 3) uint8 the patches.
    labels: (N,) of the patches.
    device: on which to encode.
    cache: folder of the features of `of_set`.
    """

    def __init__(
        self,
        network: EncoderNetwork,
        table: NDArray[np.float32],
        images: NDArray[np.uint8],
        labels: NDArray[np.integer],
        device: torch.device,
        cache: Path,
    ) -> None:
        self._network, self._images, self._labels, self._device = network, images, labels, device
        self.table, self._cache, self._encoder = table, cache, encoder_digest(network)
        self._sets: dict[str, NDArray[np.float32]] = {}

    def batches(
        self,
        indices: NDArray[np.integer],
        poison: BatchPoison | None,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        round: int,
        client: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches (B, F) float32 and (B,) int64 of one hospital in one round: the patches that
        `data.batches.batches` draws without augmentation, with the same arguments."""
        poison_of = generator(seed, "poison", round, client)
        drawn = draws(indices, batch_size=batch_size, steps=steps, seed=seed, round=round, client=client, augment=False)
        for picked, _ in drawn:
            rows, labels = self.table[picked], self._labels[picked]
            if poison is not None:
                rows, labels = self._poisoned(picked, rows, poison, poison_of)
            yield torch.from_numpy(rows), torch.from_numpy(np.array(labels, dtype=np.int64))

    def of_set(self, key: str, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The features (n, F) of images that are asked for again and again, by this run and by others.

        key: their name in this run.
        make: returns them, (n, S, S, 3).
        """
        if key not in self._sets:
            images = make()
            self._sets[key] = self.table[:0]
            if len(images):
                what = f"{self._encoder} {sha256(images.tobytes()).hexdigest()}"
                found = kept_features(self._cache, what, len(images), partial(self._add_features, images))
                self._sets[key] = np.array(found)  # torch wants arrays that can be written to
        return self._sets[key]

    def _add_features(self, images: NDArray[np.uint8], add: Callable[[NDArray[np.float32]], None]) -> None:
        for block in encoded_blocks(self._network, images, self._device):
            add(block)

    def _poisoned(
        self,
        picked: NDArray[np.integer],
        rows: NDArray[np.float32],
        poison: BatchPoison,
        poison_of: np.random.Generator,
    ) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
        before = self._images[picked]
        images, labels = poison(before.copy(), self._labels[picked], poison_of)
        if len(images) == len(before):
            rows, changed = rows.copy(), np.flatnonzero((images != before).reshape(len(before), -1).any(axis=1))
        else:
            rows, changed = np.empty((len(images), rows.shape[1]), dtype=np.float32), np.arange(len(images))
        for position in changed:
            rows[position] = self._of_image(images[position])
        return rows, labels

    def _of_image(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The features (F,) of an image: encoded alone, so that they do not depend on its batch."""
        key = self._encoder + sha256(image.tobytes()).hexdigest()
        if key not in _changed:
            _changed[key] = encoded(self._network, image[None], self._device)[0]
            if len(_changed) > KEPT:
                _changed.popitem(last=False)
        return _changed[key]
