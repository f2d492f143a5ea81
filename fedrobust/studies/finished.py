"""The finished runs of a study, on disk before anything else: none is made twice, however often the driver dies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedrobust.errors import ExperimentError, FedRobustError
from fedrobust.records.lines import LineFile

FORMAT = 1
"""Of the lines; a line without one is of that format, too."""
Curves = Mapping[int, Mapping[str, float]]
"""Round → metric → value, of the rounds that were evaluated."""


@dataclass(frozen=True)
class FinishedRun:
    """What a run of a study gave, or why it gave nothing."""

    digest: str
    """That of its experiment; empty where its options do not even make one."""
    label: str
    """What it is called in MLflow."""
    run_id: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What is measured over the whole run; of a matrix, see `fedrobust.matrix.measures`."""
    rounds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Round, as a text → metric → value, of the evaluated rounds; what a sweep keeps."""
    seconds: float = math.nan
    failed: str = ""
    """The error that ended it; empty if none did."""

    @property
    def curves(self) -> Curves:
        """The metrics by round."""
        return {int(round): metrics for round, metrics in self.rounds.items()}


class FinishedRuns:
    """The file of what is finished: a line for each run; of several runs of an experiment, the last counts."""

    def __init__(self, path: Path) -> None:
        """Open the file, and read it.

        Raises `ExperimentError` if it cannot be written to, another process that is alive writes to it, or a line of
        it is no finished run.
        """
        self._file = LineFile(path, f"{path.parent}: another process is at work in this folder")
        try:
            runs = [
                _parsed(line, f"{path}: line {n}") for n, line in enumerate(self._file.read().splitlines(), start=1)
            ]
        except ExperimentError:
            self._file.close()
            raise
        self.by_digest = {run.digest: run for run in runs}
        """The last run of each experiment."""

    def add(self, run: FinishedRun) -> None:
        """Keep a run for good. Raises `FedRobustError` if the disk refuses; the file is then as it was before."""
        try:
            self._file.append((json.dumps({"format": FORMAT, **asdict(run)}) + "\n").encode())
        except OSError as error:
            raise FedRobustError(f"{self._file.path}: {run.digest[:8]} could not be written: {error}") from error
        self.by_digest[run.digest] = run

    def get(self, digest: str) -> FinishedRun | None:
        """The run of an experiment that has not failed."""
        run = self.by_digest.get(digest)
        return None if run is None or run.failed else run

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _parsed(line: bytes, where: str) -> FinishedRun:
    """The run of a line. Raises `ExperimentError`."""
    try:
        fields = json.loads(line)
        found = fields.pop("format", FORMAT)
        if found == FORMAT:
            return FinishedRun(**fields)
    except (ValueError, TypeError, AttributeError, RecursionError):
        reason = "cannot be read; without it, its run is made again: delete the line"
        raise ExperimentError(f"{where} {reason}") from None
    raise ExperimentError(f"{where} has format {found}, of another version of FedRobust; this one reads {FORMAT}")
