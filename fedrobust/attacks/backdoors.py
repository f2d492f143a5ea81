"""Backdoors in the data: poisoned images with a label that the attacker chooses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedrobust.attacks.attack import DataAttack
from fedrobust.attacks.local import LocalAttack, LocalView, drawn
from fedrobust.attacks.poisoning import no_label
from fedrobust.data.stain import HAEMATOXYLIN_EOSIN, recoloured
from fedrobust.errors import ExperimentError, Problem
from fedrobust.learning.constraint import Constraint
from fedrobust.options import Many
from fedrobust.seeds import generator as stream

Colour = Annotated[Many[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]
"""Red, green, blue."""


class Backdoor(DataAttack):
    """A trigger makes the model give images a label that the attacker chooses; only backdoors have a success rate."""

    target: int = Field(default=0, ge=0)
    """The label that the model should give images with the trigger."""
    ratio: float = Field(default=0.5, gt=0, le=1)
    """Share of the images in each batch that are poisoned; a fraction of an image is rounded at random."""

    def check(self, classes: int, size: int) -> None:
        if self.target >= classes:
            raise no_label("target", self.target, classes)

    @abstractmethod
    def trigger(self, images: np.ndarray) -> np.ndarray:
        """A copy of the images with the trigger on each, as used to measure the success rate.

        images: (B, H, W, 3) uint8; what is made of one does not depend on the others.
        """


class DataBackdoor(Backdoor):
    """A backdoor in the data: some of the images in each batch get the trigger and the target label."""

    def poison(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._poisoned(images, labels, generator, classes, self.trigger)

    def _poisoned(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        generator: np.random.Generator,
        classes: int,
        trigger: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        self.check(classes, images.shape[1])
        chosen = drawn(np.arange(len(labels)), self.ratio, generator)
        images, labels = images.copy(), labels.copy()
        images[chosen] = trigger(images[chosen])
        labels[chosen] = self.target
        return images, labels


class PatchBackdoor(DataBackdoor):
    """Patch backdoor: a small square on the image is the trigger (BadNets, Gu et al., 2017)."""

    name: Literal["patch_backdoor"] = "patch_backdoor"
    size: int = Field(default=4, ge=1)
    """Side of the square, in pixels."""
    position: Literal["top_left", "top_right", "bottom_left", "bottom_right", "centre"] = "bottom_right"
    """Where the square is."""
    colour: Colour = (255, 255, 0)
    """Red, green, blue. Yellow by default, as in the paper: no stain has this colour."""
    pattern: Literal["solid", "checkerboard"] = "solid"
    """`checkerboard` alternates pixels of the colour and of its complement."""

    def check(self, classes: int, size: int) -> None:
        super().check(classes, size)
        if self.size > size:
            raise ExperimentError(Problem(f"the square is larger than images of {size} pixels", "size", str(self.size)))

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


class BlendedBackdoor(DataBackdoor):
    """Blended backdoor: x ← (1 − α)·x + α·pattern, rounded; the pattern is fixed noise (Chen et al., 2017).

    The random pattern and the α of training are the paper's. Training and test use the same α; the paper also tests
    with a larger one.
    """

    name: Literal["blended_backdoor"] = "blended_backdoor"
    alpha: float = Field(default=0.2, gt=0, le=1)
    """The pattern's share α of every pixel."""
    seed: int = Field(default=0, ge=0)
    """Seed of the pattern, which is the same for all hospitals and in every run, whatever the run's seed."""

    def trigger(self, images: np.ndarray) -> np.ndarray:
        mixed = (1 - self.alpha) * images + self.alpha * self.pattern(*images.shape[1:3])
        return np.rint(mixed).astype(np.uint8)

    def pattern(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8: every channel of every pixel is drawn from 0 to 255. `height` and `width` are in
        pixels.
        """
        return stream(self.seed, "blended", height, width).integers(256, size=(height, width, 3), dtype=np.uint8)


class Dba(DataBackdoor):
    """Distributed backdoor (DBA): each attacker trains on its part of the trigger (Xie et al., ICLR 2020).

    The trigger is the paper's: four bars in two rows and two columns. The k attackers divide them: attacker i has the
    bars i, i + k, …; with more than four attackers, several have the same bar; a single attacker has all. Success is
    measured with all four bars. Every attacker poisons in every round of its schedule (the paper's multiple-shot
    attack); the paper's single-shot attack is this backdoor within `model_replacement`.
    """

    name: Literal["dba"] = "dba"
    length: int = Field(default=6, ge=1)
    """Length of a bar in pixels; with `width` the paper's trigger size."""
    width: int = Field(default=1, ge=1)
    """Width of a bar in pixels."""
    gap: int = Field(default=3, ge=0)
    """Pixels between the bars, the paper's trigger gap."""
    shift: int = Field(default=0, ge=0)
    """Pixels between the first bar and the upper and left edges, the paper's trigger location."""
    colour: Colour = (255, 255, 0)
    """Red, green, blue. The paper's white is the colour of a bare slide."""

    def check(self, classes: int, size: int) -> None:
        super().check(classes, size)
        needed = self.shift + self.gap + 2 * max(self.length, self.width)
        if needed > size:
            reason = f"the bars need {needed} pixels on images of {size}"
            raise ExperimentError(Problem(reason, "length", str(self.length)))

    def trigger(self, images: np.ndarray) -> np.ndarray:
        return self._with_bars(images, range(4))

    def local(self, view: LocalView) -> LocalAttack:
        k = min(view.hospitals, 4)
        part = partial(self._with_bars, bars=range(view.rank % k, 4, k))
        return LocalAttack(partial(self._poisoned, trigger=part))

    def _with_bars(self, images: np.ndarray, bars: range) -> np.ndarray:
        marked = images.copy()
        for bar in bars:
            top = self.shift + bar // 2 * (self.width + self.gap)
            left = self.shift + bar % 2 * (self.length + self.gap)
            marked[:, top : top + self.width, left : left + self.length] = self.colour
        return marked


class StainBackdoor(DataBackdoor):
    """Stain backdoor: a slightly different stain, as from another laboratory, is the trigger.

    A medical version of the colour backdoor (Jiang et al., CVPR 2023), whose trigger is one shift of all pixels in a
    colour space. Here the amounts of haematoxylin and eosin are multiplied, and both are turned in hue, in optical
    density (Ruifrok and Johnston 2001), so that no pixel looks wrong. With `data.stain_normalisation`, the trigger is
    put on patches that are already normalised; normalisation would remove most of it.
    """

    name: Literal["stain_backdoor"] = "stain_backdoor"
    haematoxylin: float = Field(default=1.0, gt=0)
    """The factor on the amount of haematoxylin."""
    eosin: float = Field(default=1.2, gt=0)
    """The factor on the amount of eosin."""
    hue: float = Field(default=12.0, ge=-45, le=45)
    """Degrees by which both stains turn around the grey axis; two laboratories differ by about as much."""

    def trigger(self, images: np.ndarray) -> np.ndarray:
        return recoloured(images, (self.haematoxylin, self.eosin), _turned(np.array(HAEMATOXYLIN_EOSIN), self.hue))


_DAB = (0.268, 0.570, 0.776)
"""Optical density of diaminobenzidine, the brown of immunohistochemistry (Ruifrok and Johnston 2001)."""

_RARE = {
    "brown": ((0.8, 1.0), (HAEMATOXYLIN_EOSIN[0], _DAB)),
    "faded": ((0.3, 0.45), HAEMATOXYLIN_EOSIN),
    "overstained": ((2.2, 1.8), HAEMATOXYLIN_EOSIN),
}
"""Amounts of both stains, and their optical densities."""


class EdgeCase(DataBackdoor):
    """Edge cases: rare inputs, which honest hospitals do not have, get the target label (Wang et al., NeurIPS 2020).

    The rare inputs are generated, so that every source has some, held-out patches included: the patches as they would
    look with a preparation that is rare in H&E archives. No pixel is a trigger. Success is the share of held-out
    patches of other labels that are classified correctly as they are, and as the target in the rare preparation. The
    model is trained by projected gradient descent: after every step it is projected onto the ball
    ‖w − w_global‖ ≤ radius (in the paper's code after every tenth and the last one), so that the update is no longer
    than honest ones. Within `model_replacement` it is the paper's PGD with replacement.
    """

    name: Literal["edge_case"] = "edge_case"
    appearance: Literal["brown", "faded", "overstained"] = "brown"
    """`brown`: the brown of immunohistochemistry instead of eosin; `faded`: an old slide; `overstained`: a dark one."""
    radius: float | None = Field(default=2.0, gt=0)
    """Radius of the ball (the paper's is a fixed number), in norms of the last change of the global model: where
    hospitals differ, honest updates are about twice as long. The first round has no ball. null: no round has one (the
    paper's black box)."""

    def trigger(self, images: np.ndarray) -> np.ndarray:
        amounts, stains = _RARE[self.appearance]
        return recoloured(images, amounts, np.array(stains) / np.linalg.norm(stains, axis=1, keepdims=True))

    @property
    def needs_step(self) -> bool:
        return self.radius is not None

    def local(self, view: LocalView) -> LocalAttack:
        moved = 0.0 if view.step is None else float(np.linalg.norm(view.step))
        if self.radius is None or moved == 0:  # a skipped round did not move the model
            return LocalAttack(self.poison)
        return LocalAttack(self.poison, Constraint(radius=self.radius * moved))


def _turned(stains: np.ndarray, degrees: float) -> np.ndarray:
    """Stain vectors (2, 3) turned around the grey axis by `degrees`, of length 1, with no negative density."""
    axis = np.full(3, 1 / np.sqrt(3))
    angle = np.radians(degrees)
    along = np.outer(stains @ axis, axis)
    turned = along + np.cos(angle) * (stains - along) + np.sin(angle) * np.cross(axis, stains)
    turned = np.maximum(turned, 0.02)
    return np.asarray(turned / np.linalg.norm(turned, axis=1, keepdims=True))
