"""Anomaly scores: how far each update is from the majority, computed from the Gram matrix alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrobust.aggregation import Context, Gram
from fedrobust.aggregation import outlyingness as far
from fedrobust.options import Many, Options
from fedrobust.updates import Demand


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a round's rows.

    score: (n,) float64 in [0, 1], one for each row.
    parts: name → (n,), the parts that the score is made of, on the same scale.
    state: arrays that the detector gets back in the next round as `Context.state`; they go into the checkpoint.
    """

    score: np.ndarray
    parts: dict[str, np.ndarray]
    state: Mapping[str, np.ndarray] = field(default_factory=dict)


class Detector(Options):
    """Scores the updates of a round: 0 is ordinary, 1 is as unusual as possible.

    Pure: what it remembers is passed in and returned.
    """

    name: str

    own_patches: ClassVar[bool] = False
    """Whether it needs patches of the coordinator's own, for `Context.descents`."""
    remembers: ClassVar[bool] = False
    """Whether it remembers clients; one with histories does."""

    @property
    def histories(self) -> tuple[str, ...]:
        """The histories of the clients' rows that it needs in the Gram; see `Updates.remembered`."""
        return ()

    def vectors(self, context: Context) -> dict[str, np.ndarray]:
        """The public vectors that it needs in the Gram: name → (d,); as many as `demand` says, at most."""
        return {}

    def demand(self, labels: int = 0) -> Demand:
        """What it asks of the updates: protocols that hide them open no more than that.

        labels: of the coordinator's own patches; 0 where they are not known yet.
        """
        return Demand(frozenset({"gram"}), 0, self.histories)

    @abstractmethod
    def score(self, gram: Gram, context: Context) -> Scores:
        """The scores of the n rows.

        gram: of the rows, which are finite, with the histories and vectors that the detector needs.
        context: what is public in this round; `state` is that of the detector's own last `Scores`.
        """


class Unscored(Detector):
    """Scores nobody: all scores are 0.

    Under secret shares, with a rule that needs no more, the servers then open nothing of the updates but their sum.
    """

    name: Literal["none"] = "none"

    def demand(self, labels: int = 0) -> Demand:
        return Demand()

    def score(self, gram: Gram, context: Context) -> Scores:
        return Scores(np.zeros(gram.n), {})


AVERAGE = "average_"
"""The prefix of parts that look at the moving averages of the clients' updates."""

RobustZPart = Literal[
    "norm",
    "cosine",
    "agreement",
    "neighbours",
    "spectral",
    "duplicates",
    "consistency",
    "average_cosine",
    "average_agreement",
    "average_neighbours",
    "average_spectral",
    "average_duplicates",
]
"""The parts that `RobustZ` can use."""


