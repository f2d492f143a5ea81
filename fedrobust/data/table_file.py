"""Files with a table: CSV, TSV or Parquet. Every cell is read as a text, and errors name its row."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedrobust.data.foreign import mistaken_for, plausible, reading, require_memory
from fedrobust.data.patches import nothing
from fedrobust.errors import DataError, Origin, Problem
from fedrobust.options import nearest

PARQUET = b"PAR1"
"""The first bytes of a Parquet file."""
SEPARATORS = ",\t;"
"""What may stand between the cells of a CSV or TSV file; the first row shows which one it is."""
_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_SHOWN = 30


@dataclass(frozen=True, eq=False)
class TableCells:
    """Some columns of a table."""

    file: Path
    columns: dict[str, np.ndarray]
    """Name → (N,) str, without blanks around the cells; empty where there is nothing."""
    lines: np.ndarray | None
    """(N,) int64: the line of the file on which each row begins; None for Parquet, which has no lines."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def row(self, row: int) -> str:
        """Where a row is, in words.

        row: its position, from 0.
        """
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def origin(self, row: int) -> Origin:
        """Where a row is, for errors.

        row: its position, from 0.
        """
        if self.lines is None:
            return Origin(self.file, text=self.row(row))
        return Origin(self.file, int(self.lines[row]))


def column_names(file: Path) -> tuple[str, ...]:
    """The names of the columns, as the first row or the schema has them.

    Raises `DataError` for files that are no table.
    """
    if _is_parquet(file):
        with _parquet(file) as opened:
            return tuple(opened.schema_arrow.names)
    with _rows(file) as (header, _):
        return header


def read_columns(file: Path, names: Sequence[str]) -> TableCells:
    """Some columns of a table.

    file: CSV, TSV or Parquet. Text is UTF-8 or, with a byte order mark, UTF-16; its cells are separated by commas, tabs
        or semicolons.
    names: of the columns.

    Blank lines are left out. Raises `DataError` for columns that are missing or there twice, rows with too
    few or too many cells, and a table without rows.
    """
    known = column_names(file)
    for name in names:
        if name not in known:
            raise no_column(file, name, known)
        if known.count(name) > 1:
            raise DataError(Problem(f"there are {known.count(name)} columns of this name", name).at(file))
    found = _from_parquet(file, names) if _is_parquet(file) else _from_text(file, names)
    if not len(found):
        raise DataError(Problem("has no rows").at(file))
    return found


def read_table(file: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some columns of a table, without missing cells: name → (N,) str; see `read_columns`.

    Raises `DataError` also for cells that are missing.
    """
    table = read_columns(file, names)
    for name, cells in table.columns.items():
        if (empty := np.flatnonzero(nothing(cells))).size:
            reason = f"is empty in {len(empty)} of {len(cells)} rows"
            raise DataError(Problem(reason, name).at(table.origin(empty[0])))
    return table.columns


def no_column(file: Path, name: str, known: Sequence[str], path: str = "") -> DataError:
    """The error for a column that a table does not have.

    file: the table.
    name: of the column.
    known: the names that there are.
    path: dotted path of the option that names the column; without it, the name itself.
    """
    listed = [each for each in known if each]
    if len(listed) > _SHOWN:
        listed = [*listed[:_SHOWN], f"{len(listed) - _SHOWN} more"]
    found = ", ".join(listed) or "none"
    hint = nearest(name, known) or "the first row of a table names its columns"
    if len(known) == 1:
        hint = "commas, tabs or semicolons must be between the cells"
    reason = f"there is no column '{name}'" if path else "there is no such column"
    return DataError(Problem(reason, path or name, found, hint=hint).at(file))


# CSV and TSV


@contextmanager
def _rows(file: Path) -> Iterator[tuple[tuple[str, ...], Iterator[tuple[int, list[str]]]]]:
    """The names of the columns, and an iterator over (line, cells) of the rows below.

    The csv module counts lines as an editor does and shows short rows; pandas pads them with empty cells.
    """
    with reading(file):
        if mistaken := mistaken_for(file):
            raise DataError(Problem(f"cannot be read: it is {mistaken}").at(file))
        with file.open("rb") as binary:
            head = binary.read(4)
        encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8-sig")
        try:
            with file.open(encoding=encoding, newline="") as stream:
                first = next((line for line in stream if line.strip()), "")
                stream.seek(0)
                between = max(SEPARATORS, key=lambda each: len(next(csv.reader([first], delimiter=each), [])))
                rows = _numbered(file, csv.reader(stream, delimiter=between, skipinitialspace=True, strict=True))
                _, header = next(rows, (1, []))
                yield tuple(header), rows
        except UnicodeDecodeError as error:
            raise _of_other_encoding(file, encoding) from error


def _numbered(file: Path, rows: Any) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of the rows of a csv reader that have any."""
    line = 1
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield line, cells
            line = rows.line_num + 1
    except csv.Error as error:
        raise DataError(Problem(f"cannot be read: {error}").at(Origin(file, line))) from None


def _from_text(file: Path, names: Sequence[str]) -> TableCells:
    with _rows(file) as (header, rows):
        require_memory("its rows", 4 * file.stat().st_size, file=file)  # as text, and cell by cell
        places = [header.index(name) for name in names]
        lines: list[int] = []
        picked: list[list[str]] = [[] for _ in names]
        for line, cells in rows:
            if len(cells) != len(header):
                reason = f"{len(cells)} cells, but {len(header)} columns"
                raise DataError(Problem(reason).at(Origin(file, line)))
            lines.append(line)
            for column, place in zip(picked, places, strict=True):
                column.append(cells[place])
    columns = {name: _texts(file, name, cells) for name, cells in zip(names, picked, strict=True)}
    return TableCells(file, columns, np.array(lines, dtype=np.int64))


def _texts(file: Path, name: str, cells: list[str]) -> np.ndarray:
    """A column as (N,) str, in which every cell takes as much memory as the longest."""
    require_memory(f"the cells of {name}", 4 * len(cells) * max(map(len, cells), default=0), file=file)
    return np.array(cells, dtype=np.str_)


def _of_other_encoding(file: Path, encoding: str) -> DataError:
    """The error for text that is not in the encoding that it must have."""
    data, line = file.read_bytes(), None
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    name = encoding.removesuffix("-sig")
    hint = f"`iconv -f WINDOWS-1252 -t UTF-8 {file.name}` writes it as UTF-8, if it comes from Excel"
    return DataError(Problem(f"cannot be read: it is not in {name}", hint=hint).at(Origin(file, line)))


# Parquet


def _is_parquet(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(PARQUET)) == PARQUET
    except OSError:
        return False  # the text reader says what is wrong


@contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow.parquet

    with reading(file, PARQUET), pyarrow.parquet.ParquetFile(file) as opened:
        yield opened


def _from_parquet(file: Path, names: Sequence[str]) -> TableCells:
    import pyarrow

    with _parquet(file) as opened:
        about = opened.metadata
        size = sum(about.row_group(each).total_byte_size for each in range(about.num_row_groups))
        plausible(file, "", size, file.stat().st_size)
        require_memory("its rows", 4 * size + 64 * about.num_rows * len(names), file=file)
        columns = {}
        for name in names:
            cells = opened.read(columns=[name]).column(0)
            try:
                cells = cells.cast(pyarrow.string())
            except pyarrow.lib.ArrowException:
                raise DataError(Problem("must be texts or numbers", name, str(cells.type)).at(file)) from None
            columns[name] = _texts(file, name, [cell.strip() for cell in cells.fill_null("").to_pylist()])
    return TableCells(file, columns, None)
