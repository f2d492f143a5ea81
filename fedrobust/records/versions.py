"""Which versions computed a run, and what is said of records that this one cannot read."""

from __future__ import annotations

import json
import platform
from functools import cache
from importlib.metadata import version
from typing import Any

PACKAGES = ("fedrobust", "numpy", "scipy", "torch", "pytorch-lightning", "ray", "cryptography")
"""Whose versions a run's first record holds, beside Python's."""


def versions() -> dict[str, str]:
    """Versions of what computed a run."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


@cache
def _version(package: str) -> str:
    return version(package)


def other_format(found: object, reads: int, wrote: object) -> str:
    """What to do about a file of a format that is not read here.

    found, reads: the formats. wrote: the versions that the run's first record names, if it does.
    """
    by = str(wrote.get("fedrobust", "another version"))[:40] if isinstance(wrote, dict) else "another version"
    return (
        f"has format {str(found)[:40]}, written by FedRobust {by}; this is {_version('fedrobust')}, which reads format "
        f"{reads}: use the version that wrote it, or a later one"
    )


def first_line(journal: bytes) -> dict[str, Any]:
    """The fields in the first line of a journal, whichever version wrote it; none where it is damaged."""
    try:
        found = json.loads(journal.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
