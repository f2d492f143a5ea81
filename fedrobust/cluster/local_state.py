"""The processes that `make cluster` has started for a folder, and their token.

This state is stored in the owner's home, and not in the folder, because a copied folder could name any address, any
file as its token, and any process to be ended.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedrobust.errors import ClusterError, Problem
from fedrobust.texts import visible

STATE, TOKEN = "state.json", "token"
MOST = 1_000_000
"""Maximum size of either file, in bytes."""


class Process(BaseModel):
    """Identifies a process; a process id alone may be used again."""

    model_config = ConfigDict(frozen=True, strict=True)

    pid: Annotated[int, Field(gt=1)]
    began: Annotated[str, Field(min_length=1)]
    """Its start time, as `ps` prints it."""


class State(BaseModel):
    """What was started, where, and how to reach it."""

    model_config = ConfigDict(strict=True)

    host: str = Field(default_factory=platform.node)
    """The machine on which the processes run, because several machines may share a home."""
    address: Annotated[str, Field(pattern=r"^http://127\.0\.0\.1:[1-9][0-9]{0,4}$")]
    """The address of the jobs server."""
    temporary: Annotated[str, Field(pattern=r"^/(.+/)?fedrobust-[a-z0-9_]+$")]
    """The folder of the nodes' sessions, which is deleted with them."""
    gcs: str
    mlflow: str
    workplace: str
    """The folder in which jobs keep their `mlruns/`."""
    store: str
    """MLflow's database; the URL may contain a password."""
    commands: dict[str, list[str]] = Field(default_factory=dict)
    nodes: dict[str, Process] = Field(default_factory=dict)


def home() -> Path:
    """Return the user's home. Raises `ClusterError` if there is none."""
    try:
        return Path.home()
    except RuntimeError:
        raise ClusterError("there is no home of yours, where tokens are kept: set HOME") from None


def kept(folder: Path) -> Path:
    """Return the path of the stored state of a cluster that was started in `folder`, below its owner's home; it may not
    exist."""
    digest = sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return home() / ".fedrobust" / "clusters" / digest


def read_state(folder: Path) -> State | None:
    """Return the state of what was started in `folder`; None if nothing was.

    Raises `ClusterError` if the file is damaged, or if other users may have written it.
    """
    path = kept(folder) / STATE
    try:
        text = owned_text(path)
    except FileNotFoundError:
        return None
    try:
        return State.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        why = visible(f"{where}: {first['msg']}" if where else first["msg"])
        hint = f"end the cluster's processes by hand, if it runs, and delete {path.parent}"
        raise ClusterError(Problem(f"is damaged ({why})", hint=hint).at(path)) from None


def owned_text(path: Path) -> str:
    """Return the text of a file that only its owner, this user, can read and write, in a folder that only this user can
    write to.

    Raises `FileNotFoundError`, or `ClusterError` if the file is of another kind.
    """
    folder = path.parent.lstat()
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.geteuid() or folder.st_mode & 0o022:
        raise ClusterError(Problem("is not a folder that is yours, and that only you can write to").at(path.parent))
    return small_text(path, private=True)


def small_text(path: Path, private: bool = False) -> str:
    """Return the text of a small file.

    private: require that only this user can access it, and that it is not a link.

    Raises `FileNotFoundError`; `ClusterError` if it cannot be read, is not a text file, or is too big.
    """
    try:
        with open_file(path, follow=not private) as file:
            status = os.fstat(file.fileno())
            if private and (status.st_uid != os.geteuid() or status.st_mode & 0o077):
                raise ClusterError(Problem("is not a file that only you can read and write").at(path))
            content = file.read(MOST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ClusterError(Problem(f"cannot be read: {error.strerror}").at(path)) from None
    if len(content) > MOST:
        raise ClusterError(Problem(f"has more than {MOST} bytes").at(path))
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ClusterError(Problem("is no text in UTF-8").at(path)) from None


def open_file(path: str | Path, follow: bool, below: int | None = None) -> BinaryIO:
    """Open a file for reading, without blocking. Raises `OSError`, also for a pipe or a folder.

    follow: whether it may be a link.
    below: the descriptor of the folder to which the path is relative.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    handle = os.open(path, flags, dir_fd=below)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file")
    return os.fdopen(handle, "rb")


def runs(process: Process) -> bool:
    """Return whether exactly this process still runs, and belongs to this user."""
    shown = subprocess.run(
        ["ps", "-o", "uid=,stat=,lstart=", "-p", str(process.pid)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
    )
    uid, status, began = [*shown.stdout.split(maxsplit=2), "", "", ""][:3]
    return uid == str(os.geteuid()) and not status.startswith("Z") and began.strip() == process.began
