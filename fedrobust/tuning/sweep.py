"""A sweep file: an experiment, what is searched in it, and what for; and the experiments that its trials are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.experiment_file import Draft
from fedrobust.options import Many, OneOf, Options, refusal
from fedrobust.texts import is_name
from fedrobust.tuning.objectives import Objective, unknown
from fedrobust.tuning.pruners import NoPruner, Pruner
from fedrobust.tuning.samplers import Sampler, Tpe
from fedrobust.tuning.space import Space, TemplateError, Values, brief, parsed

OWN = "own"
"""The column of a sweep without `attacks`: each trial meets those of its experiment."""
UNSEARCHED = {
    "name": "names the experiment",
    "seed": "is given by the sweep's seeds",
    "tracking": "cannot change a result",
    "workers": "cannot change a result",
}
"""Options that are not searched, and why."""

_FOUND = re.compile(r"found [^;]*; |; found .*$")
"""What of an error differs with the value that was tried."""


class Sweep(Options):
    """A search: trials of an experiment whose options are chosen for what earlier trials have shown."""

    name: str = "sweep"
    """Name of the sweep, of its study, and of its folder."""
    experiment: str
    """The experiment file that all trials begin with; a relative path is one from this file's folder."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Options of every trial, by dotted path, e.g. `federation.rounds: 20`."""
    space: dict[str, Any] = Field(min_length=1)
    """What is searched: for the dotted path of an option `{float: [low, high]}`, `{log: [low, high]}`,
    `{int: [low, high]}`, `{choice: [a, b]}`, `{choice: {name: object}}`, or an object that has some of these in it."""
    seeds: Many[Annotated[int, Field(ge=0, le=2**63 - 1)]] = Field(default=(1,), min_length=1)
    """Every trial is run with each of them."""
    fresh: Many[Annotated[int, Field(ge=0, le=2**63 - 1)]] = ()
    """Seeds on which the best trials are measured again, none of `seeds`: what was searched for on a seed cannot be
    judged on it."""
    again: int = Field(default=3, ge=1)
    """How many of the best trials that is, of one objective; of several, all that no other beats."""
    attacks: dict[str, Any] | None = Field(default=None, min_length=1)
    """For each name an attack, a list of them, or `[]` for none; every trial meets each. Without it, its own."""
    objectives: Many[Objective] = Field(min_length=1)
    """What is searched for; of several, all trials that no other beats in every one."""
    sampler: Annotated[Sampler, OneOf(Sampler)] = Tpe()
    """How the next trials are chosen."""
    pruner: Annotated[Pruner, OneOf(Pruner)] = NoPruner()
    """Which trials are ended early."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of the sampler."""
    trials: int = Field(default=32, ge=1, le=1_000_000)
    """Number of trials."""
    hours: float | None = Field(default=None, gt=0)
    """Time after which no further batch is begun, counted anew where a sweep is resumed. It makes the number of trials
    depend on the machine."""
    parallel: int = Field(default=2, ge=1, le=1000)
    """Trials of a batch: they are chosen together, run side by side, and their results counted in order. Another number
    makes another sweep."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not is_name(self.name):
            raise refusal("use letters, digits, blanks, + - _", "name")
        for field in ("seeds", "fresh"):
            if len(set(getattr(self, field))) < len(getattr(self, field)):
                raise refusal("must name each seed once", field)
        if both := sorted(set(self.fresh) & set(self.seeds)):
            raise refusal(f"{both[0]} is one of the seeds; what was searched on a seed cannot be judged on it", "fresh")
        for name, attack in (self.attacks or {}).items():
            if not is_name(name) or name == OWN:
                raise refusal(f"'{name}' cannot be a name here: use letters, digits, blanks, + - _", "attacks")
            for each in attack if isinstance(attack, list) else [attack]:
                if not isinstance(each, str | Mapping):
                    raise refusal("expected an attack, or a list of attacks", f"attacks.{name}")
        if reason := self.pruner.refusal(len(self.seeds) * len(self.attacks or [OWN]), len(self.objectives)):
            raise refusal(f"{self.pruner.name} {reason}", "pruner")
        return self


class Plan:
    """A sweep, composed: it makes the experiments of each trial."""

    def __init__(self, sweep: Sweep, draft: Draft, base: Draft | None = None) -> None:
        """`draft` is the file of the sweep, `base` that of its experiment, where it is not to be read.

        Raises `ExperimentError` with a line for everything that is wrong in it, whichever values are chosen.
        """
        self.sweep = sweep
        self.attacks: dict[str, list[Any] | None] = {OWN: None}
        if sweep.attacks is not None:
            self.attacks = {name: each if isinstance(each, list) else [each] for name, each in sweep.attacks.items()}
        self._places = {path: f"{draft.place('space', path)}: space.{path}" for path in sweep.space}
        self._places |= {
            f"attacks/{name}": f"{draft.place('attacks', name)}: attacks.{name}" for name in sweep.attacks or {}
        }
        self.space = self._space(draft)
        if reason := sweep.sampler.refusal(self.space, len(sweep.objectives)):
            raise ExperimentError(f"{draft.place('sampler')}: sampler: {sweep.sampler.name} {reason}")
        for index, objective in enumerate(sweep.objectives):
            if reason := unknown(objective.metric):
                place = draft.place("objectives", index, "metric")
                raise ExperimentError(f"{place}: objectives.{index}.metric: {reason}")
        try:
            self._base = base or Draft.read(draft.path.parent / sweep.experiment, beside=draft.beside)
        except ExperimentError as error:
            raise ExperimentError(f"{draft.place('experiment')}: experiment: {error}") from None
        self._base = self._base.changed(sweep.changes, f"{draft.place('changes')}: changes")
        self.samples: list[Experiment] = []
        """Experiments with the middle of all ranges, and with each choice and each end of a range."""
        self._check()

    @property
    def trials(self) -> int:
        """How many trials there are: no more than there are different ones."""
        most = self.sweep.sampler.most(self.space)
        return self.sweep.trials if most is None else min(most, self.sweep.trials)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """The attack and the seed of each run of a trial, in order."""
        return [(attack, seed) for seed in self.sweep.seeds for attack in self.attacks]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides what the trials are; more of them, or more time, make no other sweep.

        The order of what is searched matters: it is the order of the draws.
        """
        free = {"name", "experiment", "trials", "hours", "fresh", "again"}
        decisive = self.sweep.model_dump(mode="json", serialize_as_any=True, exclude=free)
        middle = self.space.chosen(self.space.middle)
        decisive["runs"] = [self.experiment(middle, attack, seed).digest() for attack, seed in self.runs]
        return sha256(json.dumps(decisive).encode()).hexdigest()

    @property
    def tracking(self) -> str:
        """The MLflow experiment that all of it belongs to."""
        return self.samples[0].tracking.experiment

    @cached_property
    def rounds(self) -> int:
        """Rounds of a trial; where they are searched, the most there are."""
        return max(each.federation.rounds for each in self.samples)

    @property
    def prunes(self) -> bool:
        """Whether trials may be ended early."""
        return not isinstance(self.sweep.pruner, NoPruner)

    def experiment(
        self, values: Mapping[str, Any], attack: str = OWN, seed: int | None = None, trial: int | None = None
    ) -> Experiment:
        """The experiment of a trial: `values` by dotted path, as `Space.suggest` gives them.

        attack: one of `attacks`; with the default, those of the experiment.
        seed: without one, that of the experiment.
        trial: the number that its run is named by.

        Raises `ExperimentError` where these values do not go together.
        """
        draft = self._base
        for path, value in values.items():
            draft = draft.changed({path: value}, self._places[path])
        if (attacks := self.attacks.get(attack)) is not None:
            draft = draft.changed({"attacks": attacks}, self._places[f"attacks/{attack}"])
        own: Values = {}
        if seed is not None:
            own["seed"] = seed
        if trial is not None:
            parts = [
                f"trial {trial}",
                *([attack] if attack != OWN else []),
                *([] if seed is None else [f"seed {seed}"]),
            ]
            own |= {"tracking.run_name": " | ".join([*parts, self.sweep.name]), "tracking.model": False}
        try:
            return draft.changed(own, "the sweep").checked(Experiment)
        except ExperimentError as error:
            raise ExperimentError("\n".join(map(self._placed, str(error).splitlines()))) from None

    @property
    def _first(self) -> str:
        return next(iter(self.attacks))

    def _space(self, draft: Draft) -> Space:
        """The templates, checked."""
        templates, wrong = {}, []
        for path, template in self.sweep.space.items():
            head = path.split(".")[0]
            if head in UNSEARCHED:
                wrong.append(f"{self._places[path]}: {head} {UNSEARCHED[head]}; it is not searched")
            elif head == "attacks" and self.sweep.attacks is not None:
                wrong.append(f"{self._places[path]}: the sweep's attacks replace them; leave one of the two out")
            elif "" in path.split("."):
                wrong.append(f"{self._places[path]}: expected the dotted path of an option, e.g. federation.rounds")
            elif outer := [other for other in self.sweep.space if path.startswith(f"{other}.")]:
                wrong.append(f"{self._places[path]}: {outer[0]} is searched as a whole; put it in there")
            try:
                templates[path] = parsed(path, template)
            except TemplateError as error:
                dotted = ".".join(str(key) for key in error.keys)
                wrong.append(f"{draft.place('space', *error.keys)}: space.{dotted}: {error}")
        space = Space(templates)
        if not wrong and not space.searched:
            wrong.append(f"{draft.place('space')}: space: nothing in it is searched; put fixed values into changes")
        if wrong:
            raise ExperimentError("\n".join(wrong))
        return space

    def _placed(self, line: str) -> str:
        """A line of an error; about an object that a searched path leads through, with the place of that path."""
        if not line.startswith(tuple(self._places.values())):
            dotted, _, reason = line.partition(": ")[2].partition(": ")
            for path in self.space.templates:
                if path.startswith(f"{dotted}."):
                    return f"{self._places[path]}: {dotted}: {reason}"
        return line

    def _check(self) -> None:
        """Try every choice, both ends of every range, every attack and seed once; what is wrong is told once."""
        middle, first = self.space.chosen(self.space.middle), self.sweep.seeds[0]
        tried = [(middle, attack, first, "") for attack in self.attacks]
        seeds = (*self.sweep.seeds, *self.sweep.fresh)
        tried += [(middle, self._first, seed, f" (seed {seed})") for seed in seeds]
        for name, chosen in self.space.variants():
            tried.append((self.space.chosen(chosen), self._first, first, f" ({name}: {brief(chosen[name])})"))
        wrong: dict[str, str] = {}
        for values, attack, seed, why in tried:
            try:
                made = self.experiment(values, attack, seed)
                if (attack, seed) == (self._first, first):
                    self.samples.append(made)
            except ExperimentError as error:
                for line in str(error).splitlines():
                    wrong.setdefault(_FOUND.sub("", line), f"{line}{why}")
        if wrong:
            raise ExperimentError("\n".join(wrong.values()))


def load_sweep(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """Read a sweep file, with `overrides` such as `"trials=8"`, and check the experiments that its trials can be.

    Raises `ExperimentError` with one line for each thing that is wrong, as `fedrobust.load` does.
    """
    draft = Draft.read(path, overrides)
    return Plan(draft.checked(Sweep), draft)
