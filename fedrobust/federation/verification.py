"""Whether a run's folder is what its audit log says: the log itself, the journal, the model, the sealed files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedrobust.errors import ExperimentError
from fedrobust.federation.journal import Checkpoint, read_checkpoint, read_journal
from fedrobust.secure.audit import AuditError, Chain, check, misfit, open_seal, public_hex, read_public, seal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SEALED = ("experiment.yaml", "report.html", "model/data/*")
"""What is sealed when a run has ended; the description of the model beside its data changes when it is uploaded."""


@dataclass(frozen=True)
class Verdict:
    """What became of the check of one run."""

    run: str
    """The run's id, as its log has it."""
    lines: int
    """Lines that hold."""
    head: str
    """The hash of the last line whose signature holds."""
    key: str
    """The public key that they are signed with, as 64 hexadecimal digits."""
    rounds: int
    ended: bool
    """The last line is the run's end."""
    skipped: int = 0
    """Of the rounds, those in which nothing was aggregated."""
    broken: str = ""
    """What does not hold, and where; empty if all does."""
    files: tuple[str, ...] = ()
    """The sealed files that were compared."""
    missing: tuple[str, ...] = ()
    """What was not there, and could not be compared."""


def verify(folder: Path, key: str | None = None, run: str | None = None) -> Verdict:
    """Check the log of a run in `folder`, and that journal and model are those that it tells of, as far as the run got.

    key: the coordinator's public key (64 hexadecimal digits), from elsewhere; without it the one that the log names.
    run: the id that the log must be of, if it is known.

    Raises `AuditError` if there is no log.
    """
    path = folder / "audit.jsonl"
    if not path.exists():
        raise AuditError(f"{path}: no such file; this run has no audit log, or it was taken away")
    try:
        saved = read_checkpoint(folder) if (folder / "checkpoint.npz").exists() else None
    except ExperimentError as error:
        return Verdict("", 0, "", "", 0, False, broken=str(error))
    text = path.read_bytes()
    chain = check(text if saved is None else text[: saved.audit_offset], key)
    last = chain.entries[-1] if chain.entries else {}
    verdict = Verdict(
        run=str(chain.entries[0].get("run", "")) if chain.entries else "",
        lines=len(chain.entries),
        head=chain.head,
        key=chain.key,
        rounds=sum(entry.get("kind") == "round" for entry in chain.entries),
        ended=last.get("kind") == "end",
        skipped=sum("skipped" in entry for entry in chain.entries if entry.get("kind") == "round"),
        missing=() if saved else ("checkpoint.npz",),
    )
    if chain.reason:
        return _broken(verdict, len(chain.entries) + 1, chain.reason)
    if run is not None and verdict.run != run:
        return _broken(verdict, 1, f"the log belongs to the run {verdict.run}, not to {run}")
    if saved is not None and (saved.audit_offset != len(text[: saved.audit_offset]) or saved.audit_head != chain.head):
        return _broken(verdict, len(chain.entries) + 1, "it is missing: the checkpoint names a later last line")
    return _fitting(folder, chain, saved, verdict)


def _fitting(folder: Path, chain: Chain, saved: Checkpoint | None, verdict: Verdict) -> Verdict:
    """A log that holds against what else is in the folder."""
    try:
        wrong = misfit(chain.entries, read_journal(folder, saved))
    except ExperimentError as error:
        return replace(verdict, broken=str(error))
    except (ValueError, AttributeError, RecursionError):
        return replace(verdict, broken="journal.jsonl: damaged, a line is no JSON object")
    if wrong is not None:
        return _broken(verdict, *wrong)
    public = folder / "audit.pub"
    try:
        if public.exists() and read_public(public) != chain.key:
            return replace(verdict, broken="audit.pub: is not the key that the log is signed with")
    except AuditError as error:
        return replace(verdict, broken=str(error))
    if saved is not None:
        weights = saved.arrays.get("weights")
        vector = weights is not None and weights.dtype == np.float32 and weights.ndim == 1
        if weights is None or not vector or sha256(weights.tobytes()).hexdigest() != chain.model:
            return replace(verdict, broken="checkpoint.npz: its model is not the one that the last round left")
    return verdict


def verify_all(folder: Path, key: str | None = None, run: str | None = None) -> Verdict:
    """`verify`, and that the run has ended, and that model and report are those that it left then."""
    verdict = verify(folder, key, run)
    if verdict.broken:
        return verdict
    if not verdict.ended:
        reason = "there is no end: the run is still going on, or stopped, or its last lines were cut off everywhere"
        return _broken(verdict, verdict.lines + 1, reason)
    here = set(_sealed(folder))
    path = folder / "audit.seal"
    if not path.exists():
        made = sorted(here - {"experiment.yaml"})
        return replace(verdict, broken=f"audit.seal: no such file, but {made[0]} needs it") if made else verdict
    try:
        files = open_seal(path.read_bytes(), verdict.key, verdict.head)
    except AuditError as error:
        return replace(verdict, broken=f"audit.seal: {error}")
    if added := sorted(here - set(files)):
        return replace(verdict, broken=f"{added[0]}: was not there when the run ended")
    for name in sorted(here):
        if _digest(folder / name) != files[name]:
            return replace(verdict, broken=f"{name}: was changed after the run ended")
    gone = tuple(sorted(set(files) - here))
    return replace(verdict, files=tuple(sorted(here)), missing=verdict.missing + gone)


def seal_files(folder: Path, key: Ed25519PrivateKey) -> None:
    """Sign the digests of the files that an ended run leaves. Raises `AuditError` if its log does not hold."""
    verdict = verify(folder, public_hex(key), folder.name)
    if verdict.broken:
        raise AuditError(f"run {folder.name}: {verdict.broken}")
    files = {name: _digest(folder / name) for name in _sealed(folder)}
    (folder / "audit.seal").write_bytes(seal(key, verdict.run, verdict.head, files))


def refuse_changed(folder: Path, key: Ed25519PrivateKey) -> None:
    """Raise `ExperimentError` for a run whose log, journal or model was changed after its last commit."""
    verdict = verify(folder, public_hex(key), folder.name)
    if verdict.broken:
        raise ExperimentError(f"run {folder.name} cannot be resumed: {verdict.broken}")


def _sealed(folder: Path) -> list[str]:
    found = (path for pattern in SEALED for path in folder.glob(pattern))
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _broken(verdict: Verdict, line: int, reason: str) -> Verdict:
    return replace(verdict, lines=line - 1, broken=f"audit.jsonl: line {line}: {reason}")
