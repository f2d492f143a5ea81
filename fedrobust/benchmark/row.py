"""A row: all cells of one entry in a file, from which every figure of its line in the table follows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from fedrobust.benchmark.suite import PARTS, CellKey, Suite
from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.matrices.grid import ORACLE
from fedrobust.options import Many, Options, refusal
from fedrobust.texts import enumerated, is_name
from fedrobust.validation import problems_of

ROWS = Path(__file__).parent / "rows"
"""The folder of the rows that are part of the package: a folder for each suite."""
LARGEST = 10_000_000
"""Bytes of a file that are read at most; a row of 340 cells has 60,000."""
LONGEST = 500
"""Characters of a text in a row."""
LONGEST_NAME = 60
"""Characters of an entry's name, which stands in tables."""

_Share = Annotated[float, Field(ge=0, le=1)]


class MeasuredCell(Options):
    """The result of one cell, or why it has none."""

    setting: str
    attack: str
    seed: int
    accuracy: _Share | None = None
    """Balanced accuracy on the test patches."""
    success: _Share | None = None
    """For a backdoor: the share of the patches that its trigger turns into the attacker's label."""
    classes: int | None = Field(default=None, ge=2)
    """For the oracle: how many labels occur in the test."""
    base_rates: dict[str, _Share] = Field(default_factory=dict)
    """For the oracle: backdoor → how often its trigger succeeds although nobody planted it."""
    seconds: Annotated[float, Field(ge=0)] | None = None
    """Duration of its rounds: the median round times their number, and what repairs of the model took longer."""
    failed: str = Field(default="", max_length=LONGEST)
    """The error that ended it, or its beginning."""

    @property
    def key(self) -> CellKey:
        """Return which cell it is."""
        return CellKey(self.setting, self.attack, self.seed)

    @model_validator(mode="after")
    def _has_a_result(self) -> Self:
        if (self.accuracy is None) != bool(self.failed):
            raise refusal("expected a result, or why there is none", "accuracy")
        if self.attack == ORACLE and self.accuracy is not None and self.classes is None:
            raise refusal("is missing: robustness is relative to chance", "classes")
        return self


class RowEntry(Options):
    """What was measured."""

    name: str = Field(max_length=LONGEST_NAME)
    options: dict[str, dict[str, Any]]
    """`aggregation` and `trust`, resolved."""
    code: dict[str, str] = Field(default_factory=dict)
    """Each class of the author's own → SHA-256 of the file that defines it."""
    source: str = Field(default="", max_length=LONGEST)
    """Where others find that file; the author writes it in."""

    @model_validator(mode="after")
    def _is_a_defence(self) -> Self:
        if not is_name(self.name):
            raise refusal("use letters, digits, blanks, + - _", "name")
        if self.options.keys() != set(PARTS):
            raise refusal(f"must have {' and '.join(PARTS)}, and nothing else", "options")
        return self


class BenchmarkRow(Options):
    """The file of a row."""

    format: Literal[1] = 1
    suite: str
    digest: str
    """Digest of the suite."""
    quick: bool
    """Whether it has only the cells of the quick part."""
    entry: RowEntry
    versions: dict[str, str]
    """The software that computed it: package → version."""
    controls: Many[MeasuredCell]
    """The oracle, and the plain mean with nobody attacking."""
    cells: Many[MeasuredCell]

    @property
    def name(self) -> str:
        """Return the name of its entry."""
        return self.entry.name

    def restricted(self, suite: Suite) -> BenchmarkRow:
        """Return the quick part of this row."""
        controls, cells = set(suite.controls(quick=True)), set(suite.cells(quick=True))
        kept = {"controls": _kept(self.controls, controls), "cells": _kept(self.cells, cells)}
        return self.model_copy(update={"quick": True, **kept})

    def written(self) -> str:
        """Return it as JSON, with a line for each cell."""
        head = self.model_dump(mode="json", exclude={"controls", "cells"})
        parts = [f'"{name}": {json.dumps(value)}' for name, value in head.items()]
        for name in ("controls", "cells"):
            lines = ",\n".join(json.dumps(each.model_dump(exclude_defaults=True)) for each in getattr(self, name))
            parts.append(f'"{name}": [\n{lines}\n]')
        return "{\n" + ",\n".join(parts) + "\n}\n"


def read_row(path: Path, suite: Suite) -> BenchmarkRow:
    """Read a row.

    path: its file.
    suite: the suite that it must be of.

    Raises `ExperimentError` with one line if it cannot be read, is of another suite or another version of it, or does
    not have each of its cells once.
    """
    row = parsed_row(path)
    if row.suite != suite.name:
        raise _wrong(path, Problem("is a row of another suite", "suite", f"'{row.suite}'", (suite.name,)))
    if row.digest != suite.digest:
        found = f"{row.digest[:8]}…, and here it is {suite.digest[:8]}…"
        reason = f"this is not the {suite.name} that it was computed with: the suite or a default has another value"
        raise _wrong(path, Problem(reason, "digest", found))
    for name, expected in (("controls", suite.controls(row.quick)), ("cells", suite.cells(row.quick))):
        if problem := _incomplete([each.key for each in getattr(row, name)], expected):
            raise _wrong(path, Problem(problem, name))
    return row


def parsed_row(path: Path) -> BenchmarkRow:
    """Read the file of a row, whatever its suite is. Raises `ExperimentError` as `read_row` does."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"longer than {LARGEST:,} bytes")
        found = json.loads(data)
    except OSError as error:
        raise _wrong(path, Problem(f"cannot be read: {error.strerror or error}")) from None
    except (ValueError, RecursionError) as error:
        raise _wrong(path, Problem(f"is not the file of a row: {' '.join(str(error).split())[:100]}")) from None
    if not isinstance(found, dict):
        raise _wrong(path, Problem("is not the file of a row"))
    try:
        return BenchmarkRow.model_validate(found)
    except ValidationError as error:
        first, *others = problems_of(error, found, lambda *keys: Origin(path))
        raise ExperimentError(first.noting(f"and {len(others)} more") if others else first) from None


def stored_rows(suite: Suite) -> tuple[list[BenchmarkRow], list[ExperimentError]]:
    """Return the rows that are part of the package, and why others in their folder are none: one bad file takes no
    other row away."""
    rows, refused = list[BenchmarkRow](), list[ExperimentError]()
    for file in sorted((ROWS / suite.name).glob("*.json")):
        try:
            rows.append(read_row(file, suite))
        except ExperimentError as error:
            refused.append(error)
    return rows, refused


def _incomplete(found: Sequence[CellKey], expected: Sequence[CellKey]) -> str:
    """Return how the cells differ from the expected ones; empty if each is there once."""
    counts = Counter(found)
    differences: Mapping[str, Iterable[CellKey]] = {
        "missing": [key for key in expected if key not in counts],
        "not in the suite": counts.keys() - set(expected),
        "there twice": [key for key, count in counts.items() if count > 1],
    }
    for what, keys in differences.items():
        if names := sorted(", ".join(map(str, key)) for key in keys):
            return f"{what}: {enumerated(names, 1)}"
    return ""


def _kept(cells: Sequence[MeasuredCell], keys: set[CellKey]) -> tuple[MeasuredCell, ...]:
    return tuple(each for each in cells if each.key in keys)


def _wrong(path: Path, problem: Problem) -> ExperimentError:
    return ExperimentError(problem.at(path))
