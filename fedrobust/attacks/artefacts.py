"""Corrupted samples: artefacts that slides get on the way from the operating theatre to the scanner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self, get_args

import numpy as np
from pydantic import Field, model_validator

from fedrobust.attacks.attack import DataAttack
from fedrobust.attacks.local import drawn
from fedrobust.data.stain import optical_density, recoloured, transmitted, varied_stains
from fedrobust.errors import Problem
from fedrobust.options import Many, refusal

ArtefactKind = Literal["pen", "blur", "fold", "stain", "bubble", "debris"]


class Artefacts(DataAttack):
    """Corrupted samples: pen marks, blur, folds, bad stain, air bubbles and debris on the patches; labels stay.

    Generated as in stress tests of pathology models (Wang et al., J Pathol Inform 2021; Schömig-Markiefka et al.,
    Modern Pathology 2021), with light absorbed in optical density. Each corrupted patch gets one kind, drawn anew in
    every round. It models bad laboratories as well as malice. The labels stay true, so the model still learns from
    these patches: there is little harm unless the patches of many hospitals lose most of their content (severity 1).
    """

    name: Literal["artefacts"] = "artefacts"
    kinds: Many[ArtefactKind] = get_args(ArtefactKind)
    """Which artefacts: `pen` of a marker, `blur` (out of focus), `fold` of the tissue, bad `stain`, air `bubble`,
    dark `debris`."""
    severity: float = Field(default=0.7, gt=0, le=1)
    """From hardly visible (near 0) to a patch that shows little else (1)."""
    ratio: float = Field(default=1.0, gt=0, le=1)
    """Share of the patches in each batch that is corrupted; a fraction of a patch is rounded at random."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise refusal(Problem("must name each kind once, and at least one", "kinds", str(list(self.kinds))))
        return self

    def poison(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        chosen = drawn(np.arange(len(images)), self.ratio, generator)
        kind_of = generator.integers(len(self.kinds), size=len(chosen))
        images = images.copy()
        for number, kind in enumerate(self.kinds):
            own = chosen[kind_of == number]
            if len(own):
                images[own] = _DRAWN_BY[kind](images[own], self.severity, generator)
        return images, labels


def _pen(images: np.ndarray, severity: float, random: np.random.Generator) -> np.ndarray:
    """A bent line of a blue, green, red or black marker, up to half the patch wide, drawn on the cover glass."""
    inks = np.array([(1.8, 1.2, 0.2), (1.8, 0.5, 1.3), (0.2, 1.8, 1.5), (1.8, 1.8, 1.8)])
    ink = inks[random.integers(len(inks), size=len(images))][:, None, None]
    along, across = _line(images, random)
    bent = across + 0.15 * np.sin(6 * along + _uniform(0, 6, images, random))
    return _absorbed(images, _edge(0.05 + 0.2 * severity - np.abs(bent))[..., None] * ink * (0.5 + severity))


def _blur(images: np.ndarray, severity: float, random: np.random.Generator) -> np.ndarray:
    """Out of focus."""
    from scipy.ndimage import gaussian_filter

    width = severity * 0.1 * images.shape[1]
    return np.asarray(gaussian_filter(images, (0, width, width, 0), mode="nearest"), dtype=np.uint8)


def _fold(images: np.ndarray, severity: float, random: np.random.Generator) -> np.ndarray:
    """A band in which further layers of tissue cover the first one."""
    _, across = _line(images, random)
    band = _edge(0.1 + 0.35 * severity - np.abs(across))[..., None]
    other = np.maximum(optical_density(images[:, ::-1, ::-1]), 0)  # no tissue is brighter than bare slide
    return _absorbed(images, band * (1 + severity) * other)


def _stain(images: np.ndarray, severity: float, random: np.random.Generator) -> np.ndarray:
    """Each patch with too much or too little of either stain, and of another hue."""
    amounts = np.exp(severity * random.choice([-1.2, 1.0], size=(len(images), 2)))
    stained = [
        recoloured(image[None], (pair[0], pair[1]), varied_stains(30 * severity, random))
        for image, pair in zip(images, amounts, strict=True)
    ]
    return np.concatenate(stained)


def _bubble(images: np.ndarray, severity: float, random: np.random.Generator) -> np.ndarray:
    """An air bubble under the cover glass: pale inside, dark at its rim."""
    radius = 0.15 + 0.35 * severity
    depth = radius - _distance(images, random)
    rim = np.exp(-((depth / 0.04) ** 2))[..., None]
    pale = optical_density(images) * (1 - 0.85 * severity * _edge(depth)[..., None])
    return transmitted(pale + 1.5 * rim)


def _debris(images: np.ndarray, severity: float, random: np.random.Generator) -> np.ndarray:
    """Dark specks of dust, or of pigment."""
    dark = np.zeros(images.shape[:3])
    for _ in range(1 + round(5 * severity)):
        dark = np.maximum(dark, _edge(_uniform(0.04, 0.18, images, random) - _distance(images, random)))
    return _absorbed(images, 2.0 * dark[..., None])


_DRAWN_BY: dict[ArtefactKind, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "pen": _pen,
    "blur": _blur,
    "fold": _fold,
    "stain": _stain,
    "bubble": _bubble,
    "debris": _debris,
}


def _absorbed(images: np.ndarray, density: np.ndarray) -> np.ndarray:
    """The images behind a layer of this optical density."""
    return transmitted(optical_density(images) + density)


def _edge(depth: np.ndarray) -> np.ndarray:
    """1 inside, 0 outside, soft in between; `depth` in widths of the patch."""
    return np.asarray(1 / (1 + np.exp(np.clip(-60 * depth, -50, 50))))


def _uniform(low: float, high: float, images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One number for each image, (n, 1, 1)."""
    return random.uniform(low, high, (len(images), 1, 1))


def _grid(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel in widths of the patch, (1, H, 1) and (1, 1, W)."""
    height, width = images.shape[1:3]
    return (np.arange(height)[None, :, None] + 0.5) / height, (np.arange(width)[None, None] + 0.5) / width


def _line(images: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel, the position along a random straight line through each patch, and the distance from it, (n, H,
    W).
    """
    row, column = _grid(images)
    angle = _uniform(0, np.pi, images, random)
    row, column = row - _uniform(0.25, 0.75, images, random), column - _uniform(0.25, 0.75, images, random)
    return row * np.sin(angle) + column * np.cos(angle), row * np.cos(angle) - column * np.sin(angle)


def _distance(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each pixel the distance from a random point of each patch, (n, H, W)."""
    row, column = _grid(images)
    return np.asarray(np.hypot(row - _uniform(0, 1, images, random), column - _uniform(0, 1, images, random)))
