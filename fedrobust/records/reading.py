"""The lines of a journal: written, and read again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedrobust.errors import ExperimentError
from fedrobust.records.checkpoint import Checkpoint, read_checkpoint

Record = dict[str, Any]


def read_journal(folder: Path, checkpoint: Checkpoint | None = None) -> list[Record]:
    """The committed records of a run's journal; of a journal without a checkpoint, those that are whole.

    `checkpoint` is the run's last one, if it has been read already. Raises `ExperimentError` where there is no journal,
    or a line of it is no record.
    """
    path = folder / "journal.jsonl"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ExperimentError(f"{path}: no such file") from None
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror}") from None
    if checkpoint is None and (folder / "checkpoint.npz").exists():
        checkpoint = read_checkpoint(folder)
    if checkpoint is not None:
        text = text[: checkpoint.offset]
    records = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
            raise ExperimentError(f"{path}: line {number}: damaged, this is no record")
        records.append(record)
    return records


@contextmanager
def reading(what: str | Path) -> Iterator[None]:
    """What a record that lacks a field, or has another kind of value in it, breaks in the block, is told as that.

    what: whose records they are. Raises `ExperimentError`.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        fault = f"no field {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        told = f"{what}: the journal is damaged, or written by another version: {fault}"
        raise ExperimentError(" ".join(told.split())[:400]) from error


def written(record: Record) -> bytes:
    """The line of the journal for a record, with its newline. Raises `ValueError` for NaN and infinity."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def exact_records(text: bytes) -> list[Record]:
    """The records of a journal's whole lines, byte for byte as they were written: other readers read the same.

    Raises `ExperimentError` for a line that `written` does not write: keys that stand there twice, other spaces, other
    spellings of a number or text, and what is no JSON.
    """
    records = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            exact = isinstance(record, dict) and written(record) == line + b"\n"
        except (ValueError, RecursionError):
            raise ExperimentError(f"journal.jsonl: line {number}: damaged, this is no JSON object") from None
        if not exact:
            raise ExperimentError(f"journal.jsonl: line {number}: these are not the bytes that were written")
        records.append(record)
    return records


def finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: null stands for both."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
