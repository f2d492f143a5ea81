"""Whether the runs of a sweep learn anything: if none is better than chance, no trial is better than another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

from fedrobust.metrics import BalancedAccuracy, Metric, own
from fedrobust.metrics.chance import MORE, against, at_chance
from fedrobust.studies.finished import FinishedRun
from fedrobust.tuning.objectives import Objective
from fedrobust.tuning.trials import LABELS


class Reached(NamedTuple):
    """A figure of a run beside that of a model that has learnt nothing."""

    metric: str
    figure: float
    chance: float
    rounds: int
    """After how many rounds."""

    @property
    def at_chance(self) -> bool:
        """Whether the run has learnt nothing."""
        return at_chance(self.figure, self.chance)


class BestReached:
    """The best that any of some runs has reached, measured by objectives whose chance is known, or else by the balanced
    accuracy on the test patches."""

    def __init__(self, objectives: Iterable[Objective], more: Iterable[Metric] = ()) -> None:
        """`objectives`: those of the sweep; `more`: the experiment's own metrics."""
        metrics = {f"{part}/{each.key}": each for part in ("test", "validation") for each in (*own(), *more)}
        objectives = list(objectives)
        judging = [each for each in objectives if each.metric in metrics and metrics[each.metric].chance(2) is not None]
        self._judges = [(each.metric, metrics[each.metric], each.rounds) for each in judging]
        if not self._judges:
            self._judges = [("test/balanced_accuracy", BalancedAccuracy(), objectives[0].rounds)]
        self.best: Reached | None = None
        """None as long as no run has such a figure."""
        self.runs = 0
        """How many runs have one."""

    @property
    def learnt(self) -> bool:
        """Whether a run is better than chance."""
        return self.best is not None and not self.best.at_chance

    @property
    def at_chance(self) -> bool:
        """Whether runs are measured, and none is better than chance."""
        return self.best is not None and self.best.at_chance

    def see(self, runs: Iterable[FinishedRun]) -> None:
        """Take runs into account; those without the number of labels, of an older version, are passed over."""
        for run in runs:
            if found := self._reached(run):
                self.runs += 1
                self.best = max(filter(None, (self.best, found)), key=lambda each: each.figure - each.chance)

    def _reached(self, run: FinishedRun) -> Reached | None:
        labels, rounds = int(run.figures.get(LABELS, 0)), sorted(run.curves)
        found = []
        for name, metric, last in self._judges if labels > 1 and rounds else ():
            figure = fmean(run.curves[round].get(name, math.nan) for round in rounds[-last:])
            chance = metric.chance(labels)
            if chance is not None and math.isfinite(figure):
                found.append(Reached(name, figure, chance, rounds[-1]))
        return max(found, key=lambda each: each.figure - each.chance, default=None)


def unlearnt(runs: BestReached, control: BestReached, attacked: bool = True) -> str:
    """Return one sentence if no run is better than chance; else an empty text.

    runs: those of the trials.
    control: the run without attackers; without any run if it was not made.
    attacked: whether the runs of the trials have attackers.
    """
    if runs.best is None or not runs.best.at_chance:
        return ""
    best = runs.best
    many = "the only run is not" if runs.runs == 1 else f"none of {runs.runs} runs is"
    rounds = f"after {best.rounds} round{'' if best.rounds == 1 else 's'}"
    said = f"{many} better than chance ({best.metric} {against(best.figure, best.chance)}) {rounds}"
    if control.best is None:
        return f"{said}: the attacks are too strong, or it needs {MORE}" if attacked else f"{said}: {MORE}"
    if control.at_chance:
        return f"{said}, nor is one without attackers: {MORE}"
    return f"{said}; one without attackers is ({control.best.figure:.3f})"
