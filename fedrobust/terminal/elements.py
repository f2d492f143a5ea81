"""What the commands' outputs are made of: a bar, tables, numbers."""

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
    """The terminal; as wide as it says it is, 100 columns where it is a file."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=100)


class Bar:
    """A bar with some text behind it; what is said is a plain line where the output is a file."""

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
        """What is being done now."""
        self._bar.update(self._task, description=visible(what))
        if not self._out.is_terminal:
            self._out.print(plain(what))


def columns(columns: Mapping[str, Sequence[str]]) -> Table:
    """A table whose heads are broken where their words end."""
    table = Table()
    for head in columns:
        broken = Text("\n").join(map(plain, re.split(r"(?<=\.)" if "." in head else " ", head)))
        table.add_column(broken, overflow="fold")
    for line in zip(*columns.values(), strict=True):
        table.add_row(*map(plain, line))
    return table


def plain(text: object, keep: str = "") -> Text:
    """A text as it is written, whoever wrote it: no markup, no emoji codes, control characters seen but for `keep`."""
    return Text(visible(text, keep))


def number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"
