"""Which files of a working folder are shipped, which are not, and why.

A job needs text: experiment files and classes. So the allowed kinds of text are listed here, and everything else stays,
at any depth: keys, data, databases, images and models have too many names to list. `.gitignore` files are applied by
git itself, even if the folder is not a repository.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedrobust.cluster.local_state import home, open_file
from fedrobust.errors import ClusterError, Origin, Problem
from fedrobust.texts import visible

MOST = 100_000_000
"""Maximum number of bytes that are shipped."""
_CODE = {".py", ".pyi", ".pyx", ".pxd", ".typed", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".sh"}
KINDS = _CODE | {".yaml", ".yml", ".json", ".toml", ".cfg", ".ini", ".txt", ".md", ".rst"}
"""The suffixes of files that are shipped."""
FOLDERS = {"mlruns", "mlartifacts", "wandb", "lightning_logs", "__pycache__", "node_modules", "site-packages", "venv"}
"""Folders that stay, at any depth: results, caches and environments."""
UNLESS_CODE = {"data", "dataset", "datasets", "build", "dist", "keys", "secrets", "credentials"}
"""Folders that stay, at any depth, unless they are Python packages."""

HIDDEN, RESULTS, BUILT, SECRET = "hidden files", "results or caches", "data or builds", "keys or credentials"
OTHER, LINK, SPECIAL = "files of other kinds", "links out of the folder or to what stays", "special files"
ODD, IGNORED = "names that are not plain text", "what git ignores"

_WORD = r"(credentials?|secrets?|passwords?|passwd|htpasswd|(auth|access|api|bearer)?[-_]?tokens?|api[-_]?keys?)"
_SECRET = re.compile(
    rf"(.*[-_. ])?{_WORD}([-_. ].*)?|id_(rsa|dsa|ecdsa|ed25519).*|.*service[-_]?account.*|client[-_]?secret.*"
    r"|.*(private|host|ssh)[-_]?key.*|_?netrc|pgpass.*|kubeconfig.*|kaggle\.json|application_default.*|terraform\.tf.*"
    r"|.*\.(pem|key|p12|pfx|p8|pk8|pkcs12|jks|jceks|keystore|ppk|kdbx?|der|crt|cer|asc|gpg|pgp|age|ovpn|keytab|env)"
    r"(\.(bak|old|orig|save|txt|\d+)|~)?",
    re.IGNORECASE,
)
"""Names of keys and credentials; code may have such names."""
_KEY = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[ \t]*(?:\r?\n|(?:\\r)?\\n[A-Za-z0-9+/]{16})"
    rb"|PuTTY-User-Key-File-\d: \w|AGE-SECRET-KEY-1[0-9A-Z]{50}"
)
"""A private key: the first line of a PEM file, also inside JSON and code; the formats of PuTTY and age."""
_REPOSITORY = "160000"
"""The mode with which git's index marks a repository inside another one."""
_GIT = ("git", "-c", "core.fsmonitor=false")
"""Otherwise a folder's own settings may name a program that git would run."""
_ELSEWHERE = {f"GIT_{name}" for name in ("DIR", "WORK_TREE", "INDEX_FILE", "COMMON_DIR", "OBJECT_DIRECTORY", "PREFIX")}
"""Variables that would make git list a different repository, e.g. in a hook."""
PATIENCE = 120.0
"""Maximum number of seconds for git."""


class _NoRepositoryError(ClusterError):
    """Git's error for a folder that is not in a repository."""


@dataclass(frozen=True)
class Selection:
    """The files of a folder that are shipped, and those that are not."""

    files: Mapping[str, bytes]
    """Path below the folder → content, sorted."""
    left: Mapping[str, Sequence[str]]
    """Reason → the files and folders that stay."""

    def why_not(self, name: str) -> str:
        """Return why the file `name` is not shipped; an empty text if it is."""
        if name in self.files:
            return ""
        _, by_name = sort_out([name])
        for left in (self.left, by_name):
            for reason, names in left.items():
                if any(name == each or name.startswith(each.rstrip("/") + "/") for each in names):
                    return reason
        return IGNORED

    def summary(self) -> list[str]:
        """Return two lines: how much is shipped, and how much stays, and why."""
        sizes = {name: len(content) for name, content in self.files.items()}
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        shown = ", ".join(f"{visible(name)} ({size(sizes[name])})" for name in largest)
        lines = [f"sends {counted(len(sizes), 'file')}, {size(sum(sizes.values()))}; the largest: {shown}"]
        stays = [_told(reason, names) for reason, names in self.left.items() if names]
        return lines + ([f"leaves here: {'; '.join(stays)}"] if stays else [])

    def listing(self) -> list[str]:
        """Return a line for each file that is shipped, and one for each reason with everything that stays."""
        lines = [f"{size(len(content)):>9}  {visible(name)}" for name, content in self.files.items()]
        for reason, names in self.left.items():
            lines += [f"{'stays':>9}  {visible(name)} ({reason})" for name in names]
        return lines


