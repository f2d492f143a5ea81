"""A matrix file: which attacks meet which defences in which settings, and the experiments that follow from it.

All comparisons are paired: the seed of a cell alone determines split, initial weights, batches and attackers, so two
cells with the same setting and seed differ only in attack and defence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from fedrobust.attacks import Backdoor
from fedrobust.draft import ByPath, Changes, Draft
from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.experiment import Experiment
from fedrobust.failures import reason
from fedrobust.options import Many, Options, nearest, refusal
from fedrobust.studies.composer import Composer, Mistakes, StudyFile, study_draft
from fedrobust.studies.options import Seeds, StudyOptions
from fedrobust.studies.planned import PlannedRun

NOBODY = "nobody"
"""The column in which no hospital is malicious."""
ORACLE = "oracle"
"""The control in which the true attackers are absent: the upper limit in the definition of robustness."""
SIZES = ("fraction", "count", "clients")


Names = Many[str]


class Only(Options):
    """Names to which a matrix is restricted; where none is given, all are used."""

    settings: Names = ()
    attacks: Names = ()
    defences: Names = ()


class Quick(Options):
    """Changes made by `--quick`: a small version of everything within minutes."""

    changes: dict[str, Any] = Field(default_factory=dict)
    """Options of every cell, by dotted path."""
    only: Only = Only()
    fresh: Seeds | None = None
    worst: int | None = Field(default=None, ge=1)
    backdoors: int | None = Field(default=None, ge=0)


class Matrix(StudyOptions):
    """A grid of runs: every attack against every defence on the screening seeds, the worst again on fresh seeds."""

    kind = "matrix"
    folders = Path("mlruns/matrix")
    by_path: ClassVar[ByPath] = {"changes": (), "settings.*": (), "defences.*": (), "quick.changes": ()}
    finished = "cells.jsonl"
    named = ("settings", "attacks", "defences")
    reserved = (NOBODY, ORACLE)
    put_aside = True
    first = "screening"

    name: str = "matrix"
    """Name of the matrix, and of its folder."""
    settings: dict[str, dict[str, Any]]
    """Settings of the federation: for each name the `fraction` of malicious hospitals, and options by dotted path."""
    attacks: dict[str, Any]
    """For each name an attack, or a list of them that share the setting's fraction; without a size of their own."""
    defences: dict[str, dict[str, Any]]
    """For each name the options that make the defence, by dotted path: `aggregation`, `trust`."""
    control: str = "mean"
    """The defence that stands for none: an attack that does not hurt it is harmless; without the attackers it is the
    oracle."""
    screening: Seeds = Field(default=(1,), min_length=1)
    """Seeds on which every attack meets every defence."""
    fresh: Seeds = Field(default=(11, 12, 13, 14, 15), min_length=1)
    """Seeds on which the worst attacks of each defence are measured again; none of them is a screening seed."""
    worst: int = Field(default=4, ge=1)
    """How many attacks of each defence are measured again: those that leave the least robustness."""
    backdoors: int = Field(default=1, ge=0)
    """How many backdoors of each defence, those that succeed best, are measured again as well."""
    only: Only = Only()
    quick: Quick = Quick()

    def resolved(self) -> dict[str, Any]:
        """See `StudyOptions`; the changes of `--quick` are left out."""
        return self.model_dump(mode="json", exclude={"quick"})

    def _all_changes(self) -> dict[str, Mapping[str, Any]]:
        named = {f"settings.{name}": each for name, each in self.settings.items()}
        named |= {f"defences.{name}": each for name, each in self.defences.items()}
        return super()._all_changes() | named | {"quick.changes": self.quick.changes}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.control not in self.defences:
            raise refusal(f"must be one of the defences: {', '.join(self.defences)}", "control")
        for path, only in (("only", self.only), ("quick.only", self.quick.only)):
            for field in self.named:
                for name in getattr(only, field):
                    if name not in (known := getattr(self, field)):
                        reason, hint = f"no '{name}' in this matrix", nearest(name, known)
                        raise refusal(Problem(reason, f"{path}.{field}", "", hint=hint))
        for seed in self.quick.fresh or ():
            if seed in self.screening:
                raise refusal(f"{seed} is among the screening seeds", "quick.fresh")
        return self

    @model_validator(mode="after")
    def _sized_by_the_setting(self) -> Self:
        for name, setting in self.settings.items():
            fraction = setting.get("fraction")
            if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
                raise refusal("needs the fraction of malicious hospitals, between 0 and 1", f"settings.{name}.fraction")
        for name, attacks in self.attack_lists.items():
            for each in attacks:
                if given := [size for size in SIZES if size in each and isinstance(each, Mapping)]:
                    raise refusal(f"{given[0]} is the setting's; leave it out", f"attacks.{name}")
        return self

    def quickened(self) -> Matrix:
        """Return the matrix of `--quick`; it has its own name and thus its own folder."""
        given = {field: getattr(self.quick, field) for field in ("fresh", "worst", "backdoors")}
        changes = {field: value for field, value in given.items() if value is not None}
        only = {field: getattr(self.quick.only, field) or getattr(self.only, field) for field in Only.model_fields}
        return self.model_copy(update={"name": f"{self.name}-quick", "only": Only(**only), **changes})


