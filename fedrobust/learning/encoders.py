"""Pretrained encoders in torch, as `models.Encoder` describes them: a patch becomes some hundred features, which a head
classifies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedrobust.errors import ExperimentError
from fedrobust.learning.networks import first_line, pretrained_file
from fedrobust.scaling import MEAN, STD

Trainable = Literal["head", "last_block", "all"]

SHOWN = 3
"""Names of weights in an error."""


class EncoderNetwork(nn.Module):
    """An encoder with a head. It takes patches as every network here does, and scales and resizes them for the encoder.

    The encoder is always in evaluation mode: its batch normalisation uses the statistics of its pretraining, which do
    not change, and nothing is dropped.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        size: int,
        mean: Iterable[float],
        std: Iterable[float],
        shared: bool = False,
    ) -> None:
        """Join both.

        encoder: from (B, 3, size, size) float32 to (B, F) features.
        head: from these to (B, classes) logits.
        size: side of the images that the encoder takes, in pixels.
        mean, std: of each channel in [0, 1], by which the encoder's images were scaled.
        shared: whether other networks have the same encoder.
        """
        super().__init__()
        self._shared = shared
        self.source = (encoder,)
        """The encoder as it was given; in a tuple, so that it is no part of the network once that has a copy."""
        self.encoder, self.head, self.size = encoder, head, size
        self.reduced = False
        """Whether the encoder computes in bfloat16 where torch deems that safe (autocast)."""
        # Patches arrive with MEAN and STD: x · STD + MEAN is in [0, 1].
        scale, shift = (torch.tensor(list(values)).view(3, 1, 1) for values in (std, mean))
        own_scale, own_shift = (torch.tensor(values).view(3, 1, 1) for values in (STD, MEAN))
        self.register_buffer("scale", own_scale / scale, persistent=False)
        self.register_buffer("shift", (own_shift - shift) / scale, persistent=False)

    def features(self, patches: Tensor) -> Tensor:
        """The features (B, F) of patches (B, 3, S, S) float32."""
        images = patches * self.scale + self.shift
        if images.shape[-1] != self.size:
            target = (self.size, self.size)
            images = nn.functional.interpolate(images, target, mode="bicubic", antialias=True, align_corners=False)
        if not self.reduced:
            found: Tensor = self.encoder(images)
            return found
        with torch.autocast(images.device.type, torch.bfloat16):
            found = self.encoder(images)
        return found.float()

    def forward(self, patches: Tensor) -> Tensor:
        """The logits (B, classes) of patches (B, 3, S, S) float32."""
        logits: Tensor = self.head(self.features(patches))
        return logits

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EncoderNetwork:
        """Move or cast the network. A shared encoder is copied before, as the other networks keep theirs."""
        if self._shared:
            self.encoder, self._shared = deepcopy(self.encoder), False
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> EncoderNetwork:
        """Set the head's mode; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self


def encoder_network(
    name: str,
    weights: str | None,
    options: Mapping[str, Any],
    hidden: int | None,
    part: Trainable,
    size: int | None,
    scaling: tuple[Sequence[float] | None, Sequence[float] | None],
    classes: int,
) -> EncoderNetwork:
    """The network of `models.Encoder`.

    name: of the encoder in timm.
    weights: path of its weights; None: timm's own.
    options: more for timm.
    hidden: width of the head's hidden layer; None: a linear head.
    part: what is trained.
    size: side of the encoder's images, in pixels; None: what it was trained with.
    scaling: mean and standard deviation of each channel of its images in [0, 1]; None: those of its training.
    classes: number of labels.

    Raises `ExperimentError` if the weights are missing or do not fit, or the encoder does not take images of that size.
    """
    config = _config(name)
    native = int(config["input_size"][-1])
    if size not in (None, native) and config["fixed"]:
        raise ExperimentError(f"model encoder: size: '{name}' takes images of {native} pixels only; found {size}")
    encoder = _pretrained(name, json.dumps(dict(options), sort_keys=True), *identity(weights))
    if part != "head":
        encoder = deepcopy(encoder)
    for parameter in _trained(encoder, part):
        parameter.requires_grad_(True)
    width = int(encoder.num_features)
    head: nn.Module = nn.Linear(width, classes)
    if hidden is not None:
        head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    mean, std = scaling[0] or config["mean"], scaling[1] or config["std"]
    return EncoderNetwork(encoder, head, size or native, mean, std, shared=part == "head")


def parameters_of(name: str, options: Mapping[str, Any]) -> int:
    """The number of an encoder's weights, found without allocating them."""
    import timm

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            network = timm.create_model(name, pretrained=False, num_classes=0, **_resolved(options))
        except ExperimentError:
            raise
        except Exception:  # building it says why
            return 0
        return sum(each.numel() for each in network.parameters())