def select(folder: Path, most: int = MOST) -> Selection:
    """Select and read the files of `folder` that are shipped.

    folder: an absolute path without links.
    most: maximum number of bytes.

    Raises `ClusterError` if the folder is a home or contains one, if git cannot list it, if it is too big, or if a file
    that would be shipped contains a private key.
    """
    own = home().resolve()
    if folder in (own, *own.parents):
        raise ClusterError(Problem("holds your home: go to a folder of its own, which is what is shipped").at(folder))
    names, ignored = _listed(folder)
    kept, left = sort_out(names)
    sources = dict(_sources(folder, kept, left))
    left[IGNORED] = ignored
    _refuse_big(folder, {name: status.st_size for name, (_, status) in sources.items()}, most)
    files = {name: _read(folder, source, most) for name, (source, _) in sources.items()}
    for name, content in files.items():
        if line := key_in(content):
            reason = f"holds a private key: take it out of {folder}, or have git ignore it"
            raise ClusterError(Problem(reason).at(Origin(Path(name), line)))
    return Selection(files, left)


def sort_out(names: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split paths, by their names alone, into those that are shipped and those that stay: reason → paths."""
    every = sorted(set(names))
    paths = {name: PurePosixPath(name) for name in every}
    packages = {path.parent for path in paths.values() if path.name == "__init__.py"}
    environments = {path.parent for path in paths.values() if path.name == "pyvenv.cfg"}
    kept: list[str] = []
    left: dict[str, list[str]] = {reason: [] for reason in (SECRET, HIDDEN, RESULTS, BUILT, OTHER, LINK, SPECIAL, ODD)}
    for name, path in paths.items():
        reason = _reason(name, path, packages, environments)
        (left[reason] if reason else kept).append(name)
    return kept, left


def _reason(name: str, path: PurePosixPath, packages: set[PurePosixPath], environments: set[PurePosixPath]) -> str:
    folders = path.parents[:-1]
    named = {folder: folder.name.lower() for folder in folders}
    if any(part.startswith(".") for part in path.parts):
        return HIDDEN
    if any(word in FOLDERS or word.endswith(".egg-info") for word in named.values()) or environments & {*folders}:
        return RESULTS
    if any(word in UNLESS_CODE and folder not in packages for folder, word in named.items()):
        return BUILT
    if path.suffix.lower() not in _CODE and _SECRET.fullmatch(path.name):
        return SECRET
    if visible(name) != name:
        return ODD
    return "" if path.suffix.lower() in KINDS else OTHER


def key_in(content: bytes) -> int:
    """Return the line, counted from 1, where a private key begins; 0 if there is none. Text may be UTF-8 or UTF-16."""
    for text in (content, content.replace(b"\0", b"")) if b"\0" in content else (content,):
        if found := _KEY.search(text):
            return text.count(b"\n", 0, found.start()) + 1
    return 0


def size(count: int) -> str:
    """Return a number of bytes as a readable text."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count} B"


def counted(count: int, what: str) -> str:
    """Return `1 file`, `2 files`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _told(reason: str, names: Sequence[str]) -> str:
    shown = f"{reason} {len(names)}"
    if reason == OTHER:
        kinds = Counter(PurePosixPath(name).suffix.lower() or "without one" for name in names).most_common(5)
        return f"{shown} ({', '.join(f'{visible(kind)} {count}' for kind, count in kinds)})"
    if reason in (SECRET, LINK):
        return f"{shown} ({', '.join(visible(name) for name in names[:5])}{', ...' if len(names) > 5 else ''})"
    return shown


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Return every file below the folder that git does not ignore, and what it ignores; ignored folders end with
    `/`."""
    try:
        try:
            return _git_lists(folder)
        except _NoRepositoryError:
            with tempfile.TemporaryDirectory() as empty:
                _git(folder, "init", "--quiet", "--template=", empty)
                return _git_lists(folder, f"--git-dir={empty}/.git", f"--work-tree={folder}")
    except FileNotFoundError:
        names = list(_walk(folder))
        if any((each / ".git").exists() for each in (folder, *folder.parents)) or any(
            PurePosixPath(name).name == ".gitignore" for name in names
        ):
            reason = "there is a .gitignore or a repository, and no git: install it"
            raise ClusterError(Problem(reason).at(folder)) from None
        return names, []


def _git_lists(folder: Path, *where: str) -> tuple[list[str], list[str]]:
    staged = [entry.split("\t", 1) for entry in _git(folder, *where, "ls-files", "-z", "--stage")]
    others = _git(folder, *where, "ls-files", "-z", "--others", "--exclude-standard")
    names = [name for mode, name in staged if not mode.startswith(_REPOSITORY)] + others
    ignored = _git(folder, *where, "ls-files", "-z", "--others", "--exclude-standard", "--ignored", "--directory")
    repositories = [name for mode, name in staged if mode.startswith(_REPOSITORY)]
    for name in repositories + [each.rstrip("/") for each in others if each.endswith("/")]:
        inner = folder / name
        if (inner / ".git").exists() and not inner.is_symlink():  # its own git lists it
            beneath, too = _git_lists(inner)
            names += [f"{name}/{each}" for each in beneath]
            ignored += [f"{name}/{each}" for each in too]
    return [name for name in names if not name.endswith("/")], ignored


def _git(folder: Path, *words: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE} | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            [*_GIT, "-C", str(folder), *words],
            capture_output=True,
            check=False,
            env=kept,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"git has not listed {folder} within {PATIENCE:g} s") from None
    if done.returncode:
        told = os.fsdecode(done.stderr).strip().splitlines()
        kind = _NoRepositoryError if any("not a git repository" in line for line in told) else ClusterError
        raise kind(Problem(f"git cannot list it: {told[0] if told else done.returncode}").at(folder))
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _walk(folder: Path) -> Iterator[str]:
    """Yield every file below a folder, without entering folders that always stay."""
    for root, folders, names in os.walk(folder):
        below = Path(root).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in FOLDERS]
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        yield from ((below / name).as_posix() for name in (*names, *links))


