"""Attackers that send copies of other vectors."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.aggregation import ranking
from fedrobust.attacks.attack import View
from fedrobust.attacks.crafting import CollusiveAttack
from fedrobust.attacks.rows import Vectors, gram_of
from fedrobust.updates.threads import algebra


class Mimic(CollusiveAttack):
    """Mimic: all attackers copy one honest hospital, whose data then count too much (Karimireddy et al., ICLR 2022).

    By default it is the hospital whose update is furthest along the direction z in which the round's updates vary most:
    argmax_i |⟨u_i − μ, z⟩|, z the first eigenvector of their covariance. The paper learns z in a warm-up and then keeps
    its choice; here each round chooses anew. It does harm where hospitals differ.
    """

    name: Literal["mimic"] = "mimic"
    knowledge: Literal["all"] = "all"
    client: int | None = Field(default=None, ge=0)
    """The id of the hospital that is copied. null, or if it does not take part: the default hospital, see above."""

    def wanted(self, view: View) -> np.ndarray:
        ids = list(view.clients or ())
        if self.client in ids and view.others is not None:
            return view.others[ids.index(self.client)]
        return view.reference[furthest(view.reference)]


class FreeRider(CollusiveAttack):
    """Free riders: they do not train, and send a made-up update (Lin et al., 2019; Fraboni et al., AISTATS 2021).

    `zero`: zeros, the unchanged global model. `step`: the last change of the global model, which every client can
    compute (delta weights), with optional `noise` to look like training; zeros in the first round.
    """

    name: Literal["free_rider"] = "free_rider"
    knowledge: Literal["own"] = "own"
    """It sends only what every client knows."""
    update: Literal["zero", "step"] = "step"
    """The update that is sent."""

    def wanted(self, view: View) -> np.ndarray:
        if self.update == "zero" or view.step is None:
            return np.zeros(len(view.own[0]), dtype=np.float32)
        return np.asarray(view.step, dtype=np.float32)


def furthest(rows: Vectors) -> int:
    """The index of the row furthest from the mean along the first eigenvector of the covariance of the `rows`; of equal
    ones the first.
    """
    distances = gram_of(rows).distances_squared()
    centre = np.eye(len(distances)) - 1.0 / len(distances)
    with algebra():
        values, vectors = np.linalg.eigh(centre @ distances @ centre / -2.0)
    along = np.sqrt(max(values[-1], 0.0)) * np.abs(vectors[:, -1])
    return int(ranking(-along)[0])
