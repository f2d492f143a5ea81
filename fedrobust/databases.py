"""The databases that MLflow and Optuna write to: their addresses, locks, and messages for their errors."""

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
"""Seconds to wait for a database that another program has locked."""
SILENCE = 10
"""Seconds to wait for a database server that does not answer."""
LONGEST_PATH = 500
"""Approximate limit of SQLite for the length of a file's path, in bytes."""
TURNS = {
    "postgresql": "select pg_try_advisory_lock(7304180914)",
    "mysql": "select get_lock(concat('fedrobust ', database()), 0)",
}
"""For each kind of server, the query that asks for the right to create the tables. The server releases this lock when
the connection ends."""

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
"""Pairs of words in an error of a SQLite database and the message that explains this error."""


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite database; None for servers, for other databases, and for a database in memory.

    Raises `ValueError` if `url` is not the address of a database, or contains a `?` that would cut the path.
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
    """Return the address of a SQLite database; its path may have any characters. Raises `ValueError` if the path is not
    valid UTF-8."""
    from sqlalchemy.engine import URL

    plain = URL.create("sqlite", database=str(file))
    try:
        address = plain.render_as_string()
    except UnicodeEncodeError:
        raise ValueError(f"{os.fsencode(file)!r}: the path of a database must be UTF-8") from None
    if address == f"sqlite:///{file}":
        return address
    # Unless the driver is named, MLflow makes the folder as the address is written: `what%3F` beside `what?`.
    return plain.set(drivername="sqlite+pysqlite").render_as_string()


def safe_url(url: str) -> str:
    """Return `url`; the path of a SQLite database is written as in `sqlite_url`. Raises `ValueError` as
    `sqlite_file`."""
    file = sqlite_file(url)
    return url if file is None or "?" in url else sqlite_url(file)


def shown(url: str) -> str:
    """Return what messages call the database at `url`: the file's path, or the address without user name and
    password."""
    file = sqlite_file(url)
    return without_password(url) if file is None else str(file)


def without_password(text: str) -> str:
    """Return `text`, with user name and password removed from the addresses in it."""
    return re.sub(r"://[^/@\s]*@", "://", text)


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Yield a new connection to a database. It commits each statement, and fails soon if no server answers."""
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
    """Let only one process at a time into the block for the database at `url`: one makes the tables, the others wait.

    Raises the errors of `fedrobust.locks.alone` and of the database's driver.
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
    """Explain `error`, which came from the SQLite database in `file`, and say what to do; None for unknown errors."""
    words = str(error)
    if isinstance(error, OSError):
        words = "unable to open database file" if error.errno is not None else words
    told = next((told for known, told in CAUSES if known in words), None)
    return told and told.format(path=file, file=shlex.quote(str(file)), access=_access(file, error))


def _access(file: Path, error: BaseException) -> str:
    """Say why a file cannot be opened."""
    if len(os.fsencode(file.absolute())) > LONGEST_PATH:
        return "its path is longer than SQLite takes; start from a folder with a shorter one"
    if os.path.isdir(file):  # noqa: PTH112 - False, without an error, if the folder around it may not be entered
        return "it is a folder; move it away: the next run makes a database"
    if isinstance(error, OSError) and not isinstance(error, PermissionError):
        return str(error.strerror)
    return "you may not read or write it, or its folder; have its owner let you, or start from another folder"
