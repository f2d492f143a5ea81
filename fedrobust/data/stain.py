"""Stains in optical density: how the slides of one hospital differ in colour from another's, and how to remove that."""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.data.cache import Add, file_of, kept
from fedrobust.options import Options
from fedrobust.progress import LongWork
from fedrobust.seeds import generator

logger = logging.getLogger(__name__)

_VERSION = 1  # part of the key of the cache: raise it when results change

HAEMATOXYLIN_EOSIN = ((0.57, 0.71, 0.41), (0.14, 0.84, 0.53))
"""Optical density of pure haematoxylin and of pure eosin in red, green and blue, each of length 1: about
what Macenko's method finds in the real breast tissue of the IDC patches (median over the cases)."""

STRONGEST = (1.3, 1.05)
"""Optical density along those vectors that only 1 % of the pixels of a normalised patch exceed."""

LAB_MEAN = (65.0, 25.0, -8.0)
"""Mean lightness, a* and b* (CIELAB) after Reinhard's method; about the median of the IDC patches without fat."""
LAB_STD = (11.0, 8.0, 4.5)
"""Their standard deviations."""

WHITE = 245.0
"""Light that comes through the bare slide, out of 255: an optical density of 0."""

BLOCK = 512
"""Patches that are stained at a time: a few megabytes of float32."""


def optical_density(images: np.ndarray) -> np.ndarray:
    """The natural logarithm of WHITE over the light that came through, as float32.

    images: (..., 3) uint8.
    """
    table = -np.log((np.arange(256) + 1) / WHITE).astype(np.float32)
    density: np.ndarray = table[images]
    return density


def transmitted(density: np.ndarray) -> np.ndarray:
    """The inverse of `optical_density` (Beer-Lambert), rounded and clipped to uint8.

    density: (..., 3).
    """
    light = WHITE * np.exp(-np.asarray(density, dtype=np.float32)) - 1
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def varied_stains(degrees: float, random: np.random.Generator) -> np.ndarray:
    """(2, 3) unit vectors of haematoxylin and eosin, each turned by about `degrees` in a random direction."""
    stains = np.array(HAEMATOXYLIN_EOSIN)
    stains = stains + np.tan(np.radians(degrees)) / np.sqrt(2) * random.standard_normal((2, 3))
    stains = np.maximum(stains, 0.02)
    return np.asarray(stains / np.linalg.norm(stains, axis=1, keepdims=True))


def recoloured(images: np.ndarray, amounts: tuple[float, float], stains: np.ndarray | None = None) -> np.ndarray:
    """Patches with more or less stain, as a copy (n, H, W, 3) uint8.

    images: (n, H, W, 3) uint8.
    amounts: factors for haematoxylin and eosin.
    stains: (2, 3) unit vectors that replace HAEMATOXYLIN_EOSIN.

    What neither stain explains stays as it is.
    """
    before = _with_rest(np.array(HAEMATOXYLIN_EOSIN))
    after = before if stains is None else _with_rest(stains)
    turn = ((np.linalg.inv(before) * np.array([*amounts, 1.0])) @ after).astype(np.float32)
    changed = np.empty_like(images)
    for start in range(0, len(images), BLOCK):
        changed[start : start + BLOCK] = transmitted(optical_density(images[start : start + BLOCK]) @ turn)
    return changed


class StainShift(Options):
    """A different stain for each hospital: turned stain vectors, stronger or weaker stain, another brightness.

    Computed in optical density (Ruifrok and Johnston 2001; as augmentation: Tellez et al. 2018).
    """

    strength: float = Field(default=0.0, ge=0, le=1)
    """0 changes nothing, 0.3 is usual between laboratories, 1 is extreme."""

    def apply(self, images: np.ndarray, client: int, seed: int) -> np.ndarray:
        """The patches (n, H, W, 3) uint8 as hospital `client` would have stained and scanned them.

        images: (n, H, W, 3) uint8; not written to.

        The result depends on (seed, client) alone, never on the other patches.
        """
        if self.strength == 0:
            return images
        random = generator(seed, "stain", client)
        before = _with_rest(np.array(HAEMATOXYLIN_EOSIN))
        after = _with_rest(varied_stains(9 * self.strength, random))
        amount = np.append(np.exp(0.5 * self.strength * np.clip(random.standard_normal(2), -2, 2)), 1.0)
        turn = (np.linalg.inv(before) * amount) @ after
        brightness = 0.12 * self.strength * np.clip(random.standard_normal(), -2, 0.5)  # nothing is brighter than white
        shifted = np.empty_like(images)
        for start in range(0, len(images), BLOCK):
            density = optical_density(images[start : start + BLOCK])
            shifted[start : start + BLOCK] = transmitted(density @ turn.astype(np.float32) - np.float32(brightness))
        return shifted


def _with_rest(stains: np.ndarray) -> np.ndarray:
    """(3, 3): the two stain vectors and the unit vector across both, for what neither explains."""
    rest = np.cross(stains[0], stains[1])
    return np.vstack([stains, rest / np.linalg.norm(rest)])


