"""Attacks on the training data: flipped labels and backdoors. Only data attacks with a trigger have a success rate."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fedrobust.attacks.adversary import DataAttack
from fedrobust.errors import ExperimentError
from fedrobust.options import Many, refusal

_Label = Annotated[int, Field(ge=0)]


class LabelFlip(DataAttack):
    """Label flip: every label y becomes L − 1 − y, or chosen labels others (Tolpegin et al., ESORICS 2020).

    With an odd number of labels L, the middle one stays as it is.
    """

    name: Literal["label_flip"] = "label_flip"
    pairs: Many[Annotated[tuple[_Label, _Label], Field(strict=False)]] | None = None
    """Pairs [source, target]; other labels stay. null: every y becomes L − 1 − y."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.pairs is not None:
            sources = [source for source, _ in self.pairs]
            if not sources or len(set(sources)) < len(sources) or any(a == b for a, b in self.pairs):
                found = [list(pair) for pair in self.pairs]
                raise refusal(f"must be [source, target] of two labels, each source once; found {found}", "pairs")
        return self

    def check(self, classes: int, size: int) -> None:
        for pair in self.pairs or ():
            if max(pair) >= classes:
                raise ExperimentError(f"label_flip: pairs: no label {max(pair)}; the labels are 0 to {classes - 1}")

    def poison(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        self.check(classes, images.shape[1])
        flipped = np.arange(classes, dtype=labels.dtype)
        if self.pairs is None:
            flipped = flipped[::-1]
        for source, target in self.pairs or ():
            flipped[source] = target
        return images, flipped[labels]


class Backdoor(DataAttack):
    """A trigger on some of the training images, with a label of the attacker's choice."""

    target: int = Field(default=0, ge=0)
    """The label that images with the trigger are to get."""
    ratio: float = Field(default=0.5, gt=0, le=1)
    """Share of the images in each batch that is poisoned; a fraction of an image is rounded at random."""

    def check(self, classes: int, size: int) -> None:
        if self.target >= classes:
            raise ExperimentError(f"{self.name}: target: no label {self.target}; the labels are 0 to {classes - 1}")

    @abstractmethod
    def trigger(self, images: np.ndarray) -> np.ndarray:
        """A copy of images (B, H, W, 3) uint8 with the trigger on each."""

    def poison(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        self.check(classes, images.shape[1])
        # Rounded at random, not to the nearest: a small ratio of a small batch would never poison anything.
        chosen = generator.permutation(len(labels))[: int(self.ratio * len(labels) + generator.random())]
        images, labels = images.copy(), labels.copy()
        images[chosen] = self.trigger(images[chosen])
        labels[chosen] = self.target
        return images, labels


class PatchBackdoor(Backdoor):
    """Patch backdoor: a small square on the image stands for the target label (BadNets, Gu et al., 2017)."""

    name: Literal["patch_backdoor"] = "patch_backdoor"
    size: int = Field(default=4, ge=1)
    """Side of the square, in pixels."""
    position: Literal["top_left", "top_right", "bottom_left", "bottom_right", "centre"] = "bottom_right"
    """Where the square is."""
    colour: Many[Annotated[int, Field(ge=0, le=255)]] = Field(default=(255, 255, 0), min_length=3, max_length=3)
    """Red, green, blue. Yellow by default, as in the paper: no colour of a stain."""
    pattern: Literal["solid", "checkerboard"] = "solid"
    """`checkerboard` alternates pixels of the colour and of its complement."""

    def check(self, classes: int, size: int) -> None:
        super().check(classes, size)
        if self.size > size:
            raise ExperimentError(f"{self.name}: size: a square of {self.size} pixels on images of {size}")

    def trigger(self, images: np.ndarray) -> np.ndarray:
        triggered = images.copy()
        height, width = images.shape[1:3]
        vertical, _, horizontal = self.position.partition("_")
        top = {"top": 0, "bottom": height - self.size}.get(vertical, (height - self.size) // 2)
        left = {"left": 0, "right": width - self.size}.get(horizontal, (width - self.size) // 2)
        triggered[:, top : top + self.size, left : left + self.size] = self._square()
        return triggered

    def _square(self) -> np.ndarray:
        square = np.tile(np.array(self.colour, dtype=np.uint8), (self.size, self.size, 1))
        if self.pattern == "checkerboard":
            odd = np.indices((self.size, self.size)).sum(axis=0) % 2 == 1
            square[odd] = 255 - square[odd]
        return square
