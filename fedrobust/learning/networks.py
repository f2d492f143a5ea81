"""Networks in torch, as the options of `models` describe them."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedrobust.errors import ExperimentError

PROBE_SECONDS = 5.0


def group_norm(channels: int, eps: float = 1e-5, affine: bool = True) -> nn.GroupNorm:
    """Group normalisation (Wu & He, ECCV 2018) with at most 32 groups, of at least four channels where possible.

    channels: number of channels.
    eps: see `torch.nn.GroupNorm`.
    affine: see `torch.nn.GroupNorm`.
    """
    return nn.GroupNorm(math.gcd(channels, max(1, min(32, channels // 4))), channels, eps=eps, affine=affine)


def convolutional(
    channels: Sequence[int], hidden: int | None, normalise: bool, average: bool, classes: int, size: int
) -> nn.Sequential:
    """The network of `models.Cnn`.

    channels: of each block.
    hidden: width of the hidden layer; None: no hidden layer.
    normalise: whether each convolution is followed by group normalisation.
    average: whether the classifier gets the average over the image, or every position of it.
    classes: number of labels.
    size: side of an image, in pixels; large enough for the blocks.
    """
    layers: list[nn.Module] = []
    width = 3
    for block in channels:
        layers.append(nn.Conv2d(width, block, 3, padding=1, bias=not normalise))
        if normalise:
            layers.append(group_norm(block))
        layers += [nn.MaxPool2d(2), nn.ReLU()]  # the bits of ReLU before pooling, with a quarter of its work
        width = block
    if average:
        layers.append(nn.AdaptiveAvgPool2d(1))
    else:
        width *= (size // 2 ** len(channels)) ** 2
    layers.append(nn.Flatten())
    if hidden is not None:
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, classes))


def timm_network(name: str, pretrained: bool, group: bool, classes: int, size: int) -> nn.Module:
    """A network of timm, with a new classifier and without running statistics.

    name: in timm.
    pretrained: whether to start from timm's pretrained weights.
    group: whether batch normalisation becomes group normalisation.
    classes: number of labels.
    size: side of an image, in pixels.

    Raises `ExperimentError` where the network cannot be made.
    """
    import timm

    config = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": classes}
    if config is not None and config.fixed_input_size:
        options["img_size"] = size
    if pretrained:
        file = pretrained_file(name, config)
        if file is not None:
            options["pretrained_cfg_overlay"] = {"file": file}
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # any error of a network's constructor or a download
        what = f"cannot load the pretrained weights of '{name}'" if pretrained else f"cannot build '{name}'"
        raise ExperimentError(f"model timm: {what}: {first_line(error)}") from error
    replace_batch_norm(network, group)
    return network


def pretrained_file(name: str, config: Any, option: str = "timm", advice: str = "set pretrained: false") -> str | None:
    """The file in the Hugging Face cache that has the weights; None if they must be downloaded.

    name: of the network in timm.
    config: timm's configuration of its pretrained weights.
    option, advice: of the model, for the message.

    The hub's client retries for minutes when there is no answer, so this function first checks that the hub answers.
    Raises `ExperimentError` if the weights are not on this machine and cannot be downloaded.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    repository, _, revision = (config.hf_hub_id or "").partition("@")
    if repository and not config.custom_load:
        for file in [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]:
            found = try_to_load_from_cache(repository, file, revision=revision or None)
            if isinstance(found, str):
                return found
    address = constants.ENDPOINT if repository else config.url
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(address)
    if reason is None:
        return None
    raise ExperimentError(
        f"model {option}: the pretrained weights of '{name}' are not on this machine and cannot be fetched from "
        f"{address} ({reason}); {advice}, or fill the cache where there is a network: "
        f"hf download {repository or name}"
    )


def unreachable(address: str) -> str | None:
    """Why there is no answer from `address`; None if there is one, of any kind."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return first_line(getattr(error, "reason", error))
    return None


def first_line(error: object) -> str:
    """The first line of an error's text; the name of its class if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def replace_batch_norm(network: nn.Module, group: bool) -> None:
    """Convert every batch normalisation in `network` to group normalisation if `group`; otherwise drop its running
    statistics.

    Scale and shift are kept, and so are the functions that timm includes in its batch normalisation (activation,
    dropping of blocks).
    """
    for name, child in network.named_children():
        if not isinstance(child, nn.modules.batchnorm._BatchNorm):
            replace_batch_norm(child, group)
        elif group:
            setattr(network, name, _as_group_norm(child))
        else:
            child.track_running_stats = False
            child.running_mean = child.running_var = child.num_batches_tracked = None


def _as_group_norm(norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    converted = group_norm(norm.num_features, norm.eps, norm.affine)
    if norm.affine:
        converted.load_state_dict({"weight": norm.weight.detach(), "bias": norm.bias.detach()})
    fused = [part for part in norm.children() if not isinstance(part, nn.Identity)]
    return nn.Sequential(converted, *fused) if fused else converted


def check(network: nn.Module, name: str, classes: int, size: int, fixed_statistics: bool = False) -> None:
    """Raise `ExperimentError` for a network with running statistics, or one that does not fit the images.

    No aggregation rule protects running statistics.

    network: the network.
    name: for the message.
    classes: number of labels.
    size: side of an image, in pixels.
    fixed_statistics: whether running statistics never change.
    """
    for buffer, _ in () if fixed_statistics else network.named_buffers():
        if buffer.endswith(("running_mean", "running_var")):
            raise ExperimentError(
                f"model {name}: '{buffer}' is a running statistic, which no aggregation rule guards; "
                "use a normalisation without one (group normalisation)"
            )
    network.train()
    try:
        with torch.no_grad():
            shape = tuple(network(torch.zeros(1, 3, size, size)).shape)  # the last batch of an epoch may be one patch
    except Exception as error:  # any error of a network that cannot take such images
        raise ExperimentError(f"model {name} cannot train on a patch of {size} pixels: {first_line(error)}") from error
    if shape != (1, classes):
        raise ExperimentError(f"model {name} gives {shape} for one image, not (1, {classes}) logits")
