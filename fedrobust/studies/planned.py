"""A run that has not started yet. Light to import, because reading a matrix file needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from fedrobust.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that a study wants to make."""

    experiment: Experiment | None
    """None if its options do not fit together."""
    label: str
    """Its name in MLflow."""
    tags: Mapping[str, str]
    """The tags by which users filter runs in MLflow."""
    refused: str = ""
    """Why there is no experiment."""
    score: str = ""
    """Digest of a caller's function that makes one of its figures; empty without one."""

    @cached_property
    def digest(self) -> str:
        """Return the digest of the experiment, and of the caller's function: a run that is finished under this digest
        is not repeated."""
        if self.experiment is None:
            return sha256(self.label.encode()).hexdigest()
        own = self.experiment.digest()
        return sha256(f"{own} {self.score}".encode()).hexdigest() if self.score else own