class RobustZ(Detector):
    """Outlyingness by robust z-scores of whichever `parts` are named: norms, directions, distances, the past.

    z = (x − median) / (1.4826 · MAD) (Iglewicz and Hoaglin, 1993) of
    - `norm`: ‖u_i‖, both sides;
    - `cosine`: the cosine between u_i and the geometric median of all rows, low ones;
    - `agreement`: the median cosine between u_i and the other rows, low ones. Up to half of all rows cannot raise it
      by being equal, whereas 8 of 20 may determine the geometric median;
    - `neighbours`: the distance to the ⌊n/2⌋-th nearest other row, large ones. A minority of equal rows is too small
      to make it small;
    - `spectral`: how far out u_i is along the direction in which most rows vary (the first spherical principal
      component), both sides: rows that collude add up in it;
    - `duplicates`: ln of the distance to the nearest other row, all of length 1, small ones: copies, with noise on them
      or not, of any length. A hospital whose update is copied looks like a copy, too;
    - `consistency`: the cosine between u_i and the average of the client's earlier updates, low ones;
    - `average_cosine`, `average_agreement`, `average_neighbours`, `average_spectral`, `average_duplicates`: the same of
      the moving averages of the clients' updates, up to the last round. The constant part of a client's updates stays
      in them, its noise does not. So a malicious part behind fresh noise shows here after some rounds, and so does a
      constant peculiarity of an honest client.
    A new client has no past, and 0 in the parts that need one. See `fedrobust.aggregation.outlyingness` for formulas.

    A part is z² / (z² + cutoff²); the score is the largest part, so that the reason can be seen. Prior weights are not
    used: a sample count is the client's own claim.

    It measures how unusual an update is, not malice. An honest hospital with rare data is unusual too; a malicious
    update within the spread of the honest ones (ALIE, a small IPM among heterogeneous hospitals) need not be. Each
    further part finds more attackers and more honest hospitals.
    """

    name: Literal["robust_z"] = "robust_z"
    parts: Many[RobustZPart] = Field(default=("norm", "cosine", "neighbours"), min_length=1)
    """The measures that it uses."""
    cutoff: float = Field(default=3.5, gt=0)
    """The z that scores one half."""
    floor: float = Field(default=0.05, gt=0)
    """The least spread, as a share of the median norm or distance, and as a cosine: rows that agree score low."""

    @property
    def histories(self) -> tuple[str, ...]:
        """The averages, if a part uses them."""
        past = any(part == "consistency" or part.startswith(AVERAGE) for part in self.parts)
        return ("average",) if past else ()

    def demand(self, labels: int = 0) -> Demand:
        return Demand(frozenset({"norms" if set(self.parts) == {"norm"} else "gram"}), 0, self.histories)

    def score(self, gram: Gram, context: Context) -> Scores:
        """The scores. With fewer than three rows there is no majority, and all are 0."""
        z: dict[str, np.ndarray] = {part: self._z(part, gram) for part in self.parts}
        parts = {part: 1.0 - 1.0 / (1.0 + (values / self.cutoff) ** 2) for part, values in z.items()}
        return Scores(np.max(list(parts.values()), axis=0), parts)

    def _z(self, part: str, gram: Gram) -> np.ndarray:
        """The z (n,) of a part; 0 on the side that is not suspicious."""
        if gram.n < 3 or not gram.norms().any():
            return np.zeros(gram.n)
        unit = far.typical_norm(gram)
        if part.startswith(AVERAGE):
            averages, known = far.of_history(gram, gram.histories["average"])
            z = np.zeros(gram.n)
            z[known] = self._z(part.removeprefix(AVERAGE), averages)
            return z
        if part == "norm":
            return np.abs(far.robust_z(gram.norms(), self.floor * unit))
        if part == "spectral":
            return far.robust_z(far.spectral_deviations(gram), self.floor * unit, centre=0.0)
        if part == "neighbours":
            values = far.neighbour_distances(gram)
            # Equal float32 rows differ by rounding.
            floor = max(self.floor * float(np.median(values)), far.NEGLIGIBLE * unit)
        else:
            values, floor = _relative(part, gram), self.floor
        return np.maximum(far.robust_z(values, floor), 0.0)


def _relative(part: str, gram: Gram) -> np.ndarray:
    """The figures (n,) of a part that has no unit."""
    if part == "cosine":
        return far.cosine_distances_to_centre(gram)
    if part == "agreement":
        return far.disagreements(gram)
    if part == "duplicates":
        return far.closeness(gram)
    return far.turns_from_past(gram, gram.histories["average"])


def detection(scores: np.ndarray, suspected: np.ndarray, malicious: np.ndarray) -> dict[str, float]:
    """How well scores and suspicions match the truth: `precision`, `recall` and `auroc`.

    scores: (n,) anomaly scores; `auroc` is the chance that a malicious client has a higher score than an honest one,
        ties counting one half.
    suspected: (n,) bool.
    malicious: (n,) bool.

    A measure without a value is left out: `precision` where nobody is suspected, `recall` where nobody is malicious,
    `auroc` where all clients are malicious or none is. So with no malicious client, the only possible entry is a
    `precision` of 0.
    """
    hits = float(np.sum(suspected & malicious))
    found: dict[str, float] = {}
    if suspected.any():
        found["precision"] = hits / float(suspected.sum())
    if malicious.any():
        found["recall"] = hits / float(malicious.sum())
    if malicious.any() and not malicious.all():
        bad, good = scores[malicious][:, None], scores[~malicious]
        found["auroc"] = float(np.mean((bad > good) + 0.5 * (bad == good)))
    return found
