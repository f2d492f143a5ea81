"""The tables of MLflow's database: made, or brought to this MLflow's schema, by one process at a time."""

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
"""What the addresses begin with that MLflow reaches without a server of its own."""
BESIDE = ("-journal", "-wal", "-shm")
"""What SQLite keeps beside a database while it writes. Left without it, that would be taken for the next one's."""

HALF = r"\.{}\.[0-9a-f]{{16}}(-journal)?"
"""Names of what `whole` writes to, and of what SQLite keeps beside that."""
FRESH = 10.0
"""Seconds after which what is half made is no longer being made."""

SchemaState = Literal["ready", "bare", "older", "half made"]


def prepare(url: str) -> None:
    """Have the tables of MLflow in the database at `url`. Several processes may ask at once: one makes them.

    A new SQLite database is made beside its place and put there whole, so that no process ever meets half of one,
    whenever the process that makes it dies. Before one of an older MLflow is changed, a copy of it is kept.

    Raises `TrackingError` for a database that is half made, of a newer MLflow, or another program's; and whatever a
    driver raises.
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
    """What lies beside the place of a database that is not there: halves of those whose making was cut off, too."""
    beside = [file.with_name(file.name + end) for end in BESIDE]
    return beside + [
        each for each in file.parent.iterdir() if re.fullmatch(HALF.format(re.escape(file.name)), each.name)
    ]


def _state(url: str) -> SchemaState:
    """What the database is: `ready`, `bare` of MLflow's tables, of an `older` MLflow, or a file that is `half made`.

    Raises `TrackingError` for one of a newer MLflow, and for a file of another program.
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
    if (file := sqlite_file(url)) is None:  # of servers: what was cut off there goes on where it stopped
        return "bare"
    if not known:
        raise TrackingError(f"{file} has tables of another program ({min(tables)}, …); {_away(file)}")
    return "half made"


def _refuse_half(file: Path) -> None:
    """Raise `TrackingError` unless somebody may be making the file just now: MLflow itself asks for no lock."""
    if time.time() - file.stat().st_mtime > FRESH:
        raise TrackingError(f"{file} is half made, by a process that died; {_away(file)}")


def _away(file: Path) -> str:
    """How to move a database away."""
    old = shlex.quote(f"{file}.old")
    return f"move it away: mv {shlex.quote(str(file))} {old}; the next run makes a new one"


@cache
def _schemas() -> ScriptDirectory:
    """All schemas of MLflow's tables up to this version's."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    return ScriptDirectory.from_config(_get_alembic_config(""))


def _make(url: str, file: Path | None) -> None:
    """Make MLflow's tables and its first experiment, or bring an older schema to this one. Artifacts of that
    experiment will lie beside `file`, where the database is going to be."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    artifacts = DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH if file is None else artifacts_beside(file).as_uri()
    engine = create_sqlalchemy_engine(url)
    _initialize_tables(engine)
    engine.dispose()
    SqlAlchemyStore(url, artifacts)._dispose_engine()


def artifacts_beside(file: Path) -> Path:
    """The folder of the artifacts of a database's experiments."""
    return file.absolute().parent / "artifacts"


def _forget(url: str) -> None:
    """Close what MLflow still holds open of a database that was there before in this process, and was removed."""
    from mlflow.store.model_registry import sqlalchemy_store as registry
    from mlflow.store.tracking import sqlalchemy_store as tracking

    for store in (registry.SqlAlchemyStore, tracking.SqlAlchemyStore):
        if url in store._engine_map:
            store._engine_map[url].dispose()


def _keep(file: Path) -> None:
    """Copy a database before its schema is changed."""
    number = 1
    while (copy := file.with_name(f"{file.name}.before-{number}")).exists():
        number += 1
    with whole(copy) as partial, closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(partial)) as target:
        source.backup(target)
    logger.warning("%s is of an older MLflow and becomes one of this version; as it was, it is kept in %s", file, copy)
