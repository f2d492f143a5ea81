"""The versions that computed a run, and the error for records that this version cannot read."""

from __future__ import annotations

import json
import platform
from functools import cache
from importlib.metadata import version
from typing import Any

PACKAGES = ("fedrobust", "numpy", "scipy", "torch", "pytorch-lightning", "ray", "cryptography")
"""Packages whose versions are in a run's first record, besides Python's."""


def versions() -> dict[str, str]:
    """The versions of Python and of `PACKAGES`."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


@cache
def _version(package: str) -> str:
    return version(package)


def other_format(found: object, reads: int, wrote: object) -> str:
    """What to do about a file whose format this version does not read.

    found: its format.
    reads: the format that is read here.
    wrote: the versions in the run's first record; None if it has none.
    """
    by = str(wrote.get("fedrobust", "another version"))[:40] if isinstance(wrote, dict) else "another version"
    return (
        f"has format {str(found)[:40]}, written by FedRobust {by}; this is {_version('fedrobust')}, which reads format "
        f"{reads}: use the version that wrote it, or a later one"
    )


def first_line(journal: bytes) -> dict[str, Any]:
    """The fields in the first line of a journal, whichever version wrote it; empty if it is damaged.

    journal: its bytes.
    """
    try:
        found = json.loads(journal.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