def _sources(
    folder: Path, kept: Sequence[str], left: dict[str, list[str]]
) -> Iterator[tuple[str, tuple[str, os.stat_result]]]:
    """Yield for each file its name, the name of the file to read (the target, for a link inside the folder), and its
    size.

    Everything that is neither a file nor a link to a shipped file is added to `left`.
    """
    known = set(kept)
    linked = {path: os.path.realpath(path) != str(path) for path in {(folder / name).parent for name in kept}}
    for name in kept:
        try:
            status, source = (folder / name).lstat(), name
            if linked[(folder / name).parent]:  # git lists files of a folder that is a link now
                left[LINK].append(name)
                continue
            if stat.S_ISLNK(status.st_mode):
                target = Path(os.path.realpath(folder / name))
                source = target.relative_to(folder).as_posix() if target.is_relative_to(folder) else ""
                if source not in known or target.is_symlink():  # a link to itself has no target
                    left[LINK].append(name)
                    continue
                status = target.lstat()
        except (FileNotFoundError, NotADirectoryError):  # deleted, but still in git's index
            continue
        except OSError as error:
            raise ClusterError(Problem(f"cannot be read: {error.strerror}").at(Path(name))) from None
        if stat.S_ISREG(status.st_mode):
            yield name, (source, status)
        elif not stat.S_ISDIR(status.st_mode):
            left[SPECIAL].append(name)


def _refuse_big(folder: Path, sizes: Mapping[str, int], most: int) -> None:
    if (total := sum(sizes.values())) > most:
        biggest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        shown = ", ".join(f"{visible(name)} ({size(sizes[name])})" for name in biggest)
        reason = f"{size(total)} to ship, more than {size(most)}; the biggest files: {shown}"
        hint = "move them to data/ or mlruns/, which stay here, or have git ignore them"
        raise ClusterError(Problem(reason, hint=hint).at(folder))


def _read(folder: Path, name: str, most: int) -> bytes:
    """Return the content of a file; it is opened without following any link on the path, and without blocking."""
    *folders, last = PurePosixPath(name).parts
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            above, here = here, os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(above)
        with open_file(last, follow=False, below=here) as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ClusterError(Problem(f"cannot be read: {error.strerror}").at(Path(name))) from None
    finally:
        os.close(here)
    if len(content) > most:
        raise ClusterError(Problem("grows while it is read").at(Path(name)))
    return content
