"""The files in a folder: one way to list them for every source, with an account of what is left out."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from heapq import heappop, heappush
from pathlib import Path

from fedrobust.errors import DataError, Problem
from fedrobust.texts import visible

logger = logging.getLogger(__name__)

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
"""Extensions of image files, in lower case."""

_CLUTTER = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information",
}  # fmt: skip
"""Names of files that operating systems put into folders, in lower case; names that begin with a dot count, too."""

FileIdentity = tuple[int, int]
"""Device and number of a file: the same for all its names."""


@dataclass
class Account:
    """What was left out of a folder, by reason."""

    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Reason → names. If a folder was left out, its contents are not counted."""
    again: list[tuple[Path, Path]] = field(default_factory=list)
    """(name, second name) of files and folders that have two names because of links."""

    def add(self, reason: str, name: str) -> None:
        """Count a name that is left out.

        reason: why.
        name: of the file or folder.
        """
        self.left_out.setdefault(reason, []).append(name)

    def tell(self, source: str, root: Path) -> None:
        """Log in one line what was left out, with the counts, if anything was.

        source: name of the data source.
        root: the folder.
        """
        if self.left_out:
            reasons = [f"{len(names)} {reason} ({_some(names)})" for reason, names in self.left_out.items()]
            logger.warning("%s: %s: left out: %s", source, root, ", ".join(reasons))


def entries_of(root: Path, account: Account | None = None) -> list[os.DirEntry[str]]:
    """The entries of a folder, by name, without hidden ones.

    account: takes the hidden ones.

    Raises `DataError` if the folder cannot be listed.
    """
    try:
        with os.scandir(root) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(Problem(f"cannot be listed: {error.strerror}").at(root)) from None
    kept = []
    for entry in entries:
        if not (entry.name.startswith(".") or entry.name.lower() in _CLUTTER):
            kept.append(entry)
        elif account is not None:
            account.add("hidden", entry.name)
    return kept


def folders(root: Path) -> list[Path]:
    """The folders in `root`, by name, without hidden ones; links to folders count."""
    entries = entries_of(root) if root.is_dir() else []
    return [Path(entry.path) for entry in entries if (status := _status(entry)) and stat.S_ISDIR(status.st_mode)]


def walk(
    root: Path, endings: Collection[str], account: Account | None = None, depth: int = 0
) -> Iterator[tuple[Path, FileIdentity]]:
    """Every file below `root` with one of these extensions, once, in no particular order.

    endings: extensions, in lower case; the files' may be in any case.
    account: takes what is left out.
    depth: files with fewer folders than this between them and `root` are left out.

    Hidden files and folders are left out. Links are followed after everything else, so that a file keeps the name that
    it has without them. A folder is entered once, so links may lead anywhere.
    """
    account = Account() if account is None else account
    top = root.resolve()
    # Following a link to a folder above would read its other folders, too.
    seen: dict[FileIdentity, Path] = {_identity(above.stat()): root for above in [*top.parents, top]}
    queue: list[Path] = [root]
    links: list[tuple[str, os.DirEntry[str]]] = []

    def first(path: Path, identity: FileIdentity) -> bool:
        before = seen.setdefault(identity, path)
        if before is not path:
            account.again.append((before, path))
        return before is path

    while queue or links:
        following = not queue
        entries = [heappop(links)[1]] if following else entries_of(queue.pop(), account)
        for entry in entries:
            here, status = Path(entry.path), _status(entry)
            if status is None:
                account.add("links that lead nowhere", entry.name)
            elif not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
                account.add("neither files nor folders", entry.name)
            elif stat.S_ISREG(status.st_mode) and here.suffix.lower() not in endings:
                account.add("of other kinds", entry.name)
            elif stat.S_ISREG(status.st_mode) and len(below(root, here)) <= depth:
                account.add("beside the folders", entry.name)  # a link may give it another path
            elif entry.is_symlink() and not following:
                heappush(links, (entry.path, entry))
            elif first(here, _identity(status)):
                if stat.S_ISDIR(status.st_mode):
                    queue.append(here)
                else:
                    yield here, _identity(status)


def first_file(paths: Iterable[str]) -> tuple[Path, FileIdentity] | None:
    """The first of these paths that is a file; None if none of them is.

    paths: ways to write the path of one file.
    """
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116  of hundreds of thousands of files
        except (OSError, ValueError):  # no such file, or no path
            continue
        if stat.S_ISREG(status.st_mode):
            return Path(path), _identity(status)
    return None


def below(root: Path, file: Path) -> tuple[str, ...]:
    """The parts of the path of a file that `walk` found, like `file.relative_to(root).parts`, but faster."""
    return file.parts[len(root.parts) :]


def fits(parts: tuple[str, ...], pattern: str) -> bool:
    """Whether a file's path matches a glob pattern with `**`; extensions match in any case.

    parts: of the path.
    """
    return _match([*parts[:-1], _plain(parts[-1])], _parts(pattern))


def refuse_second_names(root: Path, account: Account, depth: int) -> None:
    """Check that no link puts a file or folder of `root` into two places at once.

    account: of `walk`; second names within one place are counted in it.
    depth: so many first parts of a path are the place, e.g. the class.

    Raises `DataError` otherwise.
    """
    for kept, again in account.again:
        if root in kept.parents and kept not in again.parents:
            first, second = (path.relative_to(root) for path in (kept, again))
            if first.parts[:depth] != second.parts[:depth]:
                reason = f"{second} is another name of {first}: it can be in one place only"
                raise DataError(Problem(reason).at(root))
        account.add("second names", again.name)


def _identity(status: os.stat_result) -> FileIdentity:
    return status.st_dev, status.st_ino


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The status of a file, or of a link's target; None if the link leads nowhere, or in a circle."""
    try:
        return entry.stat()
    except OSError:
        return None


def _some(names: list[str]) -> str:
    return ", ".join(map(visible, names[:3])) + (", …" if len(names) > 3 else "")


def _plain(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem + dot + ending.lower()


def _parts(pattern: str) -> list[str]:
    *folders, name = pattern.split("/")
    parts = [*(part for part in folders if part not in ("", ".")), _plain(name)]
    return [part for part, before in zip(parts, ["", *parts], strict=False) if (part, before) != ("**", "**")]


def _match(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_match(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _match(parts[1:], pattern[1:])