class StainNormalisation(Options):
    """Base of the stain normalisations: they give every patch one fixed look, each patch on its own."""

    name: str

    @abstractmethod
    def normalise(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalised patches (n, H, W, 3) uint8, and (n,) bool: the patches that could not be normalised, and stay as
        they are.

        images: (n, H, W, 3) uint8.
        """


class NoNormalisation(StainNormalisation):
    """Patches stay as they are."""

    name: Literal["none"] = "none"

    def normalise(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images, np.zeros(len(images), dtype=bool)


class Macenko(StainNormalisation):
    """Finds the two stain vectors of each patch and replaces them by reference ones (Macenko et al. 2009).

    The estimate is torchstain's. The brightness of a scanner, which is no stain, stays as it is.
    """

    name: Literal["macenko"] = "macenko"
    tissue: float = Field(default=0.02, gt=0, le=1)
    """Least share of stained pixels; a patch with fewer stays as it is, because its stains cannot be estimated."""

    def normalise(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

        palest = WHITE * np.exp(-_STAINED) - 1
        stained = (images <= palest).all(axis=3).mean(axis=(1, 2))
        normalised, failed = images.copy(), np.ones(len(images), dtype=bool)
        estimate = NumpyMacenkoNormalizer()
        for index in np.flatnonzero(stained >= self.tissue):
            try:
                with np.errstate(all="ignore"):
                    estimate.fit(images[index], Io=WHITE, beta=_STAINED)
            except np.linalg.LinAlgError:
                continue
            if _plausible(estimate.HERef, estimate.maxCRef):
                normalised[index] = _restained(images[index], estimate.HERef, estimate.maxCRef)
                failed[index] = False
        return normalised, failed


_STAINED = 0.15  # the least optical density, in every channel, of a pixel that the stains are estimated from


def _plausible(stains: np.ndarray, strongest: np.ndarray) -> bool:
    """Whether two stains were found: finite, present, and at least 5 degrees apart."""
    if not (np.isfinite(stains).all() and np.isfinite(strongest).all()):
        return False
    return bool(stains[:, 0] @ stains[:, 1] < np.cos(np.radians(5)) and (strongest > 0.05).all())


def _restained(image: np.ndarray, stains: np.ndarray, strongest: np.ndarray) -> np.ndarray:
    """The patch (H, W, 3) with its own stains (3, 2), and their 99th percentiles (2,), replaced by the reference."""
    amount = optical_density(image) @ np.linalg.pinv(stains).T * (np.array(STRONGEST) / strongest)
    return transmitted(amount @ np.array(HAEMATOXYLIN_EOSIN))


class Reinhard(StainNormalisation):
    """Gives each patch the mean and spread of a reference in CIELAB (Reinhard et al. 2001), by torchstain.

    It does so whatever the patch shows: fat and bare slide become pink.
    """

    name: Literal["reinhard"] = "reinhard"

    def normalise(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from torchstain.numpy.normalizers import NumpyReinhardNormalizer

        method = NumpyReinhardNormalizer()
        method.target_means, method.target_stds = np.array(LAB_MEAN), np.array(LAB_STD)
        # Without contrast there is nothing to scale: the spread would be a spread of noise, or zero.
        failed = images.std(axis=(1, 2)).min(axis=1) < 2
        normalised = images.copy()
        for index in np.flatnonzero(~failed):
            normalised[index] = method.normalize(images[index])
        return normalised, failed


def stained(
    images: np.ndarray,
    hospital: np.ndarray,
    shift: StainShift,
    normalisation: StainNormalisation,
    digest: str,
    seed: int,
    cache: Path,
) -> np.ndarray:
    """The patches as their hospitals see them, (N, S, S, 3) uint8: shifted, then normalised; `images` if neither is
    asked for.

    images: (N, S, S, 3) uint8; not written to.
    hospital: (N,) of each patch; −1 of those that no hospital has, which are not shifted.
    shift, normalisation: as in an experiment.
    digest: identifies the content of `images`.
    seed: of the shift.
    cache: folder in which normalised patches are kept, and shifted ones if `images` are in a file: see
        `fedrobust.data.cache`.

    How many patches could not be normalised is logged.
    """
    normalises = not isinstance(normalisation, NoNormalisation)
    if shift.strength == 0 and not normalises:
        return images
    if shift.strength > 0:  # then the images depend on the hospital
        held = hashlib.sha256(np.ascontiguousarray(hospital).tobytes()).hexdigest()
        digest = f"{digest}/{shift.model_dump_json()}/{seed}/{held}"

    def make(add: Add) -> dict[str, int]:
        failures, work = 0, LongWork("staining the patches", len(images), "patches")
        for start in range(0, len(images), BLOCK):
            end = min(start + BLOCK, len(images))
            block, failed = normalisation.normalise(_shifted(images[start:end], hospital[start:end], shift, seed))
            add(block)
            failures += int(failed.sum())
            work.reached(end)
        return {"failed": failures}

    key = hashlib.sha256(f"{_VERSION} {digest} {normalisation.model_dump_json()}".encode()).hexdigest()
    folder = cache if normalises or file_of(images) is not None else None
    found = kept(folder, f"stain-{normalisation.name}-{key[:32]}", len(images), make)
    if found.about["failed"]:
        logger.warning(
            "%s: %d of %d patches have too little tissue and stay as they are",
            normalisation.name,
            found.about["failed"],
            len(images),
        )
    return found.array


def _shifted(images: np.ndarray, hospital: np.ndarray, shift: StainShift, seed: int) -> np.ndarray:
    if shift.strength == 0:
        return images
    shifted = images.copy()
    for client in np.unique(hospital[hospital >= 0]):  # no hospital has stained the others
        own = hospital == client
        # Patches that no hospital has keep their stain.
        shifted[own] = images[own] if client < 0 else shift.apply(images[own], int(client), seed)
    return shifted
