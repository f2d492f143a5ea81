"""What `make cluster` has started for a folder, and its token.

It lies below its owner's home, and not in the folder: a folder that was copied from somebody else could name any
address, any file as its token, and any process to be ended.
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
"""Bytes that either may have."""


class Process(BaseModel):
    """What a process is known by, as a number alone comes back."""

    model_config = ConfigDict(frozen=True, strict=True)

    pid: Annotated[int, Field(gt=1)]
    began: Annotated[str, Field(min_length=1)]
    """When it was started, as `ps` says it."""


class State(BaseModel):
    """What was started, where, and how it is reached."""

    model_config = ConfigDict(strict=True)

    host: str = Field(default_factory=platform.node)
    """The machine whose processes these are; homes are shared."""
    address: Annotated[str, Field(pattern=r"^http://127\.0\.0\.1:[1-9][0-9]{0,4}$")]
    """Of the jobs server."""
    temporary: Annotated[str, Field(pattern=r"^/(.+/)?fedrobust-[a-z0-9_]+$")]
    """The folder of the nodes' sessions, which goes with them."""
    gcs: str
    mlflow: str
    workplace: str
    """Below which jobs keep their `mlruns/`."""
    store: str
    """MLflow's database; the URL may hold a password."""
    commands: dict[str, list[str]] = Field(default_factory=dict)
    nodes: dict[str, Process] = Field(default_factory=dict)


def home() -> Path:
    """The user's home. Raises `ClusterError` where there is none."""
    try:
        return Path.home()
    except RuntimeError:
        raise ClusterError("there is no home of yours, where tokens are kept: set HOME") from None


def kept(folder: Path) -> Path:
    """Where the state of a cluster that was started in `folder` is kept, below its owner's home; it may be missing."""
    digest = sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return home() / ".fedrobust" / "clusters" / digest


def read_state(folder: Path) -> State | None:
    """What was started in `folder`; None where nothing was.

    Raises `ClusterError` where that is damaged, or somebody else can have written it.
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
    """A file that only we can read and write, in a folder that only we can write to.

    Raises `FileNotFoundError`, or `ClusterError` where it is another kind of file.
    """
    folder = path.parent.lstat()
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.geteuid() or folder.st_mode & 0o022:
        raise ClusterError(Problem("is not a folder that is yours, and that only you can write to").at(path.parent))
    return small_text(path, private=True)


def small_text(path: Path, private: bool = False) -> str:
    """The text of a small file. `private`: it must be ours alone, and no link.

    Raises `FileNotFoundError`; `ClusterError` where it cannot be read, is no file or no text, or too big.
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
    """A file, opened to be read without waiting for anything. Raises `OSError`, also where it is a pipe or a folder.

    follow: whether it may be a link.
    below: the descriptor of the folder that the path begins at.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    handle = os.open(path, flags, dir_fd=below)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file")
    return os.fdopen(handle, "rb")


def runs(process: Process) -> bool:
    """Whether this very process still runs, as ours."""
    shown = subprocess.run(
        ["ps", "-o", "uid=,stat=,lstart=", "-p", str(process.pid)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
    )
    uid, status, began = [*shown.stdout.split(maxsplit=2), "", "", ""][:3]
    return uid == str(os.geteuid()) and not status.startswith("Z") and began.strip() == process.began
