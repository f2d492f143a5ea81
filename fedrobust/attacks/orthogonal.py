"""An attack on rules that use the last round's aggregate as a centre."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.attacks.attack import View
from fedrobust.attacks.crafting import CollusiveAttack
from fedrobust.attacks.rows import gram_of, mean_of, norm


class Rop(CollusiveAttack):
    """Relocated orthogonal perturbation (ROP): across the momentum, not against it (Özfatura et al., IEEE TIFS 2024).

    It sends π·v + (1 − π)·μ + z·δ·(sin θ·e + cos θ·r/‖r‖), with the last change v of the global model (in the first
    round μ), the reference r = λ·v + (1 − λ)·μ, and the unit vector e along (1, …, 1) without its part along r. So it
    pushes in the same direction in every round, at a right angle to the momentum, which it does not oppose. The root
    mean square distance δ of the reference rows from μ (of a single row: its norm) replaces the authors' absolute
    scale; λ, π and θ have the defaults of their code.
    """

    name: Literal["rop"] = "rop"
    knowledge: Literal["own", "all"] = "all"
    z: float = Field(default=1.0, gt=0)
    """The length of the perturbation, in δ."""
    reference: float = Field(default=0.9, ge=0, le=1)
    """λ: the share of the last step in the reference r."""
    relocation: float = Field(default=1.0, ge=0, le=1)
    """π: the share of the last step in the point that is perturbed."""
    angle: float = Field(default=90.0, ge=0, le=360)
    """θ between the perturbation and r, in degrees."""

    def wanted(self, view: View) -> np.ndarray:
        mean = mean_of(view.reference).astype(np.float64)
        step = mean if view.step is None else view.step.astype(np.float64)
        reference = self.reference * step + (1 - self.reference) * mean
        across = _without(np.ones_like(mean), reference)
        angle = np.radians(self.angle)
        turned = np.sin(angle) * _unit(across) + np.cos(angle) * _unit(reference)
        place = self.relocation * step + (1 - self.relocation) * mean
        with np.errstate(over="ignore"):
            return np.asarray(place + self.z * _spread(view) * turned, dtype=np.float32)


def _spread(view: View) -> float:
    """The root mean square distance of the reference rows from their mean; of a single row its norm."""
    if len(view.reference) == 1:
        return norm(view.reference[0])
    # Σ_ij ‖u_i − u_j‖² = 2m Σ_i ‖u_i − μ‖².
    return float(np.sqrt(gram_of(view.reference).distances_squared().mean() / 2))


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector


def _without(vector: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The part of `vector` at a right angle to `other`; zeros where that part is only rounding."""
    along = _unit(other)
    left = vector - (vector @ along) * along
    return left if np.linalg.norm(left) > 1e-12 * np.linalg.norm(vector) else np.zeros_like(vector)
