"""Several processes at once, in an empty folder: each shared file is made once, and whoever makes it may die."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy
from sqlalchemy import NullPool, event

from fedrobust import databases, locks
from fedrobust.databases import turn
from fedrobust.errors import TrackingError
from fedrobust.locks import WaitError, alone
from fedrobust.private import whole
from fedrobust.progress import progress_to
from fedrobust.tracking import Tracker, tables

pytestmark = pytest.mark.slow

OPENING = """
import sys
from pathlib import Path
from fedrobust.audit.signing import open_key, public_hex
from fedrobust.tracking import Tracker
from fedrobust.tuning.running import STORAGE
from fedrobust.tuning.study import open_sweep

name = sys.argv[1]
tracker = Tracker.open("fedrobust", {}, {}, name)
study = open_sweep(
    STORAGE, name, "digest", space=None, sampler=None, pruner=None, directions=["maximize"],
    seed=0, trials=1, batch=1, rounds=1,
)
assert tracker.close()
print(public_hex(open_key(Path("mlruns/keys/coordinator.pem"))), study.study.study_name)
"""
DYING = """
import os, signal, sys
from pathlib import Path
from fedrobust.locks import alone
from fedrobust.private import whole

file = Path(sys.argv[1])
with alone(file), whole(file) as partial:
    partial.write_bytes(b"half")
    print("in the block", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(code: str, argument: str, folder: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code, argument], cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


@pytest.fixture
def dying(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock of `file`, and dies at a line on its input without letting go of it."""
    with start(DYING, "file", tmp_path) as process:
        assert process.stdout is not None and process.stdout.readline() == "in the block\n"
        yield process
        process.kill()


def test_two_at_once_in_an_empty_folder_share_what_the_first_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "b"]
    processes = [start(OPENING, name, tmp_path) for name in names]
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    lines = [out.split() for out, _ in told]
    assert len({key for key, _ in lines}) == 1 and [name for _, name in lines] == names
    made = {str(path.relative_to(tmp_path / "mlruns")) for path in tmp_path.rglob("*") if path.suffix != ".lock"}
    keys = {"keys", "keys/coordinator.pem", "keys/coordinator.pub"}
    assert made == {".", "mlflow.db", "artifacts", "optuna.db"} | keys
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as database:
        assert database.execute("select name from experiments").fetchall() == [("Default",), ("fedrobust",)]
        assert sorted(database.execute("select name, status from runs")) == [(name, "FINISHED") for name in names]
        assert database.execute("select count(*) from experiment_tags where key like 'mlflow.shared%'").fetchone() == (
            1,
        )
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    with sqlite3.connect(tmp_path / "mlruns" / "optuna.db") as database:
        assert sorted(database.execute("select study_name from studies")) == [(name,) for name in names]
        assert database.execute("select count(*) from version_info").fetchone() == (1,)
    monkeypatch.chdir(tmp_path)
    assert Tracker.open("fedrobust", {}, {}).close()


def test_a_process_that_dies_while_it_makes_a_file_leaves_neither_half_of_it_nor_a_lock(
    tmp_path: Path, dying: subprocess.Popen[str]
) -> None:
    made = []

    def make() -> None:
        with alone(tmp_path / "file"), whole(tmp_path / "file") as partial:
            partial.write_bytes(b"whole")
            made.append(dying.poll())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join(0.2)
    assert not made and not (tmp_path / "file").exists()  # it waits for a process that lives
    assert dying.stdin is not None
    dying.stdin.write("\n")
    dying.stdin.close()
    thread.join(60)
    assert made and (tmp_path / "file").read_bytes() == b"whole"
    assert dying.wait(60) == -signal.SIGKILL


def test_who_is_waited_for_is_told_and_nobody_waits_for_ever(
    tmp_path: Path, dying: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "NOTICE", 0.0)
    monkeypatch.setattr(locks, "LONGEST", 0.2)
    with (
        pytest.raises(WaitError, match=f"process {dying.pid} on .*file"),
        alone(tmp_path / "file"),
    ):
        pass
    (message,) = (each.getMessage() for each in caplog.records)
    assert message.startswith(f"waiting for process {dying.pid} on ")
    monkeypatch.setattr(tables, "_make", None)
    (tmp_path / ".file.lock").rename(tmp_path / ".mlflow.db.lock")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrackingError, match=f"^waited .* for process {dying.pid} on "):
        Tracker.open("x", {}, {})


def test_whoever_makes_progress_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """For hours, say, while features are computed; but not for ever."""
    now, texts = [0.0], iter([*range(100), *[100] * 1_000])
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + 60))
    monkeypatch.setattr(locks, "time", clock)
    with pytest.raises(WaitError, match=r"waited 66\d\d s for process 1 \(100 of 200\)"):
        locks.wait_for(lambda: False, lambda: f"process 1 ({next(texts)} of 200)")
    assert now[0] > 100 * 60 and next(texts) == 100
    answers = iter([*[False] * 500, True])
    locks.wait_for(lambda: next(answers), lambda: f"process 1 ({now[0]} of 200)")


def test_how_far_the_work_is_stands_in_the_lock(tmp_path: Path) -> None:
    """And whoever waits says for whom."""
    told, work = [], threading.Event()

    def hear(text: str) -> None:
        told.append(text)
        work.set()

    def wait() -> None:
        with progress_to(hear), alone(tmp_path / "file"):
            pass

    with alone(tmp_path / "file") as tell:
        tell("a long text, 7 of 9")
        tell("8 of 9")
        assert (tmp_path / ".file.lock").read_text().endswith(" (8 of 9)")
        thread = threading.Thread(target=wait)
        thread.start()
        assert work.wait(60)
    thread.join(60)
    assert set(told) == {
        f"waiting for process {os.getpid()} on {socket.gethostname()}, which is making {tmp_path / 'file'}"
    }


def test_threads_of_a_process_take_turns_and_an_error_ends_ones_turn(tmp_path: Path) -> None:
    inside, most = [], []

    def work() -> None:
        with pytest.raises(ValueError, match="mine"), alone(tmp_path / "file"):
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.01)
            inside.pop()
            raise ValueError("mine")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 8


def test_where_a_file_system_knows_no_locks_a_file_is_still_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unknown)
    monkeypatch.setattr(os, "link", unknown)
    for text in ("first", "second"):
        with alone(tmp_path / "file"), whole(tmp_path / "file") as partial:
            partial.write_text(text)
        assert (tmp_path / "file").read_text() == "first"


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".file.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic"), alone(tmp_path / "file"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_a_server_is_asked_whose_turn_it_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the server: SQLite, taught the functions that are asked. The real ones were never run."""
    answers, closed = [0, 0, 1], []
    create = sqlalchemy.create_engine

    def stand_in(url: str, **options: object) -> sqlalchemy.Engine:
        assert url.startswith(kind) and options["poolclass"] is NullPool and options["isolation_level"] == "AUTOCOMMIT"
        assert options["connect_args"] == {"connect_timeout": databases.SILENCE}
        engine = create("sqlite://", poolclass=NullPool)

        @event.listens_for(engine, "connect")
        def teach(connection: sqlite3.Connection, _: object) -> None:
            connection.create_function("pg_try_advisory_lock", 1, lambda key: answers.pop(0))
            connection.create_function("database", 0, lambda: "mlflow")
            connection.create_function("concat", 2, lambda a, b: a + b)
            connection.create_function(
                "get_lock", 2, lambda name, seconds: answers.pop(0) * (name == "fedrobust mlflow")
            )

        event.listen(engine, "close", lambda *_: closed.append(1))
        return engine

    monkeypatch.setattr(sqlalchemy, "create_engine", stand_in)
    with pytest.raises(ValueError, match="mine"), turn(f"{kind}://anna:secret@host/mlflow"):
        assert not answers and not closed  # asked until it was this process's turn, and the connection is held
        raise ValueError("mine")
    assert closed == [1]  # and with it the server's lock ends


@pytest.mark.long
def test_three_runs_at_once_in_an_empty_folder(tmp_path: Path) -> None:
    from tiny import write_files

    write_files(tmp_path)
    command = [sys.executable, "-c", "from fedrobust.cli import main; main()", "run", "tiny.yaml"]
    processes = [
        subprocess.Popen([*command, f"seed={seed}"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for seed in (1, 2, 3)
    ]
    told = [process.communicate(timeout=280)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as database:
        assert database.execute("select status, count(*) from runs group by status").fetchall() == [("FINISHED", 3)]
    assert len(list((tmp_path / "mlruns" / "runs").iterdir())) == 3
