"""A sweep file: an experiment, the searched options and the objectives; and the experiments of its trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from fedrobust.draft import ByPath, Changes, Draft
from fedrobust.errors import ExperimentError, Problem
from fedrobust.experiment import Experiment
from fedrobust.naming import short
from fedrobust.options import Many, OneOf, refusal
from fedrobust.studies.composer import Composer, Mistakes, StudyFile, study_draft
from fedrobust.studies.options import Seeds, StudyOptions
from fedrobust.texts import fit
from fedrobust.tuning.objectives import Objective, unknown
from fedrobust.tuning.pruners import NoPruner, Pruner
from fedrobust.tuning.samplers import Sampler, Tpe
from fedrobust.tuning.space import KINDS, Space, TemplateError, brief, parsed

STORAGE = "sqlite:///mlruns/optuna.db"
"""The default storage of the studies."""

OWN = "own"
"""The attack name of a sweep without `attacks`: each trial meets those of its experiment."""
UNSEARCHED = {
    "name": "names the experiment",
    "seed": "is given by the sweep's seeds",
    "tracking": "cannot change a result",
    "workers": "cannot change a result",
}
"""Options that are not searched, and why."""


class Sweep(StudyOptions):
    """A search: trials of an experiment whose options are chosen from the results of earlier trials."""

    kind = "sweep"
    folders = Path("mlruns/sweeps")
    by_path: ClassVar[ByPath] = {"changes": (), "space": KINDS}
    reserved = (OWN,)

    name: str = "sweep"
    """Name of the sweep, of its study, and of its folder."""
    space: dict[str, Any] = Field(min_length=1)
    """What is searched: for the dotted path of an option `{float: [low, high]}`, `{log: [low, high]}`,
    `{int: [low, high]}`, `{choice: [a, b]}`, `{choice: {name: object}}`, or an object that has some of these in it."""
    seeds: Seeds = Field(default=(1,), min_length=1)
    """Every trial is run with each of them."""
    fresh: Seeds = ()
    """Seeds on which the best trials are measured again, none of `seeds`: a result found by a search on a seed cannot
    be judged on it."""
    again: int = Field(default=3, ge=1)
    """How many of the best trials are measured again, with one objective; with several, all that no other beats."""
    attacks: dict[str, Any] | None = None
    """For each name an attack, a list of them, or `[]` for none; every trial meets each. Without it, its own."""
    objectives: Many[Objective] = Field(min_length=1)
    """The objectives; with several, the search is for all trials that no other beats in every one."""
    sampler: Annotated[Sampler, OneOf(Sampler)] = Tpe()
    """How the next trials are chosen."""
    pruner: Annotated[Pruner, OneOf(Pruner)] = NoPruner()
    """Which trials are ended early."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of the sampler."""
    trials: int = Field(default=32, ge=1, le=1_000_000)
    """Number of trials."""
    hours: float | None = Field(default=None, gt=0)
    """Time after which no further batch is begun, counted anew if a sweep is resumed. It makes the number of trials
    depend on the machine."""
    parallel: int = Field(default=2, ge=1, le=1000)
    """Trials of a batch: they are chosen together, run side by side, and their results are counted in order. A
    different number makes a different sweep."""

    @model_validator(mode="after")
    def _pruned(self) -> Self:
        if reason := self.pruner.refusal(len(self.seeds) * len(self.attacks or [OWN]), len(self.objectives)):
            raise refusal(f"{self.pruner.name} {reason}", "pruner")
        return self


_DECISIVE = ("changes", "space", "seeds", "attacks", "objectives", "sampler", "pruner", "seed", "parallel")
"""The fields of a sweep that determine its trials, in the order in which their digest takes them."""


