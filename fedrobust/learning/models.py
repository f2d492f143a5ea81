"""The model of a federation: the network that every hospital trains."""

from __future__ import annotations

from abc import abstractmethod
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from fedrobust.errors import ExperimentError, Problem
from fedrobust.options import Many, Options, nearest, refusal

if TYPE_CHECKING:
    from torch import nn


class Model(Options):
    """A network. It has the same initial weights in every process that builds it."""

    name: str
    fixed_statistics: ClassVar[bool] = False
    """Whether running statistics in the network never change. Others are refused: no aggregation rule guards them."""

    def located(self) -> Self:
        """The same model, for a process with another working folder: paths of files are absolute."""
        return self

    @abstractmethod
    def network(self, classes: int, size: int) -> nn.Module:
        """The network, which may draw from torch's global generator.

        classes: number of labels.
        size: side of an image, in pixels.
        """

    def parameters(self, classes: int, size: int) -> int:
        """The number of weights of the network, found without allocating them; 0 where that is not possible.

        classes: number of labels.
        size: side of an image, in pixels.
        """
        import torch

        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                return sum(each.numel() for each in self.network(classes, size).parameters())
        except ExperimentError:
            raise
        except Exception:  # a network that cannot be made without allocating its weights
            return 0

    def check(self, classes: int, size: int, seed: int) -> None:
        """Raise `ExperimentError` as `build` does, whose arguments it has; where that is possible, without torch."""
        self.build(classes, size, seed)

    def build(self, classes: int, size: int, seed: int) -> nn.Module:
        """The network, with initial weights that depend on `seed` alone. Torch's global generator is not changed.

        classes: number of labels.
        size: side of an image, in pixels.
        seed: of the initial weights.

        Its input is (B, 3, size, size) float32, its output (B, classes) logits. Raises `ExperimentError` if the network
        does not take images of that size, or keeps running statistics.
        """
        import torch

        from fedrobust.learning.networks import check, first_line

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                network = self.network(classes, size)
            except ExperimentError:
                raise
            except Exception as error:  # any error of a constructor, a user's too
                raise ExperimentError(f"model {self.name} cannot be made: {first_line(error)}") from error
            check(network, self.name, classes, size, self.fixed_statistics)
        return network


class Cnn(Model):
    """A small convolutional network: 3 × 3 convolution, group normalisation, 2 × 2 pooling and ReLU in each block.

    Pooling comes before ReLU: the maximum of both orders is the same, and ReLU then has a quarter of the work.
    """

    name: Literal["cnn"] = "cnn"
    channels: Many[Annotated[int, Field(gt=0)]] = Field(default=(16, 32, 64), min_length=1)
    """Channels of each block; every block halves the image."""
    hidden: int | None = Field(default=None, gt=0)
    """Width of a hidden layer before the classifier; none by default."""
    norm: Literal["group", "none"] = "group"
    """Normalisation after each convolution."""
    pool: Literal["average", "flatten"] = "average"
    """Input of the classifier: the average over the image, or every position of it."""

    def network(self, classes: int, size: int) -> nn.Module:
        from fedrobust.learning.networks import convolutional

        self._refuse_small(size)
        return convolutional(self.channels, self.hidden, self.norm == "group", self.pool == "average", classes, size)

    def parameters(self, classes: int, size: int) -> int:
        """See `Model.parameters`; counted without torch."""
        if not self._plain:
            return super().parameters(classes, size)
        self._refuse_small(size)
        inputs, (shift, scale) = (3, *self.channels), (0, 2) if self.norm == "group" else (1, 0)
        blocks = sum((9 * width + shift + scale) * block for width, block in zip(inputs, self.channels, strict=False))
        width = self.channels[-1] * (1 if self.pool == "average" else self._final(size) ** 2)
        hidden = 0 if self.hidden is None else (width + 1) * self.hidden
        return blocks + hidden + ((self.hidden or width) + 1) * classes

    def check(self, classes: int, size: int, seed: int) -> None:
        """See `Model.check`."""
        if self._plain:
            self._refuse_small(size)
        else:
            super().check(classes, size, seed)

    @property
    def _plain(self) -> bool:
        """Whether this is the network described here, and not that of a user's own subclass."""
        return type(self).network is Cnn.network

    def _final(self, size: int) -> int:
        """The side of the image after the last block, in pixels."""
        final: int = size // 2 ** len(self.channels)
        return final

    def _refuse_small(self, size: int) -> None:
        if self._final(size) < 1:
            raise ExperimentError(
                f"model cnn: {len(self.channels)} blocks halve an image of {size} pixels to nothing; "
                f"give at most {size.bit_length() - 1} entries in channels, or larger images"
            )


class Timm(Model):
    """Any network of the timm library by its name there; `timm:resnet18` for short."""

    name: Literal["timm"] = "timm"
    model: str
    """Name in timm, optionally with the tag of its pretrained weights, e.g. `resnet18` or `resnet18.a1_in1k`."""
    pretrained: bool = False
    """Start from timm's pretrained weights, which are downloaded unless they are in the Hugging Face cache."""
    batch_norm: Literal["group", "keep"] = "group"
    """Convert batch normalisation to group normalisation (Hsieh et al., ICML 2020), or keep it without running
    statistics: then a prediction depends on the other images of its batch."""

    @model_validator(mode="after")
    def _known_to_timm(self) -> Timm:
        import timm

        architecture, _, weights = self.model.partition(".")
        if not timm.is_model(architecture):
            hint = nearest(architecture, timm.list_models()) or "timm.list_models() has every name"
            raise refusal(Problem("timm has no such model", "model", f"'{self.model}'", hint=hint))
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
        if weights and weights not in tags:
            raise refusal(Problem(f"'{architecture}' has no such weights", "model", f"'{weights}'", tuple(tags)))
        if self.pretrained and not tags:
            raise refusal(f"timm has no pretrained weights for '{architecture}'; set it to false", "pretrained")
        return self

    def network(self, classes: int, size: int) -> nn.Module:
        from fedrobust.learning.networks import timm_network

        return timm_network(self.model, self.pretrained, self.batch_norm == "group", classes, size)


