"""How far long work has come, for whoever watches the process.

>>> with progress_to(print):
...     work = LongWork("reading the data", 3, "images", pause=0)
...     for done in (1, 2, 3):
...         work.reached(done)
reading the data: 33 % of 3 images
reading the data: 66 % of 3 images

Without `progress_to`, nobody hears of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

PAUSE = 2.0
"""Least seconds between two texts."""
STEP = 5
"""Least per cent between two texts: each may become a line in a file."""

_say: ContextVar[Callable[[str], None]] = ContextVar("say", default=lambda text: None)


@contextmanager
def progress_to(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block, in this thread, `say` gets the texts of every `LongWork`."""
    token = _say.set(say)
    try:
        yield
    finally:
        _say.reset(token)


def said(text: str) -> None:
    """Pass a text to whoever watches; what it raises ends the work."""
    _say.get()(text)


class LongWork:
    """Says from time to time how much of a long work is done."""

    def __init__(self, what: str, total: int, noun: str, pause: float = PAUSE) -> None:
        """`what` is done with `total` things called `noun`; `pause`: least seconds between two texts."""
        self._what, self._total, self._noun, self._pause = what, total, noun, pause
        self._last, self._said = time.monotonic(), 0

    def reached(self, done: int) -> None:
        """Note that `done` of the things are done."""
        share, now = 100 * done // max(1, self._total), time.monotonic()
        if done < self._total and share >= self._said + STEP and now - self._last >= self._pause:
            self._last, self._said = now, share
            said(f"{self._what}: {share} % of {self._total:,} {self._noun}")
