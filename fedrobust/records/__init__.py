"""What runs leave on disk: files of lines, and what the lines say."""

from __future__ import annotations

from fedrobust.records.lines import LineFile

__all__ = ["LineFile"]
