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

    @cached_property
    def digest(self) -> str:
        """Return the digest of the experiment: a run that is finished under this digest is not repeated."""
        return sha256(self.label.encode()).hexdigest() if self.experiment is None else self.experiment.digest()
