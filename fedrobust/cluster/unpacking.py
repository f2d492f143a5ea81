"""The results of a job, from the text in which they arrive to files here.

The text comes from a machine that runs code of others: it is data, and none of it decides where something is written.
"""

from __future__ import annotations

import base64
import io
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from fedrobust.cluster.collect import END, MARK
from fedrobust.errors import ClusterError, Problem
from fedrobust.texts import visible

MANIFEST = "fetched.json"
"""The file that says which files of a folder were fetched, and from which job."""
MOST_FILES = 10_000
"""Maximum number of files."""
_NAMED = 3
"""How many files a message names."""


class Manifest(BaseModel):
    """What was fetched to a folder."""

    model_config = ConfigDict(strict=True)

    job: str
    """The id of the job."""
    files: dict[str, list[str]] = {}
    """Path of a file → SHA-256 of its content; of two contents while one replaces the other."""


@dataclass(frozen=True)
class JobFiles:
    """The results of a job, as they have arrived."""

    files: Mapping[str, bytes]
    """Path below the folder, which stays inside it → content."""
    left: tuple[str, ...] = ()
    """Files and folders that were not sent: other kinds, models, keys."""


def parsed(output: str, most: int) -> JobFiles:
    """Return the results in the output of `collect.py`.

    most: maximum number of bytes of all files.

    Raises `ClusterError` if it says that there are none, or if the output is damaged, incomplete or unexpected.
    """
    lines = output.splitlines()
    marked = [number for number, line in enumerate(lines) if line.startswith(MARK)]
    if len(marked) != 2 or lines[marked[1]] != MARK + END:
        raise ClusterError("the results have not arrived as a whole; try it again")
    try:
        about = json.loads(lines[marked[0]].removeprefix(MARK))
        error, size, digest, left = (about.get(name) for name in ("error", "bytes", "sha256", "left"))
        content = base64.b64decode("".join(lines[marked[0] + 1 : marked[1]]), validate=True)
    except (ValueError, AttributeError, RecursionError):
        raise ClusterError("the results have arrived damaged; try it again") from None
    if error is not None:
        raise ClusterError(visible(error))
    if len(content) != size or sha256(content).hexdigest() != digest:
        raise ClusterError("the results have arrived damaged: their digest is another one; try it again")
    names = tuple(visible(name) for name in left) if isinstance(left, list) else ()
    return JobFiles(_files(content, most), names)


def _files(content: bytes, most: int) -> dict[str, bytes]:
    """Return the files of a zip file. Raises `ClusterError` unless all of them are plain files below one folder."""
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_FILES or sum(each.file_size for each in entries) > most:
                raise ClusterError(f"the results are more than {MOST_FILES} files or {most / 1e6:g} MB")
            for each in entries:
                if reason := _refusal(each) or ("is there twice" if each.filename in found else ""):
                    raise ClusterError(Problem(f"is refused: it {reason}").at(Path(visible(each.filename))))
                with archive.open(each) as file:
                    found[each.filename] = file.read(each.file_size + 1)
                if len(found[each.filename]) != each.file_size:
                    raise ClusterError(Problem("is refused: it has another size").at(Path(each.filename)))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise ClusterError(f"the results are no proper zip file: {visible(error)}") from None
    folders = {str(above) for name in found for above in PurePosixPath(name).parents}
    if both := sorted(folders & found.keys()):
        raise ClusterError(Problem("is refused: it is a file and a folder").at(Path(both[0])))
    return found


def _refusal(entry: zipfile.ZipInfo) -> str:
    """Return why an entry is not written; an empty text if it may be."""
    name, path, kind = entry.filename, PurePosixPath(entry.filename), stat.S_IFMT(entry.external_attr >> 16)
    if _is_outside(name):
        return "would lie outside of the folder"
    if visible(name) != name or any(part.startswith(".") for part in path.parts) or name == MANIFEST:
        return "has a name that no result has"
    return "is no plain file" if kind not in (0, stat.S_IFREG) or entry.is_dir() else ""


def _is_outside(name: str) -> bool:
    path = PurePosixPath(name)
    proper = path.parts and str(path) == name and not path.is_absolute() and ".." not in path.parts
    return not proper or "\\" in name or ":" in path.parts[0]


def written(results: JobFiles, folder: Path, job: str) -> list[Path]:
    """Write the results of `job` to `folder`, each file as a whole; return their paths.

    Files from an earlier call that nobody has changed since are replaced, or removed if they are no longer among the
    results.

    Raises `ClusterError`, and writes nothing, if the folder has the results of another job, or if a file would replace
    one that was not fetched, or that was changed since.
    """
    if folder.exists() and not folder.is_dir():
        raise ClusterError(Problem("is no folder").at(folder))
    before, files = _manifest(folder), results.files
    if before is not None and before.job != job:
        raise ClusterError(Problem(f"has the results of the job {visible(before.job)}; give another --to").at(folder))
    known = {} if before is None else before.files
    digests = {name: sha256(content).hexdigest() for name, content in files.items()}
    there = {name: _digest(folder, name) for name in files.keys() | known.keys()}
    own = {name for name in there if there[name] in ("", *known.get(name, ()), digests.get(name))}
    if foreign := sorted(files.keys() - own):
        shown = ", ".join(foreign[:_NAMED]) + (f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else "")
        reason = f"has files that were not fetched, or were changed since: {shown}"
        raise ClusterError(Problem(reason, hint="give another --to, or move them").at(folder))
    both = {name: sorted({*known.get(name, ()), digests[name]}) for name in files}
    kept = {name: known[name] for name in known.keys() - files.keys()}
    _replace(folder / MANIFEST, Manifest(job=job, files=kept | both).model_dump_json(indent=2).encode())
    for name, content in files.items():
        if there[name] != digests[name]:
            _replace(folder / name, content)
    for name in kept.keys() & own:
        (folder / name).unlink(missing_ok=True)
    last = Manifest(job=job, files={name: [digest] for name, digest in sorted(digests.items())})
    _replace(folder / MANIFEST, last.model_dump_json(indent=2).encode())
    return [folder / name for name in sorted(files)]


def _manifest(folder: Path) -> Manifest | None:
    path = folder / MANIFEST
    try:
        found = Manifest.model_validate_json(path.read_bytes())
        if not any(map(_is_outside, found.files)):
            return found
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        pass
    raise ClusterError(Problem("cannot be read; give another --to, or delete it").at(path))


def _digest(folder: Path, name: str) -> str | None:
    """Return the SHA-256 of a file; an empty text if there is none, and None for what is no plain file or behind a
    link."""
    path, parts = folder / name, PurePosixPath(name).parts
    inner = [folder.joinpath(*parts[:count]) for count in range(1, len(parts))]
    if any(each.is_symlink() or (each.exists() and not each.is_dir()) for each in inner) or path.is_symlink():
        return None
    if not path.exists():
        return ""
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _replace(path: Path, content: bytes) -> None:
    """Write a file as a whole, in the place of one that may be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
