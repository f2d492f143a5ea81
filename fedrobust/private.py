"""Files that only their owner can read: checkpoints, journals and databases hold private content."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OTHERS = 0o077
"""The permissions that everyone except the owner is denied."""

_lock = threading.Lock()
_blocks, _before = 0, 0


@contextmanager
def private_files() -> Iterator[None]:
    """Files that this process makes during the block are readable only by their owner from the start, whatever the
    umask.

    The umask applies to the whole process and its child processes, so files that other threads make meanwhile are
    private, too. Blocks may be nested or run in several threads; the last one to end restores the umask.
    """
    global _blocks, _before
    with _lock:
        if not _blocks:
            _before = os.umask(OTHERS)
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                os.umask(_before)


def private_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, and missing folders above it; an existing folder is not changed."""
    with private_files():
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Make a private file at `path` that is complete as soon as it exists: the block writes to the yielded temporary
    path.

    If `path` already exists at the end of the block, it is kept. Raises what the block raises, after deleting the
    temporary file.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        try:
            path.hardlink_to(partial)
        except FileExistsError:
            pass
        except OSError:  # this file system has no hard links, e.g. a memory stick
            if not path.exists():
                partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
