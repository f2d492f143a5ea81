"""Databases that MLflow cannot use say what is wrong with them and what to do, in one line."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from tracked import journal, sync, write

from fedrobust import databases
from fedrobust.databases import cause, sqlite_url
from fedrobust.errors import TrackingError
from fedrobust.locks import WaitError
from fedrobust.tracking import Tracker, tables
from fedrobust.tracking.faults import fault
from fedrobust.tracking.tables import prepare


def sql(file: Path, *statements: str) -> None:
    """Change a database past MLflow."""
    connection = sqlite3.connect(file)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def half_made(file: Path) -> None:
    """What two processes left that made the tables at once."""
    sql(file, "delete from experiments", "update alembic_version set version_num = '451aebb31d03'")


def of_another_program(file: Path) -> None:
    import optuna

    file.unlink()
    optuna.storages.RDBStorage(sqlite_url(file))


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:40_000]), r"is damaged.*mv .*mlflow\.db'\* "),
    "cut within its first page": (lambda file: file.write_bytes(file.read_bytes()[:700]), r"is damaged.*mv "),
    "not a database": (lambda file: file.write_bytes(b"no database" * 999), r"is no SQLite database.*mv .*\.db'\* "),
    "half made": (half_made, r"is half made.*mv .*mlflow\.db' .*mlflow\.db\.old'"),
    "half made from the start": (
        lambda file: sql(file, "drop table alembic_version", "delete from experiments"),
        "is half made",
    ),
    "newer": (
        lambda file: sql(file, "update alembic_version set version_num = 'ffffffffffff'"),
        r"newer MLflow \(schema ffffffffffff\) than the one here, 3\..*pip install --upgrade mlflow",
    ),
    "another program's": (of_another_program, r"has tables of another program \(.*mv "),
    "a folder": (a_folder, "it is a folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_says_what_to_do(
    damage: str, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "it's mine" / "mlflow.db"
    file.parent.mkdir()
    shutil.copy(bare, file)
    change, told = DAMAGES[damage]
    change(file)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_url(file))
    monkeypatch.setattr(tables, "FRESH", -1.0)
    run = tmp_path / "0123"
    write(run, journal())
    before = None if file.is_dir() else file.read_bytes()
    for start in (lambda: Tracker.open("x", {}, {}), lambda: Tracker.resume("0123", []), lambda: sync(run)):
        with pytest.raises(TrackingError, match=told) as caught:
            start()
        message = str(caught.value)
        assert str(file) in message and "\n" not in message and "server" not in message
    assert before is None or file.read_bytes() == before


def test_a_database_that_is_locked_says_so(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copy(bare, file)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_url(file))
    monkeypatch.setattr(databases, "BUSY", 0.1)
    other = sqlite3.connect(file)
    other.execute("begin exclusive")
    with pytest.raises(TrackingError, match=r"locked.*try again") as caught:
        Tracker.open("x", {}, {})
    assert "server" not in str(caught.value)
    other.close()
    Tracker.open("x", {}, {}).close()


def test_what_a_disk_refuses_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    sql(file, "create table a (b)")
    for pragma, told in (("max_page_count = 2", "the disk of .* is full"), ("query_only = 1", "may not be written to")):
        connection = sqlite3.connect(file)
        connection.execute(f"pragma {pragma}")
        with pytest.raises(sqlite3.Error) as caught:
            connection.execute("insert into a values (zeroblob(100000))")
        connection.close()
        message = cause(caught.value, file)
        assert message is not None and str(file) in message and re.search(told, message)
    for error, told in (
        (sqlite3.OperationalError("disk I/O error"), "refuses to read or write"),
        (sqlite3.OperationalError("unable to open database file"), "you may not read or write it"),
        (PermissionError(13, "Permission denied"), "you may not read or write it"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ):
        assert told in str(cause(error, file))
    assert cause(sqlite3.OperationalError("unable to open"), file) is None
    assert "longer than SQLite takes" in str(
        cause(sqlite3.OperationalError("unable to open database file"), tmp_path / ("n" * 250) / ("n" * 250) / "a.db")
    )


def test_a_folder_with_too_long_a_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("n" * 250) / ("n" * 250)
    folder.mkdir(parents=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(folder)
    with pytest.raises(TrackingError, match="SQLite"):
        Tracker.open("x", {}, {})


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(folder)
    with pytest.raises(TrackingError, match=r"must be UTF-8"):
        Tracker.open("x", {}, {})


def test_a_making_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mlflow.db"

    def half(url: str, place: Path | None) -> None:
        half_of_it = databases.sqlite_file(url)
        assert half_of_it is not None
        half_of_it.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(tables, "_make", half)
        prepare(sqlite_url(file))
    assert {path.name for path in tmp_path.iterdir()} == {".mlflow.db.lock"}


def test_what_is_left_of_a_database_that_is_gone_is_not_taken_for_the_new_ones(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    for name in ("mlflow.db-journal", ".mlflow.db.0123456789abcdef", ".mlflow.db.0123456789abcdef-journal", "mine"):
        (tmp_path / name).write_bytes(b"of another one")
    monkeypatch.setattr(tables, "_make", lambda url, place: shutil.copy(bare, databases.sqlite_file(url) or ""))
    prepare(sqlite_url(file))
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", ".mlflow.db.lock", "mine"}
    assert file.read_bytes() == bare.read_bytes()


def test_a_database_of_an_older_mlflow_becomes_one_of_this_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import InitialBase, _get_alembic_config, create_sqlalchemy_engine

    file = tmp_path / "mlflow.db"
    config = _get_alembic_config(sqlite_url(file))
    engine = create_sqlalchemy_engine(sqlite_url(file))
    InitialBase.metadata.create_all(engine)
    script = ScriptDirectory.from_config(config)
    head = script.get_current_head()
    older = script.get_revision(head).down_revision
    command.upgrade(config, older)
    engine.dispose()
    sql(
        file,
        "insert into experiments (experiment_id, name, lifecycle_stage, workspace) "
        "values (0, 'Default', 'active', 'default')",
    )
    before = list(sqlite3.connect(file).iterdump())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_url(file))
    for _ in range(2):
        assert Tracker.open("fedrobust", {}, {}).close()
    assert list(sqlite3.connect(tmp_path / "mlflow.db.before-1").iterdump()) == before
    assert not (tmp_path / "mlflow.db.before-2").exists()
    assert [each.levelname for each in caplog.records if "mlflow.db.before-1" in each.getMessage()] == ["WARNING"]
    assert sqlite3.connect(file).execute("select version_num from alembic_version").fetchall() == [(head,)]


@pytest.mark.parametrize("begun", [half_made, lambda file: file.write_bytes(b"")])
def test_a_database_that_another_program_is_making_just_now_is_waited_for(
    begun: Callable[[Path], object], bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copy(bare, file)
    begun(file)
    refuse = tables._refuse_half

    def made_meanwhile(half: Path) -> None:
        refuse(half)
        shutil.copy(bare, half)

    monkeypatch.setattr(tables, "_refuse_half", made_meanwhile)
    monkeypatch.setattr(tables, "_make", lambda url, place: shutil.copy(bare, file))
    prepare(sqlite_url(file))
    assert file.read_bytes() == bare.read_bytes()


def test_a_database_that_was_removed_under_a_process_is_made_again(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_url(file))
    monkeypatch.setattr(tables, "_make", lambda url, place: shutil.copy(bare, databases.sqlite_file(url) or ""))
    for _ in range(2):
        assert Tracker.open("fedrobust", {}, {}).close()
        assert sqlite3.connect(file).execute("select count(*) from runs").fetchall() == [(1,)]
        file.unlink()


SERVERS = [
    (ModuleNotFoundError("No module named 'psycopg'"), "postgresql://a:b@c/d", "pip install psycopg"),
    (Exception("(psycopg.OperationalError) connection refused"), "postgresql://a:b@c/d", "start the server"),
    (
        Exception("(psycopg.OperationalError) database is locked"),
        "postgresql://a:b@c/d",
        "cannot be used: .*is locked$",
    ),
    (Exception("API request failed with error code 401 != 200"), "http://a:b@c", "set MLFLOW_TRACKING_USERNAME"),
    (Exception("API request failed with error code 404 != 200"), "http://a:b@c", "no MLflow server"),
    (Exception("Max retries exceeded with url"), "http://a:b@c", "start the server"),
    (Exception("a riddle"), "http://a:b@c", "cannot be used: a riddle$"),
    (WaitError(110, "waited 600 s for process 7"), "sqlite:///a.db", "^waited 600 s for process 7$"),
]


@pytest.mark.parametrize(("error", "uri", "told"), SERVERS)
def test_a_server_that_cannot_be_used_says_why(error: Exception, uri: str, told: str) -> None:
    message = str(fault(error, uri, "0123"))
    assert re.search(told, message) and "b@" not in message and "\n" not in message
    assert ("start the server" in message) == (told == "start the server")
