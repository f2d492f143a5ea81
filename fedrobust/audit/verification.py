"""Checks that a run's folder agrees with its audit log: the log itself, the journal, the model, the sealed files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ruamel.yaml.error import YAMLError

from fedrobust.audit.contents import MLMODEL, contents, digest, runs_named, shown
from fedrobust.audit.log import Chain, check, misfit
from fedrobust.audit.seals import arrays_digest, check_state, open_seal, seal
from fedrobust.audit.signing import AuditError, canonical, public_hex, read_public
from fedrobust.errors import ExperimentError
from fedrobust.experiment_file import dump_options, read_options
from fedrobust.records import Checkpoint, Fields, check_format, exact_records, read_checkpoint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CORE = ("audit.jsonl", "audit.pub", "checkpoint.npz", "experiment.yaml", "journal.jsonl")
"""Files that every run leaves and `verify` compares with the log: they are sealed without further conditions."""
SEAL = "audit.seal"


@dataclass(frozen=True)
class Verdict:
    """The result of the check of one run."""

    run: str
    """The run's id, from its log."""
    lines: int
    """Number of valid lines."""
    head: str
    """The hash of the last line with a valid signature."""
    key: str
    """The public key of the signatures, as 64 hexadecimal digits."""
    rounds: int
    ended: bool
    """Whether the last line is the run's end."""
    skipped: int = 0
    """Number of rounds in which nothing was aggregated."""
    broken: str = ""
    """What is not valid, and where; empty if all is."""
    files: tuple[str, ...] = ()
    """The sealed files that were compared."""
    missing: tuple[str, ...] = ()
    """Files that were missing, and could not be compared."""
    uncovered: tuple[str, ...] = ()
    """What is there, but is not vouched for."""
    seal: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The digests in the seal, by path."""
    versions: object = None
    """The versions that computed the run, from its log."""


def verify(folder: Path, key: str | None = None, run: str | None = None) -> Verdict:
    """Check the log of the run in `folder`, and that journal and model agree with it, as far as the run got.

    folder: of the run.
    key: the coordinator's public key (64 hexadecimal digits), from elsewhere; None takes the one that the log names.
    run: the id that the log must have, if it is given.

    Raises `AuditError` if there is no log.
    """
    try:
        here = set(contents(folder))
    except AuditError as error:
        return _unread(str(error))
    if "audit.jsonl" not in here:
        raise AuditError(f"{folder / 'audit.jsonl'}: no such file; this run has no audit log, or it was taken away")
    try:
        saved = read_checkpoint(folder) if "checkpoint.npz" in here else None
        text = (folder / "audit.jsonl").read_bytes()
    except (ExperimentError, OSError) as error:
        return _unread(str(error))
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
        versions=chain.entries[0].get("versions") if chain.entries else None,
    )
    if chain.reason:
        return _broken(verdict, len(chain.entries) + 1, chain.reason)
    if run is not None and verdict.run != run:
        return _broken(verdict, 1, f"the log belongs to the run {verdict.run}, not to {run}")
    if saved is not None and (saved.audit_offset != len(text[: saved.audit_offset]) or saved.audit_head != chain.head):
        return _broken(verdict, len(chain.entries) + 1, "it is missing: the checkpoint names a later last line")
    if verdict.ended and saved is not None and len(text) > saved.audit_offset:
        return _broken(verdict, len(chain.entries) + 1, "it stands behind the end of the run")
    try:
        return _fitting(folder, here, chain, saved, verdict)
    except (AuditError, ExperimentError) as error:
        return replace(verdict, broken=str(error))


def _fitting(folder: Path, here: set[str], chain: Chain, saved: Checkpoint | None, verdict: Verdict) -> Verdict:
    """Compare a valid log with the other files in the folder. Raises if a file is not what it must be."""
    if "journal.jsonl" not in here:
        raise ExperimentError(f"{folder / 'journal.jsonl'}: no such file")
    text = _read(folder, "journal.jsonl")
    check_format(text, Path("journal.jsonl"))
    committed = text if saved is None else text[: saved.offset]
    records = exact_records(committed)
    try:
        wrong = misfit(chain.entries, records[: len(chain.entries)] if verdict.ended else records)
    except RecursionError:
        raise AuditError("journal.jsonl: damaged, nested too deeply") from None
    if wrong is not None:
        return _broken(verdict, *wrong)
    if verdict.ended and text.count(b"\n") + (not text.endswith(b"\n")) > len(chain.entries):
        raise AuditError(f"journal.jsonl: line {len(chain.entries) + 1}: it stands behind the end of the run")
    if "audit.pub" in here and read_public(folder / "audit.pub") != chain.key:
        raise AuditError("audit.pub: is not the key that the log is signed with")
    if saved is not None:
        _check_checkpoint(saved, chain, committed)
    if "experiment.yaml" in here:
        _check_options(folder, records[0])
    return verdict


def _check_checkpoint(saved: Checkpoint, chain: Chain, journal: bytes) -> None:
    """Raise `AuditError` for a checkpoint that is not that of the last commit."""
    weights = saved.arrays.get("weights")
    vector = weights is not None and weights.dtype == np.float32 and weights.ndim == 1
    if weights is None or not vector or sha256(weights.tobytes()).hexdigest() != chain.model:
        raise AuditError("checkpoint.npz: its model is not the one that the last round left")
    if not saved.signature:
        raise AuditError("checkpoint.npz: is not signed: an older version wrote it, or it was exchanged")
    try:
        check_state(chain.key, saved.facts(), saved.signature)
    except AuditError as error:
        raise AuditError(f"checkpoint.npz: {error}") from None
    if sha256(journal).hexdigest() != saved.journal:
        raise AuditError("journal.jsonl: was changed after the last commit, in what the log does not tell (seconds)")
    if arrays_digest(saved.arrays) != saved.state:
        raise AuditError("checkpoint.npz: its arrays are not those of the last commit")


def _check_options(folder: Path, start: Fields) -> None:
    """Raise `AuditError` for an experiment file with other options than those in the log's first line.

    The start record has all of them, and the line has its digest. No class that the file names is imported.
    """
    began, file = start.get("experiment"), "experiment.yaml"
    if isinstance(began, dict) and _read(folder, file) == _dumped(began):  # reading YAML takes five times as long
        return
    found = read_options(folder / file)
    if path := _difference(found, began):
        raise AuditError(f"experiment.yaml: is not what the run began with: {path} differs")


def _dumped(options: Fields) -> bytes | None:
    """The file that a run writes of these options; None for what no run has."""
    try:
        return dump_options(options).encode()
    except (YAMLError, RecursionError, ValueError):  # a journal may come from a stranger
        return None


def _difference(found: Any, began: Any, path: str = "") -> str:
    """The dotted path of the first value that differs; empty if none does."""
    if isinstance(found, dict) and isinstance(began, dict):
        for name in sorted({*found, *began}, key=str):
            if name not in found or name not in began:
                return f"{path}{name}"
            if inside := _difference(found[name], began[name], f"{path}{name}."):
                return inside
        return ""
    try:
        return "" if canonical(found) == canonical(began) else path.rstrip(".") or "all of it"
    except (TypeError, ValueError, RecursionError):  # a date, say, or NaN
        return path.rstrip(".") or "all of it"


def verify_all(
    folder: Path,
    key: str | None = None,
    run: str | None = None,
    besides: Callable[[str], bool] = lambda name: False,
) -> Verdict:
    """`verify`; and check that the run has ended, and that everything in its folder is what it left then.

    folder: of the run.
    key: as for `verify`.
    run: as for `verify`.
    besides: path → whether this file may differ, because the caller makes it anew.
    """
    verdict = verify(folder, key, run)
    if verdict.broken:
        return verdict
    if not verdict.ended:
        reason = "there is no end: the run is still going on, or stopped, or its last lines were cut off everywhere"
        return _broken(verdict, verdict.lines + 1, reason)
    try:
        return _sealed(folder, verdict, besides)
    except AuditError as error:
        return replace(verdict, broken=str(error))


def _sealed(folder: Path, verdict: Verdict, besides: Callable[[str], bool]) -> Verdict:
    """Compare an ended run with its seal. Raises `AuditError` for what the seal does not vouch for."""
    here = set(contents(folder))
    if SEAL not in here:
        raise AuditError(
            f"{SEAL}: no such file: it was taken away, or the run stopped before it was made; --resume makes it"
        )
    try:
        files = open_seal(_read(folder, SEAL), verdict.key, verdict.head, verdict.versions)
    except AuditError as error:
        raise AuditError(f"{SEAL}: {error}") from None
    compared = [name for name in sorted(here - {SEAL}) if not besides(name)]
    for name in compared:
        if name not in files:
            raise AuditError(f"{shown(name)}: was not there when the run ended")
        if digest(folder, name) != files[name]:
            raise AuditError(f"{shown(name)}: was changed after the run ended")
    if MLMODEL in compared and runs_named(folder) - {verdict.run}:
        raise AuditError(f"{MLMODEL}: names another run")
    return replace(
        verdict,
        files=tuple(compared),
        missing=tuple(sorted({*verdict.missing, *(set(files) - here)})),
        uncovered=(f"{MLMODEL}: model_id, artifact_path",) if MLMODEL in compared else (),
        seal=files,
    )


def seal_files(
    folder: Path, key: Ed25519PrivateKey, made: Iterable[str] = (), kept: Mapping[str, str] | None = None
) -> None:
    """Sign the digests of the files of an ended run: those that its log vouches for, and `made` and `kept`.

    folder: of the run.
    key: the coordinator's.
    made: paths of files that the caller has just written itself.
    kept: digests from the old seal, for files that the caller left alone.

    Nothing else in the folder is signed.

    Raises `AuditError` if the log is not valid or has no end.
    """
    verdict = verify(folder, public_hex(key), folder.name)
    if verdict.broken or not verdict.ended:
        raise AuditError(f"run {folder.name}: {verdict.broken or 'has not ended, and cannot be sealed'}")
    here = set(contents(folder))
    files = dict(kept or {}) | {name: digest(folder, name) for name in sorted({*CORE, *made} & here)}
    partial = folder / f"{SEAL}.partial"
    partial.write_bytes(seal(key, verdict.run, verdict.head, files))
    partial.replace(folder / SEAL)


def refuse_changed(folder: Path, key: Ed25519PrivateKey) -> None:
    """Raise `ExperimentError` for a run whose log, journal, options or state were changed after its last commit.

    folder: of the run.
    key: the coordinator's.
    """
    try:
        verdict = verify(folder, public_hex(key), folder.name)
        reason = verdict.broken
    except AuditError as error:
        reason = str(error)
    if reason:
        raise ExperimentError(f"run {folder.name} cannot be resumed: {reason}")


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise AuditError(f"{name}: cannot be read: {error.strerror}") from None


def _unread(reason: str) -> Verdict:
    return Verdict("", 0, "", "", 0, False, broken=reason)


def _broken(verdict: Verdict, line: int, reason: str) -> Verdict:
    return replace(verdict, lines=line - 1, broken=f"audit.jsonl: line {line}: {reason}")
