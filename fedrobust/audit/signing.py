"""The coordinator's key, and the JSON that it signs: each value has only one text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fedrobust.errors import FedRobustError
from fedrobust.private import whole


class AuditError(FedRobustError):
    """A key that cannot be used, or an audit log that is not valid."""


def open_key(path: Path) -> Ed25519PrivateKey:
    """The coordinator's key; it is made at its first use, and only its owner may read it.

    path: of a PEM file. The public key is written beside it, with the extension `.pub`.

    Raises `AuditError` if it cannot be made or read, if it is no Ed25519 key, or if others may read it.
    """
    try:
        if not path.exists():
            _make_key(path)
        if path.stat().st_mode & 0o077:
            raise AuditError(f"{path}: others may read this key; chmod 600 {path}, or remove it to have a new one made")
        key = load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise AuditError(f"{path}: must be an Ed25519 key; remove it to have one made")
        public = path.with_suffix(".pub")
        if public.exists() and not _is_half_of(public, key):
            public.unlink()  # it belongs to a key that was removed
        if not public.exists():
            with whole(public) as partial:
                partial.write_bytes(public_pem(key))
    except OSError as error:
        raise AuditError(f"{path}: the audit key can be neither read nor made: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise AuditError(f"{path}: no key in PEM format without a password; remove it to have one made") from None
    return key


def _is_half_of(public: Path, key: Ed25519PrivateKey) -> bool:
    try:
        return read_public(public) == public_hex(key)
    except AuditError:
        return False


def _make_key(path: Path) -> None:
    """Make a key file; if two processes do so, the second keeps the first one's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with whole(path) as partial:
        made = Ed25519PrivateKey.generate()
        partial.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def public_hex(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """The public key as in the log: 64 hexadecimal digits."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """The public key as a PEM file."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_public(path: Path) -> str:
    """The public key (64 hexadecimal digits) in a file.

    path: of a PEM file, or of one with these digits.

    Raises `AuditError` if there is none.
    """
    try:
        data = path.read_bytes()
        if re.fullmatch(rb"[0-9a-f]{64}\s*", data):
            return data.decode().strip()
        key = load_pem_public_key(data)
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise AuditError(f"{path}: must be an Ed25519 public key in PEM format, like the coordinator's .pub file")
    return public_hex(key)


def canonical(value: Any) -> bytes:
    """JSON with only one text for each value: sorted keys, no spaces, ASCII.

    Raises `ValueError` for NaN.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def is_hex(text: Any, size: int) -> bool:
    """Whether this is a string of `size` bytes in lower-case hexadecimal digits."""
    return isinstance(text, str) and re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", text) is not None


def check_signature(key: str, signature: str, data: bytes, reason: str) -> None:
    """Check a signature.

    key: public key, 64 hexadecimal digits.
    signature: hexadecimal digits.
    data: bytes that were signed.
    reason: text of the error.

    Raises `AuditError` if it is not the signature of `data` by this key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        raise AuditError(f"{reason}: the signature is wrong") from None
