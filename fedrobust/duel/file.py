"""A duel file: defences, the attacks that everybody knows, and what each side may search."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from ruamel.yaml.comments import CommentedMap

from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.experiment_file import Draft
from fedrobust.options import Many, OneOf, Options, refusal
from fedrobust.tuning.objectives import Objective
from fedrobust.tuning.samplers import Sampler, Tpe
from fedrobust.tuning.sweep import Plan, Sweep

_NAME = re.compile(r"\w[\w +-]*")

Seeds = Many[Annotated[int, Field(ge=0)]]


class Side(Options):
    """How one side of a duel searches when it is its turn."""

    trials: int = Field(default=24, ge=1)
    """Trials of a turn."""
    sampler: Annotated[Sampler, OneOf(Sampler)] = Tpe()
    """How the next trials are chosen."""


class Attacker(Side):
    """The side that looks for the worst attack."""

    space: Any
    """What is searched: `attacks` of an experiment, with ranges and choices as in the space of a sweep file."""


class Defence(Options):
    """A defence: what it begins with, and what its side may tune."""

    options: dict[str, Any] = Field(min_length=1)
    """The options that make it, by dotted path: `aggregation`, `trust`."""
    space: dict[str, Any] = Field(default_factory=dict)
    """What is tuned in it, as the space of a sweep file; nothing, and it stays what it is."""


class Duel(Options):
    """An attacker and the side of a defence that search in turn, each against what the other one has found."""

    name: str = "duel"
    """Name of the duel, and of its folder."""
    experiment: str
    """The experiment file that all runs begin with; a relative path is one from this file's folder."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Options of every run, by dotted path."""
    attacks: dict[str, Any] = Field(min_length=1)
    """The fixed attacks, which both sides know from the start: for each name an attack or a list of them."""
    attacker: Attacker
    """The side that attacks."""
    defences: dict[str, Defence] = Field(min_length=1)
    """The defences; each has a duel of its own."""
    defender: Side = Side(trials=12)
    """The side that defends."""
    turns: int = Field(default=2, ge=1)
    """Turns of each side; the attacker begins."""
    objective: Objective = Objective(metric="test/balanced_accuracy", rounds=5)
    """What the defence maximizes, or minimizes, and the attacker the other way round."""
    seeds: Seeds = Field(default=(1,), min_length=1)
    """Both sides search on these."""
    fresh: Seeds = Field(default=(11, 12, 13), min_length=1)
    """What is told of a turn is measured on these; none of them is one of `seeds`."""
    parallel: int = Field(default=2, ge=1)
    """Trials of a batch; see a sweep file."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not _NAME.fullmatch(self.name):
            raise refusal("use letters, digits, blanks, + - _", "name")
        for field in ("attacks", "defences"):
            for name in getattr(self, field):
                if not _NAME.fullmatch(name) or name.startswith(SEARCHED):
                    raise refusal(f"'{name}' cannot be a name here: use letters, digits, blanks, + - _", field)
        for name, attack in self.attacks.items():
            for each in attack if isinstance(attack, list) else [attack]:
                if not isinstance(each, str | Mapping):
                    raise refusal("expected an attack, or a list of attacks", f"attacks.{name}")
        if both := sorted(set(self.fresh) & set(self.seeds)):
            raise refusal(f"{both[0]} is one of the seeds; what was searched on a seed cannot be judged on it", "fresh")
        return self


SEARCHED = "searched"
"""What the names of the attacks that a duel has found begin with."""


class Match:
    """A duel, composed: it makes the sweeps of each turn, and the experiments that judge it."""

    def __init__(self, duel: Duel, draft: Draft) -> None:
        """`draft` is the file of the duel. Raises `ExperimentError` with a line for everything that is wrong."""
        self.duel = duel
        self.fixed = {name: each if isinstance(each, list) else [each] for name, each in duel.attacks.items()}
        self._draft = draft
        try:
            self._base = Draft.read(draft.path.parent / duel.experiment)
        except ExperimentError as error:
            raise ExperimentError(f"{draft.place('experiment')}: experiment: {error}") from None
        self._base = self._base.changed(duel.changes, f"{draft.place('changes')}: changes")
        self._check()

    @property
    def tracking(self) -> str:
        """The MLflow experiment that all of it belongs to."""
        return self._base.checked(Experiment).tracking.experiment

    @property
    def turns(self) -> list[tuple[str, int]]:
        """The sides in the order of their turns, each with its number."""
        return [(side, turn + 1) for turn in range(self.duel.turns) for side in ("attacker", "defender")]

    def experiment(self, options: Mapping[str, Any], attacks: Sequence[Any], seed: int, name: str) -> Experiment:
        """A run under `attacks` with the defence that `options` make, by dotted path, in the order of the mapping."""
        draft = self._base
        for path, value in {**options, "attacks": list(attacks), "seed": seed}.items():
            draft = draft.changed({path: value}, f"{self._draft.path}: {path}")
        own = {"tracking.run_name": f"{name} | seed {seed} | {self.duel.name}", "tracking.model": False}
        return draft.changed(own, "the duel").checked(Experiment)

    def attack(self, defence: str, options: Mapping[str, Any], turn: int) -> Plan:
        """The attacker's search against a defence as it is."""
        side, objective = self.duel.attacker, self.duel.objective
        other: dict[str, Any] = {"direction": "minimize" if objective.direction == "maximize" else "maximize"}
        return self._plan(
            f"{defence} attacker {turn}",
            {**options},
            {"attacks": self._draft.tree["attacker"]["space"]},
            side,
            {"objectives": [objective.model_dump() | other]},
        )

    def defend(self, defence: str, options: Mapping[str, Any], attacks: Mapping[str, Sequence[Any]], turn: int) -> Plan:
        """The search of the side that defends, against the worst of all attacks that are known."""
        return self._plan(
            f"{defence} defender {turn}",
            {**options},
            self._draft.tree["defences"][defence]["space"],
            self.duel.defender,
            {"objectives": [self.duel.objective.model_dump()], "attacks": {k: list(v) for k, v in attacks.items()}},
        )

    def check_data(self) -> None:
        """Raise `DataError` where the files of the data are not there."""
        self._base.checked(Experiment).data.source.check()

    def _plan(self, name: str, options: dict[str, Any], space: Any, side: Side, more: Mapping[str, Any]) -> Plan:
        duel = self.duel
        given = {
            "name": f"{duel.name} {name}",
            "experiment": duel.experiment,
            "changes": {**duel.changes, **options},
            "space": space,
            "trials": side.trials,
            "sampler": side.sampler.model_dump(),
            "seeds": list(duel.seeds),
            "parallel": duel.parallel,
            **more,
        }
        draft = Draft(self._draft.path, CommentedMap(given), {})
        return Plan(draft.checked(Sweep), draft)

    def _check(self) -> None:
        """Compose every fixed attack, every defence, and the first search of each side."""
        wrong: dict[str, None] = {}
        seed = self.duel.seeds[0]
        for defence, each in self.duel.defences.items():
            tried: list[Callable[[], object]] = [
                partial(self.experiment, each.options, attacks, seed, "") for attacks in self.fixed.values()
            ]
            tried.append(partial(self.attack, defence, each.options, 1))
            if each.space:
                tried.append(partial(self.defend, defence, each.options, self.fixed, 1))
            for attempt in tried:
                try:
                    attempt()
                except ExperimentError as error:
                    wrong |= dict.fromkeys(f"{line} ({defence})" for line in str(error).splitlines())
        if wrong:
            raise ExperimentError("\n".join(wrong))


def load_duel(path: str | Path, overrides: Iterable[str] = ()) -> Match:
    """Read a duel file, with `overrides` such as `"turns=1"`, and check the experiments that it can lead to.

    Raises `ExperimentError` with one line for each thing that is wrong, as `fedrobust.load` does.
    """
    draft = Draft.read(path, overrides)
    return Match(draft.checked(Duel), draft)
