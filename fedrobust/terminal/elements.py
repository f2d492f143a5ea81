"""Common elements of the commands' outputs: a bar, tables, numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedrobust.texts import visible


def console() -> Console:
    """Return the terminal; it has its own width, or 100 columns if the output is a file."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=100)


class Bar:
    """A progress bar with a text behind it; if the output is a file, messages are plain lines."""

    def __init__(self, out: Console, first: str, total: int | None) -> None:
        self._out = out
        self._bar = bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[behind]}"),
            console=out,
            disable=not out.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(first, total=total, behind="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, what: str) -> None:
        """Show `what`, the current step."""
        self._bar.update(self._task, description=visible(what))
        if not self._out.is_terminal:
            self._out.print(plain(what))


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
