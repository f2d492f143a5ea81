"""Common elements of the commands' outputs: a bar, tables, numbers."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedrobust.job import tell
from fedrobust.terminal.pace import Pace, about
from fedrobust.texts import visible

Screen = Console
"""Where the commands print."""


def console(stderr: bool = False) -> Console:
    """Return the terminal, which shows texts as they are written: no markup, no emoji codes. It has its own width, or
    100 columns if the output is a file.

    stderr: use standard error instead of standard output.
    """
    out = Console(highlight=False, markup=False, emoji=False, stderr=stderr)
    if out.is_terminal:
        return out
    return Console(highlight=False, markup=False, emoji=False, stderr=stderr, width=100)


FIRST, LONGEST = 30.0, 300.0
"""Seconds without a line after which a file gets a sign of life: at first, and at most."""
TICK = 1.0
"""Seconds between two looks at the clock."""


class Bar:
    """A progress bar with a text behind it. If the output is a file, messages are plain lines, and when nothing happens
    for a while, a line says what is going on."""

    def __init__(self, out: Console, total: int | None, noun: str) -> None:
        """`total`: how many items there are, None if that is not known yet; `noun`: what they are, in the plural."""
        self._out, self._noun, self._total = out, noun, total
        self._done, self._pace = 0, Pace()
        self._bar = bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[behind]}", markup=False),
            console=out,
            disable=not out.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=total, behind="")
        self._step, self._since = "starting", time.monotonic()
        self._spoken, self._patience = self._since, FIRST
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._out.is_terminal:
            self._line(self._step)
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._heart.is_alive():
            self._heart.join()
        self._bar.stop()

    def say(self, what: str) -> None:
        """Show `what`, the current step."""
        if what == self._step:
            return
        self._step, self._since, self._patience = what, time.monotonic(), FIRST
        self._bar.update(self._task, description=visible(what))
        if not self._out.is_terminal:
            self._line(what)

    def sign_of_life(self) -> str:
        """Return what is going on, e.g. "31/60 cells, about 4 min left: running 2 at a time, for 12 min"."""
        seconds = time.monotonic() - self._since
        lasted = f"{self._step}, for {f'{seconds:.0f} s' if seconds < 90 else f'{seconds / 60:.0f} min'}"
        return f"{self._count()}: {lasted}" if self._total else lasted

    def _counted(self, done: int, total: int | None) -> None:
        """Note that `done` of `total` items are done, and tell whoever follows this job."""
        self._done, self._total = done, total
        tell(done=done, of=total, what=self._noun)

    def _count(self) -> str:
        """Return how many items are done, e.g. "31/60 cells, about 4 min left"."""
        left = self._left()
        return f"{self._done}/{self._total} {self._noun}{f', {left}' if left else ''}"

    def _left(self) -> str:
        """Return the time that is left; empty until it can be estimated, and when nothing is left."""
        seconds = self._pace.left(self._total - self._done) if self._total else None
        return f"{about(seconds)} left" if seconds else ""

    def _line(self, text: str, keep: str = "") -> None:
        """Print a line; `keep`: see `plain`."""
        self._spoken = time.monotonic()
        self._out.print(plain(text, keep), soft_wrap=True)

    def _beat(self) -> None:
        while not self._ended.wait(TICK):
            if time.monotonic() - self._spoken >= self._patience:
                self._patience = min(2 * self._patience, LONGEST)
                self._line(self.sign_of_life())


def columns(columns: Mapping[str, Sequence[str]]) -> Table:
    """Return a table whose heads are broken only between words."""
    table = Table()
    for head in columns:
        broken = Text("\n").join(map(plain, re.split(r"(?<=\.)" if "." in head else " ", head)))
        table.add_column(broken, overflow="fold")
    for line in zip(*columns.values(), strict=True):
        table.add_row(*map(plain, line))
    return table


def plain(text: object, keep: str = "") -> Text:
    """Return a text exactly as written: no markup, no emoji codes; control characters except `keep` are made
    visible."""
    return Text(visible(text, keep))


def number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"
