"""Shared by the tests of audits."""

from __future__ import annotations

from pathlib import Path

import pytest
from vouched import ended


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of an ended run."""
    return ended(tmp_path / "r1")
