"""Features of a frozen encoder in place of patches: each patch is looked at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedrobust.data.batches import BatchPoison, draws, to_tensor, turned
from fedrobust.errors import FederationError
from fedrobust.learning.encoders import EncoderNetwork
from fedrobust.learning.models import state_digest
from fedrobust.seeds import generator

FeatureRows = NDArray[np.float32] | NDArray[np.float16]

BLOCK, GPU_BLOCK = 32, 128
"""Patches that are encoded at once, on a CPU and on a GPU, from fixed positions on: the last bits of features may
depend on their block."""
KEPT = 2**29
"""Bytes of features of changed patches that are kept in memory: of a hundred thousand patches with 1,280 features. An
attack that changes its patches anew in every batch needs some ten thousand in a run, and the next run has the same."""


_digests: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Of frozen encoders, which runs share: a large one takes a second."""
_changed: OrderedDict[str, FeatureRows] = OrderedDict()
"""Features of the last changed patches, by digests of encoder and patch: other runs of this process have the same."""


def block_on(device: torch.device) -> int:
    """How many patches are encoded at once."""
    return BLOCK if device.type == "cpu" else GPU_BLOCK


def encoder_digest(network: EncoderNetwork, device: torch.device, kept: np.dtype[Any]) -> str:
    """What features depend on besides the patches: the encoder's weights, how it gets its images, and in which blocks;
    the precision in which features are computed, and `kept`."""
    (encoder,) = network.source
    frozen = not any(each.requires_grad for each in encoder.parameters())
    state = _digests.get(encoder) if frozen else None
    if state is None:
        state = state_digest(encoder)
        if frozen:
            _digests[encoder] = state
    scaling = b"".join(each.cpu().numpy().tobytes() for each in (network.scale, network.shift))
    rest = f"{network.size} {block_on(device)} {type(encoder).__name__}"
    rest += (" bfloat16" if network.reduced else "") + ("" if kept == np.float32 else f" {kept}")
    return sha256(state.encode() + scaling + rest.encode()).hexdigest()


def encoded_blocks(
    network: EncoderNetwork, images: NDArray[np.uint8], device: torch.device, kept: np.dtype[Any]
) -> Iterator[FeatureRows]:
    """The features (n, F) of images (N, S, S, 3), `block_on(device)` of them at once.

    network: the encoder with its head.
    images: not written to.
    device: on which to encode.
    kept: type of the features, float32 or float16.

    Raises `FederationError` if they are too large for that.
    """
    network.eval()
    if device.type != "cpu":  # there it is already, and `to` would copy a shared encoder
        network.to(device)
    size = block_on(device)
    for first in range(0, len(images), size):
        with torch.inference_mode():
            block = network.features(to_tensor(images[first : first + size], device)).float().cpu().numpy()
        if np.abs(block).max(initial=0) > np.finfo(kept).max:
            reason = f"a feature of {np.abs(block).max():.3g} is too large for {kept}"
            raise FederationError(f"{reason}; use learning.model.features: float32")
        yield block.astype(kept, copy=False)


def encoded(
    network: EncoderNetwork, images: NDArray[np.uint8], device: torch.device, kept: np.dtype[Any]
) -> FeatureRows:
    """The features (N, F) of images (N, S, S, 3); the arguments are those of `encoded_blocks`."""
    return np.concatenate(list(encoded_blocks(network, images, device, kept)))


def view_of(images: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
    """A view of images (n, S, S, 3), as a copy: turned and flipped as `data.batches.turned` says; 0 is the images."""
    return turned(images.copy(), np.full(len(images), view))


class Features:
    """The features of all patches, and of what attackers make of them, encoded when it is first needed.

    network: the encoder with its head.
    views: (N, F) float32 or float16 of all patches, for each of their views; first of the patches themselves.
    images: (N, S, S, 3) uint8 the patches.
    labels: (N,) of the patches.
    device: on which to encode.
    """

    def __init__(
        self,
        network: EncoderNetwork,
        views: Sequence[FeatureRows],
        images: NDArray[np.uint8],
        labels: NDArray[np.integer],
        device: torch.device,
    ) -> None:
        self._network, self._images, self._labels, self._device = network, images, labels, device
        self.table, self._views = views[0], views
        self._encoder = encoder_digest(network, device, self.table.dtype)

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
        `data.batches.batches` draws with the same arguments. Where there are several views, one of them is drawn for
        each patch: with eight, that of its augmentation."""
        poison_of = generator(seed, "poison", round, client)
        views = len(self._views)
        drawn = draws(
            indices, batch_size=batch_size, steps=steps, seed=seed, round=round, client=client, augment=views > 1
        )
        for picked, turns in drawn:
            shown = None if turns is None else turns % views
            rows, labels = self._rows(picked, shown), self._labels[picked]
            if poison is not None:
                images = self._images[picked] if shown is None else turned(self._images[picked], shown)
                rows, labels = self._poisoned(images, labels, rows, poison, poison_of)
            yield torch.from_numpy(rows), torch.from_numpy(np.array(labels, dtype=np.int64))

    def _rows(self, picked: NDArray[np.integer], shown: NDArray[np.integer] | None) -> NDArray[np.float32]:
        rows = np.empty((len(picked), self.table.shape[1]), dtype=np.float32)
        if shown is None:
            rows[:] = self.table[picked]
            return rows
        for view, features in enumerate(self._views):
            rows[shown == view] = features[picked[shown == view]]
        return rows

    def _poisoned(
        self,
        before: NDArray[np.uint8],
        labels: NDArray[np.integer],
        rows: NDArray[np.float32],
        poison: BatchPoison,
        poison_of: np.random.Generator,
    ) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
        """The features and labels of a batch, of which an attacker has changed what it likes.

        before: (b, S, S, 3) its patches.
        labels: (b,).
        rows: (b, F) the features of `before`.
        """
        images, labels = poison(before.copy(), labels, poison_of)
        if len(images) == len(before):
            changed = np.flatnonzero((images != before).reshape(len(before), -1).any(axis=1))
        else:
            rows, changed = np.empty((len(images), rows.shape[1]), dtype=np.float32), np.arange(len(images))
        for position in changed:
            rows[position] = self._of_image(images[position])
        return rows, labels

    def _of_image(self, image: NDArray[np.uint8]) -> FeatureRows:
        """The features (F,) of an image: encoded alone, so that they do not depend on its batch."""
        key = self._encoder + sha256(image.tobytes()).hexdigest()
        if key not in _changed:
            _changed[key] = encoded(self._network, image[None], self._device, self.table.dtype)[0]
            if len(_changed) * _changed[key].nbytes > KEPT:
                _changed.popitem(last=False)
        return _changed[key]
