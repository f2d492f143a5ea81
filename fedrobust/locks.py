"""One process at a time: for files that several processes share, and the first one of them makes."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

NOTICE = 10.0
"""Seconds of waiting after which it is said what is waited for."""
LONGEST = 600.0
"""Seconds after which nobody waits any longer."""
PAUSE = 0.05
"""Seconds between two attempts."""

_UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class WaitError(TimeoutError):
    """Another process has had the lock for too long; the text names it."""


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Only one process, and only one thread of it, is in the block for `file` at a time; the others wait.

    The lock is one of the system's, on the file `.NAME.lock` beside it, which stays there: the system lets go of it
    when its process ends, in whatever way, and on a network's file system it holds between machines. Where a file
    system knows no locks, nobody waits.

    Raises `WaitError`, which names the process that has the lock, after `LONGEST` seconds, and `OSError` where the
    lock's file cannot be made.
    """
    place = file.with_name(f".{file.name}.lock")
    lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def holder() -> str:
        told = "".join(filter(str.isprintable, os.pread(lock, 200, 0).decode(errors="replace")))
        return f"{told or 'another process'}, which is making {file}"

    try:
        wait_for(lambda: try_lock(lock), holder)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)  # not left to the last copy of it that a forked process may have
        os.close(lock)


def try_lock(file: int) -> bool:
    """Lock an open file, by its descriptor, without waiting; False where another process has it locked.

    Where a file system knows no locks, everybody has one. Raises `OSError`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    return True


def wait_for(attempt: Callable[[], bool], holder: Callable[[], str]) -> None:
    """Attempt something again and again until it succeeds; a long wait is told, with who is waited for.

    Raises `WaitError` after `LONGEST` seconds.
    """
    began, told = time.monotonic(), False
    while not attempt():
        waited = time.monotonic() - began
        if waited > LONGEST:
            raise WaitError(errno.ETIMEDOUT, f"waited {waited:.0f} s for {holder()}; if it hangs, end it")
        if waited > NOTICE and not told:
            logger.warning("waiting for %s", holder())
            told = True
        time.sleep(PAUSE)
