"""Standard output and error that never end a command: what cannot be written is dropped, and the work goes on."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from fedrobust.job import as_typed
from fedrobust.texts import visible


class Unfailing:
    """A text stream that drops its output after an error, e.g. a closed reader (`| head -1`) or a full disk.

    Characters that its encoding lacks are written as `?` or as an escape code; paths of a job's files as they were
    typed.
    """

    def __init__(self, stream: TextIO, told: str = "") -> None:
        """`told` is printed on standard error, with the reason, when writing fails for the first time."""
        self._stream, self._told = stream, told
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors in ("strict", "surrogateescape"):
            is_unicode = str(stream.encoding).lower().startswith("utf")
            reconfigure(errors="backslashreplace" if is_unicode else "replace")

    def write(self, text: str) -> int:
        """Write `text`; after an error, write nothing any more."""
        try:
            self._stream.write(as_typed(text))
        except (OSError, ValueError) as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush; after an error, write nothing any more."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())  # also drops the buffered rest that Python flushes at its end
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        finally:
            os.close(nowhere)
        if self._told:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            told, self._told = self._told, ""
            print(f"the output cannot be written ({reason}); {told}", file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def harmless(show: Callable[[Any], object]) -> Callable[[Any], None]:
    """Return `show` without its errors: the first error is reported on standard error, and later calls show nothing."""
    failed = False

    def shown(what: Any) -> None:
        nonlocal failed
        if failed:
            return
        try:
            show(what)
        except Exception as error:
            failed = True
            told = visible(f"{type(error).__name__}: {error}")
            print(f"this cannot be shown ({told}); the command goes on", file=sys.stderr)

    return shown


@contextmanager
def unfailing_output(told: str = "") -> Iterator[None]:
    """Make standard output and error unfailing in the block; `told` is as in `Unfailing`, for standard output.

    If one of the three standard streams is closed, its number is reserved, so that no other file gets it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        cast(TextIO, Unfailing(stream or io.StringIO(), words))
        for stream, words in zip(before, (told, ""), strict=True)
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
