"""Attacks on the update: the rows that malicious hospitals send instead of their trained ones.

Notation: u_i is the update that attacker i trained, n the number of participants, f the number of attackers, μ and σ
the mean and the standard deviation (divisor m, as in ALIE's paper) per coordinate of the m rows of `View.reference`:
the honest rows with the knowledge `all`, the attackers' own trained rows with `own`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.attacks.attack import CraftedAttack, View
from fedrobust.attacks.rows import by_columns, noisy


class CollusiveAttack(CraftedAttack):
    """All of its hospitals send one row, with optional noise of its own for each.

    Exact copies are easy to detect, and cannot occur by chance.
    """

    noise: float = Field(default=0.0, ge=0)
    """Each hospital adds its own Gaussian noise, whose norm is this fraction of the row's norm; 0: no noise."""

    @abstractmethod
    def wanted(self, view: View) -> np.ndarray:
        """The row that all hospitals send before noise, (d,) float32; or (k, d), a row for each of them.

        view: what the hospitals of the attack see; it must not be changed.
        """

    def craft(self, view: View) -> np.ndarray:
        wanted = self.wanted(view)
        return noisy(np.broadcast_to(wanted, (view.f, wanted.shape[-1])), self.noise, view.generator)


class SignFlip(CollusiveAttack):
    """Sign flip: −s·u_i from each attacker with the knowledge `own`, −s·μ from all of them with `all`.

    With s > 1 the reversed update is enlarged too, e.g. Li et al., RSA, AAAI 2019.
    """

    name: Literal["sign_flip"] = "sign_flip"
    knowledge: Literal["own", "all"] = "own"
    scale: float = Field(default=1.0, gt=0)
    """The factor s."""

    def wanted(self, view: View) -> np.ndarray:
        if view.others is None:
            with np.errstate(over="ignore"):
                factor = np.float32(-self.scale)
                return np.array([row * factor for row in view.own], dtype=np.float32)
        return by_columns(view.reference, lambda rows: -self.scale * rows.mean(axis=0))


class Gaussian(CraftedAttack):
    """Gaussian noise: each row drawn anew from N(0, σ²) per coordinate (Blanchard et al., NeurIPS 2017)."""

    name: Literal["gaussian"] = "gaussian"
    knowledge: Literal["own"] = "own"
    """Noise does not need to see anything."""
    sigma: float = Field(default=1.0, gt=0)
    """Standard deviation per coordinate, in the units of an update."""

    def craft(self, view: View) -> np.ndarray:
        rows = view.generator.standard_normal((view.f, len(view.own[0])), dtype=np.float32)
        with np.errstate(over="ignore"):
            rows *= np.float32(self.sigma)
        return rows


class Alie(CollusiveAttack):
    """A little is enough (ALIE): μ ± z·σ from all attackers, hidden within the spread (Baruch et al., NeurIPS 2019).

    z defaults to the paper's Φ⁻¹((n − f − s) / (n − f)) with s = ⌊n/2⌋ + 1 − f, the largest shift at which s honest
    rows are still further out. It is small if few attack: 0 at n = 10, f = 2, below 0 at f = 1. Comparisons of defences
    often fix it, e.g. z = 1.5. With the knowledge `own`, μ and σ are estimated from the attackers' own trained rows as
    in the paper, which needs two of them: an attacker that is alone in a round sends its trained update.
    """

    name: Literal["alie"] = "alie"
    knowledge: Literal["own", "all"] = "all"
    z: float | None = None
    """The shift in standard deviations; null: the paper's formula."""
    direction: Literal["plus", "minus"] = "plus"
    """The side to which every coordinate is shifted."""

    def bound(self, attackers: int) -> str | None:
        return lone(self, attackers)

    def wanted(self, view: View) -> np.ndarray:
        z = largest_hidden_shift(view.n, view.f) if self.z is None else self.z
        shift = z if self.direction == "plus" else -z
        return by_columns(view.reference, lambda rows: rows.mean(axis=0) + shift * rows.std(axis=0))


class Ipm(CollusiveAttack):
    """Inner product manipulation (IPM): −ε·μ from all attackers (Xie, Koyejo, Gupta, UAI 2020).

    A small ε hides among the honest rows and defeats distance-based rules; ε > (n − f)/f reverses even the mean.
    """

    name: Literal["ipm"] = "ipm"
    knowledge: Literal["own", "all"] = "all"
    epsilon: float = Field(default=0.5, gt=0)
    """The factor ε."""

    def wanted(self, view: View) -> np.ndarray:
        return by_columns(view.reference, lambda rows: -self.epsilon * rows.mean(axis=0))


class NonFinite(CraftedAttack):
    """Broken numbers: the trained update with one random coordinate that is not finite, or hardly finite.

    One coordinate is enough to ruin a mean, and the hardest to notice. It models faults as well as malice.
    """

    name: Literal["non_finite"] = "non_finite"
    knowledge: Literal["own"] = "own"
    """It needs only its own update."""
    kind: Literal["nan", "inf", "overflow"] = "nan"
    """`overflow` is the largest finite float32: it passes a check for finite rows, and any arithmetic overflows."""

    def craft(self, view: View) -> np.ndarray:
        rows = np.array(view.own, dtype=np.float32)
        value = {"nan": np.nan, "inf": np.inf, "overflow": float(np.finfo(np.float32).max)}[self.kind]
        rows[np.arange(view.f), view.generator.integers(rows.shape[1], size=view.f)] = value
        return rows


def largest_hidden_shift(n: int, f: int) -> float:
    """ALIE's z = Φ⁻¹((n − f − s) / (n − f)), s = ⌊n/2⌋ + 1 − f.

    n: number of participants. f: number of attackers.

    Attackers that have a majority alone (s < 1) use s = 1. With fewer than two honest rows the formula has no value,
    and the result is 0.
    """
    from scipy.stats import norm  # slow to import

    if n - f < 2:
        return 0.0
    supporters = max(1, n // 2 + 1 - f)
    return float(norm.ppf((n - f - supporters) / (n - f)))


def lone(attack: CraftedAttack, attackers: int) -> str | None:
    """Why so few hospitals cannot estimate the spread of the updates from their own; None where they can.

    attack: the attack.
    attackers: number of its hospitals.
    """
    if attack.knowledge == "own" and attackers < 2:
        needed = "needs at least 2 attackers to estimate a spread"
        return f"{attack.name} with the knowledge own {needed}; found {attackers}"
    return None
