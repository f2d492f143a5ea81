"""The journal on disk is the truth: what happened in each round, and a checkpoint to go on from.

A round is committed in this order: its lines are appended to `journal.jsonl` and, with a key, to the audit log
`audit.jsonl`, and fsynced; the checkpoint, which names the length of both and the hash of the log's last line, is
written beside its predecessor, fsynced and renamed into place. That rename commits the round. After a crash,
`Journal.reopen` cuts off what was written after the last commit. With a key, the checkpoint is signed, with the digests
of its arrays and of the journal in it.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedrobust.errors import ExperimentError, FederationError
from fedrobust.secure.audit import Log, public_pem
from fedrobust.secure.seals import arrays_digest, sign_state

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Record = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on after `round` with the same bits."""

    round: int
    arrays: dict[str, np.ndarray] = field(repr=False)
    """Flat names: `weights`, `previous_weights`, `server/…`, `trust/…`, `rule/…`, `history/…`, `client/<id>`."""
    pending: int | None = None
    """The round whose evaluation was still under way, if any."""
    offset: int = 0
    """Length of the journal, in bytes, at the commit."""
    audit_offset: int = 0
    """Length of the audit log, in bytes, at the commit; 0 where the run has none."""
    audit_head: str = ""
    """The hash of its last line."""
    journal: str = ""
    """SHA-256 of the journal up to the commit; like the next two, empty where the run has no audit log."""
    state: str = ""
    """Digest of the arrays (`arrays_digest`)."""
    signature: str = ""
    """The coordinator's signature of all that but the arrays."""

    def facts(self) -> dict[str, Any]:
        """What is signed."""
        return {
            "round": self.round,
            "pending": self.pending,
            "offset": self.offset,
            "audit_offset": self.audit_offset,
            "audit_head": self.audit_head,
            "journal": self.journal,
            "state": self.state,
        }

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix/`, without it."""
        return below(self.arrays, prefix)


def below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix/`, without it."""
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{prefix}/")}


class Journal:
    """Appends records and commits checkpoints in the folder of one run."""

    def __init__(self, folder: Path, key: Ed25519PrivateKey | None = None) -> None:
        """Open the journal of `folder`; with a key, a new run gets an audit log.

        Raises `ExperimentError` if a run that is alive writes to it.
        """
        self.folder = folder
        self._file = (folder / "journal.jsonl").open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ExperimentError(f"{folder}: another process is running this run") from None
        self._log: Log | None = None
        if key is not None and not self._file.tell():
            self._audit(Log(key), key)

    @classmethod
    def reopen(cls, folder: Path, key: Ed25519PrivateKey | None = None) -> tuple[Journal, Checkpoint]:
        """Open the journal of a run that stopped, as it was at its last commit; `key` as it was begun with.

        Raises `ExperimentError` where there is no committed checkpoint, or the audit log is not the one it names.
        """
        checkpoint = read_checkpoint(folder)
        journal, audit = folder / "journal.jsonl", folder / "audit.jsonl"
        if key is not None and not checkpoint.audit_offset:
            raise ExperimentError(f"{folder}: cannot be continued: it has no audit log, or the log was taken away")
        if key is None and (checkpoint.audit_offset or audit.exists() or (folder / "audit.pub").exists()):
            raise ExperimentError(f"{audit}: cannot be continued without the key that the run was begun with")
        for path, offset in ((journal, checkpoint.offset), (audit, checkpoint.audit_offset)):
            if offset and (not path.exists() or path.stat().st_size < offset):
                raise ExperimentError(f"{path}: shorter than its checkpoint says; the run cannot be resumed")
        reopened = cls(folder)
        os.truncate(journal, checkpoint.offset)
        if key is not None:
            os.truncate(audit, checkpoint.audit_offset)
            reopened._audit(Log(key, audit.read_bytes()), key)
        return reopened, checkpoint

    def _audit(self, log: Log, key: Ed25519PrivateKey) -> None:
        """Go on with a log, and with the digest of the journal that it belongs to."""
        self._log, self._lines, self._key = log, (self.folder / "audit.jsonl").open("ab"), key
        self._digest = sha256((self.folder / "journal.jsonl").read_bytes())
        (self.folder / "audit.pub").write_bytes(public_pem(key))

    def commit(self, records: Iterable[Record], checkpoint: Checkpoint) -> None:
        """Append `records`, then make `checkpoint` the point to go on from. `FederationError` if the disk refuses."""
        try:
            for record in records:
                line = written(_finite(record))
                self._file.write(line)
                if self._log is not None:
                    self._lines.write(self._log.line(json.loads(line)))
                    self._digest.update(line)
            for file in (self._file, self._lines) if self._log is not None else (self._file,):
                file.flush()
                os.fsync(file.fileno())
            self._write(checkpoint)
        except OSError as error:
            raise FederationError(f"{self.folder}: round {checkpoint.round} could not be written: {error}") from error

    def _write(self, checkpoint: Checkpoint) -> None:
        checkpoint = replace(checkpoint, offset=self._file.tell())
        if self._log is not None:
            checkpoint = replace(
                checkpoint,
                audit_offset=self._lines.tell(),
                audit_head=self._log.head,
                journal=self._digest.hexdigest(),
                state=arrays_digest(checkpoint.arrays),
            )
            checkpoint = replace(checkpoint, signature=sign_state(self._key, checkpoint.facts()))
        facts = json.dumps(checkpoint.facts() | {"signature": checkpoint.signature})
        partial = self.folder / "checkpoint.partial"
        with partial.open("wb") as out:
            arrays: dict[str, Any] = dict(checkpoint.arrays)
            np.savez(out, facts=np.frombuffer(facts.encode(), dtype=np.uint8), **arrays)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(self.folder / "checkpoint.npz")
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Close the files; nothing is lost without it."""
        if self._log is not None:
            self._lines.close()
        self._file.close()


def read_checkpoint(folder: Path) -> Checkpoint:
    """The last committed checkpoint of a run. Raises `ExperimentError` where there is none, or it is damaged."""
    path = folder / "checkpoint.npz"
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files if name != "facts"}
            found = Checkpoint(arrays=arrays, **json.loads(saved["facts"].tobytes()))
        _check_types(found)
        return found
    except FileNotFoundError:
        raise ExperimentError(
            f"{path}: no such file; the run stopped before its first round and cannot be resumed"
        ) from None
    except Exception as error:  # whatever a damaged archive makes NumPy raise
        raise ExperimentError(f"{path}: damaged checkpoint: {error}") from None


def _check_types(found: Checkpoint) -> None:
    """Raise `ValueError` for a checkpoint that cannot have been written here."""
    lengths = (found.round, found.offset, found.audit_offset, 0 if found.pending is None else found.pending)
    texts = (found.audit_head, found.journal, found.state, found.signature)
    if not all(type(each) is int and each >= 0 for each in lengths) or not all(type(each) is str for each in texts):
        raise ValueError("its facts are none")
    for name, array in found.arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise ValueError(f"{name} is no array of numbers")


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


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: null stands for both."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
