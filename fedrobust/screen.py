"""Standard output and error that never end a command: what cannot be shown is lost, and the work goes on."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from fedrobust.texts import visible


class Unfailing:
    """A text stream whose reader may go away, as that of `| head -1` does, or whose disk may be full.

    What its encoding does not have is written as `?` or as an escape code.
    """

    def __init__(self, stream: TextIO, told: str = "") -> None:
        """`told` is said on standard error, with the reason, when nothing can be written any more."""
        self._stream, self._told = stream, told
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors in ("strict", "surrogateescape"):
            is_unicode = str(stream.encoding).lower().startswith("utf")
            reconfigure(errors="backslashreplace" if is_unicode else "replace")

    def write(self, text: str) -> int:
        """Write, or give up for good."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or give up for good."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())  # so that what is buffered goes there, too, at the end of Python
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
    """`show` as a function whose faults end nothing: the first is told on standard error, and nothing is shown then."""
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
    """While the block runs, standard output and error are unfailing; `told` as for `Unfailing`, of standard output.

    Where one of the three standard streams is closed, nothing else that is opened gets its number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
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
