"""The referee: the coordinator's own patches choose between hypotheses about who lies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrobust.aggregation.numerics import shrink
from fedrobust.arrays import Arrays
from fedrobust.options import Many, Options
from fedrobust.updates import Floats, Gram

DEFENCE = "defence"
"""The hypothesis that the defence is right: its own aggregate."""
LEAST = 3
"""Updates that a hypothesis must rest on."""
WORST = 50.0
"""The largest loss of a patch: of a probability below 1e-21, and of models that are not finite."""

AVERAGE = "average"
"""In the evidence: the moving average of the losses of the models that were not refused."""
REFERENCE = "reference"
"""In the evidence: the lowest such average so far."""
REPAIRED = "repaired"
"""In the evidence: that the model was trained on the patches."""
OF_MODELS = (AVERAGE, REFERENCE, REPAIRED)
LATELY = 0.25
"""A hypothesis whose remembered refusals are more than this many was refused lately."""

Hypothesis = Literal["mean", "rest", "ordinary"]
Openings = Literal["together", "in_turn"]


@dataclass(frozen=True, eq=False)
class Ruling:
    """What the referee found in a round."""

    chosen: str
    """The hypothesis whose aggregate is used."""
    losses: dict[str, float]
    """Hypothesis → the loss of the model after its aggregate, each label counting the same."""
    certainty: dict[str, float]
    """Hypothesis → by how many standard errors it is better: together, than the defence, over the last rounds; in turn,
    than the model before it and than the reference, the less of the two."""
    evidence: Arrays
    """For the next round: `AVERAGE` and `REFERENCE` → (m,); `REPAIRED` → (), if it was. Together: hypothesis → (m,) how
    much less it loses at each patch than the defence. In turn: hypothesis → () how often it was refused lately."""
    refused: bool
    """Whether no aggregate is used."""
    good: bool
    """Whether the model after the aggregate loses no more than the reference."""


class Referee(Options):
    """The coordinator tries more than one aggregate on patches of its own, and takes another than the defence's if that
    is better beyond doubt.

    Hypotheses are weights of the updates. `defence` is what stages and rule decide; `mean` believes all: the mean of
    the updates, cut to their median norm; `rest` believes those that the defence gives less than half of an equal
    share; `ordinary` those that the anomaly detector scores below one half. With l_k(x) the loss at patch x of the
    model after the aggregate of hypothesis k,

        e_k(x) ← `memory` · e_k(x) + l_defence(x) − l_k(x),

    and hypothesis k replaces the defence where the mean of e_k, each label counting the same, is more than `certainty`
    standard errors above zero, and the mean of this round's differences is not as far below it: what was better once,
    by much, may be worse now. Of several, the one with the largest mean is taken. Where the loss after the defence's
    aggregate is above that of the model before it, the defence has no benefit of the doubt: of the hypotheses that are
    not as far below zero in this round, the one with the largest mean is taken, if that is above zero.

    An aggregate is refused where the loss after it is more than `tolerance` standard errors above that of the model
    before it, or above the reference. The reference is an average over rounds, and not the best model so far, which is
    the best by luck: honest rounds would be refused for being worse. With l(x) the loss after the aggregate that is
    taken,

        a(x) ← `memory` · a(x) + (1 − `memory`) · l(x),

    and the reference is the a with the lowest mean so far, so that a series of small lies leads no further away from it
    than doubt. Doubt is what differs between patients: of fifteen, a model may fail at three within two standard
    errors, however badly. A refused hypothesis is not taken; where the defence is refused, the one with the largest
    mean of those that are not is. Where all are refused, the last model comes back that lost no more than the
    reference, and the round is no evidence.

    Patches of one patient count as one draw in the standard error; what differs between labels is no doubt. It is rough
    for few patients: with three, chance passes two standard errors in one of ten comparisons. Wrong labels are not
    noticed.

    So it is where several sums of the same updates can be computed (`together`). Secret shares and masks open one sum
    in a round, and two sums of the same updates might differ by a single one of them. There, hypotheses are opened
    `in_turn`: one in a round. Where it is refused, the model stays as it was; so what is better than the model before
    it is not refused for being above the reference, or training would end. With r_k the refusals of hypothesis k,

        r_k ← `memory` · r_k, and + 1 where k was opened and refused,

    the first hypothesis that was not refused in the last round and has r_k ≤ ¼ is opened, the defence before the
    others; where there is none, that with the least r_k. So a hypothesis that was refused is tried again after seven or
    eight rounds.

    Validation by the server's own data: Zeno (Xie et al., ICML 2019), FLTrust (Cao et al., NDSS 2021); as a choice
    between hypotheses, this project's.
    """

    hypotheses: Many[Hypothesis] = ("mean", "rest", "ordinary")
    """What is tried besides the defence."""
    certainty: float = Field(default=2.0, ge=0)
    """Standard errors by which another hypothesis must be better."""
    tolerance: float = Field(default=2.0, ge=0)
    """Standard errors by which the loss after an aggregate may be above that of the model before it and the
    reference."""
    memory: float = Field(default=0.8, ge=0, lt=1)
    """The factor on the evidence of earlier rounds, and on the average of the reference."""
    openings: Openings | None = None
    """`together`: the sums of all hypotheses are computed in each round; `in_turn`: one sum is. null: in turn under
    protocols that open one sum, else together."""

    def in_turn(self, reveals: frozenset[str]) -> bool:
        """Whether one sum is opened in a round.

        reveals: what the protocol reveals.
        """
        return self.openings == "in_turn" or (self.openings is None and "rows" not in reveals)

    def weights(self, gram: Gram, prior: Floats, defence: Floats | None, scores: Floats) -> dict[str, Floats]:
        """The weights (n,) of the updates under each hypothesis that rests on enough of them.

        gram: of the n updates.
        prior: (n,) their weights before any is judged.
        defence: (n,) those that the defence gives them; None if it gives none.
        scores: (n,) anomaly scores.
        """
        return weights_of(self.hypotheses, gram, prior, defence, scores)

    def choose(
        self,
        before: Floats,
        losses: Mapping[str, Floats],
        labels: NDArray[np.int64],
        patients: NDArray[np.int64],
        evidence: Arrays,
        refuses: bool = True,
    ) -> Ruling:
        """Which hypothesis is used, or whether none is.

        before: (m,) the loss at each patch of the model before the round.
        losses: hypothesis → (m,) that of the model after its aggregate; `DEFENCE` is one of them.
        labels: (m,) of the patches.
        patients: (m,) the number of the patient of each.
        evidence: of the last round; empty at first.
        refuses: whether none may be.
        """
        bounded = {name: _bounded(each) for name, each in losses.items()}
        own = bounded[DEFENCE]
        after, certainty, gains, sure, worse = {}, {}, {DEFENCE: 0.0}, list[str](), list[str]()
        for name in sorted((set(evidence) - set(OF_MODELS)) | (set(bounded) - {DEFENCE})):
            # A hypothesis that could not be tried in this round says nothing new.
            new = own - bounded[name] if name in bounded else np.zeros(len(own))
            after[name] = self.memory * evidence.get(name, np.zeros(len(own))) + new
            gain, certainty[name] = compared(after[name], labels, patients)
            if name in bounded:
                gains[name] = gain
                worse += [name] if compared(new, labels, patients)[1] < -self.certainty else []
                sure += [name] if certainty[name] > self.certainty and name not in worse else []
        share, models = shares(labels), self._models(before, evidence)
        rises = {name: self._rise(before, each, labels, patients, models, True) for name, each in bounded.items()}
        usable = [name for name, rise in rises.items() if rise <= self.tolerance or not refuses]
        doubtful = REPAIRED not in models and share @ (own - _bounded(before)) > 0
        preferred = [name for name in usable if name in sure]
        if not preferred and DEFENCE in usable:
            preferred = [name for name in usable if name not in worse] if doubtful else [DEFENCE]
        preferred = preferred or usable
        chosen = max(preferred, key=lambda name: gains[name], default=DEFENCE)
        if not usable:  # it says nothing of rounds in which not all lie: one of them would weigh as ten others
            after = {name: self.memory * evidence.get(name, np.zeros(len(own))) for name in after}
        kept, good = self._after(models, bounded[chosen] if usable else None, share)
        means = {name: float(share @ each) for name, each in bounded.items()}
        return Ruling(chosen, means, certainty, after | kept, not usable, good)

    def turn(self, names: Sequence[str], evidence: Arrays) -> str:
        """The hypothesis whose sum is opened in this round, if it is one.

        names: those that can be, the preferred one first.
        evidence: of the last round; empty at first.
        """
        refusals = {name: float(evidence.get(name, np.zeros(()))) for name in names}
        trusted = [name for name in names if refusals[name] < 1.0 and self.memory * refusals[name] <= LATELY]
        return trusted[0] if trusted else min(names, key=lambda name: refusals[name])

    def judged(
        self,
        name: str,
        before: Floats,
        losses: Floats,
        labels: NDArray[np.int64],
        patients: NDArray[np.int64],
        evidence: Arrays,
    ) -> Ruling:
        """Whether the one sum that was opened in a round changes the model.

        name: of its hypothesis.
        before, losses: (m,) the loss at each patch of the model before it and after it.
        labels, patients: as for `choose`.
        evidence: of the last round; empty at first.
        """
        new, share, models = _bounded(losses), shares(labels), self._models(before, evidence)
        rise = self._rise(before, new, labels, patients, models, False)
        refused = rise > self.tolerance
        refusals = {each: self.memory * count for each, count in evidence.items() if each not in OF_MODELS}
        refusals[name] = refusals.get(name, np.zeros(())) + float(refused)
        kept, good = self._after(models, None if refused else new, share)
        return Ruling(name, {name: float(share @ new)}, {name: -rise}, refusals | kept, refused, good)

    def _models(self, before: Floats, evidence: Arrays) -> Arrays:
        """What the evidence says of earlier models; at first, the losses `before` the round are all that is known."""
        first = _bounded(before)
        return {AVERAGE: first, REFERENCE: first} | {each: evidence[each] for each in OF_MODELS if each in evidence}

    def _rise(
        self,
        before: Floats,
        new: Floats,
        labels: NDArray[np.int64],
        patients: NDArray[np.int64],
        models: Arrays,
        comes_back: bool,
    ) -> float:
        """By how many standard errors the losses `new` are above those of the model before the round or the reference,
        the more of the two.

        comes_back: whether a good model comes back after a refusal. Where none does, a model that is better than the
            one before it is not refused, or training would end where a model is above the reference.
        """
        rise = compared(new - models[REFERENCE], labels, patients)[1]
        if REPAIRED in models:
            return rise
        step = compared(new - _bounded(before), labels, patients)
        return step[1] if step[0] < 0 and not comes_back else max(rise, step[1])

    def _after(self, models: Arrays, new: Floats | None, share: Floats) -> tuple[Arrays, bool]:
        """What the next round is compared with, and whether the model loses no more than the reference.

        models: see `_models`.
        new: (m,) the losses of the model after the aggregate; None if that was refused.
        """
        good = new is not None and bool(share @ new <= share @ models[REFERENCE])
        if new is None or REPAIRED in models:
            return models, good
        average = self.memory * models[AVERAGE] + (1 - self.memory) * new
        lower = share @ average < share @ models[REFERENCE]
        return models | {AVERAGE: average, REFERENCE: average if lower else models[REFERENCE]}, good

    def after_repair(self, losses: Floats, labels: NDArray[np.int64], evidence: Arrays) -> Arrays:
        """The evidence after the coordinator has trained the model on its patches. The losses of later models at these
        patches are smaller than at others: from then on, only repaired models make the reference, and no model is
        compared with the one before it.

        losses: (m,) at each patch of a model that was trained on other patients' patches.
        labels: (m,) of the patches.
        evidence: before it.
        """
        own, share = _bounded(losses), shares(labels)
        if REFERENCE not in evidence:  # no round was judged before
            return evidence | {AVERAGE: own, REFERENCE: own, REPAIRED: np.ones(())}
        reference = own if share @ own < share @ evidence[REFERENCE] else evidence[REFERENCE]
        return evidence | {REFERENCE: reference, REPAIRED: np.ones(())}


def _bounded(losses: Floats) -> Floats:
    return np.minimum(np.nan_to_num(losses, nan=WORST), WORST)


def shares(labels: NDArray[np.int64]) -> Floats:
    """(m,) the weight of each patch in a mean in which each label counts the same."""
    return np.asarray(1.0 / np.bincount(labels)[labels] / len(np.unique(labels)))


def compared(differences: Floats, labels: NDArray[np.int64], patients: NDArray[np.int64]) -> tuple[float, float]:
    """The mean of paired differences, each label counting the same, and by how many standard errors it is above zero.

    differences: (m,) one for each patch.
    labels: (m,) of the patches.
    patients: (m,) the number of the patient of each: patches of a patient count as one draw. What differs between
        labels is no doubt, so each label has a mean of its own, if it has more than one patient. Of a single patient,
        the mean is certain of nothing: 0 standard errors.
    """
    share = shares(labels)
    mean, count = float(share @ differences), len(np.unique(patients))
    centres, strata = np.full(len(labels), mean), 0
    for label in np.unique(labels):
        own = labels == label
        if len(np.unique(patients[own])) > 1:
            centres[own], strata = differences[own].mean(), strata + 1
    sums = np.bincount(patients, share * (differences - centres))
    spread = float(np.sqrt(sums @ sums * count / max(count - max(strata, 1), 1)))
    if count < 2 or mean == 0:
        return mean, 0.0
    return mean, mean / spread if spread > 0 else float(np.copysign(np.inf, mean))


def weights_of(
    hypotheses: Collection[Hypothesis], gram: Gram, prior: Floats, defence: Floats | None, scores: Floats
) -> dict[str, Floats]:
    """The weights (n,) of the updates under each of some hypotheses; other arguments as for `Referee.weights`."""
    believed: dict[str, NDArray[np.bool_]] = {}
    if "mean" in hypotheses:
        believed["mean"] = np.ones(gram.n, dtype=bool)
    if "rest" in hypotheses and defence is not None:
        shares = defence / max(float(defence.sum()), 1e-12)
        believed["rest"] = shares < 0.5 / gram.n
    if "ordinary" in hypotheses:
        believed["ordinary"] = scores < 0.5
    norms = gram.norms()
    found = {}
    for name, rows in believed.items():
        if rows.sum() >= LEAST:
            own = np.where(rows, prior, 0.0)
            found[name] = own / own.sum() * shrink(norms, float(np.median(norms[rows])))
    return found
