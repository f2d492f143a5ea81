"""The files in a run's folder, and their digests in a seal."""

from __future__ import annotations

import os
import re
import stat
from hashlib import sha256
from pathlib import Path

from fedrobust.audit.signing import AuditError

MLMODEL = "model/MLmodel"
"""MLflow's description of the model: what loads it, and how. An upload changes it."""
_UPLOADED = re.compile(rb"^(artifact_path|model_id|run_id): ([\w:/.%@?&=~+-]+)\n(?=\w+:|\Z)", re.MULTILINE | re.ASCII)
"""A line with such a field between others of the top level: its value begins nothing that goes on in the next line."""


def contents(folder: Path) -> list[str]:
    """The paths of all files below a folder, sorted, with `/` between their parts.

    Raises `AuditError` for a folder that cannot be read, and for everything that is neither a file nor a folder: with a
    link another file would be vouched for, and reading a pipe would never end.
    """
    found: list[str] = []

    def unreadable(error: OSError) -> None:
        raise AuditError(f"{_shown(folder, Path(error.filename))}: cannot be read: {error.strerror}")

    for place, folders, files in os.walk(folder, onerror=unreadable):
        for name in (*folders, *files):
            path = Path(place, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found.append(path.relative_to(folder).as_posix())
            elif not stat.S_ISDIR(mode):
                kind = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise AuditError(f"{_shown(folder, path)}: is {kind}; a run leaves none")
    return sorted(found)


def shown(name: str) -> str:
    """A path in a printable form, whatever is in it."""
    return name if name.isprintable() else ascii(name)


def digest(folder: Path, name: str) -> str:
    """SHA-256 (hexadecimal) of a file in a folder; that of `model/MLmodel` leaves out the fields that an upload sets.

    name: path of the file below `folder`.

    Raises `AuditError` if the file cannot be read.
    """
    try:
        if name == MLMODEL:
            return sha256(_UPLOADED.sub(b"", (folder / name).read_bytes())).hexdigest()
        with (folder / name).open("rb") as file:
            found = sha256()
            while chunk := file.read(1 << 20):
                found.update(chunk)
        return found.hexdigest()
    except OSError as error:
        raise AuditError(f"{shown(name)}: cannot be read: {error.strerror}") from None


def runs_named(folder: Path) -> set[str]:
    """The runs that `model/MLmodel` names as its origin; empty before it was uploaded."""
    return {value.decode() for name, value in _UPLOADED.findall((folder / MLMODEL).read_bytes()) if name == b"run_id"}


def _shown(folder: Path, path: Path) -> str:
    return shown(path.relative_to(folder).as_posix()) if path != folder else str(folder)
