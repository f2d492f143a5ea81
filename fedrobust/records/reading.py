"""Reads the lines of a run's journal: as typed records, or as exactly the bytes that were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.records.checkpoint import Checkpoint, read_checkpoint
from fedrobust.records.kinds import FORMAT, Record, RecordedExperiment, RunStart, written
from fedrobust.records.run import RecordedRun
from fedrobust.records.versions import first_line, other_format

_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])
_LONGEST = 60
"""Most characters of a value in an error."""


def read_run(folder: Path, checkpoint: Checkpoint | None = None) -> RecordedRun:
    """The journal in a run's folder, up to the last commit; without a checkpoint, its whole lines.

    folder: of the run.
    checkpoint: the run's last one, if it has been read already.

    Raises `ExperimentError` if there is no journal, if another version wrote it, or if one of its lines is damaged.
    """
    path = folder / "journal.jsonl"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ExperimentError(f"{path}: no such file") from None
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror}") from None
    check_format(text, path)
    if checkpoint is None and (folder / "checkpoint.npz").exists():
        checkpoint = read_checkpoint(folder)
    return run_of(text if checkpoint is None else text[: checkpoint.offset], path)


def check_format(text: bytes, path: Path) -> None:
    """Check that this version can read the records of a journal.

    text: the journal's bytes.
    path: names the journal in errors.

    Raises `ExperimentError`, which says what to do, otherwise.
    """
    first = first_line(text)
    if (found := first.get("format", 0)) not in range(FORMAT + 1):
        raise ExperimentError(Problem(other_format(found, FORMAT, first.get("versions")), origins=(Origin(path, 1),)))


def run_of(text: bytes, path: Path = Path("journal.jsonl")) -> RecordedRun:
    """The run in the whole lines of a journal.

    text: the journal's bytes.
    path: names the journal in errors.

    Raises `ExperimentError` as `read_run`.
    """
    records = [_parsed(line, Origin(path, number)) for number, line in enumerate(text.split(b"\n")[:-1], 1)]
    return RecordedRun.of(records, path)


def exact_records(text: bytes) -> list[dict[str, Any]]:
    """The fields of a journal's whole lines, if the lines are byte for byte as `written` writes them: so other readers
    read the same.

    text: the journal's bytes.

    Raises `ExperimentError` for other lines: with repeated keys, other spaces, other spellings of a number or string,
    or without JSON.
    """
    records = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        origin = Origin(text=f"journal.jsonl: line {number}")
        try:
            record = json.loads(line)
            exact = isinstance(record, dict) and written(record) == line + b"\n"
        except (ValueError, RecursionError):
            raise ExperimentError(Problem("damaged, this is no JSON object", origins=(origin,))) from None
        if not exact:
            raise ExperimentError(Problem("these are not the bytes that were written", origins=(origin,)))
        records.append(record)
    return records


def _parsed(line: bytes, origin: Origin) -> Record:
    """The record in a line. Raises `ExperimentError` if it is none."""
    try:
        try:
            record = _RECORD.validate_json(line)
        except ValidationError as error:
            if error.errors()[0]["type"] != "json_invalid":
                raise
            record = _RECORD.validate_python(json.loads(line))  # Python's strings may contain invalid Unicode
        if isinstance(record, RunStart):
            record.options  # noqa: B018 (checks that they can be read)
    except ValidationError as error:
        raise ExperimentError(_problem(error, origin)) from None
    except (ValueError, RecursionError):
        raise ExperimentError(Problem("damaged, this is no JSON object", origins=(origin,))) from None
    return record


def _problem(error: ValidationError, origin: Origin) -> Problem:
    """The first error in a record."""
    first = error.errors(include_url=False)[0]
    loc = ("experiment", *first["loc"]) if error.title == RecordedExperiment.__name__ else first["loc"][1:]
    missing = first["type"] == "missing"
    found = None if missing else repr(first["input"])[:_LONGEST]
    said = "is missing" if missing else f"{first['msg'][0].lower()}{first['msg'][1:]}"
    return Problem(f"damaged: {said}", ".".join(map(str, loc)), found, origins=(origin,))
