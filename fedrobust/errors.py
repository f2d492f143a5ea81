"""Errors that are meant for a person: what was wrong, where, and what is allowed.

An error carries its problems as data: code and tests look at `error.problems`. Only `Problem.__str__` makes texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Origin:
    """Where a value comes from: a line of a file, or what else has set it."""

    file: Path | None = None
    line: int | None = None
    """Counted from 1."""
    text: str = ""
    """In place of a file: `override 'seed=3'`, `the sweep`."""
    path: str = ""
    """The dotted path there, where the value was set under another name than it has in the experiment."""

    def __str__(self) -> str:
        """`e.yaml:3: path`."""
        file = "" if self.file is None else f"{self.file}:{self.line}" if self.line else str(self.file)
        return ": ".join(filter(None, (file, self.text, self.path)))


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. Its text is one printable line, whatever the files of others hold that it quotes."""

    message: str = ""
    path: str = ""
    """The dotted path of the option; of data, what of them it is, e.g. `labels`."""
    found: str | None = None
    """What stands there, as it is shown, e.g. `'krumm'` or `a list`; empty where the message says it."""
    allowed: tuple[str, ...] = ()
    """The names that may stand there."""
    hint: str = ""
    """What may have been meant."""
    note: str = ""
    """Of many runs, which have the problem."""
    origins: tuple[Origin, ...] = ()
    """Where it is, from the outermost file that leads there to the innermost."""

    def __str__(self) -> str:
        r"""`e.yaml:3: aggregation.rule: found 'krumm'; allowed: mean, krum; did you mean 'krum'?`."""
        found = f"found {self.found}" if self.found else ""
        allowed = f"allowed: {', '.join(self.allowed)}" if self.allowed else ""
        said = "; ".join(filter(None, (self.message, found, allowed, self.hint)))
        line = ": ".join(filter(None, (*map(str, self.origins), self.path, said)))
        line = f"{line} ({self.note})" if self.note else line
        return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)

    @property
    def origin(self) -> Origin:
        """The innermost origin; an empty one where there is none."""
        return self.origins[-1] if self.origins else Origin()

    @property
    def file(self) -> Path | None:
        """The file that it is in."""
        return self.origin.file

    @property
    def line(self) -> int | None:
        """The line of `file`, counted from 1."""
        return self.origin.line

    def at(self, origin: Origin | Path) -> Problem:
        """The problem as one of what comes from `origin`, or stands in this file."""
        return replace(self, origins=(Origin(origin) if isinstance(origin, Path) else origin, *self.origins))

    def below(self, path: str) -> Problem:
        """The problem as one of a part, which stands at this dotted path."""
        if not self.origins:
            return replace(self, path=".".join(filter(None, (path, self.path))))
        first, *inner = self.origins
        if first == Origin(path=first.path):
            return replace(self, origins=(Origin(path=f"{path}.{first.path}"), *inner))
        return self.at(Origin(path=path))

    def moved(self, old: str, new: str) -> Problem:
        """The problem where what stands at the dotted path `old`, with all below it, stands at `new`."""

        def moved(path: str) -> str:
            return new + path[len(old) :] if f"{path}.".startswith(f"{old}.") else path

        origins = tuple(replace(each, path=moved(each.path)) for each in self.origins)
        return replace(self, path=moved(self.path), origins=origins)

    def noting(self, note: str) -> Problem:
        """The problem with a note on which of many runs have it."""
        return replace(self, note=note)


class FedRobustError(Exception):
    """Something the user can mend; the command line prints a line for each problem, never a traceback."""

    exit_code = 1
    everywhere = False
    """Whether it would end every other run, too: a sweep or a matrix then stops, and can be gone on with."""

    def __init__(self, *problems: Problem | str) -> None:
        """A text is a problem that has nothing but this message."""
        super().__init__(*problems)
        self.problems = tuple(Problem(each) if isinstance(each, str) else each for each in problems)

    def __str__(self) -> str:
        """A line for each problem."""
        return "\n".join(map(str, self.problems))

    def each(self, change: Callable[[Problem], Problem]) -> Self:
        """An error of the same kind with all problems changed, e.g. `error.each(lambda each: each.below("data"))`."""
        return type(self)(*map(change, self.problems))

    def advising(self, advice: str) -> Self:
        """An error of the same kind that says, at its end, what can be done."""
        *others, last = self.problems or (Problem(),)
        return type(self)(*others, replace(last, hint="; ".join(filter(None, (last.hint, advice)))))


@contextmanager
def inside(path: str) -> Iterator[None]:
    """What is wrong in the block is wrong with a part that stands at this dotted path."""
    try:
        yield
    except FedRobustError as error:
        raise error.each(lambda each: each.below(path)) from error


class ExperimentError(FedRobustError):
    """An experiment file, override or argument that cannot be run. Nothing has been started or written."""

    exit_code = 2


class DataError(ExperimentError):
    """Data that is missing, has another layout than the source expects, or would leak patients."""


class TrackingError(FedRobustError):
    """The tracking server cannot be reached, or refused what was sent."""

    everywhere = True


class StorageError(FedRobustError):
    """The database of a study cannot be reached, or is locked by another program."""

    everywhere = True


class UnknownRunError(TrackingError):
    """The tracking store does not know a run, or has deleted it for good."""


class FederationError(FedRobustError):
    """A federation that cannot go on: too few clients left, an actor that stays silent."""


class UntrainedError(FederationError):
    """A run that has ended, every round of it skipped: its model is the initial one, and stays it if resumed."""


class ClusterError(FedRobustError):
    """A cluster that cannot be reached or keeps us out, a job that is not there, a command that cannot be sent."""

    exit_code = 2


class NoPlaceError(FederationError):
    """The cluster has no place for any run."""

    everywhere = True


class Interrupted(KeyboardInterrupt):
    """A Ctrl-C in a run that can be resumed."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.run = run
        """The run's id."""
