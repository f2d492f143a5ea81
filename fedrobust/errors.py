"""Errors that are meant for a person: what was wrong, where, and what is allowed."""

from __future__ import annotations


class FedRobustError(Exception):
    """Something the user can mend; the command line prints its text, never a traceback."""

    exit_code = 1
    everywhere = False
    """Whether it would end every other run, too: a sweep or a matrix then stops, and can be gone on with."""


class ExperimentError(FedRobustError):
    """An experiment file, override or argument that cannot be run. Nothing has been started or written."""

    exit_code = 2


class DataError(ExperimentError):
    """Data that is missing, has another layout than the source expects, or would leak patients.

    Always one line: what it quotes of other people's files may hold anything.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(each if each.isprintable() else ascii(each)[1:-1] for each in message))


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
