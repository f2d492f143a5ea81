"""What a process does, and when: steps that are recorded where they happen, if somebody wants to know.

>>> seen = Recording()
>>> with recording(seen), step("train", round=3):
...     pass
>>> [(each.name, each.args) for each in seen.steps]
[('train', {'round': 3})]

Without a recording, `step` does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TimedStep:
    """Something that a process did. A step that lies within another one of its process is a part of it."""

    name: str
    start: float
    """Seconds, on the clock of `time.perf_counter`, which all processes of a host share."""
    end: float
    args: dict[str, int] = field(default_factory=dict)
    """E.g. the round."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(frozen=True)
class TimedSteps:
    """The steps of one process, as it returns them."""

    host: str
    process: int
    """Its id on the host."""
    clock: float
    """Seconds to add to a step's start for the time of day there."""
    steps: tuple[TimedStep, ...]


@dataclass
class Recording:
    """The steps of this process, and those that other processes have returned."""

    steps: list[TimedStep] = field(default_factory=list)
    others: list[tuple[str, TimedSteps]] = field(default_factory=list)
    """Name of a process → its steps."""

    def recorded(self) -> TimedSteps:
        """Return the steps of this process."""
        return TimedSteps(socket.gethostname(), os.getpid(), time.time() - time.perf_counter(), tuple(self.steps))


_current: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recording(into: Recording | None) -> Iterator[None]:
    """Record the steps of the block, in this thread; None: record nothing."""
    token = _current.set(into)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def step(name: str, **args: int) -> Iterator[None]:
    """Record the block as a step.

    name: what is done.
    args: e.g. the round.
    """
    seen = _current.get()
    if seen is None:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        seen.steps.append(TimedStep(name, start, time.perf_counter(), args))


def happened(name: str, start: float, end: float, **args: int) -> None:
    """Record a step that is over; `start` and `end` on the clock of `time.perf_counter`."""
    if (seen := _current.get()) is not None:
        seen.steps.append(TimedStep(name, start, end, args))


def arrived(process: str, steps: TimedSteps | None) -> None:
    """Add the steps that another process has returned, if it has.

    process: its name.
    """
    if (seen := _current.get()) is not None and steps is not None:
        seen.others.append((process, steps))
