"""What runs leave on disk: files of lines, what the lines say, and what a run goes on from."""

from __future__ import annotations

from fedrobust.records.checkpoint import Checkpoint, below, read_checkpoint, write_checkpoint
from fedrobust.records.lines import LineFile
from fedrobust.records.reading import Record, exact_records, finite, read_journal, reading, written
from fedrobust.records.skips import Skips
from fedrobust.records.versions import versions

__all__ = [
    "Checkpoint",
    "LineFile",
    "Record",
    "Skips",
    "below",
    "exact_records",
    "finite",
    "read_checkpoint",
    "read_journal",
    "reading",
    "versions",
    "write_checkpoint",
    "written",
]
