"""A model's probabilities for images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedrobust.metrics import decided


def predict(
    module: nn.Module,
    images: NDArray[np.uint8],
    to_tensor: Callable[[NDArray[np.uint8]], Tensor],
    batch: int = 256,
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
