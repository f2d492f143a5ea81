"""A matrix file: which attacks meet which defences in which settings, and the experiments that this makes.

Everything is paired: a cell's seed alone decides split, initial weights, batches and attackers, so two cells of a
setting and seed differ in nothing but attack and defence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fedrobust.attacks import Backdoor
from fedrobust.errors import ExperimentError, Problem
from fedrobust.experiment import Experiment
from fedrobust.experiment_file import Draft
from fedrobust.failures import reason
from fedrobust.options import Many, Options, nearest, refusal
from fedrobust.texts import is_name

NOBODY = "nobody"
"""The column in which no hospital is malicious."""
ORACLE = "oracle"
"""The control that leaves the true attackers out: the ceiling that robustness is measured by."""
SIZES = ("fraction", "count", "clients")


Names = Many[str]
Seeds = Many[Annotated[int, Field(ge=0, le=2**63 - 1)]]


class Only(Options):
    """Names that a matrix is narrowed down to; where none is given, all stay."""

    settings: Names = ()
    attacks: Names = ()
    defences: Names = ()


class Quick(Options):
    """What `--quick` changes: a look at everything within minutes."""

    changes: dict[str, Any] = Field(default_factory=dict)
    """Options of every cell, by dotted path."""
    only: Only = Only()
    fresh: Seeds | None = None
    worst: int | None = Field(default=None, ge=1)
    backdoors: int | None = Field(default=None, ge=0)


class Matrix(Options):
    """A grid of runs: every attack against every defence on the screening seeds, the worst again on fresh seeds."""

    name: str = "matrix"
    """Name of the matrix, and of its folder."""
    experiment: str
    """The experiment file that all cells begin with; a relative path is one from this file's folder."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Options of every cell, by dotted path, e.g. `federation.rounds: 20`."""
    settings: dict[str, dict[str, Any]]
    """Where the federation stands: for each name the `fraction` of malicious hospitals, and options by dotted path."""
    attacks: dict[str, Any]
    """For each name an attack, or a list of them that share the setting's fraction; without a size of their own."""
    defences: dict[str, dict[str, Any]]
    """For each name the options that make the defence, by dotted path: `aggregation`, `trust`."""
    control: str = "mean"
    """The defence that is none: an attack that does not hurt it is harmless; without the attackers it is the oracle."""
    screening: Seeds = Field(default=(1,), min_length=1)
    """Seeds on which every attack meets every defence."""
    fresh: Seeds = Field(default=(11, 12, 13, 14, 15), min_length=1)
    """Seeds on which the worst attacks of each defence are measured again; none of them is a screening seed."""
    worst: int = Field(default=4, ge=1)
    """How many attacks of each defence that is, those that leave the least robustness."""
    backdoors: int = Field(default=1, ge=0)
    """How many backdoors of each defence, those that succeed best, are measured again as well."""
    only: Only = Only()
    quick: Quick = Quick()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field in ("settings", "attacks", "defences"):
            named: Mapping[str, Any] = getattr(self, field)
            if not named:
                raise refusal("give at least one", field)
            for name in named:
                if not is_name(name) or name in (NOBODY, ORACLE):
                    raise refusal(f"'{name}' cannot be a name here: use letters, digits, blanks, + - _", field)
        if not is_name(self.name):
            raise refusal("use letters, digits, blanks, + - _", "name")
        if self.control not in self.defences:
            raise refusal(f"must be one of the defences: {', '.join(self.defences)}", "control")
        if again := sorted(set(self.fresh) & set(self.screening)):
            raise refusal(f"{again[0]} is a screening seed; attacks chosen on a seed cannot be judged on it", "fresh")
        for field in ("screening", "fresh"):
            if len(set(getattr(self, field))) < len(getattr(self, field)):
                raise refusal("must name each seed once", field)
        for path, only in (("only", self.only), ("quick.only", self.quick.only)):
            for field in ("settings", "attacks", "defences"):
                for name in getattr(only, field):
                    if name not in (known := getattr(self, field)):
                        reason, hint = f"no '{name}' in this matrix", nearest(name, known)
                        raise refusal(Problem(reason, f"{path}.{field}", "", hint=hint))
        return self

    @model_validator(mode="after")
    def _sized_by_the_setting(self) -> Self:
        for name, setting in self.settings.items():
            fraction = setting.get("fraction")
            if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
                raise refusal("needs the fraction of malicious hospitals, between 0 and 1", f"settings.{name}.fraction")
        for name, attack in self.attacks.items():
            for each in attack if isinstance(attack, list) else [attack]:
                if not isinstance(each, (str, Mapping)):
                    raise refusal("expected an attack, or a list of attacks", f"attacks.{name}")
                if given := [size for size in SIZES if size in each and isinstance(each, Mapping)]:
                    raise refusal(f"{given[0]} is the setting's; leave it out", f"attacks.{name}")
        return self

    def quickened(self) -> Matrix:
        """The matrix of `--quick`, under a name and thus in a folder of its own."""
        given = {field: getattr(self.quick, field) for field in ("fresh", "worst", "backdoors")}
        changes = {field: value for field, value in given.items() if value is not None}
        only = {field: getattr(self.quick.only, field) or getattr(self.only, field) for field in Only.model_fields}
        return self.model_copy(update={"name": f"{self.name}-quick", "only": Only(**only), **changes})


