"""A run before it is made. Light to import: reading a matrix file needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from fedrobust.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that a study wants."""

    experiment: Experiment | None
    """None where its options do not go together."""
    label: str
    """What it is called in MLflow."""
    tags: Mapping[str, str]
    """What a person filters runs by in MLflow."""
    refused: str = ""
    """Why there is none."""

    @cached_property
    def digest(self) -> str:
        """The experiment's: a run that was finished under it is not made again."""
        return sha256(self.label.encode()).hexdigest() if self.experiment is None else self.experiment.digest()
