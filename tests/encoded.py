"""A small encoder of timm with weights in a file, for tests: nothing can be downloaded."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

ENCODER = "test_efficientnet"
"""256 features of images of 160 pixels; batch normalisation with running statistics."""


def write_weights(file: Path, encoder: str = ENCODER, seed: int = 7, classes: int = 5) -> None:
    """The weights of a whole network of timm, its classifier included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(encoder, num_classes=classes)
        for name, value in network.state_dict().items():  # as after a training, no two alike
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            if name == "bn2.weight":  # the last layer: features about as large as a trained encoder's
                value.mul_(20)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state}, file)
