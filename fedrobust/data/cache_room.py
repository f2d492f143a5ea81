"""The cache does not grow for ever: entries that nobody uses are removed before a new one is written."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

KINDS = ("decoded-", "stain-", "features-")
"""How the names of entries begin; other files in the folder are left alone."""
DAY = 24 * 60 * 60.0
UNUSED = 30 * DAY
"""Seconds after which an entry that nobody has used is removed."""
IN_USE = DAY
"""An entry that was used within so many seconds is not removed to make room: a run may still have it open, and then
nothing would become free."""


def make_room(folder: Path, needed: int) -> int:
    """Remove the entries that were last used long ago; if the disk is too full, also later ones, the oldest first.

    folder: the cache.
    needed: bytes for the next entry.

    Returns the bytes that are free. A run that has a removed entry open keeps it until its end.
    """
    now, oldest_first = time.time(), sorted((_used(each), each) for each in _entries(folder))
    free = shutil.disk_usage(folder).free
    for used, entry in oldest_first:
        if now - used > UNUSED or (free < needed and now - used > IN_USE):
            _remove(entry)
            free = shutil.disk_usage(folder).free
    return free


def _entries(folder: Path) -> list[Path]:
    """All entries, also those of earlier versions, which were files, and the files of their locks."""
    found = [Path(each.path) for each in os.scandir(folder)]
    return [each for each in found if each.name.removeprefix(".").startswith(KINDS)]


def _used(entry: Path) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return time.time()


def _remove(entry: Path) -> None:
    with suppress(OSError):
        if entry.is_dir() and not entry.is_symlink():
            gone = entry.with_name(f".{entry.name.removeprefix('.')}.gone")
            entry.rename(gone)  # at once: nobody finds half of it
            shutil.rmtree(gone, ignore_errors=True)
        else:
            entry.unlink()
