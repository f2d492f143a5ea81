"""Generated H&E histology: a data set of patients and centres with nothing to download."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.data.cells import Architecture
from fedrobust.data.foreign import require_memory
from fedrobust.data.patches import Decoded, Outline, Patches
from fedrobust.data.sources import Source
from fedrobust.data.stain import HAEMATOXYLIN_EOSIN, varied_stains
from fedrobust.seeds import generator

TISSUES: dict[str, dict[str, float]] = {
    "benign": {
        "structures": 7.5, "radius": 5.5, "lumen": 0.45, "disorder": 0.03, "irregular": 0.05,
        "nucleus": 1.05, "pleomorphism": 0.06, "vesicular": 0.10,
        "loose": 0.05, "infiltration": 0.02, "lymphocytes": 0.25,
    },
    "malignant": {
        "structures": 7.5, "radius": 6.5, "lumen": 0.0, "disorder": 1.0, "irregular": 0.80,
        "nucleus": 2.10, "pleomorphism": 0.25, "vesicular": 0.70,
        "loose": 0.07, "infiltration": 0.75, "lymphocytes": 0.20,
    },
    "stroma": {
        "structures": 0.3, "radius": 4.5, "lumen": 0.30, "disorder": 0.10, "irregular": 0.20,
        "nucleus": 1.05, "pleomorphism": 0.06, "vesicular": 0.10,
        "loose": 0.15, "infiltration": 0.02, "lymphocytes": 0.06,
    },
    "lymphocytes": {
        "structures": 0.5, "radius": 4.5, "lumen": 0.30, "disorder": 0.20, "irregular": 0.20,
        "nucleus": 1.05, "pleomorphism": 0.06, "vesicular": 0.10,
        "loose": 0.20, "infiltration": 0.02, "lymphocytes": 0.85,
    },
}  # fmt: skip
"""The `Architecture` of each class; `classes: 3` takes the first three."""


class Histology(Source):
    """Generated H&E patches of breast tissue: glands, carcinoma, stroma, lymphocytes. Nothing to download.

    Stains add up in optical density (Beer-Lambert; Ruifrok and Johnston 2001). The classes differ by architecture, not
    by colour. Each patient has a mix of classes, nuclei and a stain of its own, each centre a stain, a scanner and its
    noise. Patches show the same field of view whatever their size in pixels.
    """

    name: Literal["histology"] = "histology"
    patients: int = Field(default=80, ge=1)
    """Number of patients."""
    patches_per_patient: int = Field(default=50, ge=1)
    """Number of patches of each patient."""
    size: int = Field(default=48, ge=16, le=512)
    """Side of a patch in pixels."""
    classes: int = Field(default=2, ge=2, le=len(TISSUES))
    """How many of: benign, malignant, stroma, lymphocytes."""
    centres: int = Field(default=5, ge=1)
    """Number of centres; the patients are dealt out to them in turn."""
    difficulty: float = Field(default=0.05, ge=0, lt=0.5)
    """Share of patches that look more like another class than like their own; no model can classify those correctly."""

    def load(self, seed: int) -> Patches:
        """All patches, patient by patient. Those of a patient depend on `seed`, the patient and the other options
        alone."""
        return self.outline(seed).decode()

    def outline(self, seed: int) -> Outline:
        self.check()
        patient = np.repeat(np.arange(self.patients), self.patches_per_patient)

        def pixels(chosen: np.ndarray) -> Decoded:
            own = patient[chosen]
            each = [self._patient(seed, one)[chosen[own == one] % self.patches_per_patient] for one in np.unique(own)]
            return Decoded(np.concatenate(each))

        return Outline(
            pixels=pixels,
            labels=np.concatenate([self._labels(seed, each)[0] for each in range(self.patients)]),
            label_names=tuple(TISSUES)[: self.classes],
            groups=np.array([f"patient-{number:03d}" for number in patient]),
            centres=np.array([f"centre-{number % self.centres}" for number in patient]),
        )

    def check(self) -> None:
        count = self.patients * self.patches_per_patient
        what = f"histology: {count} patches of {self.size} x {self.size} pixels"
        require_memory(what, 3 * count * self.size**2, "lower patients, patches_per_patient or size")

    def found(self) -> str | None:
        return "generated, nothing to download"

    def _labels(self, seed: int, patient: int) -> tuple[np.ndarray, np.random.Generator]:
        """The labels of one patient, and what draws everything else of it."""
        random = generator(seed, "histology", patient)
        mix = random.dirichlet(np.full(self.classes, 3.0))
        return random.choice(self.classes, self.patches_per_patient, p=mix), random

    def _patient(self, seed: int, patient: int) -> np.ndarray:
        """The patches of one patient."""
        from fedrobust.data.tissue import draw

        labels, random = self._labels(seed, patient)
        kind = self._architecture(labels, random)
        at_once = max(1, 2**18 // self.size**2)  # patches at a time: memory stays within some hundred megabytes
        parts = [
            draw(Architecture(*(field[start : start + at_once] for field in kind)), self.size, random)
            for start in range(0, len(labels), at_once)
        ]
        haematoxylin, eosin = (np.concatenate(stain) for stain in zip(*parts, strict=True))
        centre = generator(seed, "histology centre", patient % self.centres)
        return self._scanned(haematoxylin, eosin, centre, random)

    def _architecture(self, labels: np.ndarray, random: np.random.Generator) -> Architecture:
        """The tissue of a patient's patches: that of their class, drifting towards that of another class."""
        chosen = list(TISSUES.values())[: self.classes]
        tissues = np.array([[tissue[key] for key in Architecture._fields] for tissue in chosen])
        other = (labels + random.integers(1, self.classes, len(labels))) % self.classes
        # With this power, the share `difficulty` of the patches is beyond the middle between two classes.
        power = np.log(0.5) / np.log1p(-max(self.difficulty, 1e-9))
        drift = random.random((len(labels), 1)) ** power
        kind = Architecture(*((1 - drift) * tissues[labels] + drift * tissues[other]).T)
        return kind._replace(
            structures=kind.structures * np.exp(random.normal(0, 0.2)),
            radius=kind.radius * np.exp(random.normal(0, 0.12)),
            nucleus=kind.nucleus * np.exp(random.normal(0, 0.08)),
            loose=kind.loose * random.uniform(0.4, 1.6, len(labels)),
            lymphocytes=kind.lymphocytes * random.uniform(0.7, 1.15, len(labels)),
        )

    def _scanned(
        self, haematoxylin: np.ndarray, eosin: np.ndarray, centre: np.random.Generator, random: np.random.Generator
    ) -> np.ndarray:
        """uint8 patches (n, S, S, 3) of a patient, whose slides are stained and scanned at a centre."""
        from scipy.ndimage import gaussian_filter

        stains = varied_stains(2.0, centre) + varied_stains(1.2, random) - np.array(HAEMATOXYLIN_EOSIN)
        strength = np.array([1.6, 1.05]) * np.exp(centre.normal(0, 0.10, 2) + random.normal(0, 0.07, 2))
        white = centre.uniform(238, 250) + centre.normal(0, 1.5, 3)
        blur, grain = centre.uniform(0.1, 0.5) * self.size / 48, centre.uniform(1.5, 4.0)
        density = np.stack([haematoxylin, eosin], axis=-1) @ (strength[:, None] * stains).astype(np.float32)
        light = gaussian_filter(white.astype(np.float32) * np.exp(-density), (0, blur, blur, 0))
        light += grain * random.standard_normal(light.shape, dtype=np.float32)
        return np.asarray(np.clip(np.rint(light), 0, 255), dtype=np.uint8)
