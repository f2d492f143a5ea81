"""Pruners: they end trials early, and compare a trial only with trials of finished batches."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fedrobust.options import Options

if TYPE_CHECKING:
    import optuna


class Pruner(Options, ABC):
    """Ends trials early that are unlikely to be among the best."""

    name: str
    per: ClassVar[Literal["round", "run"]] = "round"
    """What a step is: a round, over all runs of the trial, or one run of the trial, i.e. one attack and seed."""

    def refusal(self, runs: int, objectives: int) -> str | None:
        """Return why it cannot judge trials with so many `runs` and `objectives`; None if it can."""
        return "compares one objective only; use none" if objectives > 1 else None

    @abstractmethod
    def build(self, rounds: int) -> optuna.pruners.BasePruner | None:
        """Return Optuna's pruner for trials of so many `rounds`; None if nothing is pruned."""


class NoPruner(Pruner):
    """Every trial runs to its end."""

    name: Literal["none"] = "none"

    def refusal(self, runs: int, objectives: int) -> str | None:
        return None

    def build(self, rounds: int) -> optuna.pruners.BasePruner | None:
        return None


class MedianPruner(Pruner):
    """Ends a trial whose best value so far is worse than the median of the others' at that round.

    Golovin et al., "Google Vizier: A Service for Black-Box Optimization", KDD 2017.
    """

    name: Literal["median"] = "median"
    startup: int = Field(default=5, ge=1)
    """Number of completed trials before the first trial is ended early."""
    warmup: int = Field(default=5, ge=0)
    """Rounds of every trial before it is judged."""

    def build(self, rounds: int) -> optuna.pruners.BasePruner | None:
        from optuna.pruners import MedianPruner

        return MedianPruner(n_startup_trials=self.startup, n_warmup_steps=self.warmup)


class HyperbandPruner(Pruner):
    """Several races side by side; in each, one of `reduction` trials goes on after r, r·reduction, … rounds.

    Li, Jamieson, DeSalvo, Rostamizadeh and Talwalkar, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter
    Optimization", JMLR 18, 2018. The number of a trial and the name of the sweep determine the race that the trial is
    in.
    """

    name: Literal["hyperband"] = "hyperband"
    least: int = Field(default=1, ge=1)
    """Rounds of a trial in the shortest race before it is judged."""
    reduction: int = Field(default=3, ge=2)
    """One of so many trials goes on."""

    def build(self, rounds: int) -> optuna.pruners.BasePruner | None:
        from optuna.pruners import HyperbandPruner

        least = min(self.least, rounds)
        return HyperbandPruner(min_resource=least, max_resource=rounds, reduction_factor=self.reduction)


class WilcoxonPruner(Pruner):
    """Ends a trial that is worse than the best one on the same seeds and attacks, by Wilcoxon's signed-rank test.

    Wilcoxon, "Individual Comparisons by Ranking Methods", Biometrics Bulletin 1(6), 1945. The runs of a trial are its
    steps, paired with those of the best trial so far.
    """

    name: Literal["wilcoxon"] = "wilcoxon"
    per: ClassVar[Literal["round", "run"]] = "run"
    p: float = Field(default=0.1, gt=0, lt=1)
    """A trial is ended if its p-value is below this."""
    startup: int = Field(default=2, ge=2)
    """Runs of a trial before it is judged."""

    def refusal(self, runs: int, objectives: int) -> str | None:
        # The smallest p-value of n pairs is 2⁻ⁿ; and one run must be left that pruning can save.
        needed = next(n for n in range(2, 64) if 2.0**-n < self.p) + 1
        if runs < needed:
            return f"needs {needed} runs of a trial, attacks times seeds, to end one at p < {self.p:g}; found {runs}"
        return super().refusal(runs, objectives)

    def build(self, rounds: int) -> optuna.pruners.BasePruner | None:
        from optuna.exceptions import ExperimentalWarning
        from optuna.pruners import WilcoxonPruner

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return WilcoxonPruner(p_threshold=self.p, n_startup_steps=self.startup)
