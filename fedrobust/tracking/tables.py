"""The tables of MLflow's database: created, or migrated to this MLflow's schema, by one process at a time."""

from __future__ import annotations

import logging
import re
import shlex
import sqlite3
import time
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedrobust.databases import connected, shown, sqlite_file, sqlite_url, turn
from fedrobust.errors import TrackingError
from fedrobust.locks import PAUSE
from fedrobust.private import whole

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

logger = logging.getLogger(__name__)

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Prefixes of addresses of databases that MLflow uses without a server of its own."""
BESIDE = ("-journal", "-wal", "-shm")
"""Files that SQLite keeps beside a database while it writes. Left behind, they would be used for the next database."""

HALF = r"\.{}\.[0-9a-f]{{16}}(-journal)?"
"""Names of the temporary files of `whole`, and of SQLite's files beside them."""
FRESH = 10.0
"""Seconds without a change after which an incomplete database counts as abandoned."""

SchemaState = Literal["ready", "bare", "older", "half made"]


def prepare(url: str) -> None:
    """Create the tables of MLflow in the database at `url`. Several processes may call this at once: one creates them.

    A new SQLite database is written under a temporary name and then renamed, so that no process finds an incomplete
    one, even if the process that writes it dies. Before a database of an older MLflow is migrated, a copy is kept.

    Raises `TrackingError` for a database that is incomplete, of a newer MLflow, or of another program; and any error of
    the driver.
    """
    file = sqlite_file(url)
    if (file is None or file.exists()) and _state(url) == "ready":
        return
    with turn(url):
        while file is not None and file.exists() and _state(url) == "half made":
            _refuse_half(file)
            time.sleep(PAUSE)
        if file is not None and not file.exists():
            for left in _left_of(file):
                left.unlink(missing_ok=True)
            with whole(file) as partial:
                _make(sqlite_url(partial), file)
            _forget(url)
        elif (state := _state(url)) != "ready":
            if file is not None and state == "older":
                _keep(file)
            _make(url, file)


def _left_of(file: Path) -> list[Path]:
    """Return leftover files beside a missing database, including incomplete databases of interrupted processes."""
    beside = [file.with_name(file.name + end) for end in BESIDE]
    return beside + [
        each for each in file.parent.iterdir() if re.fullmatch(HALF.format(re.escape(file.name)), each.name)
    ]


def _state(url: str) -> SchemaState:
    """Return the state of the database: `ready`, `bare` (no tables of MLflow), `older` (of an older MLflow), or `half
    made`.

    Raises `TrackingError` for a database of a newer MLflow, and for a file of another program.
    """
    import sqlalchemy
    from alembic.util import CommandError
    from mlflow import __version__

    with connected(url) as connection:
        tables = set(sqlalchemy.inspect(connection).get_table_names())

        def first(statement: str) -> Any:
            return connection.scalar(sqlalchemy.text(statement))

        version = first("select version_num from alembic_version") if "alembic_version" in tables else None
        begun = "experiments" in tables and first("select count(*) from experiments") > 0
    script = _schemas()
    if version == script.get_current_head():
        return "ready" if begun else "bare"
    if not tables - {"alembic_version"}:
        return "bare"
    try:
        known = version is None or script.get_revision(version) is not None
    except CommandError:
        known = False
    if "experiments" in tables and not known:
        raise TrackingError(
            f"{shown(url)} was made by a newer MLflow (schema {version}) than the one here, {__version__}: "
            "pip install --upgrade mlflow, or start from another folder"
        )
    if begun and version is not None:
        return "older"
    if (file := sqlite_file(url)) is None:  # on a server, interrupted creation continues where it stopped
        return "bare"
    if not known:
        raise TrackingError(f"{file} has tables of another program ({min(tables)}, …); {_away(file)}")
    return "half made"


def _refuse_half(file: Path) -> None:
    """Raise `TrackingError` unless another process may still be creating the file; MLflow itself takes no lock."""
    if time.time() - file.stat().st_mtime > FRESH:
        raise TrackingError(f"{file} is half made, by a process that died; {_away(file)}")


def _away(file: Path) -> str:
    """Say how to move a database away."""
    old = shlex.quote(f"{file}.old")
    return f"move it away: mv {shlex.quote(str(file))} {old}; the next run makes a new one"


@cache
def _schemas() -> ScriptDirectory:
    """Return all schemas of MLflow's tables up to that of this version."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    return ScriptDirectory.from_config(_get_alembic_config(""))


def _make(url: str, file: Path | None) -> None:
    """Create MLflow's tables and its first experiment, or migrate an older schema. Artifacts of that experiment will be
    stored beside `file`, the final path of the database.
    """
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event

    artifacts = DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH if file is None else artifacts_beside(file).as_uri()
    engine = create_sqlalchemy_engine(url)
    if file is not None and sqlite_file(url) != file:  # under a temporary name: it reaches the disk as a whole
        event.listen(engine, "connect", _unsynced)
    _initialize_tables(engine)
    engine.dispose()
    SqlAlchemyStore(url, artifacts)._dispose_engine()


def _unsynced(connection: sqlite3.Connection, record: object) -> None:
    """Do not wait for the disk: MLflow makes a new database by sixty migrations, and each would wait."""
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = MEMORY")


def artifacts_beside(file: Path) -> Path:
    """Return the folder of the artifacts of a database's experiments."""
    return file.absolute().parent / "artifacts"


def _forget(url: str) -> None:
    """Close MLflow's connections to an earlier database at this address that was removed during this process."""
    from mlflow.store.model_registry import sqlalchemy_store as registry
    from mlflow.store.tracking import sqlalchemy_store as tracking

    for store in (registry.SqlAlchemyStore, tracking.SqlAlchemyStore):
        if url in store._engine_map:
            store._engine_map[url].dispose()


def _keep(file: Path) -> None:
    """Copy a database before its schema is migrated."""
    number = 1
    while (copy := file.with_name(f"{file.name}.before-{number}")).exists():
        number += 1
    with whole(copy) as partial, closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(partial)) as target:
        source.backup(target)
    logger.warning("%s is of an older MLflow and becomes one of this version; as it was, it is kept in %s", file, copy)
