"""What is signed besides the lines of an audit log: the files of an ended run, and the state from which a run can go
on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedrobust.audit.signing import AuditError, canonical, check_signature, is_hex
from fedrobust.records import other_format
from fedrobust.secure.messages import digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT = 2
"""Format of seals: the second one covers everything in the folder."""
SEAL, STATE = b"fedrobust audit seal 2\0", b"fedrobust audit state 1\0"
"""The first bytes of what is signed, as with `audit.LINE`."""


def seal(key: Ed25519PrivateKey, run: str, head: str, files: Mapping[str, str]) -> bytes:
    """A signed statement that these files came out of a run; bytes with a newline.

    key: the coordinator's.
    run: the run's id.
    head: the hash of its log's last line.
    files: path → SHA-256.
    """
    body = {"format": FORMAT, "run": run, "head": head, "files": dict(files)}
    return canonical(body | {"signature": _signed(key, SEAL, body)}) + b"\n"


def open_seal(data: bytes, key: str, head: str, wrote: object = None) -> dict[str, str]:
    """The files in a seal: path → SHA-256.

    data: bytes of the seal.
    key: public key of the log, 64 hexadecimal digits.
    head: the hash of the log's last line.
    wrote: the versions in the log's first line, for the error about another format.

    Raises `AuditError` if it is not this log's seal.
    """
    try:
        found = json.loads(data)
        whole = canonical(found) + b"\n" == data
    except (ValueError, RecursionError):
        raise AuditError("the seal is damaged: this is not JSON") from None
    if not isinstance(found, dict):
        raise AuditError("the seal is damaged: this is no seal")
    if found.get("format") != FORMAT:
        if "format" in found:
            raise AuditError(f"the seal {other_format(found['format'], FORMAT, wrote)}")
        raise AuditError(f"the seal is of an older format, which left files out; this version checks format {FORMAT}")
    if not whole:
        raise AuditError("the seal is damaged: these are not the bytes that were written")
    files = found.get("files")
    named = isinstance(files, dict) and all(is_hex(value, 32) for value in files.values())
    if set(found) != {"format", "run", "head", "files", "signature"} or not named:
        raise AuditError("the seal is damaged: this is no seal")
    body = {name: value for name, value in found.items() if name != "signature"}
    _check(key, found["signature"], SEAL, body, "the seal was changed")
    if body["head"] != head:
        raise AuditError("the seal belongs to another log")
    return dict(found["files"])


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The BLAKE3 digest (hexadecimal) of arrays: of their names, types, shapes and contents."""
    parts: list[bytes | memoryview] = []
    for name, array in sorted(arrays.items()):
        whole = np.ascontiguousarray(array)
        parts += [canonical([name, array.dtype.str, array.shape, whole.nbytes]), whole.reshape(-1).view(np.uint8).data]
    return digest(*parts).hex()


def sign_state(key: Ed25519PrivateKey, facts: Mapping[str, Any]) -> str:
    """The signature of a checkpoint's `facts`: what it says about a run, its arrays and its files."""
    return _signed(key, STATE, facts)


def check_state(key: str, facts: Mapping[str, Any], signature: str) -> None:
    """Raises `AuditError` if `sign_state` did not sign these facts with this key.

    key: public key, 64 hexadecimal digits.
    facts: of the checkpoint.
    signature: as `sign_state` returned it.
    """
    _check(key, signature, STATE, facts, "it was not written by the coordinator")


def _signed(key: Ed25519PrivateKey, kind: bytes, body: Mapping[str, Any]) -> str:
    return key.sign(kind + hashlib.sha256(canonical(body)).digest()).hex()


def _check(key: str, signature: Any, kind: bytes, body: Mapping[str, Any], reason: str) -> None:
    signed = signature if is_hex(signature, 64) else ""
    check_signature(key, signed, kind + hashlib.sha256(canonical(body)).digest(), reason)
