"""A sweep as its pictures, tables and page show it: plain rows, and copies of Optuna's study in memory."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from fedrobust.tuning.objectives import Direction, Objective
from fedrobust.tuning.space import Choice, Space
from fedrobust.tuning.study import Completed, Failed, SweepStudy
from fedrobust.tuning.sweep import SweepPlan

if TYPE_CHECKING:
    from optuna.importance import PedAnovaImportanceEvaluator

TOP = 0.25
"""Importance refers to being among this share of the trials, the best ones."""

LEAST = 8
"""The fewest completed trials for which importance is meaningful."""

RowState = Literal["completed", "pruned", "failed"]
_STATES = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True)
class Row:
    """A finished trial."""

    number: int
    state: RowState
    values: tuple[float, ...]
    """One finite value for each objective; empty unless the trial is completed."""
    chosen: Mapping[str, Any]
    """Name → chosen value; values that were not searched in this trial are missing."""
    reports: Mapping[int, float]
    """Step → finite value that its pruner received."""
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class SweepView:
    """The current state of a sweep."""

    name: str
    objectives: tuple[str, ...]
    """The names of the objectives, all different."""
    directions: tuple[Direction, ...]
    space: Space
    rows: tuple[Row, ...]
    """The finished trials, in order."""
    best: tuple[int, ...]
    """Numbers of the best trials, as `SweepStudy.best` gives them."""
    planned: int
    """How many trials there will be."""
    step: Literal["round", "run"]
    """What a step of the reports is."""
    unlearnt: str = ""
    """A sentence if no run is better than chance."""

    @classmethod
    def of(cls, plan: SweepPlan, study: SweepStudy, unlearnt: str = "") -> SweepView:
        """Return the current state of a study; `unlearnt`: a sentence if no run is better than chance."""
        searched = plan.space.searched
        params = {trial.number: trial.params for trial in study.study.get_trials(deepcopy=False)}
        rows = []
        for trial in study.trials():
            outcome = trial.outcome
            completed, failed = isinstance(outcome, Completed), isinstance(outcome, Failed)
            rows.append(
                Row(
                    trial.number,
                    "completed" if completed else "failed" if failed else "pruned",
                    outcome.values if isinstance(outcome, Completed) else (),
                    {name: searched[name].tidied(value) for name, value in params[trial.number].items()},
                    {step: value for step, value in sorted(trial.reports.items()) if math.isfinite(value)},
                    outcome.reason if isinstance(outcome, Failed) else "",
                )
            )
        objectives = plan.sweep.objectives
        return cls(
            plan.sweep.name,
            labels(objectives),
            tuple(objective.direction for objective in objectives),
            plan.space,
            tuple(rows),
            tuple(trial.number for trial in study.best()),
            plan.trials,
            plan.sweep.pruner.per,
            unlearnt,
        )

    @property
    def completed(self) -> tuple[Row, ...]:
        """The trials that ran to their end."""
        return self.having("completed")

    def having(self, state: RowState) -> tuple[Row, ...]:
        """Return the trials that ended in this `state`."""
        return tuple(row for row in self.rows if row.state == state)


def tied(values: Sequence[Sequence[float]], best: Sequence[float]) -> str:
    """Return a sentence if several trials are as good as the best one, which then is only the first of them.

    values: the objectives of each completed trial.
    best: those of the best one, for a single objective.
    """
    equal = sum(tuple(each) == tuple(best) for each in values)
    if len(best) > 1 or equal < 2:
        return ""
    if equal == len(values):
        return f"all {equal} completed trials have the same value: the search cannot tell them apart"
    return f"{equal} of {len(values)} completed trials have this value; the first one counts as the best"


def labels(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """Return the metrics of the objectives, with additions that distinguish objectives of the same metric."""
    names = [_label_among(each, [other for other in objectives if other.metric == each.metric]) for each in objectives]
    return tuple(f"{name} #{place + 1}" if names.count(name) > 1 else name for place, name in enumerate(names))


def better(direction: Direction) -> str:
    """Return what a direction means, in words."""
    return "larger is better" if direction == "maximize" else "smaller is better"


def spelled(value: Any) -> str:
    """Return a chosen value as a sweep file writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def choice_texts(searched: Choice) -> list[str]:
    """Return the possible choices as a sweep file writes them; ambiguous texts are in quotes.

    searched: the choice.
    """
    texts = [spelled(each) for each in searched.ends]
    return [
        json.dumps(each, ensure_ascii=False) if texts.count(text) > 1 else text
        for each, text in zip(searched.ends, texts, strict=True)
    ]


