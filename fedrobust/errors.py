"""Errors for users: what was wrong, where, and what is allowed.

An error carries its problems as data: code and tests look at `error.problems`. Only `Problem.__str__` makes texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from fedrobust.job import as_typed


@dataclass(frozen=True)
class Origin:
    """Where a value comes from: a line of a file, or another source."""

    file: Path | None = None
    line: int | None = None
    """Line number, counted from 1."""
    text: str = ""
    """Description of a source that is not a file: `override 'seed=3'`, `the sweep`."""
    path: str = ""
    """The dotted path in this source, if the value has another path in the experiment."""

    def __str__(self) -> str:
        """Return a text such as `e.yaml:3: path`; in a job on a cluster, files are named as the user typed them."""
        file = "" if self.file is None else as_typed(str(self.file)) + (f":{self.line}" if self.line else "")
        return ": ".join(filter(None, (file, self.text, self.path)))


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. Its text is one printable line, even if it quotes unprintable characters from a file."""

    message: str = ""
    path: str = ""
    """The dotted path of the option; for data, which part of them is wrong, e.g. `labels`."""
    found: str | None = None
    """The value that was found, as it is shown, e.g. `'krumm'` or `a list`; None if the message already says it."""
    allowed: tuple[str, ...] = ()
    """The names that are allowed there."""
    hint: str = ""
    """What the user may have meant."""
    note: str = ""
    """For problems in many runs: which of the runs have it."""
    origins: tuple[Origin, ...] = ()
    """Where the problem is, from the outermost file that leads there to the innermost."""

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
        """Return the innermost origin; an empty one if there is none."""
        return self.origins[-1] if self.origins else Origin()

    @property
    def file(self) -> Path | None:
        """Return the file that contains the problem."""
        return self.origin.file

    @property
    def line(self) -> int | None:
        """The line of `file`, counted from 1."""
        return self.origin.line

    def at(self, origin: Origin | Path) -> Problem:
        """Return this problem with `origin`, which may be just a file, added as the outermost origin."""
        return replace(self, origins=(Origin(origin) if isinstance(origin, Path) else origin, *self.origins))

    def below(self, path: str) -> Problem:
        """Return this problem with `path`, the dotted path of the part that has it, put in front of its own path."""
        if not self.origins:
            return replace(self, path=".".join(filter(None, (path, self.path))))
        first, *inner = self.origins
        if first == Origin(path=first.path):
            return replace(self, origins=(Origin(path=f"{path}.{first.path}"), *inner))
        return self.at(Origin(path=path))

    def moved(self, old: str, new: str) -> Problem:
        """Return this problem after the options at and below the dotted path `old` have been moved to `new`."""

        def moved(path: str) -> str:
            return new + path[len(old) :] if f"{path}.".startswith(f"{old}.") else path

        origins = tuple(replace(each, path=moved(each.path)) for each in self.origins)
        return replace(self, path=moved(self.path), origins=origins)

    def noting(self, note: str) -> Problem:
        """Return this problem with a note that says which of many runs have it."""
        return replace(self, note=note)


class FedRobustError(Exception):
    """An error that the user can correct; the command line prints a line for each problem, never a traceback."""

    exit_code = 1
    everywhere = False
    """Whether the error would end every other run, too: a sweep or a matrix then stops, and can be continued."""

    def __init__(self, *problems: Problem | str) -> None:
        """`problems`: a text becomes a problem that has only this message."""
        super().__init__(*problems)
        self.problems = tuple(Problem(each) if isinstance(each, str) else each for each in problems)

    def __str__(self) -> str:
        """Return a line for each problem."""
        return "\n".join(map(str, self.problems))

    def each(self, change: Callable[[Problem], Problem]) -> Self:
        """Return an error of the same kind with `change` applied to every problem, e.g. `error.each(lambda each:
        each.below("data"))`."""
        return type(self)(*map(change, self.problems))

    def advising(self, advice: str) -> Self:
        """Return an error of the same kind with `advice`, what the user can do, at its end."""
        *others, last = self.problems or (Problem(),)
        return type(self)(*others, replace(last, hint="; ".join(filter(None, (last.hint, advice)))))


@contextmanager
def inside(path: str) -> Iterator[None]:
    """Errors in the block are errors of a part: their dotted paths begin with `path`."""
    try:
        yield
    except FedRobustError as error:
        raise error.each(lambda each: each.below(path)) from error


class ExperimentError(FedRobustError):
    """An experiment file, override or argument that cannot be run. Nothing has been started or written."""

    exit_code = 2


class DataError(ExperimentError):
    """Data that are missing, have a different layout than the source expects, or would leak patients."""


class TrackingError(FedRobustError):
    """The tracking server cannot be reached, or refused what was sent."""

    everywhere = True


class StorageError(FedRobustError):
    """The database of a study cannot be reached, or is locked by another program."""

    everywhere = True


class UnknownRunError(TrackingError):
    """The tracking store has no run with this id, or has deleted it for good."""


class FederationError(FedRobustError):
    """A federation that cannot go on: too few clients are left, or an actor does not answer."""


class UntrainedError(FederationError):
    """A run that has ended with every round skipped: its model is the initial one, also after resuming."""


class UnlearntError(FedRobustError):
    """A study that was stopped because its first runs have learnt nothing: what it measures would be undefined."""


class ClusterError(FedRobustError):
    """A cluster cannot be reached or refuses access, a job does not exist, or a command cannot be sent."""

    exit_code = 2


class NoPlaceError(FederationError):
    """The cluster has no room for any run."""

    everywhere = True


class Interrupted(KeyboardInterrupt):
    """A Ctrl-C in a run that can be resumed."""

    def __init__(self, run: str) -> None:
        super().__init__(f"run {run} was stopped; it can go on, in Python with resume='{run}'")
        self.run = run
        """The run's id."""


class Stop(Exception):  # noqa: N818  a request, not an error
    """Raised in a hook to end its run early: `raise fedrobust.Stop("no progress for 5 rounds")`.

    The run ends as stopped, with this text; `fedrobust.run` returns the result up to there, and `resume` can go on.
    """