@dataclass(frozen=True)
class Cell:
    """One run of a matrix."""

    setting: str
    attack: str
    defence: str
    seed: int
    phase: str
    """`control`, `screening` or `fresh`."""
    experiment: Experiment | None
    """None where its setting, attack and defence do not go together."""
    digest: str
    """The experiment's: a cell that was finished under it need not be run again."""

    triggers: tuple[str, ...] = ()
    """Of the oracle: the backdoors whose triggers are tried on it, one for each of its attacks behind the first."""
    refused: str = ""
    """Why there is no experiment."""

    @property
    def label(self) -> str:
        """What sets it apart from its neighbours."""
        return f"{self.defence} | {self.attack} | {self.setting} | seed {self.seed}"


class Grid:
    """A matrix, composed: it makes the cells of each phase."""

    def __init__(self, matrix: Matrix, draft: Draft, quick: bool = False) -> None:
        """`draft` is the file of the matrix; `quick`: `matrix` is the small version of it.

        Raises `ExperimentError` with a line for everything that is wrong in any cell.
        """
        self.matrix = matrix
        self.settings = _chosen(matrix.settings, matrix.only.settings)
        self.attacks = _chosen(matrix.attacks, matrix.only.attacks)
        self.defences = _chosen(matrix.defences, matrix.only.defences, matrix.control)
        self._places = {
            (field, name): f"{draft.place(field, name)}: {field}.{name}"
            for field in ("settings", "attacks", "defences")
            for name in getattr(matrix, field)
        }
        try:
            self._base = Draft.read(draft.path.parent / matrix.experiment, beside=draft.beside)
        except ExperimentError as error:
            raise ExperimentError(f"{draft.place('experiment')}: experiment: {error}") from None
        self._base = self._base.changed(matrix.changes, f"{draft.place('changes')}: changes")
        if quick:
            self._base = self._base.changed(matrix.quick.changes, f"{draft.place('quick', 'changes')}: quick.changes")
        self._defended: dict[tuple[str, str], Draft] = {}
        self._malicious: dict[str, int] = {}
        self._oracles: dict[str, Experiment] = {}
        self._triggers: list[tuple[str, Mapping[str, Any]]] = []
        self._check()

    def controls(self) -> list[Cell]:
        """The oracle and nobody's attack, on all seeds."""
        pairs = [(ORACLE, self.matrix.control), *((NOBODY, defence) for defence in self.defences)]
        return self._cells(self.settings, self._seeds, pairs, "control")

    def screening(self) -> list[Cell]:
        """Every attack against every defence on the screening seeds."""
        pairs = [(attack, defence) for attack in self.attacks for defence in self.defences]
        return self._cells(self.settings, self.matrix.screening, pairs, "screening")

    def fresh(self, chosen: Mapping[tuple[str, str], Sequence[str]]) -> list[Cell]:
        """The attacks `chosen` for each (setting, defence), on the fresh seeds."""
        found = []
        for setting in self.settings:
            pairs = [(attack, defence) for defence in self.defences for attack in chosen.get((setting, defence), ())]
            found += self._cells([setting], self.matrix.fresh, pairs, "fresh")
        return found

    @property
    def backdoors(self) -> list[str]:
        """The attacks that plant a backdoor."""
        return list(dict.fromkeys(name for name, _ in self._triggers))

    @property
    def tracking(self) -> str:
        """The MLflow experiment that all of it belongs to."""
        return self._base.checked(Experiment).tracking.experiment

    def check_data(self) -> None:
        """Raise `DataError` where the files of a setting's data are not there."""
        for setting, oracle in self._oracles.items():
            try:
                oracle.data.source.check()
            except ExperimentError as error:
                raise type(error)(f"{self._places['settings', setting]}: data.source: {error}") from error

    @property
    def most(self) -> int:
        """How many cells there can be at most."""
        settings, defences, seeds = len(self.settings), len(self.defences), self._seeds
        again = min(self.matrix.worst + self.matrix.backdoors, len(self.attacks))
        screened = len(self.attacks) * defences * len(self.matrix.screening)
        return settings * (len(seeds) * (1 + defences) + screened + again * defences * len(self.matrix.fresh))

    @property
    def _seeds(self) -> list[int]:
        return [*self.matrix.screening, *self.matrix.fresh]

    def _cells(
        self, settings: Iterable[str], seeds: Iterable[int], pairs: Sequence[tuple[str, str]], phase: str
    ) -> list[Cell]:
        # Cells of the same data next to each other: they are then read once.
        return [
            self._cell(setting, attack, defence, seed, phase)
            for setting in settings
            for seed in seeds
            for attack, defence in pairs
        ]

    def _cell(self, setting: str, attack: str, defence: str, seed: int, phase: str) -> Cell:
        run_name = f"{defence} | {attack} | {setting} | seed {seed}"
        own = {"seed": seed, "tracking.run_name": run_name, "tracking.model": False}
        try:
            composed = self._composed(setting, attack, defence).changed(own, "the matrix").checked(Experiment)
            digest = composed.digest()
        except (Exception, SystemExit) as error:  # a validator of a user's own class may raise anything
            digest = sha256(run_name.encode()).hexdigest()
            return Cell(setting, attack, defence, seed, phase, None, digest, refused=reason(error))
        triggers = tuple(name for name, _ in self._triggers) if attack == ORACLE else ()
        return Cell(setting, attack, defence, seed, phase, composed, digest, triggers)

    def _composed(self, setting: str, attack: str, defence: str) -> Draft:
        if (setting, defence) not in self._defended:
            options = {path: value for path, value in self.settings[setting].items() if path != "fraction"}
            draft = self._base.changed(options, self._places["settings", setting])
            draft = draft.changed(self.defences[defence], self._places["defences", defence])
            self._defended[setting, defence] = draft
        sized = {"attacks": self._sized(setting, attack)}
        return self._defended[setting, defence].changed(sized, self._places.get(("attacks", attack), attack))

    def _sized(self, setting: str, attack: str) -> list[Any]:
        """The attacks of a column with the setting's fraction put in; several share it out among them."""
        if attack == NOBODY:
            return []
        fraction = float(self.settings[setting]["fraction"])
        if attack == ORACLE:  # nobody plants the backdoors; their triggers are tried all the same
            return [{"name": "absent", "fraction": fraction}, *({**each, "count": 0} for _, each in self._triggers)]
        many = _listed(self.attacks[attack])
        if len(many) == 1:
            return [{**many[0], "fraction": fraction}]
        total, place = self._malicious[setting], self._places["attacks", attack]
        if total < len(many):
            raise ExperimentError(f"{place}: {total} malicious hospitals cannot share {len(many)} attacks ({setting})")
        shares = [total // len(many) + (index < total % len(many)) for index in range(len(many))]
        return [{**each, "count": share} for each, share in zip(many, shares, strict=True)]

    def _check(self) -> None:
        """Compose every attack and every defence once in each setting; what is wrong with many cells is told once."""
        wrong: dict[str, None] = {}
        for setting in self.settings:
            try:
                oracle = self._composed(setting, ORACLE, self.matrix.control).checked(Experiment)
            except ExperimentError as error:
                wrong |= dict.fromkeys(str(error).splitlines())
                continue
            self._malicious[setting] = oracle.attacks[0].attackers(oracle.federation.clients)
            self._oracles[setting] = oracle
            pairs = [(attack, self.matrix.control) for attack in self.attacks]
            for attack, defence in [*pairs, *((NOBODY, defence) for defence in self.defences)]:
                try:
                    attacks = self._composed(setting, attack, defence).checked(Experiment).attacks
                except ExperimentError as error:
                    wrong |= dict.fromkeys(self._told(str(error), setting, attack, defence))
                    continue
                many = zip(attacks, _listed(self.attacks.get(attack, [])), strict=True)
                planted = [(attack, each) for built, each in many if isinstance(built, Backdoor)]
                self._triggers += [pair for pair in planted if pair not in self._triggers]
        if wrong:
            raise ExperimentError("\n".join(wrong))

    def _told(self, error: str, setting: str, attack: str, defence: str) -> list[str]:
        """The lines of an error; those that come from no single entry of the file name the cell."""
        places = tuple(self._places.values())
        return [
            line if line.startswith(places) else f"{line} ({setting}, {attack}, {defence})"
            for line in error.splitlines()
        ]


def load_matrix(path: str | Path, overrides: Iterable[str] = (), quick: bool = False) -> Grid:
    """Read a matrix file, with `overrides` such as `"only.defences=[mean, median]"`, and compose its cells.

    Raises `ExperimentError` with one line for each thing that is wrong, as `fedrobust.load` does.
    """
    draft = Draft.read(path, overrides)
    matrix = draft.checked(Matrix)
    return Grid(matrix.quickened() if quick else matrix, draft, quick)


def _chosen(named: Mapping[str, Any], only: Sequence[str], always: str | None = None) -> dict[str, Any]:
    return {name: value for name, value in named.items() if not only or name in only or name == always}


def _listed(attack: Any) -> list[Mapping[str, Any]]:
    many = attack if isinstance(attack, list) else [attack]
    return [{"name": each} if isinstance(each, str) else each for each in many]
