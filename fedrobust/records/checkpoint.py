"""The checkpoint of a run: the state after its last commit, from which it can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.records.kinds import FORMAT
from fedrobust.records.versions import first_line, other_format


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on after `round` with the same bits."""

    round: int
    arrays: dict[str, np.ndarray] = field(repr=False)
    """Flat names: `weights`, `previous_weights`, `server/…`, `trust/…`, `rule/…`, `history/…`, `client/<id>`."""
    pending: int | None = None
    """The round whose evaluation was still running, if any."""
    offset: int = 0
    """Length of the journal, in bytes, at the commit."""
    audit_offset: int = 0
    """Length of the audit log, in bytes, at the commit; 0 where the run has none."""
    audit_head: str = ""
    """The hash of its last line."""
    journal: str = ""
    """SHA-256 of the journal up to the commit. It and the next two are empty if the run has no audit log."""
    state: str = ""
    """Digest of the arrays (`arrays_digest`)."""
    signature: str = ""
    """The coordinator's signature of all fields but the arrays."""
    format: int = FORMAT

    def facts(self) -> dict[str, Any]:
        """The fields that are signed. Format 0 has no `format` among them."""
        numbered = {"format": self.format} if self.format else {}
        return numbered | {
            "round": self.round,
            "pending": self.pending,
            "offset": self.offset,
            "audit_offset": self.audit_offset,
            "audit_head": self.audit_head,
            "journal": self.journal,
            "state": self.state,
        }

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix/`, with names without it."""
        return below(self.arrays, prefix)


def below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix/`, with names without it."""
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{prefix}/")}


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the last checkpoint of the run in `folder`, and wait until it is on the disk.

    Raises `OSError` if the disk refuses.
    """
    facts = json.dumps(checkpoint.facts() | {"signature": checkpoint.signature})
    arrays: dict[str, Any] = dict(checkpoint.arrays)
    partial = folder / "checkpoint.partial"
    with partial.open("wb") as out:
        np.savez(out, facts=np.frombuffer(facts.encode(), dtype=np.uint8), **arrays)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(folder / "checkpoint.npz")
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The last committed checkpoint of the run in `folder`.

    Raises `ExperimentError` if there is none, or if it is damaged.
    """
    path = folder / "checkpoint.npz"
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files if name != "facts"}
            facts = {"format": 0} | json.loads(saved["facts"].tobytes())
        if facts["format"] not in (0, FORMAT):
            journal = folder / "journal.jsonl"
            first = first_line(journal.read_bytes() if journal.exists() else b"")
            said = other_format(facts["format"], FORMAT, first.get("versions"))
            raise ExperimentError(Problem(said, origins=(Origin(path),)))
        found = Checkpoint(arrays=arrays, **facts)
        _check_types(found)
        return found
    except FileNotFoundError:
        raise ExperimentError(
            f"{path}: no such file; the run stopped before its first round and cannot be resumed"
        ) from None
    except ExperimentError:
        raise
    except Exception as error:  # NumPy may raise anything for a damaged archive
        raise ExperimentError(f"{path}: damaged checkpoint: {error}") from None


def _check_types(found: Checkpoint) -> None:
    """Raise `ValueError` for a checkpoint that this package cannot have written."""
    lengths = (
        found.format,
        found.round,
        found.offset,
        found.audit_offset,
        0 if found.pending is None else found.pending,
    )
    texts = (found.audit_head, found.journal, found.state, found.signature)
    if not all(type(each) is int and each >= 0 for each in lengths) or not all(type(each) is str for each in texts):
        raise ValueError("its facts are none")
    for name, array in found.arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise ValueError(f"{name} is no array of numbers")
