"""Files that only their owner can read: checkpoints, journals and databases hold what nobody else may see."""

from __future__ import annotations

import os
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


def private_file(path: Path) -> None:
    """Make an empty file that only its owner may read, for a program that goes on with it; one that is there stays."""
    if not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
