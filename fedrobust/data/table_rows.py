"""From the cells of a table to labels, patients and parts of a split: pure functions."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple

import numpy as np

from fedrobust.data.patches import PARTS, SPLIT_NAMES, nothing
from fedrobust.data.table_file import TableCells
from fedrobust.errors import DataError, Problem
from fedrobust.options import nearest

_WHOLE = re.compile(r"[+-]?\d+\.0+")
_TRUTHS = ("true", "false")
_MOST = 20
_WITHOUT = "`columns.{}: ''` does without this column"


def plain(text: str) -> str:
    """One way to write what programs write differently: a whole number without `.0`, true and false in lower case."""
    if text.lower() in _TRUTHS:
        return text.lower()
    return text.partition(".")[0] if _WHOLE.fullmatch(text) else text


def _plain(texts: np.ndarray) -> np.ndarray:
    distinct, place = np.unique(texts, return_inverse=True)
    return np.array([plain(each) for each in distinct.tolist()], dtype=np.str_)[place]


class CellText(NamedTuple):
    """How a text is put together from the cells of a row."""

    pieces: tuple[tuple[str, str | None], ...]
    """(text, the column whose cell follows it; None at the end)."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(name for _, name in self.pieces if name is not None)

    def texts(self, table: TableCells, rows: np.ndarray, as_written: bool = False) -> np.ndarray:
        """(m,) str: the texts of some rows.

        rows: (m,) positions.
        as_written: as they are in the cells, not `plain`.
        """
        made = np.full(len(rows), "", dtype=np.str_)
        for literal, name in self.pieces:
            made = np.char.add(made, literal)
            if name is not None:
                cells = table.columns[name][rows]
                made = np.char.add(made, cells if as_written else _plain(cells))
        return made

    def empty(self, table: TableCells, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: where a cell is missing.

        rows: (m,) positions.
        """
        missing = [nothing(table.columns[name][rows]) for name in self.columns]
        return reduce(np.logical_or, missing, np.zeros(len(rows), dtype=bool))


def template(text: str, known: Sequence[str]) -> CellText:
    """The template that a user wrote: a column's name, or a text with names of columns in braces.

    known: the names of the columns.
    """
    if text in known or "{" not in text:
        return CellText((("", text),))
    pieces = []
    for literal, name, form, conversion in string.Formatter().parse(text):
        if name is not None:  # a name may have a colon or an exclamation mark
            name += f"!{conversion}" * bool(conversion) + f":{form}" * bool(form)
        pieces.append((literal, name))
    return CellText(tuple(pieces))


def rows_where(table: TableCells, where: Mapping[str, Any]) -> np.ndarray:
    """The positions of the rows that have the wanted values.

    where: column → value, or several.

    Raises `DataError` for a value that no row has, and if no row has all of them.
    """
    chosen = np.ones(len(table), dtype=bool)
    for name, wanted in where.items():
        distinct, place, counts = np.unique(table.columns[name], return_inverse=True, return_counts=True)
        fits = np.zeros(len(distinct), dtype=bool)
        for value in wanted if isinstance(wanted, tuple) else (wanted,):
            same = np.array([_is(each, value) for each in distinct.tolist()])
            if not same.any():
                found = _listed(distinct[np.argsort(-counts, kind="stable")].tolist())
                hint = nearest(str(value), distinct.tolist())
                raise DataError(
                    Problem(f"no row has {_shown(value)}", f"where.{name}", found, hint=hint).at(table.file)
                )
            fits |= same
        chosen &= fits[place]
    if not chosen.any():
        raise DataError(Problem(f"none of the {len(table)} rows has all of these values", "where").at(table.file))
    return np.flatnonzero(chosen)


def _is(text: str, value: Any) -> bool:
    """Whether a cell has a value of an experiment file."""
    if value is None:
        return bool(nothing(np.array([text]))[0])
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return plain(text) == plain(str(value).strip())


def _shown(value: Any) -> str:
    return "an empty cell" if value is None else str(value).lower() if isinstance(value, bool) else f"'{value}'"


def _listed(texts: Sequence[str]) -> str:
    return ", ".join([f"'{each}'" for each in texts[:_MOST]] + ["…"] * (len(texts) > _MOST))


def refuse_empty(table: TableCells, rows: np.ndarray, empty: Mapping[str, np.ndarray]) -> None:
    """Check that nothing is missing.

    rows: (m,) positions.
    empty: option below `columns` → (m,) bool, where its cell is missing.

    Raises `DataError` otherwise.
    """
    for option, missing in empty.items():
        if missing.any():
            reason = f"{missing.sum()} of {len(rows)} rows have no {option}"
            hint = "`incomplete: skip` leaves them out"
            if option not in ("image", "label"):
                hint = f"{hint}; {_WITHOUT.format(option)}"
            problem = Problem(reason, f"columns.{option}", hint=hint)
            raise DataError(problem.at(table.origin(rows[missing.argmax()])))


# Labels


class Votes(NamedTuple):
    """The labels that readers gave."""

    texts: np.ndarray
    """(readers, m) str."""
    cast: np.ndarray
    """(readers, m) bool: False where a reader gave none."""

    def of(self, chosen: np.ndarray) -> Votes:
        """Those on some of the m patches."""
        return Votes(self.texts[:, chosen], self.cast[:, chosen])


def votes_of(
    table: TableCells, rows: np.ndarray, readers: Sequence[CellText], label_map: Mapping[str, str | int]
) -> Votes:
    """The labels that each reader gave for some rows.

    rows: (m,) positions.
    readers: one column for each.
    label_map: as in the options of `PatchTable`: a text in it is a label, even "none".
    """
    texts = np.stack([each.texts(table, rows) for each in readers])
    empty = np.stack([each.empty(table, rows) for each in readers])
    return Votes(texts, ~empty | np.isin(texts, np.array([*label_map], dtype=np.str_)))


def numbered(texts: Sequence[str], label_map: Mapping[str, str | int]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each text, and the names of the labels.

    texts: different ones.
    label_map: as in the options of `PatchTable`; without it, each text is a label.
    """
    if not label_map:
        try:
            names = sorted(texts, key=int)
        except ValueError:
            names = sorted(texts)
        return {name: number for number, name in enumerate(names)}, tuple(names)
    if all(isinstance(each, int) for each in label_map.values()):
        sharing: dict[Any, list[str]] = {}
        for text, number in label_map.items():
            sharing.setdefault(number, []).append(text)
        named = tuple(" or ".join(sharing[number]) for number in range(len(sharing)))
        return {text: int(number) for text, number in label_map.items()}, named
    order = list(dict.fromkeys(map(str, label_map.values())))
    return {text: order.index(str(name)) for text, name in label_map.items()}, tuple(order)


def decided(
    table: TableCells,
    rows: np.ndarray,
    votes: Votes,
    label_map: Mapping[str, str | int],
    agree: Literal["majority", "all"],
    skip: bool,
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """The labels on which the readers agree.

    rows: (m,) positions in the table.
    votes: on the m patches.
    label_map, agree: as in the options of `PatchTable`.
    skip: leave out patches without such a label, instead of refusing the first one.

    Returns the labels (n,), their names, and which of the m rows have one (n,). Raises `DataError`.
    """
    if not len(rows):
        raise DataError(Problem("no row has all that is needed", "incomplete").at(table.file))
    cast = votes.cast
    distinct, place = np.unique(votes.texts[cast], return_inverse=True)
    texts = distinct.tolist()
    number, names = numbered(texts, label_map)
    codes = np.full(cast.shape, -1)
    for text in texts:
        if text not in number:
            at = table.origin(rows[np.argwhere((votes.texts == text) & cast)[:, 1].min()])
            hint = nearest(text, label_map) or "add it, or choose rows with `where`"
            raise DataError(Problem(f"has no '{text}'", "label_map", allowed=tuple(label_map), hint=hint).at(at))
    codes[cast] = np.array([number[text] for text in texts], dtype=np.int64)[place]
    _refuse_alike(table, names, len(rows))

    counts = np.stack([(codes == label).sum(axis=0) for label in range(len(names))], axis=1)
    most, given = counts.max(axis=1), cast.sum(axis=0)
    agreed = most == given if agree == "all" else 2 * most > given
    if not agreed.all() and not skip:
        first = int(agreed.argmin())
        said = ", ".join(
            text if there else "–" for text, there in zip(votes.texts[:, first], cast[:, first], strict=True)
        )
        who = "all readers" if agree == "all" else "more than half of the readers"
        reason = f"{(~agreed).sum()} of {len(rows)} patches have no label that {who} gave"
        hint = "`undecided: skip` leaves them out"
        raise DataError(Problem(reason, "columns.label", said, hint=hint).at(table.origin(rows[first])))
    if not agreed.any():
        raise DataError(Problem("the readers agree on no patch", "columns.label").at(table.file))
    kept = np.flatnonzero(agreed)
    labels = counts[kept].argmax(axis=1)
    present = np.unique(labels)
    if label_map and len(present) < len(names):
        absent = next(name for code, name in enumerate(names) if code not in present)
        raise DataError(Problem(f"no row has the label '{absent}'", "label_map", _listed(texts)).at(table.file))
    return np.searchsorted(present, labels), tuple(names[label] for label in present), kept


def _refuse_alike(table: TableCells, names: Sequence[str], rows: int) -> None:
    """Check that the labels are labels.

    Raises `DataError` for labels that differ in case alone, and for too many.
    """
    same: dict[str, str] = {}
    for name in names:
        other = same.setdefault(name.casefold(), name)
        if other != name:
            reason, hint = f"'{other}' and '{name}' differ in case alone", "give both one name with `label_map`"
            raise DataError(Problem(reason, "columns.label", hint=hint).at(table.file))
    if len(names) > _MOST and 2 * len(names) > rows:
        reason = f"{len(names)} different labels in {rows} rows"
        raise DataError(
            Problem(reason, "columns.label", _listed(names[:3]), hint="are they ids or measurements?").at(table.file)
        )


# Split


def split_parts(table: TableCells, rows: np.ndarray, texts: np.ndarray, patients: np.ndarray | None) -> np.ndarray:
    """(n,) str in `PARTS`.

    rows: (n,) positions in the table.
    texts: (n,) what the table says.
    patients: (n,) str, if known.

    Raises `DataError` for other texts, and for a patient with two parts.
    """
    distinct, place = np.unique(texts, return_inverse=True)
    named = [SPLIT_NAMES.get(text.lower(), "") for text in distinct.tolist()]
    without = _WITHOUT.format("split")
    if "" in named:
        number = named.index("")
        origin = table.origin(rows[(place == number).argmax()])
        problem = Problem("", "columns.split", f"'{distinct[number]}'", PARTS, without)
        raise DataError(problem.at(origin))
    parts = np.array(named)[place]
    if patients is not None:
        names, patient = np.unique(patients, return_inverse=True)
        first = np.full(len(names), len(rows))
        np.minimum.at(first, patient, np.arange(len(rows)))
        other = parts != parts[first[patient]]
        if other.any():
            second = int(other.argmax())
            one = first[patient[second]]
            here = f"{parts[second]} here, and {parts[one]} in {table.row(rows[one])}"
            reason = f"patient {patients[second]} is in {here}"
            more = len(np.unique(patient[other]))
            reason += f" ({more} patients are in two)" if more > 1 else ""
            raise DataError(Problem(reason, "columns.split", hint=without).at(table.origin(rows[second])))
    return parts
