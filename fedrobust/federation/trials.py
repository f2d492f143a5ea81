"""The coordinator's own patches at work: they choose between aggregates, and repair the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation import Aggregated, Decision
from fedrobust.arrays import Arrays, Vector
from fedrobust.data.root import RootPatches
from fedrobust.experiment import Experiment
from fedrobust.records import Fields
from fedrobust.secure.ring import Words
from fedrobust.secure.weights import MIN_SUPPORT, OpeningError, least_support, shortened
from fedrobust.timeline import step
from fedrobust.trust.defence import Judgement
from fedrobust.trust.referee import DEFENCE, REFERENCE, REPAIRED, Ruling
from fedrobust.updates import Combination, Floats, Updates
from fedrobust.updates.interface import not_revealed


class Trials:
    """Referee and repair of an experiment, with the patches that they use.

    experiment: has one of them, or both.
    root: the patches.
    evidence: of the rounds before.
    opened: (k, clients) under "weights", those of the sums that were opened since the model last changed.
    good: (d,) the last model that lost no more than the referee's reference, where that is remembered.
    """

    def __init__(
        self, experiment: Experiment, root: RootPatches, evidence: Arrays, opened: Arrays, good: Vector | None = None
    ) -> None:
        from fedrobust.federation.root_model import RootModel  # torch is slow to import, and needed only here

        self._referee, self._repair = experiment.trust.referee, experiment.trust.repair
        self._detector = experiment.trust.detector
        self._rounds = experiment.federation.rounds
        self._root, self.evidence, self.opened = root, dict(evidence), dict(opened)
        self.good: Vector | None = good
        self._clients, self._turn = experiment.federation.clients, DEFENCE
        self._least = max(MIN_SUPPORT, experiment.privacy.support)
        self.in_turn = self._referee is not None and self._referee.in_turn(experiment.privacy.reveals)
        # In groups drawn anew, hospitals that train one model again would show single updates.
        self._refuses = self.in_turn or experiment.privacy.single
        self._model = RootModel(experiment.learning, root, experiment.seed, experiment.workers.threads)

    def descents(self, weights: Vector) -> NDArray[np.float32] | None:
        """(labels, d) see `Context`, at the global model `weights` (d,); None if the detector does not need them."""
        if not self._detector.own_patches:
            return None
        with step("descents"):
            return self._model.descents(weights)

    def chosen(
        self,
        own: Aggregated,
        judgement: Judgement,
        updates: Updates,
        before: Vector,
        after: Callable[[Vector], Vector],
    ) -> tuple[Aggregated, Ruling | None]:
        """The aggregate that is used unless it is refused, and the referee's ruling, if there is a referee.

        own: the defence's.
        judgement: the defence's.
        updates: of the round.
        before: the model (d,) before the round.
        after: an aggregate (d,) → the model after it.
        """
        if self._referee is None:
            return own, None
        found = self._referee.weights(judgement.gram, updates.prior, own.weights, judgement.scores.score)
        candidates = candidates_of(own, updates, found)
        losses = {name: self._model.losses(after(each.aggregate)) for name, each in candidates.items()}
        old = self._model.losses(before)
        patches = self._root.labels, self._root.patients
        ruling = self._referee.choose(old, losses, *patches, self.evidence, self._refuses)
        if REFERENCE not in self.evidence:
            self.good = before
        if ruling.good:
            self.good = after(candidates[ruling.chosen].aggregate)
        self.evidence = ruling.evidence
        return candidates[ruling.chosen], ruling

    def after_refusal(self, before: Vector) -> Vector:
        """The model (d,) after a round whose aggregate was refused: the last good one. As before the round, where sums
        are opened in turn, because the hospitals would train one model more often, and after a repair, because the good
        one is older than it.

        before: the model (d,) before the round.
        """
        return before if self.good is None or REPAIRED in self.evidence else self.good

    def turn(self, judgement: Judgement, decision: Decision, updates: Updates) -> Decision:
        """What is opened where one sum is opened in a round: the defence's decision, or another hypothesis'.

        judgement, decision: the defence's.
        updates: of the round.
        """
        assert self._referee is not None
        decided = decision.decided
        own = decided.weights if isinstance(decided, Combination) else None
        others = dict[str, Floats]()
        if not not_revealed(frozenset({"norms"}), updates.reveals):
            clients = judgement.context.clients
            found = self._referee.weights(judgement.gram, updates.prior, own, judgement.scores.score)
            others = {name: weights for name, weights in found.items() if self._may_open(weights, own, clients)}
        self._turn = self._referee.turn([DEFENCE, *others], self.evidence)
        if self._turn == DEFENCE:
            return decision
        weights = others[self._turn]
        if isinstance(decided, Combination):
            return replace(decision, decided=replace(decided, weights=weights, anchors={}))
        return replace(decision, decided=Combination(weights))

    def judged(self, aggregated: Aggregated, judgement: Judgement, before: Vector, after: Vector) -> Ruling:
        """Whether the sum of `turn` changes the model.

        aggregated: the sum.
        judgement: the defence's.
        before, after: the models (d,) without it and with it.
        """
        assert self._referee is not None
        losses = self._model.losses(before), self._model.losses(after)
        ruling = self._referee.judged(self._turn, *losses, self._root.labels, self._root.patients, self.evidence)
        self.evidence = ruling.evidence
        if not ruling.refused:
            self.opened = {}
        elif aggregated.weights is not None:
            new = self._of_all(aggregated.weights, judgement.context.clients)
            self.opened = {"weights": np.vstack([*self._earlier(), new])}
        return ruling

    def _may_open(self, weights: Floats, own: Floats | None, clients: NDArray[np.int64] | None) -> bool:
        """Whether a sum with these weights rests on enough updates, and each combination of it with the defence's sum,
        and with all sums that were opened since the model last changed: those of the same updates, or nearly."""
        try:
            whole = self._of_all(shortened(weights)[0], clients)
        except OpeningError:
            return False
        stacks = [whole[None], np.vstack([whole, *self._earlier()])]
        if own is not None and own.any():
            stacks.append(np.stack([whole, self._of_all(own, clients)]))
        return all(least_support(sums) >= 0.999 * self._least for sums in stacks)

    def _earlier(self) -> list[Floats]:
        """The weights (clients,) of each sum that was opened since the model last changed."""
        return [each for each in self.opened.get("weights", np.zeros((0, self._clients))) if each.any()]

    def _of_all(self, weights: Floats | Words, clients: NDArray[np.int64] | None) -> Floats:
        """(clients,) the weights (n,) of the updates, and 0 for hospitals without one: they may have had one before."""
        assert clients is not None  # only groups have no ids, and their sums are not opened in turn
        found = np.zeros(self._clients)
        found[clients] = weights
        return found

    def repaired(self, weights: Vector, round: int) -> tuple[Vector, int | None]:
        """The global model (d,) after the round's repair, and its number of steps; None where no repair is due."""
        if self._repair is None or not self._repair.due(round, self._rounds):
            return weights, None
        found = self._model.repaired(weights, self._repair, round)
        if found.steps:
            self.opened = {}
        if self._referee is not None and found.losses is not None:
            self.evidence = self._referee.after_repair(found.losses, self._root.labels, self.evidence)
        return found.weights, found.steps


def candidates_of(own: Aggregated, updates: Updates, weights: Mapping[str, Floats]) -> dict[str, Aggregated]:
    """Hypothesis → its aggregate; first that of the defence.

    own: the defence's.
    updates: of the round.
    weights: hypothesis → (n,) weights of the updates.
    """
    found = {DEFENCE: own}
    for name, each in weights.items():
        aggregate = updates.combine(Combination(each))
        found[name] = replace(own, aggregate=aggregate, weights=each, anchors={})
    return found


def told(ruling: Ruling) -> Fields:
    """A ruling, for the round's record."""
    return {
        "chosen": ruling.chosen,
        "losses": ruling.losses,
        "certainty": ruling.certainty,
        "refused": ruling.refused,
    }
