"""A model's probabilities for images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedrobust.metrics import decided

LARGEST_BATCH = 256
"""Patches of a forward pass on a GPU."""
PIXELS = 64 * 48 * 48
"""Pixels of a forward pass on a CPU: what a layer makes of them stays below 32 MB, for the caches, and see
`keep_freed_memory`."""


def evaluation_batch(module: nn.Module, size: int) -> int:
    """How many patches to predict at once.

    module: the network.
    size: height and width of the patches.

    The same for every run with these: a prediction's last bits may depend on it. If a layer normalises by the
    statistics of the batch, all figures depend on it, and the batch is large on a CPU, too.
    """
    by_batch = any(isinstance(each, _BatchNorm) and not each.track_running_stats for each in module.modules())
    if by_batch or next(module.parameters()).device.type != "cpu":
        return LARGEST_BATCH
    return min(64, max(8, PIXELS // size**2))


def predict(
    module: nn.Module,
    images: NDArray[np.uint8],
    to_tensor: Callable[[NDArray[np.uint8]], Tensor],
    batch: int = LARGEST_BATCH,
) -> NDArray[np.float32]:
    """The model's probabilities for images: (n, classes) float32.

    module: a network that returns logits; it is left in the mode it was in.
    images: (n, H, W, 3) uint8, or any array that `to_tensor` takes, with the images along the first axis.
    to_tensor: turns a batch of images into the input that the model was trained on, (B, 3, H, W) float32.
    batch: images per batch, at most.

    Image i is in batch i // `batch`, so shares of the images that are cut between batches give the same bits as all
    images together. Rows that are not finite become uniform (see `decided`).
    """
    if len(images) == 0:
        return predict(module, np.zeros_like(images, shape=(1, *images.shape[1:])), to_tensor)[:0]
    device = next(module.parameters()).device
    training = module.training
    module.eval()
    with torch.inference_mode():
        rows = [
            torch.softmax(module(to_tensor(images[start : start + batch]).to(device)).float(), dim=1).cpu()
            for start in range(0, len(images), batch)
        ]
    module.train(training)
    return decided(torch.cat(rows).numpy())
