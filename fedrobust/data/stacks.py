"""Batches of several hospitals at once: uint8 patches on the device, turned and normalised there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrobust.data.batches import BatchPoison, Draw, draws, normalised, on_host
from fedrobust.seeds import generator

IGNORED = -100
"""The label of a place in a stack that no patch fills; torch's cross entropy leaves it out of its mean."""


@dataclass(frozen=True)
class HospitalBatches:
    """What a hospital trains on in a round."""

    client: int
    indices: np.ndarray
    """(n,) positions of its patches."""
    steps: int
    """How many batches."""
    poison: BatchPoison | None = None
    """What it does to its batches, if it is an attacker."""


class StackedPatches:
    """All patches of an actor, on the device where they are trained on, unless they would fill half of its memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, device: str | torch.device = "cpu") -> None:
        """`images`: (N, S, S, 3) uint8; `labels`: (N,). Neither is written to, nor copied in the CPU's memory."""
        self.device = torch.device(device)
        self._images, self._labels = images, labels
        self._held: Tensor | None = None
        if self.device.type == "cuda" and 2 * images.nbytes < torch.cuda.mem_get_info(self.device)[0]:
            self._held = torch.empty(images.shape, dtype=torch.uint8, device=self.device)
            for start in range(0, len(images), 4096):  # read-only arrays are copied before torch takes them
                self._held[start : start + 4096] = torch.from_numpy(images[start : start + 4096].copy())

    def stacks(
        self, hospitals: Sequence[HospitalBatches], *, batch_size: int, seed: int, round: int, augment: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, step by step, the batches of all hospitals that still train, stacked.

        hospitals: those with the most steps first.
        batch_size, seed, round, augment: as for `batches`, and so are a hospital's patches, to the bit.

        A stack has images (k, B, 3, S, S) float32 and labels (k, B) int64 on the device; k hospitals have a batch, and
        B is the size of the largest. A smaller batch is filled up with any patches, whose label is `IGNORED`.
        """
        drawn = [
            draws(
                hospital.indices,
                batch_size=batch_size,
                steps=hospital.steps,
                seed=seed,
                round=round,
                client=hospital.client,
                augment=augment,
            )
            for hospital in hospitals
        ]
        poison_of = [generator(seed, "poison", round, hospital.client) for hospital in hospitals]
        for step in range(max((hospital.steps for hospital in hospitals), default=0)):
            active = [index for index, hospital in enumerate(hospitals) if step < hospital.steps]
            batch = [next(drawn[index]) for index in active]
            pixels, marks = self._gathered(batch)
            for row, index in enumerate(active):
                poison = hospitals[index].poison
                if poison is not None:
                    images, labels = on_host(self._images, self._labels, batch[row], poison, poison_of[index])
                    pixels[row, : len(images)] = torch.from_numpy(np.array(images)).to(self.device)
                    marks[row, : len(labels)] = np.asarray(labels)
            k, width, size = pixels.shape[:3]
            finished = normalised(pixels.view(k * width, size, size, 3).float()).permute(0, 3, 1, 2).contiguous()
            yield finished.view(k, width, 3, size, size), torch.from_numpy(marks).to(self.device)

    def _gathered(self, batch: Sequence[Draw]) -> tuple[Tensor, np.ndarray]:
        """The turned patches (k, B, S, S, 3) uint8 on the device, and their labels (k, B) int64."""
        width = max(len(draw.picked) for draw in batch)
        picked = np.zeros((len(batch), width), dtype=np.int64)
        turns = np.zeros_like(picked)
        marks = np.full_like(picked, IGNORED)
        for row, draw in enumerate(batch):
            filled = slice(len(draw.picked))
            picked[row, filled], marks[row, filled] = draw.picked, self._labels[draw.picked]
            if draw.turns is not None:
                turns[row, filled] = draw.turns
        if self._held is None:
            patches = torch.from_numpy(self._images[picked.reshape(-1)]).to(self.device)
        else:
            patches = self._held[torch.from_numpy(picked.reshape(-1)).to(self.device)]
        turned = turned_on_device(patches, torch.from_numpy(turns.reshape(-1)).to(self.device))
        return turned.view(len(batch), width, *patches.shape[1:]), marks


def turned_on_device(batch: Tensor, turns: Tensor) -> Tensor:
    """Patches (n, S, S, 3) transposed, flipped up-down, left-right as the bits 4, 2, 1 of `turns` (n,) say."""
    transposed, upside, mirrored = ((turns & bit).bool().view(-1, 1, 1, 1) for bit in (4, 2, 1))
    batch = torch.where(transposed, batch.transpose(1, 2), batch)
    batch = torch.where(upside, batch.flip(1), batch)
    return torch.where(mirrored, batch.flip(2), batch).contiguous()
