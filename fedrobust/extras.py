"""Optional packages: which packages an extra needs, and a one-line message that names the missing ones.

Version bounds are those of `pyproject.toml`, read from the installed metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from fedrobust.errors import FedRobustError

MOST = 4
"""The most packages that a message names."""


class MissingExtraError(FedRobustError, ImportError):
    """Packages that an operation needs are not installed, or too old."""

    exit_code = 2


def require(extra: str, what: str) -> None:
    """Raise `MissingExtraError` unless all packages of `fedrobust[extra]` are installed in allowed versions.

    what: what needs them, as the beginning of a sentence, e.g. `fedrobust run`.
    """
    lacking = list(missing(extra))
    if lacking:
        shown = lacking if len(lacking) <= MOST else [*lacking[:MOST], f"{len(lacking) - MOST} more packages"]
        raise MissingExtraError(f'{what} needs {", ".join(shown)}: pip install "fedrobust[{extra}]"')


def missing(extra: str) -> Iterator[str]:
    """Yield the packages of `fedrobust[extra]` that are absent, by name, or that have a version which is not
    allowed."""
    from packaging.requirements import Requirement

    for line in requires("fedrobust") or ():
        needed = Requirement(line)
        marker = needed.marker
        if marker is None or "extra" not in str(marker) or not marker.evaluate({"extra": extra}):
            continue
        if needed.name == "fedrobust":  # an extra that includes others
            for each in sorted(needed.extras):
                yield from missing(each)
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            yield needed.name
        else:
            if not needed.specifier.contains(found, prereleases=True):
                yield f"{needed.name}{needed.specifier} ({found} is installed)"
