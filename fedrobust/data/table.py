"""The source `table`: image files, and a CSV, TSV or Parquet file with a row for each of them."""

from __future__ import annotations

import logging
import os
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from fedrobust.data.listing import IMAGES, FileIdentity, first_file, folders
from fedrobust.data.patches import Outline
from fedrobust.data.sources import ImageFileSource, choose
from fedrobust.data.table_file import TableCells, column_names, no_column, read_columns
from fedrobust.data.table_rows import decided, plain, refuse_empty, rows_where, split_parts, template, votes_of
from fedrobust.errors import DataError, Problem
from fedrobust.options import Many, Options, refusal

logger = logging.getLogger(__name__)

CellValue = bool | int | float | str | None
"""A value to compare cells with; None: an empty cell."""


class TableColumns(Options):
    """The columns of a table: a column's name, or a text with names in braces, as in `patches/{dataset}_{uid}.png`."""

    image: str = Field(default="image", min_length=1)
    """The path of the image file, relative to `root`."""
    label: str | Many[str] = "label"
    """The label; or a list of columns, one for each reader, see `agree`."""
    patient: str | None = None
    """The patient; null: the column `patient`, if there is one; an empty text: none."""
    centre: str | None = None
    """The hospital or scanner of origin; null: the column `centre` or `center`, if there is one; an empty text:
    none."""
    split: str | None = None
    """`train`, `validation` or `test` of each patch; null: the column `split`, if there is one; an empty text: none."""

    @field_validator("label")
    @classmethod
    def _readers(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or "" in (value if isinstance(value, tuple) else ()):
            raise refusal("expected the name of a column, or of one for each reader")
        if not isinstance(value, str) and len(set(value)) < len(value):
            raise refusal("the column of a reader is there twice")
        return value

    @field_validator("*")
    @classmethod
    def _braces(cls, value: Any) -> Any:
        for each in value if isinstance(value, tuple) else (value or "",):
            try:
                list(string.Formatter().parse(each))
            except ValueError:
                raise refusal("each brace must be one of a pair around the name of a column") from None
        return value

    def named(self, known: tuple[str, ...]) -> dict[str, str]:
        """Option → the column or template that is used; `label.0`, `label.1` of several readers.

        known: the names of the table's columns.
        """
        found = {"image": self.image}
        if isinstance(self.label, str):
            found["label"] = self.label
        else:
            found |= {f"label.{number}": each for number, each in enumerate(self.label)}
        for option, names in {"patient": ("patient",), "centre": ("centre", "center"), "split": ("split",)}.items():
            given = getattr(self, option)
            found[option] = next((each for each in names if each in known), "") if given is None else given
        return {option: each for option, each in found.items() if each}


class PatchTable(ImageFileSource):
    """A table (CSV, TSV, Parquet) with a row for each image file: path, label and, if known, patient, centre and split.

    Images that are not square are cropped to their central square. The order of the rows does not matter.
    """

    name: Literal["table"] = "table"
    root: str | None = None
    """The folder that the paths of images are relative to; null: the folder of the table."""
    columns: TableColumns = TableColumns()
    """Which columns hold what: `image`, `label` (or a list of columns, one for each reader), `patient`, `centre` and
    `split`. A column's name, or a text with names in braces, as in `patches/{dataset}_{uid}.png`. By default those of
    these names; an empty text for patient, centre or split does without."""
    label_map: dict[str, str | int] = Field(default_factory=dict)
    """A text in the table → the name of its label, or the label's number 0..C-1. Labels with names are numbered in this
    order. Without it the texts are the names, in alphabetical or numerical order."""
    agree: Literal["majority", "all"] = "majority"
    """Where several readers gave labels: the label is what more than half of them gave, or what all gave. An empty cell
    is no vote."""
    undecided: Literal["refuse", "skip"] = "refuse"
    """Patches on whose label the readers do not agree: refuse the first one, or leave them out."""
    where: dict[str, CellValue | Many[CellValue]] = Field(default_factory=dict)
    """Column → the value, or a list of values, that a row must have there to be used; null is an empty cell."""
    incomplete: Literal["refuse", "skip"] = "refuse"
    """Rows with an empty cell for image or label, or for patient, centre or split where these have a column: refuse the
    first one, or leave them out."""

    home: ClassVar[str] = "your own patches, with a table of them (docs/your-data.md)"
    layout: ClassVar[str] = "the table (.csv, .tsv or .parquet, a row for each patch), or a folder that holds only one"
    _endings: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".parquet")

    @field_validator("label_map", "where", mode="before")
    @classmethod
    def _keys_are_texts(cls, value: Any, field: ValidationInfo) -> Any:
        """0 and true are keys in YAML, and texts in a table."""
        as_text = plain if field.field_name == "label_map" else str
        return {as_text(str(key)): each for key, each in value.items()} if isinstance(value, Mapping) else value

    @field_validator("label_map")
    @classmethod
    def _names_or_numbers(cls, value: dict[str, str | int]) -> dict[str, str | int]:
        numbers = {each for each in value.values() if isinstance(each, int)}
        if numbers and len(numbers) < len(set(value.values())):
            raise refusal("expected names alone, or numbers alone")
        if numbers != set(range(len(numbers))):
            raise refusal("the numbers of labels must be 0..C-1 without a gap")
        return value

    def locate(self) -> Path:
        return self.one_file(self._endings)

    def found(self) -> str | None:
        try:
            file = self.locate()
            return f"{file}, with the columns {', '.join(filter(None, column_names(file)))}"
        except DataError:
            return None

    def check(self) -> None:
        self._used(self.locate())

    def outline(self, seed: int) -> Outline:
        file = self.locate()
        used = self._used(file)
        for note in used.told["notes"]:
            logger.warning("%s: %s", self.name, note)
        strata = [used.told[key] for key in ("labels", "split", "centres") if used.told[key] is not None]
        chosen = choose(self.limit, seed, *strata)
        files = self._files(used, chosen)
        told = {key: each[chosen] if isinstance(each, np.ndarray) else each for key, each in used.told.items()}
        return self.outlined(file, lambda further: self.decoded([files[index] for index in further]), **told)

    def _used(self, file: Path) -> _Used:
        """The rows that are used. Raises `DataError` for everything that the table tells is wrong."""
        known = column_names(file)
        columns = {option: template(each, known) for option, each in self.columns.named(known).items()}
        needed = {name: f"columns.{option}" for option, each in columns.items() for name in each.columns}
        for name, option in ({name: f"where.{name}" for name in self.where} | needed).items():
            if name not in known:
                raise no_column(file, name, known, option)
        table = read_columns(file, [*dict.fromkeys([*needed, *self.where])])
        rows = rows_where(table, self.where)
        left = {"not chosen by `where`": len(table) - len(rows)}

        readers = [each for option, each in columns.items() if option.startswith("label")]
        votes = votes_of(table, rows, readers, self.label_map)
        others = {option: each for option, each in columns.items() if not option.startswith("label")}
        empty = {"label": ~votes.cast.any(axis=0)} | {key: each.empty(table, rows) for key, each in others.items()}
        if self.incomplete == "refuse":
            refuse_empty(table, rows, empty)
        whole = np.flatnonzero(~np.logical_or.reduce([*empty.values()]))
        left["incomplete"] = len(rows) - len(whole)

        skip = self.undecided == "skip"
        labels, names, agreed = decided(table, rows[whole], votes.of(whole), self.label_map, self.agree, skip)
        left["undecided"] = len(whole) - len(agreed)
        rows = rows[whole[agreed]]

        told = {option: each.texts(table, rows) for option, each in others.items()}
        split = split_parts(table, rows, told["split"], told.get("patient")) if "split" in told else None
        images = columns["image"].texts(table, rows, as_written=True)
        order = np.argsort(images, kind="stable")
        arrays = {"labels": labels, "groups": told.get("patient"), "centres": told.get("centre"), "split": split}
        gone = ", ".join(f"{count} {reason}" for reason, count in left.items() if count)
        found = {key: None if each is None else each[order] for key, each in arrays.items()} | {
            "label_names": names,
            "notes": (f"{len(rows)} of {len(table)} rows are used: {gone}",) if gone else (),
            "patients_from": f"name its column with data.source.columns.patient ({', '.join(filter(None, known))})",
        }
        used = _Used(table, rows[order], images[order], told["image"][order], found)
        if len(again := np.flatnonzero(used.images[1:] == used.images[:-1])):
            raise _twice(used, again[0], again[0] + 1, len(again))
        return used

    def _files(self, used: _Used, chosen: np.ndarray) -> list[Path]:
        """The image files of some of the rows.

        chosen: (n,) their positions in `used`.

        Raises `DataError` for files that are not there, and for a file with two names.
        """
        root = used.table.file.parent if self.root is None else self.named(self.root)
        if not root.is_dir():
            raise DataError(Problem("is not a folder").at(root).below("root"))
        found: dict[FileIdentity, tuple[Path, int]] = {}
        absent = []
        for place in chosen.tolist():
            image = str(used.images[place])
            ways = (image, image.replace("\\", "/"), str(used.plain[place]))
            file = first_file(os.path.join(root, each) for each in ways)  # noqa: PTH118  of hundreds of thousands
            if file is None:
                absent.append(place)
            elif (first := found.setdefault(file[1], (file[0], place)))[1] != place:
                raise _twice(used, first[1], place)
        if absent:
            image = str(used.images[absent[0]])
            reason = f"does not exist ({len(absent)} of {len(chosen)} images do not)"
            problem = Problem(reason, hint=self._advice(root, image)).at(root / image)
            raise DataError(problem.at(used.table.origin(used.rows[absent[0]])))
        return [file for file, _ in found.values()]

    def _advice(self, root: Path, image: str) -> str:
        """What the user can do where an image is not below `root`."""
        for ending in sorted(IMAGES):
            if first_file((str(root / image) + ending,)):
                given = self.columns.image if "{" in self.columns.image else f"{{{self.columns.image}}}"
                return f"set `columns.image: '{given}{ending}'`, as there is a file with this ending"
        for folder in folders(root):
            if first_file((str(folder / image),)):
                return f"set `root: {folder}`, where it is"
        return f"paths are relative to {root}, or to `root`"


class _Used(NamedTuple):
    """The rows of a table that are used, in the order of the paths of their images."""

    table: TableCells
    rows: np.ndarray
    """(n,) positions in the table."""
    images: np.ndarray
    """(n,) str: paths as they are written."""
    plain: np.ndarray
    """(n,) str: paths in which whole numbers have no `.0`."""
    told: dict[str, Any]
    """Arguments of `Outline`."""


def _twice(used: _Used, first: int, second: int, count: int = 1) -> DataError:
    """The error for an image file with two rows.

    first, second: positions in `used`.
    count: of such rows.
    """
    rows = used.rows[[first, second]].tolist()
    reason = f"{used.images[second]} is also in {used.table.row(min(rows))}"
    more = f" ({count} rows repeat an image)" if count > 1 else ""
    hint = (
        "keep one row for each image; if readers have rows of their own, give each a column, and list these in `label`"
    )
    return DataError(Problem(reason + more, "columns.image", hint=hint).at(used.table.origin(max(rows))))
