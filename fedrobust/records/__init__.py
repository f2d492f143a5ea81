"""What runs leave on disk: files of lines, the records in a journal, and the checkpoint that a run goes on from.

>>> accuracy = {8: 0.5, 9: 0.75, 10: 1.0}
>>> evaluations = [EvaluationRecord(round=n, metrics={"test/accuracy": each}) for n, each in accuracy.items()]
>>> averages(evaluations)
{'test/accuracy': 0.75}
"""

from __future__ import annotations

from fedrobust.records.averages import averages
from fedrobust.records.checkpoint import Checkpoint, below, read_checkpoint, write_checkpoint
from fedrobust.records.kinds import (
    FORMAT,
    EvaluationRecord,
    Fields,
    MisreadPatches,
    Record,
    RecordedExperiment,
    RoundRecord,
    RunEnd,
    RunStart,
    StageRecord,
    written,
)
from fedrobust.records.lines import LineFile
from fedrobust.records.reading import check_format, exact_records, read_run, run_of
from fedrobust.records.run import RecordedRun
from fedrobust.records.skips import Skips
from fedrobust.records.versions import other_format, versions

__all__ = [
    "FORMAT",
    "Checkpoint",
    "EvaluationRecord",
    "Fields",
    "LineFile",
    "MisreadPatches",
    "Record",
    "RecordedExperiment",
    "RecordedRun",
    "RoundRecord",
    "RunEnd",
    "RunStart",
    "Skips",
    "StageRecord",
    "averages",
    "below",
    "check_format",
    "exact_records",
    "other_format",
    "read_checkpoint",
    "read_run",
    "run_of",
    "versions",
    "write_checkpoint",
    "written",
]
