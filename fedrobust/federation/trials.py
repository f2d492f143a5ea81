"""The coordinator's own patches at work: they choose between aggregates, and repair the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedrobust.aggregation import Aggregated
from fedrobust.arrays import Arrays, Vector
from fedrobust.data.root import RootPatches
from fedrobust.experiment import Experiment
from fedrobust.records import Fields
from fedrobust.trust.referee import DEFENCE, Ruling
from fedrobust.updates import Combination, Gram, Updates


class Trials:
    """Referee and repair of an experiment, with the patches that they use.

    experiment: has one of them, or both.
    root: the patches.
    evidence: of the rounds before.
    """

    def __init__(self, experiment: Experiment, root: RootPatches, evidence: Arrays) -> None:
        from fedrobust.federation.root_model import RootModel  # torch is slow to import, and needed only here

        self._referee, self._repair = experiment.trust.referee, experiment.trust.repair
        self._rounds = experiment.federation.rounds
        self._root, self.evidence = root, dict(evidence)
        self._model = RootModel(experiment.learning, root, experiment.seed, experiment.workers.threads)

    def chosen(
        self, own: Aggregated, gram: Gram, updates: Updates, after: Callable[[Vector], Vector]
    ) -> tuple[Aggregated, Ruling | None]:
        """The aggregate that is used, and the referee's ruling, if there is a referee.

        own: the defence's.
        gram: of the updates.
        updates: of the round.
        after: an aggregate (d,) → the model after it.
        """
        if self._referee is None:
            return own, None
        candidates = {DEFENCE: own}
        for name, weights in self._referee.weights(gram, updates.prior, own.weights).items():
            aggregate = updates.combine(Combination(weights))
            candidates[name] = replace(own, aggregate=aggregate, weights=weights, anchors={})
        losses = {name: self._model.losses(after(each.aggregate)) for name, each in candidates.items()}
        ruling = self._referee.choose(losses, self._root.labels, self._root.patients, self.evidence)
        self.evidence = ruling.evidence
        return candidates[ruling.chosen], ruling

    def repaired(self, weights: Vector, round: int) -> tuple[Vector, int | None]:
        """The global model (d,) after the round's repair, and its number of steps; None where no repair is due."""
        if self._repair is None or not self._repair.due(round, self._rounds):
            return weights, None
        return self._model.repaired(weights, self._repair, round)


def told(ruling: Ruling) -> Fields:
    """A ruling, for the round's record."""
    return {"chosen": ruling.chosen, "losses": ruling.losses, "certainty": ruling.certainty}
