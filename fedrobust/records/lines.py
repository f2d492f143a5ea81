"""A file of lines to which one process at a time appends, and which stays readable after a crash at any point."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from fedrobust.errors import ExperimentError
from fedrobust.locks import try_lock
from fedrobust.texts import visible


class LineFile:
    """An append-only file of lines: locked while it is open, and on the disk when `append` returns.

    The lock is the system's, on the file itself: it ends with its process, however that ends, and leaves no other file.
    A last line without its newline, cut short by a crash, does not count, and is removed by the next `append`. Nothing
    is changed before that.
    """

    def __init__(self, path: Path, busy: str = "") -> None:
        """Open a file; it is created if it is missing, with the folders above it.

        busy: the error's text if another process has the file open.

        Raises `ExperimentError` if the file is locked, or cannot be written to.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            locked = try_lock(self._file.fileno())
        except OSError as error:
            raise ExperimentError(f"{visible(path)}: cannot be written to: {error.strerror or error}") from error
        if not locked:
            self._file.close()
            raise ExperimentError(busy or f"{visible(path)}: another process is writing to this file")
        self.length = self._whole()
        """Bytes of the whole lines."""

    def read(self) -> bytes:
        """The whole lines.

        Raises `OSError` if the file cannot be read.
        """
        return self.path.read_bytes()[: self.length]

    def cut(self, length: int) -> None:
        """Keep only the first `length` bytes of the file, which end with a line; the next `append` removes what is
        behind them."""
        self.length = min(self.length, length)

    def append(self, lines: bytes) -> None:
        """Add lines and wait until they are on the disk.

        lines: bytes, each line with its newline.

        Raises `OSError` if the disk refuses; then the file has the lines that it had before, and no part of the new
        ones.
        """
        try:
            self._file.truncate(self.length)
            left = memoryview(lines)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            with suppress(OSError):
                self._file.truncate(self.length)
            raise
        self.length += len(lines)

    def close(self) -> None:
        """Close the file; without it nothing is lost."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _whole(self) -> int:
        """The position after the last whole line."""
        end = self._file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 65536)
            found = os.pread(self._file.fileno(), end - begin, begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
        return 0
