"""What a model says of images: its probabilities."""

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
    """The model's probabilities (n, classes) float32 for images (n, H, W, 3).

    Image i is in batch i // `batch`, so shares of the images that are cut between batches give the bits of the whole.
    Rows that are not finite become uniform (see `decided`). The module is left in the mode it was in.

    Args:
        module: gives logits.
        images: uint8, or whatever `to_tensor` takes; sliced along the first axis.
        to_tensor: makes a batch of them what the model was trained on, (B, 3, H, W) float32.
        batch: images at a time, at most.
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
