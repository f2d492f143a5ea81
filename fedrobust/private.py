"""Files that only their owner can read: checkpoints, journals and databases hold what nobody else may see."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OTHERS = 0o077
"""The permissions that are kept from everyone but the owner."""

_lock = threading.Lock()
_blocks, _before = 0, 0


@contextmanager
def private_files() -> Iterator[None]:
    """What this process makes while the block runs is its owner's alone from the start, whatever the umask was.

    The umask is that of the whole process, and of the processes that it starts: files that other threads make meanwhile
    are private, too. Blocks may lie inside each other and beside each other in threads; with the last one the umask
    comes back.
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
    """Make a folder that only its owner may enter, and what is missing above it; one that is there stays as it is."""
    with private_files():
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Make a file that is whole as soon as it is there, and its owner's alone: the block writes it to the path given.

    Whoever comes second keeps the first one's file. Raises what the block raises; nothing is left of it then.
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
        except OSError:  # a file system without links, such as a memory stick's
            if not path.exists():
                partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
