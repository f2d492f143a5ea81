"""A suite: the experiment, settings, attacks and seeds that all rows share. It is complete in itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml.comments import CommentedMap

from fedrobust.data.sources import FileSource
from fedrobust.draft import ByPath, Draft
from fedrobust.errors import DataError, ExperimentError, Problem
from fedrobust.matrices.grid import NOBODY, ORACLE, Cell, Matrix, MatrixPlan
from fedrobust.options import Many, Options, nearest, refusal
from fedrobust.studies.options import Seeds
from fedrobust.texts import is_name
from fedrobust.validation import problems_of

DEFAULT = "histology-v1"
"""The suite where none is named: its data are generated."""
CONTROL = "mean"
"""The defence that is none: without the malicious hospitals it is the oracle."""
PARTS = ("aggregation", "trust")
"""The options of an experiment that make a defence."""
SUITES = Path(__file__).parent / "suites"
"""The folder of the shipped suites."""


class CellKey(NamedTuple):
    """Which cell of a row."""

    setting: str
    attack: str
    """One of the suite's, or `nobody`; `oracle` and `nobody` among the controls."""
    seed: int


class SuitePart(Options):
    """The cells of a suite that `--quick` runs."""

    attacks: Many[str] = Field(min_length=1)
    """Names of attacks."""
    seeds: Seeds = Field(min_length=1)
    """Some of the suite's seeds."""


class SuiteOptions(Options):
    """The file of a suite."""

    name: str
    """Name and version, e.g. `histology-v1`."""
    about: str
    """One line for lists."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the data file, where the source is a file that everybody can have."""
    experiment: dict[str, Any]
    """The experiment of all cells, without attacks, defence and seed."""
    settings: dict[str, dict[str, Any]] = Field(min_length=1)
    """As in a matrix file: the `fraction` of malicious hospitals, and options by dotted path."""
    attacks: dict[str, Any] = Field(min_length=1)
    """As in a matrix file."""
    seeds: Seeds = Field(min_length=1)
    """The seeds on which everything is measured."""
    quick: SuitePart

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not is_name(self.name):
            raise refusal("use letters, digits, blanks, + - _", "name")
        for path, names in (
            ("seeds", self.seeds),
            ("quick.seeds", self.quick.seeds),
            ("quick.attacks", self.quick.attacks),
        ):
            if len(set(names)) < len(names):
                raise refusal("has something twice; a row has each cell once", path)
        for key in ("attacks", "aggregation", "trust", "seed"):
            if key in self.experiment:
                raise refusal("is not the same in all cells; leave it out", f"experiment.{key}")
        for name, changes in self.settings.items():
            if given := [path for path in changes if path.partition(".")[0] in PARTS]:
                raise refusal("is the entry's; leave it out", f"settings.{name}.{given[0]}")
        for field, known in (("attacks", list(self.attacks)), ("seeds", list(self.seeds))):
            for each in getattr(self.quick, field):
                if each not in known:
                    raise refusal(f"{each!r} is not in this suite", f"quick.{field}")
        return self


class SuiteMatrix(Matrix):
    """A suite with its entries: every attack meets every entry on every seed."""

    kind = "benchmark"
    folders = Path("mlruns/benchmark")
    by_path: ClassVar[ByPath] = {}

    fresh: Seeds = ()
    """None: nothing is chosen on some seeds and judged on others."""


