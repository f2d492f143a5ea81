"""The journal on disk is the record of a run: what happened in each round, and a checkpoint to go on from.

A round is committed in this order: its lines are appended to `journal.jsonl` and, with a key, to the audit log
`audit.jsonl`, and fsynced; the checkpoint, which names the length of both and the hash of the log's last line, is
written beside its predecessor, fsynced and renamed into place. That rename commits the round. After a crash, everything
behind the last commit is cut off. With a key, the checkpoint is signed, and so are the digests of its arrays and of the
journal in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from fedrobust.audit.log import Log
from fedrobust.audit.seals import arrays_digest, sign_state
from fedrobust.audit.signing import public_pem
from fedrobust.errors import ExperimentError, FederationError
from fedrobust.records import Checkpoint, LineFile, Record, read_checkpoint, write_checkpoint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Journal:
    """Appends records and commits checkpoints in the folder of one run."""

    checkpoint: Checkpoint | None
    """The last commit; None before the first one."""

    def __init__(self, folder: Path, key: Ed25519PrivateKey | None = None) -> None:
        """Open the journal of a new run, or of a run that stopped, as it was at its last commit.

        folder: of the run.
        key: signs the audit log of a new run; of a run that stopped, the key with which it began.

        Raises `ExperimentError` if a run that is alive writes to it, or if journal and audit log are not those that the
        checkpoint names.
        """
        self.folder, self._key = folder, key
        stopped = (folder / "checkpoint.npz").exists()
        journal, audit = folder / "journal.jsonl", folder / "audit.jsonl"
        if stopped and not journal.exists():
            raise _shorter(journal)
        with ExitStack() as opened:
            self._records = opened.enter_context(LineFile(journal, f"{folder}: another process is running this run"))
            self.checkpoint = read_checkpoint(folder) if stopped else None
            offset = audit_offset = 0
            if self.checkpoint is not None:
                offset, audit_offset = self.checkpoint.offset, self.checkpoint.audit_offset
                self._check(audit, audit_offset)
                if self._records.length < offset:
                    raise _shorter(journal)
            self._records.cut(offset)
            if key is not None:
                self._lines = opened.enter_context(LineFile(audit))
                self._lines.cut(audit_offset)
                self._log, self._digest = Log(key, self._lines.read()), sha256(self._records.read())
                (folder / "audit.pub").write_bytes(public_pem(key))
            self._opened = opened.pop_all()

    def _check(self, audit: Path, offset: int) -> None:
        """Raise `ExperimentError` where the audit log for this key is missing."""
        if self._key is not None and not offset:
            raise ExperimentError(f"{self.folder}: cannot be continued: it has no audit log, or the log was taken away")
        if self._key is None and (offset or audit.exists() or audit.with_suffix(".pub").exists()):
            raise ExperimentError(f"{audit}: cannot be continued without the key that the run was begun with")
        if offset and (not audit.exists() or audit.stat().st_size < offset):
            raise _shorter(audit)

    def commit(self, records: Iterable[Record], checkpoint: Checkpoint) -> None:
        """Append `records`, then make `checkpoint` the point to go on from.

        Raises `FederationError` if the disk refuses.
        """
        lines = [record.line() for record in records]
        try:
            self._records.append(b"".join(lines))
            checkpoint = replace(checkpoint, offset=self._records.length)
            if self._key is not None:
                checkpoint = self._vouched(lines, checkpoint, self._key)
            write_checkpoint(self.folder, checkpoint)
        except OSError as error:
            raise FederationError(f"{self.folder}: round {checkpoint.round} could not be written: {error}") from error
        self.checkpoint = checkpoint

    def _vouched(self, lines: Iterable[bytes], checkpoint: Checkpoint, key: Ed25519PrivateKey) -> Checkpoint:
        """Add lines of the journal to the audit log, and sign what the checkpoint says of both."""
        self._lines.append(b"".join(self._log.line(json.loads(line)) for line in lines))
        self._digest.update(b"".join(lines))
        stated = replace(
            checkpoint,
            audit_offset=self._lines.length,
            audit_head=self._log.head,
            journal=self._digest.hexdigest(),
            state=arrays_digest(checkpoint.arrays),
        )
        return replace(stated, signature=sign_state(key, stated.facts()))

    def close(self) -> None:
        """Close the files; without it nothing is lost."""
        self._opened.close()


def _shorter(path: Path) -> ExperimentError:
    return ExperimentError(f"{path}: shorter than its checkpoint says; the run cannot be resumed")
