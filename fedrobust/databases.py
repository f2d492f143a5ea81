"""The databases that MLflow and Optuna write to: their addresses, who may make one, and what is wrong with one."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedrobust.locks import alone, wait_for
from fedrobust.private import private_folder

if TYPE_CHECKING:
    from sqlalchemy import Connection

BUSY = 20
"""Seconds of patience with a database that another program has locked."""
SILENCE = 10
"""Seconds of patience with a server of a database that does not answer."""
LONGEST_PATH = 500
"""Bytes of a file's path that SQLite takes, about."""
TURNS = {
    "postgresql": "select pg_try_advisory_lock(7304180914)",
    "mysql": "select get_lock(concat('fedrobust ', database()), 0)",
}
"""By kind of server: what says whether one may make the tables now. A server lets go of it when the connection ends."""

_AWAY = "move it away, with what lies beside it (mv {file}* SOMEWHERE): the next run makes a new one"
CAUSES = (
    ("file is not a database", "{path} is no SQLite database, or its beginning is damaged; " + _AWAY),
    ("malformed", "{path} is damaged: a part of it is missing or was overwritten; " + _AWAY),
    ("database is locked", "{path} is locked by another program that writes to it; try again when that has ended"),
    ("readonly database", "{path} or its folder may not be written to; chmod u+w, or start from another folder"),
    ("unable to open database file", "{path} cannot be opened: {access}"),
    ("disk is full", "the disk of {path} is full; make room, then try again"),
    ("disk I/O error", "the disk of {path} refuses to read or write: it may be full, or its network may be gone"),
    ("locking protocol", "the file system of {path} knows no locks, which SQLite needs; start from another folder"),
)
"""What is said for which words in an error that comes of a SQLite database."""


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database; None for servers, for other databases, and for one in memory.

    Raises `ValueError` for what is no address of one, and where a `?` in the path would cut it.
    """
    if not url.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    query = url.partition("?")[2]
    if query and not re.fullmatch(r"\w+=[^&]*(&\w+=[^&]*)*", query):
        raise ValueError(f"{url}: in the address of a database a ? in a path is written %3F, a % %25")
    try:
        database = make_url(url).database or ""
    except (ArgumentError, ValueError):
        raise ValueError(f"{url} is no address of a database, like sqlite:///mlruns/mlflow.db") from None
    in_memory = database in ("", ":memory:") or database.startswith("file:")
    return None if in_memory else Path(database)


def sqlite_url(file: Path) -> str:
    """The address of a SQLite database, whatever characters are in its path. Raises `ValueError` for one that is no
    text."""
    from sqlalchemy.engine import URL

    plain = URL.create("sqlite", database=str(file))
    try:
        address = plain.render_as_string()
    except UnicodeEncodeError:
        raise ValueError(f"{os.fsencode(file)!r}: the path of a database must be UTF-8") from None
    if address == f"sqlite:///{file}":
        return address
    # MLflow makes the folder of an address as it is written, `what%3F` beside `what?`, unless the driver is named.
    return plain.set(drivername="sqlite+pysqlite").render_as_string()


def safe_url(url: str) -> str:
    """`url`, with the path of a SQLite database written as `sqlite_url` does. Raises `ValueError` as `sqlite_file`."""
    file = sqlite_file(url)
    return url if file is None or "?" in url else sqlite_url(file)


def shown(url: str) -> str:
    """What a person calls the database at `url`: the file's path, or the address without user name and password."""
    file = sqlite_file(url)
    return without_password(url) if file is None else str(file)


def without_password(text: str) -> str:
    """`text` without the user name and password of an address."""
    return re.sub(r"://[^/@\s]*@", "://", text)


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """A connection of its own to a database, that commits each statement; it fails soon where nobody answers."""
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.engine import make_url

    patience = {"sqlite": {"timeout": BUSY}, "postgresql": {"connect_timeout": SILENCE}}
    patience["mysql"] = patience["postgresql"]
    arguments = patience.get(make_url(url).get_backend_name(), {})
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments)
    with engine.connect() as connection:
        yield connection


@contextmanager
def turn(url: str) -> Iterator[None]:
    """Only one process at a time is in the block for a database, so that one makes its tables while the others wait.

    Raises what `fedrobust.locks.alone` and the database's driver raise.
    """
    from sqlalchemy import text
    from sqlalchemy.engine import make_url

    if (file := sqlite_file(url)) is not None:
        private_folder(file.parent)
        with alone(file):
            yield
    elif (asked := TURNS.get(make_url(url).get_backend_name())) is not None:
        with connected(url) as connection:
            who = f"another process, which is making the tables of {shown(url)}"
            wait_for(lambda: bool(connection.scalar(text(asked))), lambda: who)
            yield
    else:
        yield


def cause(error: BaseException, file: Path) -> str | None:
    """What is wrong with the SQLite database in `file`, by an error that came of it, and what to do, if it is known."""
    words = str(error)
    if isinstance(error, OSError):
        words = "unable to open database file" if error.errno is not None else words
    told = next((told for known, told in CAUSES if known in words), None)
    return told and told.format(path=file, file=shlex.quote(str(file)), access=_access(file, error))


def _access(file: Path, error: BaseException) -> str:
    """Why a file cannot be opened."""
    if len(os.fsencode(file.absolute())) > LONGEST_PATH:
        return "its path is longer than SQLite takes; start from a folder with a shorter one"
    if os.path.isdir(file):  # noqa: PTH112 - says no, and raises nothing, where its folder may not be entered
        return "it is a folder; move it away: the next run makes a database"
    if isinstance(error, OSError) and not isinstance(error, PermissionError):
        return str(error.strerror)
    return "you may not read or write it, or its folder; have its owner let you, or start from another folder"
