"""The finished runs of a study, written to disk at once, so that no run is repeated after the driver has died."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedrobust.errors import ExperimentError, FedRobustError
from fedrobust.records.lines import LineFile

FORMAT = 1
"""Format of the lines; a line without a format has this one, too."""
Curves = Mapping[int, Mapping[str, float]]
"""Round → metric → value, for the rounds that were evaluated."""


@dataclass(frozen=True)
class FinishedRun:
    """The result of one run of a study, or the reason why it has none."""

    digest: str
    """Digest of its experiment; empty if its options do not make an experiment."""
    label: str
    """Its name in MLflow."""
    run_id: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Figures of the whole run; for a matrix, see `fedrobust.matrices.measures`."""
    rounds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Round (as text) → metric → value, for the evaluated rounds; used by sweeps."""
    seconds: float = math.nan
    """The duration of its rounds, see `RecordedRun.seconds`."""
    took: float = field(default=math.nan, compare=False)
    """Seconds from its start to its end, with reading, start-up and evaluation."""
    failed: str = ""
    """The error that ended it; empty if none did."""

    @property
    def curves(self) -> Curves:
        """Return the metrics by round."""
        return {int(round): metrics for round, metrics in self.rounds.items()}


class FinishedRuns:
    """The file of finished runs: one line for each run; if an experiment has several runs, the last one counts."""

    def __init__(self, path: Path) -> None:
        """Open and read the file at `path`.

        Raises `ExperimentError` if it cannot be written to, if another living process writes to it, or if one of its
        lines is not a finished run.
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
        """Digest → the last run of this experiment."""

    def add(self, run: FinishedRun) -> None:
        """Write `run` to disk. Raises `FedRobustError` if this fails; the file is then unchanged."""
        try:
            self._file.append((json.dumps({"format": FORMAT, **asdict(run)}) + "\n").encode())
        except OSError as error:
            raise FedRobustError(f"{self._file.path}: {run.digest[:8]} could not be written: {error}") from error
        self.by_digest[run.digest] = run

    def get(self, digest: str) -> FinishedRun | None:
        """Return the run of the experiment with this digest if it has not failed, else None."""
        run = self.by_digest.get(digest)
        return None if run is None or run.failed else run

    def close(self) -> None:
        """Close the file, so that other processes may write to it."""
        self._file.close()


def _parsed(line: bytes, where: str) -> FinishedRun:
    """Return the run of a line. Raises `ExperimentError`."""
    try:
        fields = json.loads(line)
        found = fields.pop("format", FORMAT)
        if found == FORMAT:
            return FinishedRun(**fields)
    except (ValueError, TypeError, AttributeError, RecursionError):
        reason = "cannot be read; without it, its run is made again: delete the line"
        raise ExperimentError(f"{where} {reason}") from None
    raise ExperimentError(f"{where} has format {found}, of another version of FedRobust; this one reads {FORMAT}")