@dataclass(frozen=True)
class Suite:
    """A suite that has been read and checked."""

    options: SuiteOptions
    draft: Draft
    """Its file."""

    @property
    def name(self) -> str:
        """Return its name."""
        return self.options.name

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of what decides the results of a row: the resolved experiments under every attack, and the
        seeds. Comments do not count; a changed default of an option does."""
        first = self._matrix({}, [], self.options.seeds[:1])
        cells = [(each.setting, each.attack, each.digest) for each in (*first.controls(), *first.screening())]
        what = {"cells": cells, "seeds": self.options.seeds, "data": self.options.sha256}
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    @cached_property
    def backdoors(self) -> list[str]:
        """Return the attacks that plant a backdoor."""
        return self._matrix({}, [], self.options.seeds[:1]).backdoors

    def attacks(self, quick: bool) -> tuple[str, ...]:
        """Return the names of the attacks, all or those of the quick part."""
        return self.options.quick.attacks if quick else tuple(self.options.attacks)

    def cells(self, quick: bool) -> list[CellKey]:
        """Return the cells of a row, all or those of the quick part, by seed, so that the same data are adjacent."""
        return self._keys(quick, (NOBODY, *self.attacks(quick)))

    def controls(self, quick: bool) -> list[CellKey]:
        """Return the cells of the control that a row needs: the oracle, and the control with nobody attacking."""
        return self._keys(quick, (ORACLE, NOBODY))

    def planned(self, name: str, options: Mapping[str, Any], folders: Iterable[Path], code: str = "") -> PlannedRow:
        """Return the runs of one entry.

        name, options: of the entry; `aggregation` and `trust`, resolved.
        folders: may hold the user's classes.
        code: the digest of the user's classes. A digest of an experiment does not have it; so runs with other code are
            kept in another folder.
        """
        defences = {name: dict(options)} if name != CONTROL else {}
        grid = self._matrix(defences, [*folders], self.options.seeds, f"{self.name} {code[:8]}" if code else None)
        runs = {(_key(cell), cell.defence): cell for cell in (*grid.controls(), *grid.screening())}
        return PlannedRow(name, grid, runs)

    def check_data(self) -> None:
        """Raise `DataError` if the data are missing, or are another file than the suite's."""
        (sample,) = {each.experiment for each in self._matrix({}, [], self.options.seeds[:1]).controls()[:1]}
        assert sample is not None
        source = sample.data.source
        source.check()
        if self.options.sha256 is not None and isinstance(source, FileSource):
            with source.locate().open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != self.options.sha256:
                reason = f"is not the file of {self.name}: its SHA-256 is {found[:8]}…, not {self.options.sha256[:8]}…"
                raise DataError(Problem(reason).at(source.locate()))

    def _keys(self, quick: bool, attacks: Sequence[str]) -> list[CellKey]:
        seeds = self.options.quick.seeds if quick else self.options.seeds
        return [CellKey(setting, each, seed) for seed in seeds for setting in self.options.settings for each in attacks]

    def _matrix(
        self, defences: Mapping[str, Any], folders: Sequence[Path], seeds: Sequence[int], name: str | None = None
    ) -> MatrixPlan:
        options = self.options
        values = {
            "name": name or options.name,
            "experiment": options.name,
            "settings": options.settings,
            "attacks": options.attacks,
            "defences": {CONTROL: {"aggregation": {"rule": CONTROL}}, **defences},
            "control": CONTROL,
            "screening": tuple(seeds),
            "changes": {"tracking.experiment": options.name},
        }
        try:
            matrix = SuiteMatrix.model_validate(values)
        except ValidationError as error:
            raise ExperimentError(*problems_of(error, values, self.draft.origin_of)) from None
        tree = self.draft.tree["experiment"]
        assert isinstance(tree, CommentedMap)
        return MatrixPlan(matrix, self.draft, base=replace(self.draft, tree=tree, beside=tuple(folders)))


@dataclass(frozen=True)
class PlannedRow:
    """The runs that make a row."""

    name: str
    """That of the entry."""
    grid: MatrixPlan
    runs: Mapping[tuple[CellKey, str], Cell]
    """(cell, defence) → run."""

    def chosen(self, cells: Iterable[CellKey], controls: Iterable[CellKey]) -> list[Cell]:
        """Return the runs of cells, and of controls."""
        own = [self.runs[key, self.name] for key in cells]
        return [*(self.runs[key, CONTROL] for key in controls), *own]


def _key(cell: Cell) -> CellKey:
    return CellKey(cell.setting, cell.attack, cell.seed)


def shipped_suites() -> dict[str, Path]:
    """Return the suites of this version: name → file."""
    return {file.stem: file for file in sorted(SUITES.glob("*.yaml"))}


def load_suite(suite: str) -> Suite:
    """Read a suite.

    suite: the name of a shipped one, or the path of a YAML file.

    Raises `ExperimentError` with a line for each error.
    """
    shipped = shipped_suites()
    path = shipped.get(suite, Path(suite))
    if suite not in shipped and path.suffix not in (".yaml", ".yml"):
        hint = nearest(suite, shipped) or "or the path of a YAML file"
        raise ExperimentError(Problem("", "suite", f"'{suite}'", tuple(shipped), hint))
    draft = Draft.read(path)
    loaded = Suite(draft.checked(SuiteOptions), draft)
    loaded.digest  # noqa: B018  composes every attack once
    return loaded
