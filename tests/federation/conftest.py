"""Shared by the tests of the federation."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Path]:
    """A link to the test's folder, with a path in which Ray's session finds room."""
    made = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    (made / "x").symlink_to(tmp_path)
    yield made / "x"
    shutil.rmtree(made)
