"""Locks between processes, for files that several processes share and the first of them makes."""

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

from fedrobust.progress import said

logger = logging.getLogger(__name__)

NOTICE = 10.0
"""Seconds of waiting after which a log message says what is waited for."""
LONGEST = 600.0
"""Seconds after which waiting ends with an error, if the holder of the lock reports no progress."""
PAUSE = 0.05
"""Seconds between two attempts."""

_UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class WaitError(TimeoutError):
    """Another process has held the lock for too long; the text names it."""


@contextmanager
def alone(file: Path) -> Iterator[Callable[[str], None]]:
    """Let only one process, and only one of its threads, into the block for `file` at a time; the others wait, and say
    for whom (`fedrobust.progress`).

    Yields a function that takes a short text on how far the work is: others wait for as long as it changes.

    This is a lock of the operating system on the file `.NAME.lock` beside `file`, which stays there. The system
    releases it when the process ends, in any way; on a network file system it works between machines. If the file
    system has no locks, nothing waits.

    Raises `WaitError`, which names the process that holds the lock, after `LONGEST` seconds without progress there, and
    `OSError` if the lock file cannot be made.
    """
    place = file.with_name(f".{file.name}.lock")
    lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def holder(how_far: bool = True) -> str:
        told = "".join(filter(str.isprintable, os.pread(lock, 200, 0).decode(errors="replace")))
        who = told if how_far else told.partition(" (")[0]
        return f"{who or 'another process'}, which is making {file}"

    def tell(how_far: str = "") -> None:
        told = f"process {os.getpid()} on {socket.gethostname()}{f' ({how_far})' if how_far else ''}"
        os.ftruncate(lock, os.pwrite(lock, told.encode(), 0))

    def attempt() -> bool:
        if locked := try_lock(lock):
            return locked
        said(f"waiting for {holder(how_far=False)}")  # each new text may become a line in a file
        return False

    try:
        wait_for(attempt, holder)
        tell()
        yield tell
    finally:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)  # a forked process may still have a copy of the lock
        os.close(lock)


def try_lock(file: int) -> bool:
    """Lock an open file, given by its descriptor, without waiting; return False if another process has locked it.

    If the file system has no locks, return True. Raises `OSError`.
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
    """Call `attempt` again and again until it returns True. A long wait is logged, with `holder`, the description of
    the process that has the lock.

    Raises `WaitError` after `LONGEST` seconds in which the description does not change.
    """
    began = changed = time.monotonic()
    told, before = False, ""
    while not attempt():
        now, who = time.monotonic(), holder()
        if who != before:
            before, changed = who, now
        if now - changed > LONGEST:
            raise WaitError(errno.ETIMEDOUT, f"waited {now - began:.0f} s for {who}; if it hangs, end it")
        if now - began > NOTICE and not told:
            logger.warning("waiting for %s", who)
            told = True
        time.sleep(PAUSE)
