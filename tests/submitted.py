"""Calls of the command line in the tests' own process."""

from __future__ import annotations

import sys
from unittest.mock import patch

import pytest

from fedrobust.cli import main


def called(*words: str) -> int:
    """The exit code of the command line."""
    with patch.object(sys, "argv", ["fedrobust", *words]), pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)
