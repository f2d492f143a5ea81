"""The audit log of a run: lines chained by hashes and signed, so that no line can be changed later unnoticed.

Each line is canonical JSON: `index` from 1 on, `previous` (the hash of the line before), `entry` (what happened),
`hash` (SHA-256 of these three) and `signature` (Ed25519, of the hash). Lines contain no wall-clock time and signatures
no randomness: the same run gives the same bytes. There is one line for each record of the journal, with the digest of
that record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrobust.audit.signing import AuditError, canonical, check_signature, is_hex, public_hex
from fedrobust.records import other_format

Entry = dict[str, Any]

FORMAT = 1
START = "0" * 64
"""`previous` of the first line."""
LINE = b"fedrobust audit line 1\0"
"""Everything that is signed begins with this, so that no signature can be taken for one of another kind."""
_TOLD: dict[str, tuple[str, ...]] = {
    "start": ("run", "name", "clients", "configuration", "digest", "versions", "model", "encoder"),
    "round": (
        *("round", "participants", "identities", "late", "commitments", "functionals", "products", "rejected"),
        *("skipped", "anomaly", "reputation", "suspected", "quarantined", "f", "weights", "notes"),
    ),
    "evaluation": ("round", "metrics"),
    "end": ("round", "final"),
}
"""Fields that a line repeats, by the kind of the journal's record; the digest covers the whole record."""
_RENAMED = {"digest": "data"}
_CLOCK = "seconds"


def timeless(value: Any) -> Any:
    """A record without the seconds that it took, at any depth: only they differ if the run is repeated."""
    if isinstance(value, Mapping):
        return {key: timeless(item) for key, item in value.items() if key != _CLOCK}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def entry_of(record: Mapping[str, Any], before: str | None) -> Entry:
    """The log's entry for a record of the journal.

    record: its fields, as they are read from JSON.
    before: digest of the model before the record; a round's `model` becomes the digests before and after.
    """
    kind = record.get("kind")
    bare = timeless(record)
    told = {_RENAMED.get(name, name): bare[name] for name in _TOLD.get(str(kind), ("round",)) if name in bare}
    if kind == "round":
        told["model"] = {"before": before, "after": bare.get("model", before)}
    return {"kind": kind, **told, "record": hashlib.sha256(canonical(bare)).hexdigest()}


class Log:
    """The end of a log, to which lines are added.

    key: signs the lines.
    lines: bytes of the log so far; they must be valid (see `check`).
    """

    def __init__(self, key: Ed25519PrivateKey, lines: bytes = b"") -> None:
        """Begin a log, or go on behind `lines`, which hold (`check` says whether they do)."""
        self._key = key
        self.index, self.head = 0, START
        """Number of lines, and the hash of the last one."""
        self._model: str | None = None
        for line in map(json.loads, lines.splitlines()):
            self.index, self.head = line["index"], line["hash"]
            self._model = _model_after(line["entry"], self._model)

    def line(self, record: Mapping[str, Any]) -> bytes:
        """The line for the next record of the journal, with its newline.

        record: its fields, as they are read from JSON.
        """
        entry = entry_of(record, self._model)
        if not self.index:
            entry |= {"format": FORMAT, "key": public_hex(self._key)}
        body = {"index": self.index + 1, "previous": self.head, "entry": entry}
        digest = hashlib.sha256(canonical(body)).digest()
        signature = self._key.sign(LINE + digest).hex()
        self.index, self.head = self.index + 1, digest.hex()
        self._model = _model_after(entry, self._model)
        return canonical(body | {"hash": self.head, "signature": signature}) + b"\n"


def _model_after(entry: Entry, before: str | None) -> str | None:
    model = entry.get("model", before)
    return model["after"] if isinstance(model, dict) else model


