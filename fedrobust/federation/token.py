"""The token that every caller of a local Ray must have; some of Ray's ports can be reached from other machines."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from fedrobust.private import private_folder


def ensure_token() -> None:
    """Ensure that a Ray which is about to be started here finds a token, unless its user has configured one.

    Ray (2.59 or newer) protects a local session by itself, and would write its token to `~/.ray/auth_token`, too. But
    if several processes start at once, each would write its own, and a Ray would then refuse its own processes. Here
    the first one wins, the file is complete when it appears, and only its owner can read it. If it cannot be written,
    the token is used by this process alone.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    token = secrets.token_hex(32)
    try:
        path = Path.home() / ".ray" / "auth_token"
        if not path.exists():
            _write_once(path, token)
    except (OSError, RuntimeError):  # no home, or no permission to write there
        os.environ["RAY_AUTH_TOKEN"] = token


def _write_once(path: Path, text: str) -> None:
    private_folder(path.parent)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        with suppress(FileExistsError):  # another process was faster
            path.hardlink_to(new)
    finally:
        new.unlink(missing_ok=True)