def in_memory(view: SweepView, objectives: Sequence[int], text: Callable[[str], str] = str) -> optuna.Study:
    """Return a copy of Optuna's study with the same trials, but only these objectives.

    objectives: their indices.
    text: converts names and choices.

    Choices are texts there, see `choice_texts`.
    """
    distributions = dict(view.space.distributions)
    shown: dict[str, dict[Any, str]] = {}
    for name, searched in view.space.searched.items():
        if isinstance(searched, Choice):
            shown[name] = dict(zip(searched.ends, map(text, choice_texts(searched)), strict=True))
            distributions[name] = CategoricalDistribution(list(shown[name].values()))
    study = optuna.create_study(
        storage=InMemoryStorage(), directions=[view.directions[index] for index in objectives], study_name=view.name
    )
    for row in view.rows:
        study.add_trial(
            create_trial(
                state=_STATES[row.state],
                values=[row.values[index] for index in objectives] if row.values else None,
                params={
                    text(name): shown[name][value] if name in shown else value for name, value in row.chosen.items()
                },
                distributions={text(name): distributions[name] for name in row.chosen},
                intermediate_values=dict(row.reports),
            )
        )
    return study


def evaluator(view: SweepView, objective: int) -> PedAnovaImportanceEvaluator | None:
    """Return PED-ANOVA for the best quarter of the completed trials; None if it is not meaningful.

    Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces",
    IJCAI 2023. It uses no random numbers, and handles options that are searched only if another value is chosen.

    objective: its index.
    """
    values = [row.values[objective] for row in view.completed]
    if len(values) < LEAST:
        return None
    worst = min(values) if view.directions[objective] == "maximize" else max(values)
    top = min(math.ceil(TOP * len(values)), sum(value != worst for value in values))
    # Optuna takes the ⌈quantile · n⌉ best trials, and all that are as good as the last of these.
    from optuna.importance import PedAnovaImportanceEvaluator  # slow to import

    return PedAnovaImportanceEvaluator(target_quantile=(top - 0.5) / len(values)) if top else None


def importances(view: SweepView, objective: int) -> dict[str, float]:
    """Return the importance of each searched option for a good trial, name → share, largest first; they add up to 1.

    objective: its index.

    Empty if there are too few trials, or if none is better than another.
    """
    tool = evaluator(view, objective)
    names = present(view)
    if tool is None or not names:
        return {}
    with warnings.catch_warnings():  # about options that few trials have
        warnings.simplefilter("ignore", UserWarning)
        found = tool.evaluate(in_memory(view, [objective]), params=names)
    total = math.fsum(found.values())
    if not total > 0:
        return {}
    return {name: found[name] / total for name in sorted(names, key=lambda name: -found[name])}


def present(view: SweepView) -> list[str]:
    """Return the names of the values that were searched in any completed trial, in the order of the sweep file."""
    return [name for name in view.space.searched if any(name in row.chosen for row in view.completed)]


def _label_among(objective: Objective, same: Sequence[Objective]) -> str:
    parts = {
        "rounds": f"last {objective.rounds} rounds",
        "seeds": f"{objective.seeds} of seeds",
        "attacks": f"{objective.attacks} of attacks",
    }
    differing = [text for field, text in parts.items() if len({getattr(each, field) for each in same}) > 1]
    return f"{objective.metric} ({', '.join(differing)})" if differing else objective.metric
