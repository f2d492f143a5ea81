"""Which versions computed a run."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version

PACKAGES = ("fedrobust", "numpy", "scipy", "torch", "pytorch-lightning", "ray", "cryptography")
"""Whose versions a run's first record holds, beside Python's."""


def versions() -> dict[str, str]:
    """Versions of what computed a run."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


@cache
def _version(package: str) -> str:
    return version(package)
