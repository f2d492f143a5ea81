"""The token without which a local Ray answers nobody; some of its ports can be reached from other machines."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from fedrobust.private import private_folder


def ensure_token() -> None:
    """See to it that a Ray which is about to be started here finds a token, if its user has said nothing of one.

    Ray (2.59 or newer) protects a local session by itself, and would write its token to `~/.ray/auth_token`, too. But
    of several processes that start at once each would write its own, and a Ray would then refuse its own processes.
    Here the first one wins, the file is whole when it appears, and it is its owner's alone. Where it cannot be written,
    the token is this process's own.
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
    except (OSError, RuntimeError):  # no home, or none that can be written to
        os.environ["RAY_AUTH_TOKEN"] = token


def _write_once(path: Path, text: str) -> None:
    private_folder(path.parent)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        with suppress(FileExistsError):  # another process was quicker
            path.hardlink_to(new)
    finally:
        new.unlink(missing_ok=True)