@dataclass(frozen=True)
class Chain:
    """A checked log: the entries of its valid lines, and why the next line is invalid."""

    entries: list[Entry] = field(repr=False)
    head: str
    """The hash of the last valid line."""
    key: str
    """The public key of the signatures, as the first line names it; empty without a first line."""
    reason: str = ""
    """What is wrong with the next line; empty if all lines are valid."""

    @property
    def model(self) -> str | None:
        """The digest of the model after the last entry."""
        model: str | None = None
        for entry in self.entries:
            model = _model_after(entry, model)
        return model


def check(lines: bytes, key: str | None = None) -> Chain:
    """Check the chain and the signatures of a log.

    lines: bytes of the log.
    key: the public key (64 hexadecimal digits); None takes the one that the first line names.

    The lines do not show whether a log is complete: its last entry says whether the run has ended.
    """
    entries: list[Entry] = []
    head, signer = START, ""
    for line in lines.splitlines(keepends=True):
        try:
            found = _parsed(line)
            if not entries:
                signer = _signer(found["entry"], key)
            _check_line(found, len(entries) + 1, head, signer)
        except AuditError as error:
            return Chain(entries, head, signer, str(error))
        entries.append(found["entry"])
        head = found["hash"]
    return Chain(entries, head, signer, "" if entries else "the log is empty")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
        whole = canonical(found) + b"\n" == line
    except (ValueError, RecursionError):
        raise AuditError("this is not JSON: the line is damaged, or was cut off") from None
    if not whole:
        raise AuditError("these are not the bytes that were written")
    if not isinstance(found, dict) or set(found) != {"index", "previous", "entry", "hash", "signature"}:
        raise AuditError("this is no line of an audit log")
    if not isinstance(found["entry"], dict) or not all(
        is_hex(found[n], b) for n, b in (("hash", 32), ("signature", 64))
    ):
        raise AuditError("this is no line of an audit log")
    return found


def _signer(first: Entry, key: str | None) -> str:
    if isinstance(found := first.get("format"), int) and found > FORMAT:
        raise AuditError(f"the log {other_format(found, FORMAT, first.get('versions'))}")
    if found != FORMAT or not is_hex(first.get("key"), 32):
        raise AuditError(f"this is no first line of an audit log of format {FORMAT}: lines are missing before it")
    if key is not None and first["key"] != key:
        raise AuditError(f"the log was signed with another key, {first['key']}, than the one given, {key}")
    return str(first["key"])


def _check_line(found: dict[str, Any], index: int, previous: str, key: str) -> None:
    if found["index"] != index:
        raise AuditError(f"this is line {found['index']}: lines are missing, added or in another order")
    if found["previous"] != previous:
        raise AuditError("it does not belong behind the line before it: one of the two was exchanged")
    body = {name: found[name] for name in ("index", "previous", "entry")}
    digest = hashlib.sha256(canonical(body)).digest()
    if digest.hex() != found["hash"]:
        raise AuditError("it was changed: its hash is another one")
    check_signature(key, found["signature"], LINE + digest, "it was written by somebody without the coordinator's key")


def misfit(entries: Sequence[Entry], records: Sequence[Mapping[str, Any]]) -> tuple[int, str] | None:
    """The number of the first line that differs from the journal, and why; None if log and journal agree.

    entries: of the log.
    records: of the journal, as they are read from JSON.
    """
    model: str | None = None
    for line, (entry, record) in enumerate(zip(entries, records, strict=False), 1):
        expected = entry_of(record, model)
        told = {name: value for name, value in entry.items() if line > 1 or name not in ("format", "key")}
        wrong = [name for name in {**expected, **told} if told.get(name) != expected.get(name)]
        if wrong:
            what = next((name for name in wrong if name != "record"), "another field")
            return line, f"the journal says otherwise ({what}): it was edited, or belongs to another run"
        model = _model_after(entry, model)
    if len(entries) < len(records):
        return len(entries) + 1, "the journal goes on, the log does not: its end was cut off"
    if len(entries) > len(records):
        return len(records) + 1, "the journal has no such record: its end was cut off"
    return None
