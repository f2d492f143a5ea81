"""A study whose database is locked, read by others, or somebody else's."""

from __future__ import annotations

import csv
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from played import Played, Watching, accuracy, sweep

import fedrobust.tuning.storage as storage_room
from fedrobust import cli
from fedrobust.errors import ExperimentError, StorageError
from fedrobust.experiment import Experiment
from fedrobust.tuning.running import TrialDone

DATABASE = Path("mlruns/optuna.db")
LOCKED = "Optuna storage: mlruns/optuna.db is locked by another program that writes to it"


class Lock:
    """Another program writes, and nobody may read meanwhile."""

    def __enter__(self) -> None:
        self._other = sqlite3.connect(DATABASE, isolation_level=None, check_same_thread=False)
        self._other.execute("BEGIN EXCLUSIVE")

    def __exit__(self, *_: object) -> None:
        self._other.close()


class Locking(Watching):
    """Watches a sweep; when so many trials are told of, another program locks the database, for seconds or for good."""

    def __init__(self, after: int, seconds: float | None = None) -> None:
        super().__init__()
        self.lock, self._after, self._seconds = Lock(), after, seconds

    def done(self, item: TrialDone) -> None:
        super().done(item)
        if len(self.trials) == self._after:
            self.lock.__enter__()
            if self._seconds is not None:
                threading.Timer(self._seconds, self.lock.__exit__).start()


@pytest.mark.parametrize("pruner", ["none", "{name: median, startup: 1, warmup: 0}"])
def test_a_lock_that_stays_ends_a_sweep_with_a_line_and_costs_nothing(
    played: Played, monkeypatch: pytest.MonkeyPatch, pruner: str
) -> None:
    """When the next trials are asked for, or when a pruner looks at those before: no trial fails of it."""
    options = ("trials=6", "parallel=2", f"pruner={pruner}")
    straight = sweep(*options, out=Path("straight"), storage="sqlite:///straight.db").trials
    monkeypatch.setattr(storage_room, "PATIENCE", 0.05)
    watch = Locking(after=2)
    with pytest.raises(StorageError) as caught:
        sweep(*options, watch=watch)
    assert str(caught.value).startswith(LOCKED)
    assert str(caught.value).endswith("; the same command goes on where it stopped")
    assert len(str(caught.value).splitlines()) == 1
    watch.lock.__exit__()
    assert played.failures == {}
    assert sweep(*options).trials == straight


def test_a_lock_while_trials_run_costs_no_run(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """What finished is on disk before the database is told of it."""
    straight = sweep("trials=3", out=Path("straight"), storage="sqlite:///straight.db").trials
    monkeypatch.setattr(storage_room, "PATIENCE", 0.05)
    lock = Lock()

    def locking(experiment: Experiment, round: int) -> float:
        if str(experiment.tracking.run_name).startswith("trial 2 | seed 1 | played:") and round == 8:
            lock.__enter__()
        return accuracy(experiment, round)

    played.accuracy = locking
    with pytest.raises(StorageError, match=LOCKED):
        sweep("trials=3", teams=1)
    lock.__exit__()
    played.accuracy = accuracy
    begun = played.begun.copy()
    assert sweep("trials=3").trials == straight
    assert played.begun == begun


def test_a_lock_that_goes_is_waited_for(played: Played) -> None:
    watch = Locking(after=2, seconds=0.4)
    found = sweep("trials=4", "parallel=2", watch=watch)
    assert len(found.trials) == 4
    with DATABASE.parent.joinpath("sweeps/played/trials.csv").open() as table:
        assert [row["state"] for row in csv.DictReader(table)] == ["completed"] * 4


def test_others_may_read_it_all_the_time(played: Played) -> None:
    """As a dashboard does."""
    over, seen, wrong = threading.Event(), [0], list[Exception]()

    def reading() -> None:
        while not over.is_set():
            try:
                seen[0] = len(optuna.load_study(study_name="played", storage=f"sqlite:///{DATABASE}").trials)
            except Exception as error:
                wrong.append(error)

    sweep("trials=2", "parallel=2")
    reader = threading.Thread(target=reading)
    reader.start()
    try:
        found = sweep("trials=6", "parallel=2")
    finally:
        over.set()
        reader.join()
    assert len(found.trials) == 6
    assert wrong == []
    assert seen[0] >= 2


def test_a_database_that_is_locked_at_the_start_is_told_in_a_line(
    played: Played, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("trials=2")
    monkeypatch.setattr(storage_room, "PATIENCE", 0.05)
    monkeypatch.setattr("sys.argv", ["fedrobust", "sweep", "sweep.yaml", "trials=4"])
    with Lock(), pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {LOCKED}")


def test_a_study_of_another_program_is_left_alone(played: Played) -> None:
    url = f"sqlite:///{DATABASE}"
    DATABASE.parent.mkdir()
    for name, directions in (("trials", ["maximize"]), ("ways", ["minimize"]), ("more", ["maximize", "maximize"])):
        made = optuna.create_study(storage=url, study_name=name, directions=directions)
        if name == "trials":
            made.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
        with pytest.raises(ExperimentError, match=f"'{name}' in .*optuna.db .*another program"):
            sweep(f"name={name}")
        assert len(made.trials) == (name == "trials")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense", "no Optuna storage at 'nonsense'"),
        ("nosuchdb://x/y", "Can't load plugin"),
        ("http://localhost:5000", "Can't load plugin"),
        ("postgresql://user:secret@localhost/optuna", "No module named 'psycopg"),
        ("mysql://user:secret@localhost/optuna", "No module named 'MySQLdb'"),
        ("redis://localhost", "Can't load plugin"),
        ("sqlite:///base.yaml", "base.yaml is no SQLite database"),
    ],
)
def test_what_is_no_storage_is_told_in_a_line(played: Played, url: str, told: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        sweep(storage=url)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_newer_schema_is_told_in_a_line(played: Played) -> None:
    sweep("trials=1")
    with closing(sqlite3.connect(DATABASE)) as other:
        other.execute("update alembic_version set version_num = 'v9.0.0'")
        other.commit()
    with pytest.raises(ExperimentError, match="table schema") as caught:
        sweep("trials=1")
    assert len(str(caught.value).splitlines()) == 1


def test_a_server_that_goes_away_ends_the_sweep(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the driver of a database says it, in lines of its own."""
    from sqlalchemy.exc import OperationalError

    sweep("trials=2")
    cause = ConnectionError("server closed the connection unexpectedly\n\tThis probably means ...")
    raised = OperationalError("SELECT 1", {}, cause)
    raised.__cause__ = cause

    def gone(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(optuna.storages._CachedStorage, "get_all_trials", gone)
    with pytest.raises(StorageError, match="unexpectedly This") as caught:
        sweep("trials=4")
    assert len(str(caught.value).splitlines()) == 1
