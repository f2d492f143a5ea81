"""An anomaly score that asks whether any mix of labels explains a client's updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.optimize import nnls

from fedrobust.aggregation import Context, Gram
from fedrobust.options import OneOf
from fedrobust.trust.anomaly import Detector, Scores
from fedrobust.trust.consensus import Consensus
from fedrobust.updates import Demand, Floats

PREFIX = "descent "
"""Names of the anchors: this, and the place of the label among those of the coordinator's patches."""
STEEPNESS = 16
"""The power of a round's median cosine in its weight: at 0.9 a fifth of what it is at 1, at 0.7 a three hundredth."""


class LabelMix(Detector):
    """Scores clients whose updates no mix of labels explains, by the coordinator's own patches.

    g_c is the direction in which the loss of the coordinator's patches of label c falls. What a hospital trains on is
    some mix of labels, so its update points into the cone of the g_c, whatever the mix. How well that explains it is

        p_i = max cos(u_i, Σ_c a_c g_c) over all a ≥ 0,

    so a hospital with patches of one label is explained as well as any other, whereas an update against the others, or
    of noise, is not explained by any mix. As the model learns, the p of honest hospitals fall, and some fall below
    those of patient liars. And where the g_c are nearly opposite, as in the first steps from a model that prefers one
    label, the cone explains the opposite of an update as well. So rounds count in which most updates are explained, and
    their opposites are not: the average of a client is Σ w p / Σ w, w = m¹⁶ max(0, m − m⁻), with m the median p of the
    round and m⁻ that of the −u_i; earlier rounds lose weight by `forgetting`. With x the share by which the average is
    below the median of all, the part `label_mix` is x² / (x² + cutoff²).

    Flipped labels look like another mix, and are for the `other` detector. It scores the clients whose `label_mix` is
    below one half, as if there were no others; the score is the larger one. The Gram matrix and the products with the
    g_c suffice. Without such directions, as where an attacker asks for the scores of what it
    has in mind, the other detector scores alone.

    With one direction for all labels it would be the trust score of FLTrust (Cao et al., NDSS 2021), which gives
    hospitals with few labels little; a direction for each label, and the average, are this project's.
    """

    name: Literal["label_mix"] = "label_mix"
    forgetting: float = Field(default=0.98, gt=0, le=1)
    """The factor on earlier rounds; 1 forgets nothing."""
    cutoff: float = Field(default=0.5, gt=0, lt=1)
    """The share below the median average that scores one half."""
    other: Annotated[Detector, OneOf(Detector)] = Consensus()
    """Another detector, for what a mix of labels explains."""

    own_patches: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    @property
    def histories(self) -> tuple[str, ...]:
        return self.other.histories

    def vectors(self, context: Context) -> dict[str, np.ndarray]:
        own = () if context.descents is None else context.descents
        return self.other.vectors(context) | {f"{PREFIX}{place}": each for place, each in enumerate(own)}

    def demand(self, labels: int = 0) -> Demand:
        return Demand(frozenset({"norms"}), labels) | self.other.demand(labels)

    def score(self, gram: Gram, context: Context) -> Scores:
        """The scores. With fewer than three rows there is no majority, and the part `label_mix` is 0."""
        if context.descents is None:
            return self.other.score(gram, context)
        part, own = self._unexplained(gram, context) if gram.n >= 3 else (np.zeros(gram.n), {})
        kept = np.flatnonzero(part < 0.5)
        clients = np.arange(gram.n) if context.clients is None else context.clients
        left = gram.mixed(np.eye(gram.n)[kept])
        found = self.other.score(left, replace(context, clients=clients[kept]))
        others = {name: np.zeros(gram.n) for name in found.parts}
        for name, values in found.parts.items():
            others[name][kept] = values
        score = part.copy()
        score[kept] = np.maximum(part[kept], found.score)
        return Scores(score, {"label_mix": part, **others}, {**found.state, **own})

    def _unexplained(self, gram: Gram, context: Context) -> tuple[Floats, dict[str, np.ndarray]]:
        """The part `label_mix` (n,), and what is remembered."""
        descents = np.asarray(context.descents, dtype=np.float64)
        products = np.stack([gram.anchors[f"{PREFIX}{place}"].products for place in range(len(descents))], axis=1)
        spanned, norms = descents @ descents.T, gram.norms()
        explained = cone_cosines(products, spanned, norms)
        usual, opposite = float(np.median(explained)), float(np.median(cone_cosines(-products, spanned, norms)))
        weight = max(usual, 0.0) ** STEEPNESS * max(usual - opposite, 0.0)
        total = self.forgetting * context.recalled("explained", gram.n) + weight * explained
        weights = self.forgetting * context.recalled("weights", gram.n) + weight
        own = {"explained": context.remembered("explained", total), "weights": context.remembered("weights", weights)}
        average = np.divide(total, weights, out=np.ones(gram.n), where=weights > 0)
        middle = float(np.median(average))
        if middle <= 0:
            return np.zeros(gram.n), own
        below = np.where(weights > 0, np.clip(1.0 - average / middle, 0.0, 1.0), 0.0)
        return below**2 / (below**2 + self.cutoff**2), own


def cone_cosines(products: Floats, gram: Floats, norms: Floats) -> Floats:
    """(n,) the largest cosine of each of n vectors with a vector of a cone; 0 for a vector of zeros.

    products: (n, L) of the vectors with those that span the cone.
    gram: (L, L) products of the latter with each other.
    norms: (n,) of the vectors.
    """
    lengths = np.sqrt(np.maximum(np.diag(gram), 0.0))
    used = lengths > 0
    found = np.zeros(len(norms))
    if not used.any():
        return found
    unit = gram[np.ix_(used, used)] / np.outer(lengths[used], lengths[used])
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.nan_to_num(products[:, used] / lengths[used] / norms[:, None], posinf=0.0, neginf=0.0)
    values, vectors = np.linalg.eigh(unit)
    values = np.maximum(values, 0.0)
    root = (vectors * np.sqrt(values)) @ vectors.T
    back = (vectors * np.divide(1.0, np.sqrt(values), out=np.zeros_like(values), where=values > 1e-12)) @ vectors.T
    for row, cosine in enumerate(cosines):
        # The projection onto the cone; outside of its polar cone it has the largest cosine.
        found[row] = (
            np.sqrt(max(float(nnls(root, back @ cosine)[0] @ cosine), 0.0)) if cosine.max() > 0 else cosine.max()
        )
    return np.minimum(found, 1.0)