class SweepPlan:
    """A sweep with its experiments: it makes those of each trial."""

    def __init__(
        self, sweep: Sweep, draft: Draft, base: Draft | None = None, mlflow_experiment: str | None = None
    ) -> None:
        """Check the options and compose the experiments.

        sweep: the options.
        draft: the file of the sweep.
        base: the file of its experiment, if it has already been read.
        mlflow_experiment: the name of the MLflow experiment of its runs, by default as the options say.

        Raises `ExperimentError` with a line for each error that any choice of values would have.
        """
        self.sweep = sweep
        self.score = ""
        """Digest of the caller's function that makes the metric `score`; empty without one."""
        self.attacks: dict[str, list[Any] | None] = {OWN: None} if sweep.attacks is None else {**sweep.attack_lists}
        self._composer = Composer(sweep, draft, base, mlflow_experiment)
        self._entries = {path: self._composer.entry("space", path) for path in sweep.space}
        self.space = self._space(draft)
        if reason := sweep.sampler.refusal(self.space, len(sweep.objectives)):
            raise ExperimentError(Problem(f"{sweep.sampler.name} {reason}").at(draft.entry("sampler")))
        self.samples: list[Experiment] = []
        """Experiments with the middle of all ranges, and with each choice and each end of a range."""
        self._check()
        for index, objective in enumerate(sweep.objectives):
            if problem := unknown(objective.metric, self.samples[0].evaluation.metrics):
                raise ExperimentError(problem.at(draft.entry("objectives", index, "metric")))

    @property
    def mlflow_experiment(self) -> str:
        """Return the name of the MLflow experiment of its runs."""
        return self._composer.mlflow_experiment

    @property
    def trials(self) -> int:
        """Number of trials: not more than there are different ones."""
        most = self.sweep.sampler.most(self.space)
        return self.sweep.trials if most is None else min(most, self.sweep.trials)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """The attack and the seed of each run of a trial, in order."""
        return [(attack, seed) for seed in self.sweep.seeds for attack in self.attacks]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that determines the trials; their number and the time limit do not.

        The order of the searched options matters: it is the order of the draws.
        """
        resolved = self.sweep.resolved()
        decisive = {field: resolved[field] for field in _DECISIVE}
        middle = self.space.chosen(self.space.middle)
        decisive["runs"] = [self.experiment(middle, attack, seed).digest() for attack, seed in self.runs]
        return sha256(json.dumps(decisive).encode()).hexdigest()

    @cached_property
    def rounds(self) -> int:
        """Rounds of a trial; if they are searched, the maximum."""
        return max(each.federation.rounds for each in self.samples)

    @property
    def prunes(self) -> bool:
        """Whether trials may be ended early."""
        return not isinstance(self.sweep.pruner, NoPruner)

    def experiment(
        self, values: Mapping[str, Any], attack: str = OWN, seed: int | None = None, trial: int | None = None
    ) -> Experiment:
        """Return the experiment of a trial.

        values: dotted path → value, as `Space.suggest` returns them.
        attack: one of `attacks`; by default, those of the experiment.
        seed: by default, that of the experiment.
        trial: the number in the name of its run.

        Raises `ExperimentError` if these values do not fit together.
        """
        draft = self._composer.base
        for path, value in values.items():
            draft = self._composer.changed(draft, {path: value}, "space", path)
        if (attacks := self.attacks.get(attack)) is not None:
            draft = self._composer.changed(draft, {"attacks": attacks}, "attacks", attack)
        label = None
        if trial is not None:
            own = ([attack] if attack != OWN else []) + ([] if seed is None else [f"seed {seed}"])
            label = " | ".join([f"trial {trial}", *own, self.sweep.name])
            chosen = [f"{path.rpartition('.')[2]} {short(value)}" for path, value in values.items()]
            label += f": {fit(', '.join(chosen), 100)}"
        try:
            return self._composer.run(draft, label, seed)
        except ExperimentError as error:
            raise error.each(self._placed) from None

    def control(self) -> Experiment:
        """Return the run that shows whether anything can be learnt here: the middle of all ranges, the first seed,
        and no attackers.

        Raises `ExperimentError` if these options do not fit together.
        """
        draft = self._composer.base
        for path, value in self.space.chosen(self.space.middle).items():
            if path.split(".")[0] != "attacks":
                draft = self._composer.changed(draft, {path: value}, "space", path)
        draft = self._composer.changed(draft, {"attacks": []}, "attacks")
        return self._composer.run(draft, f"control | {self.sweep.name}", self.sweep.seeds[0])

    @property
    def _first(self) -> str:
        return next(iter(self.attacks))

    def _space(self, draft: Draft) -> Space:
        """Return the checked templates."""
        templates, wrong = {}, list[Problem]()
        for path, template in self.sweep.space.items():
            head, reason = path.split(".")[0], ""
            if head in UNSEARCHED:
                reason = f"{head} {UNSEARCHED[head]}; it is not searched"
            elif head == "attacks" and self.sweep.attacks is not None:
                reason = "the sweep's attacks replace them; leave one of the two out"
            elif "" in path.split("."):
                reason = "expected the dotted path of an option, e.g. federation.rounds"
            elif outer := [other for other in self.sweep.space if path.startswith(f"{other}.")]:
                reason = f"{outer[0]} is searched as a whole; put it in there"
            if reason:
                wrong.append(Problem(reason).at(self._entries[path]))
            try:
                templates[path] = parsed(path, template)
            except TemplateError as error:
                wrong.append(Problem(str(error)).at(draft.entry("space", *error.keys)))
        space = Space(templates)
        if not wrong and not space.searched:
            reason = "nothing in it is searched; put fixed values into changes"
            wrong.append(Problem(reason).at(draft.entry("space")))
        if wrong:
            raise ExperimentError(*wrong)
        return space

    def _placed(self, problem: Problem) -> Problem:
        """Return the problem; if it is about an object that contains a searched value, its origin becomes that of the
        value."""
        if not any(origin in self._entries.values() for origin in problem.origins):
            for path, entry in self._entries.items():
                if path.startswith(f"{problem.path}."):
                    return replace(problem, origins=(entry,))
        return problem

    def _check(self) -> None:
        """Try every choice, both ends of every range, every attack and seed once; each error is reported once."""
        middle, first = self.space.chosen(self.space.middle), self.sweep.seeds[0]
        tried = [(middle, attack, first, "") for attack in self.attacks]
        tried += [(middle, self._first, seed, f"seed {seed}") for seed in (*self.sweep.seeds, *self.sweep.fresh)]
        for name, chosen in self.space.variants():
            tried.append((self.space.chosen(chosen), self._first, first, f"{name}: {brief(chosen[name])}"))
        mistakes = Mistakes()
        for values, attack, seed, case in tried:
            made = mistakes.attempt(partial(self.experiment, values, attack, seed), case)
            if made is not None and (attack, seed) == (self._first, first):
                self.samples.append(made)
        mistakes.refuse()


def load_sweep(file: StudyFile, overrides: Changes = ()) -> SweepPlan:
    """Read a sweep file, and check the experiments of its possible trials.

    file: its path, or its options.
    overrides: dotted path → value, or texts such as `"trials=8"`.

    Raises `ExperimentError` with one line for each error, as `fedrobust.load` does.
    """
    draft, base = study_draft(file, overrides, Sweep)
    return SweepPlan(draft.checked(Sweep), draft, base)
