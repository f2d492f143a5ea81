"""From uint8 patches to training batches: order, flips, poison, normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedrobust.errors import DataError
from fedrobust.scaling import MEAN, STD
from fedrobust.seeds import generator

BatchPoison = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""Takes images (B, S, S, 3) uint8, labels (B,) int64 and a generator; returns the images and labels to train on
instead."""


def to_tensor(images: np.ndarray, device: str | torch.device = "cpu", channels_last: bool = False) -> Tensor:
    """Patches as a tensor (B, 3, S, S) float32: scaled to [0, 1], minus MEAN, divided by STD.

    images: (B, S, S, 3) uint8; never written to.
    device: as torch spells it.
    channels_last: changes the tensor's layout in memory, not its values.
    """
    owned = images if images.flags.writeable and images.flags.c_contiguous else images.copy(order="C")
    pixels = torch.from_numpy(owned).to(device)
    if channels_last:
        return normalised(pixels.float()).permute(0, 3, 1, 2)
    mean, std = _constants(device)
    finished = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return finished.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))


def normalised(pixels: Tensor) -> Tensor:
    """Pixels (B, S, S, 3) float32 up to 255, changed in place, as a network gets them; the tensor itself."""
    mean, std = _constants(pixels.device)
    # A row has all pixels of an image: with three values, the constants' own length, the loop is 4 times as slow.
    positions = pixels.shape[1] * pixels.shape[2]
    pixels.view(len(pixels), -1).sub_(mean.repeat(positions)).div_(std.repeat(positions))
    return pixels


def _constants(device: str | torch.device) -> tuple[Tensor, Tensor]:
    """MEAN and STD for pixels up to 255."""
    return torch.tensor(MEAN, device=device) * 255, torch.tensor(STD, device=device) * 255


def batches(
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    round: int,
    client: int,
    augment: bool,
    poison: BatchPoison | None = None,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `steps` batches of one hospital in one round: (B, 3, S, S) float32 and (B,) int64.

    images: (N, S, S, 3) uint8; never written to.
    labels: (N,); never written to.
    indices: (n,) the patches of the hospital.
    batch_size: B. Each pass over the patches is shuffled anew, and ends with a smaller batch if B does not divide n.
    steps: how many batches.
    seed: the experiment's.
    round: number of the round.
    client: number of the hospital.
    augment: turn each patch into one of its eight flips and rotations.
    poison: applied after that, so that a trigger stays where it is put.
    device: as torch spells it.
    channels_last: as for `to_tensor`.

    The result depends on (seed, round, client) alone. The order of patches does not depend on the poison.
    """
    drawn = draws(indices, batch_size=batch_size, steps=steps, seed=seed, round=round, client=client, augment=augment)
    poison_of = generator(seed, "poison", round, client)
    for draw in drawn:
        batch, label = on_host(images, labels, draw, poison, poison_of)
        yield to_tensor(batch, device, channels_last), torch.from_numpy(np.array(label, dtype=np.int64)).to(device)


class Draw(NamedTuple):
    """Which patches make up a batch, and how they are turned."""

    picked: np.ndarray
    """(b,) int64 positions among all patches."""
    turns: np.ndarray | None
    """(b,) int64 below 8, see `turned`; None where patches are not augmented."""


def draws(
    indices: np.ndarray, *, batch_size: int, steps: int, seed: int, round: int, client: int, augment: bool
) -> Iterator[Draw]:
    """Yield the `steps` batches of one hospital in one round as positions; the arguments are those of `batches`.

    Raises `DataError` where the hospital has no patches.
    """
    if len(indices) == 0:
        raise DataError(f"hospital {client} has no training patches")
    order_of = generator(seed, "batches", round, client)
    turns_of = generator(seed, "augment", round, client)
    queue = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(queue) == 0:
            queue = order_of.permutation(indices)
        picked, queue = queue[:batch_size], queue[batch_size:]
        yield Draw(picked, turns_of.integers(8, size=len(picked)) if augment else None)


def on_host(
    images: np.ndarray,
    labels: np.ndarray,
    draw: Draw,
    poison: BatchPoison | None,
    poison_of: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A batch as new arrays (b, S, S, 3) uint8 and (b,): turned, then poisoned.

    images: (N, S, S, 3) uint8; never written to.
    labels: (N,).
    draw: of the batch.
    poison: what an attacker does to it.
    poison_of: what the poison draws from.
    """
    batch, label = images[draw.picked], labels[draw.picked]
    if draw.turns is not None:
        batch = turned(batch, draw.turns)
    return (batch, label) if poison is None else poison(batch, label, poison_of)


def turned(batch: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """The batch (B, S, S, 3), changed in place: transposed, flipped up-down, left-right as the bits 4, 2, 1 of `turns`
    (B,) say."""
    transposed, upside, mirrored = (np.flatnonzero(turns & bit) for bit in (4, 2, 1))
    batch[transposed] = batch[transposed].swapaxes(1, 2)
    batch[upside] = batch[upside, ::-1]
    batch[mirrored] = batch[mirrored, :, ::-1]
    return batch
