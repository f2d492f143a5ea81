"""Attackers that send what others made."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.aggregation import ranking
from fedrobust.aggregation.numerics import one_blas_thread
from fedrobust.attacks.attack import View
from fedrobust.attacks.crafting import CollusiveAttack
from fedrobust.attacks.rows import Vectors, gram_of


class Mimic(CollusiveAttack):
    """Mimic: all attackers copy one honest hospital, whose data then count too much (Karimireddy et al., ICLR 2022).

    By default the hospital that lies furthest along the direction z in which the round's updates vary most:
    argmax_i |⟨u_i − μ, z⟩|, z the first eigenvector of their covariance. The paper learns z in a warm-up and then keeps
    its choice; here it is made anew in each round. It does harm where hospitals differ.
    """

    name: Literal["mimic"] = "mimic"
    knowledge: Literal["all"] = "all"
    client: int | None = Field(default=None, ge=0)
    """The id of the hospital that is copied; null, or where it does not take part: the one described above."""

    def wanted(self, view: View) -> np.ndarray:
        ids = list(view.clients or ())
        if self.client in ids and view.others is not None:
            return view.others[ids.index(self.client)]
        return view.reference[furthest(view.reference)]


class FreeRider(CollusiveAttack):
    """Free riders: they do not train, and send a made-up update (Lin et al., 2019; Fraboni et al., AISTATS 2021).

    `zero`: nothing but zeros, the global model as it came. `step`: the last change of the global model, which every
    client can work out (delta weights), if wanted with `noise` to look like training; zeros in the first round.
    """

    name: Literal["free_rider"] = "free_rider"
    knowledge: Literal["own"] = "own"
    """What it sends is known to everyone."""
    update: Literal["zero", "step"] = "step"
    """What is sent."""

    def wanted(self, view: View) -> np.ndarray:
        if self.update == "zero" or view.step is None:
            return np.zeros(len(view.own[0]), dtype=np.float32)
        return np.asarray(view.step, dtype=np.float32)


def furthest(rows: Vectors) -> int:
    """The row furthest from the mean along the first eigenvector of the rows' covariance; of equals the first."""
    distances = gram_of(rows).distances_squared()
    centre = np.eye(len(distances)) - 1.0 / len(distances)
    with one_blas_thread():
        values, vectors = np.linalg.eigh(centre @ distances @ centre / -2.0)
    along = np.sqrt(max(values[-1], 0.0)) * np.abs(vectors[:, -1])
    return int(ranking(-along)[0])