@dataclass(frozen=True, kw_only=True)
class Cell(PlannedRun):
    """One run of a matrix."""

    setting: str
    attack: str
    defence: str
    seed: int
    phase: str
    """`control`, `screening` or `fresh`."""
    triggers: tuple[str, ...] = ()
    """For the oracle: the backdoors whose triggers are tested on it, one for each of its attacks after the first."""


class MatrixPlan:
    """A matrix with its experiments: it makes the cells of each phase."""

    def __init__(self, matrix: Matrix, draft: Draft, quick: bool = False, base: Draft | None = None) -> None:
        """Compose every attack and every defence once in each setting.

        matrix: the options.
        draft: the file of the matrix.
        quick: `matrix` is the small version.
        base: the file of its experiment, if it has already been read.

        Raises `ExperimentError` with a line for each error in any cell.
        """
        self.matrix = matrix
        self.settings = _chosen(matrix.settings, matrix.only.settings)
        self.attacks = _chosen(matrix.attacks, matrix.only.attacks)
        self.defences = _chosen(matrix.defences, matrix.only.defences, matrix.control)
        self._composer = Composer(matrix, draft, base)
        self._base = self._composer.base
        if quick:
            self._base = self._composer.changed(self._base, matrix.quick.changes, "quick", "changes")
        self._defended: dict[tuple[str, str], Draft] = {}
        self._malicious: dict[str, int] = {}
        self._oracles: dict[str, Experiment] = {}
        self._triggers: list[tuple[str, Mapping[str, Any]]] = []
        self._check()

    def controls(self) -> list[Cell]:
        """Return the cells of the oracle and of no attack, on all seeds."""
        pairs = [(ORACLE, self.matrix.control), *((NOBODY, defence) for defence in self.defences)]
        return self._cells(self.settings, self._seeds, pairs, "control")

    def screening(self) -> list[Cell]:
        """Return the cells of every attack against every defence, on the screening seeds."""
        pairs = [(attack, defence) for attack in self.attacks for defence in self.defences]
        return self._cells(self.settings, self.matrix.screening, pairs, "screening")

    def fresh(self, chosen: Mapping[tuple[str, str], Sequence[str]]) -> list[Cell]:
        """Return the cells of the fresh seeds; `chosen`: (setting, defence) → attacks."""
        found = []
        for setting in self.settings:
            pairs = [(attack, defence) for defence in self.defences for attack in chosen.get((setting, defence), ())]
            found += self._cells([setting], self.matrix.fresh, pairs, "fresh")
        return found

    @property
    def mlflow_experiment(self) -> str:
        """Return the name of the MLflow experiment of its runs."""
        return self._composer.mlflow_experiment

    @property
    def backdoors(self) -> list[str]:
        """Return the names of the attacks that plant a backdoor."""
        return [name for name in dict.fromkeys(self.triggers) if name in self.attacks]

    @property
    def triggers(self) -> tuple[str, ...]:
        """Return the name of the backdoor of each trigger that is tested on the oracle, in order. Those that `only`
        leaves out are among them, so that the oracle is the same with them."""
        return tuple(name for name, _ in self._triggers)

    @property
    def rounds(self) -> dict[str, int]:
        """Return how many rounds the runs of each setting have."""
        return {setting: oracle.federation.rounds for setting, oracle in self._oracles.items()}

    def check_data(self) -> None:
        """Raise `DataError` if the data files of a setting are missing."""
        for setting, oracle in self._oracles.items():
            try:
                oracle.data.source.check()
            except ExperimentError as error:
                entry = self._composer.entry("settings", setting)
                raise error.each(partial(_of_source, entry)) from error

    @property
    def most(self) -> int:
        """Return the maximum number of cells, if every attack has a figure on the screening seeds."""
        settings, defences, seeds = len(self.settings), len(self.defences), self._seeds
        again = min(self.matrix.worst + min(self.matrix.backdoors, len(self.backdoors)), len(self.attacks))
        screened = len(self.attacks) * defences * len(self.matrix.screening)
        return settings * (len(seeds) * (1 + defences) + screened + again * defences * len(self.matrix.fresh))

    @property
    def _seeds(self) -> list[int]:
        return [*self.matrix.screening, *self.matrix.fresh]

    def _cells(
        self, settings: Iterable[str], seeds: Iterable[int], pairs: Sequence[tuple[str, str]], phase: str
    ) -> list[Cell]:
        # Cells with the same data are adjacent, so that the data are read once.
        return [
            self._cell(setting, attack, defence, seed, phase)
            for setting in settings
            for seed in seeds
            for attack, defence in pairs
        ]

    def _cell(self, setting: str, attack: str, defence: str, seed: int, phase: str) -> Cell:
        label = f"{defence} | {attack} | {setting} | seed {seed}"
        of: dict[str, Any] = {"setting": setting, "attack": attack, "defence": defence, "phase": phase}
        of |= {"seed": seed, "label": label, "tags": {**of, "seed": str(seed)}}
        triggers = self.triggers if attack == ORACLE else ()
        try:
            composed = self._composer.run(
                self._composed(setting, attack, defence), f"{label} | {self.matrix.name}", seed
            )
            cell = Cell(experiment=composed, triggers=triggers, **of)
            cell.digest  # noqa: B018
        except (Exception, SystemExit) as error:  # a validator of a user's own class may raise anything
            return Cell(experiment=None, refused=reason(error), **of)
        return cell

    def _composed(self, setting: str, attack: str, defence: str) -> Draft:
        if (setting, defence) not in self._defended:
            options = {path: value for path, value in self.settings[setting].items() if path != "fraction"}
            draft = self._composer.changed(self._base, options, "settings", setting)
            draft = self._composer.changed(draft, self.defences[defence], "defences", defence)
            self._defended[setting, defence] = draft
        sized = {"attacks": self._sized(setting, attack)}
        origin: Origin | str = attack
        if attack in self.matrix.attacks or attack == ORACLE:
            place = ("settings", setting, "fraction") if attack == ORACLE else ("attacks", attack)
            origin = self._composer.entry(*place)
        return self._defended[setting, defence].changed(sized, origin)

    def _sized(self, setting: str, attack: str) -> list[Any]:
        """Return the attacks of a column with the setting's fraction; several attacks share it."""
        if attack == NOBODY:
            return []
        fraction = float(self.settings[setting]["fraction"])
        if attack == ORACLE:  # the backdoors are not planted; only their triggers are tested
            return [{"name": "absent", "fraction": fraction}, *({**each, "count": 0} for _, each in self._triggers)]
        many = _listed(self.matrix.attacks[attack])
        if len(many) == 1:
            return [{**many[0], "fraction": fraction}]
        total = self._malicious[setting]
        if total < len(many):
            problem = Problem(f"{total} malicious hospitals cannot share {len(many)} attacks", note=setting)
            raise ExperimentError(problem.at(self._composer.entry("attacks", attack)))
        shares = [total // len(many) + (index < total % len(many)) for index in range(len(many))]
        return [{**each, "count": share} for each, share in zip(many, shares, strict=True)]

    def _check(self) -> None:
        """Compose every attack and every defence once in each setting; an error of many cells is reported once."""
        mistakes = Mistakes(self.matrix.named)
        for setting in self.settings:

            def experiment(attack: str, defence: str, setting: str = setting) -> Experiment | None:
                def make() -> Experiment:
                    return self._composed(setting, attack, defence).checked(Experiment)

                return mistakes.attempt(make, f"{setting}, {attack}, {defence}")

            def alone(attack: str, setting: str = setting) -> Experiment:
                return self._composed(setting, attack, self.matrix.control).checked(Experiment)

            if (oracle := experiment(ORACLE, self.matrix.control)) is None:
                continue
            self._malicious[setting] = oracle.attacks[0].attackers(oracle.federation.clients)
            self._oracles[setting] = oracle
            for defence in self.defences:
                experiment(NOBODY, defence)
            for attack in self.matrix.attacks:  # the oracle has all triggers, whatever `only` says
                try:
                    made = experiment(attack, self.matrix.control) if attack in self.attacks else alone(attack)
                except ExperimentError:
                    continue
                if made is not None:
                    many = zip(made.attacks, _listed(self.matrix.attacks[attack]), strict=True)
                    planted = [(attack, each) for built, each in many if isinstance(built, Backdoor)]
                    self._triggers += [pair for pair in planted if pair not in self._triggers]
        mistakes.refuse()


def _of_source(entry: Origin, problem: Problem) -> Problem:
    return problem.below("data.source").at(entry)


def load_matrix(file: StudyFile, overrides: Changes = (), quick: bool = False) -> MatrixPlan:
    """Read a matrix file and compose its cells.

    file: its path, or its options.
    overrides: dotted path → value, or texts such as `"only.defences=[mean, median]"`.
    quick: use the small version, as `--quick` does.

    Raises `ExperimentError` with one line for each error, as `fedrobust.load` does.
    """
    draft, base = study_draft(file, overrides, Matrix)
    matrix = draft.checked(Matrix)
    if quick and matrix.quick == Quick():
        reason = "is missing, and --quick makes the matrix smaller as it says"
        raise ExperimentError(Problem(reason, "quick").at(draft.path))
    return MatrixPlan(matrix.quickened() if quick else matrix, draft, quick, base)


def _chosen(named: Mapping[str, Any], only: Sequence[str], always: str | None = None) -> dict[str, Any]:
    return {name: value for name, value in named.items() if not only or name in only or name == always}


def _listed(attack: Any) -> list[Mapping[str, Any]]:
    many = attack if isinstance(attack, list) else [attack]
    return [{"name": each} if isinstance(each, str) else each for each in many]
