"""What was deleted in MLflow is not gone on about: the error says how to restore it, in a command that works."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tracked import journal, sync, write

from fedrobust import tracking
from fedrobust.errors import TrackingError, UnknownRunError
from fedrobust.tracking import Tracker


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what a message says, in this process: a program of its own takes seconds to start."""
    from click.testing import CliRunner
    from mlflow.cli import cli

    with monkeypatch.context() as patch:
        words = shlex.split(command)
        while "=" in words[0]:
            name, value = words.pop(0).split("=", 1)
            # MLflow keeps connections by their addresses: by a relative one an earlier test's folder would be meant.
            patch.setenv(name, value.replace("sqlite:///mlruns", f"sqlite:///{Path.cwd()}/mlruns"))
        assert words.pop(0) == "mlflow"
        done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output


def command_in(error: TrackingError) -> str:
    message = str(error)
    assert "server" not in message and "\n" not in message
    return message.rpartition("restore it: ")[2]


@pytest.fixture
def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking.tracking_uri())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_run_that_was_deleted_says_how_to_restore_it(
    what: str, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = journal()
    tracker = Tracker.open(f"a deleted {what}", {}, {})
    run_id, folder = tracker.run_id, tmp_path / tracker.run_id
    for record in records:
        tracker.log(record)
    assert tracker.close()
    write(folder, records)
    assert sync(folder) == 0
    uses: list[Callable[[], object]] = [
        lambda: sync(folder),
        lambda: Tracker.resume(run_id, records),
        lambda: tracking.end_children(run_id),
    ]
    for use in uses:
        if what == "run":
            client.delete_run(run_id)
        else:
            client.delete_experiment(client.get_run(run_id).info.experiment_id)
        with pytest.raises(TrackingError, match=f"{run_id} .*deleted .* mlflow {what}s") as told:
            use()
        run_command(command_in(told.value), monkeypatch)
    assert sync(folder) == 0
    assert Tracker.resume(run_id, records).close()
    assert tracking.end_children(run_id) == 0


def test_the_command_names_the_store_where_nothing_else_does(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(bare, "mlruns/mlflow.db")
    tracker = Tracker.open("x", {}, {})
    assert tracker.close()
    client = MlflowClient(tracking.tracking_uri())
    client.delete_run(tracker.run_id)
    with pytest.raises(TrackingError) as told:
        Tracker.resume(tracker.run_id, [])
    assert command_in(told.value).startswith("MLFLOW_TRACKING_URI=sqlite:///mlruns/mlflow.db mlflow runs restore ")
    run_command(command_in(told.value), monkeypatch)
    assert Tracker.resume(tracker.run_id, []).close()
    client.delete_experiment(client.get_experiment_by_name("x").experiment_id)
    with pytest.raises(TrackingError, match=r"'x' .*deleted") as told:
        Tracker.open("x", {}, {})
    run_command(command_in(told.value), monkeypatch)
    assert Tracker.open("x", {}, {}).close()


def test_a_run_that_is_deleted_while_it_goes_on_says_so(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    records = journal()
    tracker = Tracker.open("deleted meanwhile", {}, {})
    client.delete_run(tracker.run_id)
    for record in records:
        tracker.log(record)
    assert not tracker.close()
    (message,) = (each.getMessage() for each in caplog.records if each.name == "fedrobust.tracking.tracker")
    assert message.endswith(f"; after that: fedrobust sync {tracker.run_id}")
    told, _, command = message.removesuffix(f"; after that: fedrobust sync {tracker.run_id}").rpartition("restore it: ")
    assert told.startswith(f"the run goes on without MLflow: run {tracker.run_id} has been deleted in ")
    run_command(command, monkeypatch)
    write(tmp_path / tracker.run_id, records)
    assert sync(tmp_path / tracker.run_id) == len(records)


def test_what_was_deleted_for_good_is_not_restored(
    client: Any, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker.open("gone for good", {}, {})
    assert tracker.close()
    client.delete_run(tracker.run_id)
    run_command(f"mlflow gc --backend-store-uri sqlite:///{database} --run-ids {tracker.run_id}", monkeypatch)
    write(tmp_path / tracker.run_id, journal())
    uses: list[Callable[[], object]] = [
        lambda: sync(tmp_path / tracker.run_id),
        lambda: Tracker.resume(tracker.run_id, []),
        lambda: tracking.end_children(tracker.run_id),
    ]
    for use in uses:
        with pytest.raises(UnknownRunError, match=f"{tracker.run_id} .* {database}.*mlflow gc") as told:
            use()
        assert "server" not in str(told.value) and "restore" not in str(told.value)


@pytest.mark.parametrize(
    ("kept", "told"), [(b"0" * 32 + b"\n", "0{32} "), (b"\xff\xfe", "is damaged"), (b"\0" * 33, "is damaged")]
)
def test_a_folder_whose_parent_run_is_gone_for_good_can_have_another(kept: bytes, told: str, tmp_path: Path) -> None:
    from fedrobust.studies.study import PARENT, parent_run

    (tmp_path / PARENT).write_bytes(kept)
    with (
        pytest.raises(UnknownRunError, match=rf"{told}.* rm {tmp_path}/{PARENT}$"),
        parent_run(tmp_path, "x", {}, {}, "sweep", []),
    ):
        pass
    (tmp_path / PARENT).unlink()
    with parent_run(tmp_path, "x", {}, {}, "sweep", []) as tracker:
        assert (tmp_path / PARENT).read_text() == f"{tracker.run_id}\n"
