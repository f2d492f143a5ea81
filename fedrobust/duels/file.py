"""A duel file: defences, the attacks that both sides know, and what each side may search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from fedrobust.draft import ByPath
from fedrobust.options import OneOf, Options, refusal
from fedrobust.studies.options import Seeds, StudyOptions
from fedrobust.tuning.objectives import SCORE, Objective
from fedrobust.tuning.samplers import Sampler, Tpe
from fedrobust.tuning.space import KINDS
from fedrobust.tuning.sweep import OWN

SEARCHED = "searched"
"""The first word of the names of attacks that a duel has found."""


class Side(Options):
    """How one side of a duel searches when it is its turn."""

    trials: int = Field(default=24, ge=1, le=1_000_000)
    """Trials of a turn."""
    sampler: Annotated[Sampler, OneOf(Sampler)] = Tpe()
    """How the next trials are chosen."""


class Attacker(Side):
    """The side that looks for the worst attack."""

    space: Any
    """What is searched: `attacks` of an experiment, with ranges and choices as in the space of a sweep file."""


class TunedDefence(Options):
    """A defence: what it begins with, and what its side may tune."""

    options: dict[str, Any] = Field(min_length=1)
    """The options that make it, by dotted path: `aggregation`, `trust`."""
    space: dict[str, Any] = Field(default_factory=dict)
    """What is tuned in it, as the space of a sweep file; if empty, the defence stays as it is."""


class Goal(Objective):
    """What the defence maximizes, or minimizes, while the attacker does the opposite."""

    metric: str = "test/balanced_accuracy"
    """Name of the metric, as MLflow shows it."""
    rounds: int = Field(default=5, ge=1)
    """The value of a run is the mean over its last so many evaluated rounds."""


class Duel(StudyOptions):
    """An attacker and the side of a defence that search in turn, each against what the other one has found."""

    kind = "duel"
    folders = Path("mlruns/duels")
    by_path: ClassVar[ByPath] = {"changes": (), "defences.*.options": (), "defences.*.space": KINDS}
    named = ("attacks", "defences")
    reserved = (OWN, f"{SEARCHED}*")

    name: str = "duel"
    """Name of the duel, and of its folder."""
    attacks: dict[str, Any]
    """The fixed attacks, which both sides know from the start: for each name an attack or a list of them."""
    attacker: Attacker
    """The side that attacks."""
    defences: dict[str, TunedDefence]
    """The defences; each has a duel of its own."""
    defender: Side = Side(trials=12)
    """The side that defends."""
    turns: int = Field(default=2, ge=1, le=1000)
    """Turns of each side; the attacker begins."""
    objective: Goal = Goal()
    """The objective of both sides."""
    seeds: Seeds = Field(default=(1,), min_length=1)
    """Both sides search on these."""
    fresh: Seeds = Field(default=(11, 12, 13), min_length=1)
    """Each turn is judged on these; none of them is one of `seeds`."""
    parallel: int = Field(default=2, ge=1, le=1000)
    """Trials of a batch, as in a sweep file."""

    def _all_changes(self) -> dict[str, Mapping[str, Any]]:
        given = {f"defences.{name}.options": each.options for name, each in self.defences.items()}
        return super()._all_changes() | given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.objective.metric == SCORE:
            raise refusal("a duel has no function that makes it; give a metric", "objective.metric")
        if self.objective.attacks != "worst":
            raise refusal("must be worst: a duel tells of the worst attack", "objective.attacks")
        return self