class Encoder(Model):
    """A pretrained encoder of the timm library with a small head, as pathology's foundation models are used.

    The federation trains the head, whose update has a few thousand coordinates. Patches are scaled and resized as they
    were when the encoder was trained. The encoder stays in evaluation mode, whatever is trained.
    """

    name: Literal["encoder"] = "encoder"
    fixed_statistics: ClassVar[bool] = True
    of_frozen: ClassVar[dict[str, Any]] = {"views": None, "precision": "float32", "features": "float32"}
    """Options that only a frozen encoder has, with their defaults."""
    encoder: str
    """`timm:NAME`, e.g. `timm:vit_large_patch16_224`."""
    weights: str | None = None
    """A `.safetensors` or `.pth` file with the encoder's weights; null takes timm's own pretrained weights, which are
    downloaded unless they are in the Hugging Face cache."""
    head: Literal["linear", "mlp"] = "linear"
    """The classifier: one layer, or two with ReLU between them."""
    hidden: int = Field(default=256, gt=0)
    """Width of the hidden layer of `head: mlp`."""
    trainable: Literal["head", "last_block", "all"] = "head"
    """What is trained: the head, also the encoder's last block, or everything."""
    size: int | None = Field(default=None, gt=0)
    """Side of the images that the encoder gets, in pixels; null takes that of its pretraining in timm."""
    mean: Annotated[Many[float], Field(min_length=3, max_length=3)] | None = None
    """Mean of each channel in [0, 1] by which images were scaled in pretraining; null takes timm's."""
    std: Annotated[Many[PositiveFloat], Field(min_length=3, max_length=3)] | None = None
    """Standard deviation of each channel in [0, 1]; null takes timm's."""
    views: Literal[2, 4, 8] | None = None
    """How many views of each patch a frozen encoder looks at once and for all, so that `local.augment` costs nothing in
    a step: 2: the patch and its mirror image, 4: all flips, 8: also all quarter turns; null: it looks at each augmented
    patch again in each step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision in which a frozen encoder computes."""
    features: Literal["float32", "float16"] = "float32"
    """Type in which the features of a frozen encoder are kept."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`, e.g. `{init_values: 1.0e-5}`; `timm.layers:NAME` is a layer of timm."""

    @model_validator(mode="after")
    def _known_encoder(self) -> Encoder:
        import timm

        library, _, model = self.encoder.partition(":")
        architecture = model.partition(".")[0]
        if library != "timm" or not model:
            raise refusal(Problem("allowed: timm:NAME", "encoder", f"'{self.encoder}'"))
        if not timm.is_model(architecture):
            hint = nearest(architecture, timm.list_models()) or "timm.list_models() has every name"
            raise refusal(Problem("timm has no such model", "encoder", f"'{model}'", hint=hint))
        if own := sorted(_OWN_OPTIONS & self.options.keys()):
            raise refusal("is not for users: weights, size and head decide it", f"options.{own[0]}")
        changed = [name for name, usual in self.of_frozen.items() if getattr(self, name) != usual]
        if changed and self.trainable != "head":
            raise refusal(f"is for a frozen encoder, and trainable is {self.trainable}", changed[0])
        return self

    @property
    def _timm(self) -> str:
        return self.encoder.partition(":")[2]

    def network(self, classes: int, size: int) -> nn.Module:
        from fedrobust.learning.encoders import encoder_network

        hidden = self.hidden if self.head == "mlp" else None
        scaling = self.mean, self.std
        made = encoder_network(
            self._timm, self.weights, self.options, hidden, self.trainable, self.size, scaling, classes
        )
        made.reduced = self.precision != "float32"
        return made

    def parameters(self, classes: int, size: int) -> int:
        from fedrobust.learning.encoders import parameters_of

        return parameters_of(self._timm, self.options)

    def check(self, classes: int, size: int, seed: int) -> None:
        """See `Model.check`. The runs of a study ask again and again: each file of weights is tried once."""
        from fedrobust.learning.encoders import identity

        asked = self.model_dump_json(), classes, size, identity(self.weights)
        if asked not in _CHECKED:
            super().check(classes, size, seed)
            _CHECKED.add(asked)

    def located(self) -> Self:
        return self if self.weights is None else self.model_copy(update={"weights": str(Path(self.weights).absolute())})


_OWN_OPTIONS = {"num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "in_chans"}
"""Arguments of `timm.create_model` that an encoder sets itself."""
_CHECKED: set[tuple[Any, ...]] = set()
"""Encoders that this process has tried."""


def state_digest(network: nn.Module) -> str:
    """The SHA-256 of the names and values of a network's state dict, on the CPU."""
    digest = sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def model_shorthand(text: str) -> dict[str, Any] | None:
    """`timm:resnet18` as options; None for any other `text`. For `OneOf(Model, shorthand=model_shorthand)`."""
    library, separator, model = text.partition(":")
    return {"name": "timm", "model": model} if separator and library == "timm" else None
