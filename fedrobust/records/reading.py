"""The lines of a run's journal, read again: typed, or as exactly the bytes that were written."""

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
"""Characters of a value that an error shows."""


def read_run(folder: Path, checkpoint: Checkpoint | None = None) -> RecordedRun:
    """What the journal of a run's folder says, up to the last commit; of one without a checkpoint, its whole lines.

    checkpoint: the run's last one, if it has been read already.

    Raises `ExperimentError` where there is no journal, another version wrote it, or a line of it is damaged.
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
    """Raise `ExperimentError` for the journal of a version whose records are others, with what to do about it."""
    first = first_line(text)
    if (found := first.get("format", 0)) not in range(FORMAT + 1):
        raise ExperimentError(Problem(other_format(found, FORMAT, first.get("versions")), origins=(Origin(path, 1),)))


def run_of(text: bytes, path: Path = Path("journal.jsonl")) -> RecordedRun:
    """What the whole lines of a journal say. `path` is what errors call it. Raises `ExperimentError` as `read_run`."""
    records = [_parsed(line, Origin(path, number)) for number, line in enumerate(text.split(b"\n")[:-1], 1)]
    return RecordedRun.of(records, path)


def exact_records(text: bytes) -> list[dict[str, Any]]:
    """The fields of a journal's whole lines, byte for byte as they were written: other readers read the same.

    Raises `ExperimentError` for a line that `written` does not write: keys that stand there twice, other spaces, other
    spellings of a number or text, and what is no JSON.
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
    """The record in a line. Raises `ExperimentError` where it is none."""
    try:
        try:
            record = _RECORD.validate_json(line)
        except ValidationError as error:
            if error.errors()[0]["type"] != "json_invalid":
                raise
            record = _RECORD.validate_python(json.loads(line))  # Python's texts may hold what is no Unicode
        if isinstance(record, RunStart):
            record.options  # noqa: B018 (they can be read)
    except ValidationError as error:
        raise ExperimentError(_problem(error, origin)) from None
    except (ValueError, RecursionError):
        raise ExperimentError(Problem("damaged, this is no JSON object", origins=(origin,))) from None
    return record


def _problem(error: ValidationError, origin: Origin) -> Problem:
    """The first thing that is wrong with a record."""
    first = error.errors(include_url=False)[0]
    loc = ("experiment", *first["loc"]) if error.title == RecordedExperiment.__name__ else first["loc"][1:]
    missing = first["type"] == "missing"
    found = None if missing else repr(first["input"])[:_LONGEST]
    said = "is missing" if missing else f"{first['msg'][0].lower()}{first['msg'][1:]}"
    return Problem(f"damaged: {said}", ".".join(map(str, loc)), found, origins=(origin,))