def _resolved(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the layers of timm that they name."""
    import timm.layers

    found, prefix = dict(options), "timm.layers:"
    for key, value in options.items():
        if isinstance(value, str) and value.startswith(prefix):
            found[key] = getattr(timm.layers, value.removeprefix(prefix), None)
            if not callable(found[key]):
                raise ExperimentError(f"model encoder: options.{key}: timm has no layer '{value}'")
    return found


def _config(name: str) -> dict[str, Any]:
    import timm

    found = timm.get_pretrained_cfg(name)
    config: dict[str, Any] = timm.data.resolve_data_config(pretrained_cfg=found.to_dict() if found else {})
    return config | {"fixed": bool(found and found.fixed_input_size)}


def identity(weights: str | None) -> tuple[str | None, int, int]:
    """A file of weights with its size and time stamp, so that another one of the same name is read."""
    if weights is None:
        return None, 0, 0
    try:
        state = Path(weights).stat()
    except OSError as error:
        raise ExperimentError(f"model encoder: weights: {weights}: {error.strerror}") from None
    return weights, state.st_size, state.st_mtime_ns


@lru_cache(maxsize=2)
def _pretrained(name: str, options: str, weights: str | None, length: int, changed: int) -> Any:
    """A frozen encoder; the last ones are kept, as each run of a study builds its network anew.

    options: as JSON.
    length, changed: of the file.
    """
    import timm

    given = {"num_classes": 0} | _resolved(json.loads(options))
    with torch.random.fork_rng(devices=[]):
        try:
            if weights is None:
                file = pretrained_file(name, timm.get_pretrained_cfg(name), "encoder", "name a file as weights")
                given |= {} if file is None else {"pretrained_cfg_overlay": {"file": file}}
            encoder = timm.create_model(name, pretrained=weights is None, **given)
        except ExperimentError:
            raise
        except Exception as error:  # any error of a constructor or a download
            raise ExperimentError(f"model encoder: '{name}' cannot be made: {first_line(error)}") from error
    if weights is not None:
        load_weights(encoder, name, weights)
    return encoder.eval().requires_grad_(False)


def load_weights(encoder: nn.Module, name: str, weights: str) -> None:
    """Load an encoder's weights from a `.safetensors` or `.pth` file; those of a classifier in it are left out.

    encoder: of timm, without a classifier.
    name: in timm, for messages.
    weights: the file.

    No code in the file is run. Raises `ExperimentError` if it cannot be read or its weights are not the encoder's.
    """
    import timm

    try:
        found = timm.models.load_state_dict(weights, weights_only=True)
    except Exception as error:  # of the file system, pickle, safetensors
        raise ExperimentError(f"model encoder: weights: {weights} cannot be read: {first_line(error)}") from error
    own, wrong = encoder.state_dict(), list[str]()
    classifier = tuple(f"{part}." for part in _classifier(name))
    found = {key: value for key, value in found.items() if key in own or not key.startswith(classifier or ("\0",))}
    if missing := [key for key in own if key not in found and not key.endswith("num_batches_tracked")]:
        wrong.append(f"{_some(missing)} missing")
    if unknown := [key for key in found if key not in own]:
        wrong.append(f"{_some(unknown)} unknown")
    if shapes := [key for key in own if key in found and own[key].shape != found[key].shape]:
        given, needed = (tuple(each[shapes[0]].shape) for each in (found, own))
        wrong.append(f"{_some(shapes)} of another shape ({given} instead of {needed})")
    if wrong:
        raise ExperimentError(f"model encoder: weights: {weights} are not those of timm's '{name}': {'; '.join(wrong)}")
    encoder.load_state_dict(found, strict=False)


def _classifier(name: str) -> tuple[str, ...]:
    import timm

    config = timm.get_pretrained_cfg(name)
    given = config.classifier if config else None
    return (given,) if isinstance(given, str) else tuple(given or ())


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def _trained(encoder: Any, part: Trainable) -> list[nn.Parameter]:
    """The encoder's parameters that are trained: none, those of the last group of layers that has more than a norm and
    of what follows it, or all."""
    if part == "head":
        return []
    named = dict(encoder.named_parameters())
    if part == "all":
        return list(named.values())
    from timm.models import group_parameters

    groups = list(group_parameters(encoder, encoder.group_matcher(coarse=True)).values())
    last = max(index for index, names in enumerate(groups) if len(names) > 2)
    return [named[each] for names in groups[last:] for each in names if each in named]
