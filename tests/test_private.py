"""Files that only their owner can read."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrobust import cli
from fedrobust.databases import sqlite_file
from fedrobust.private import private_files, private_folder, whole
from fedrobust.tracking.store import experiment_id, reaching


@pytest.fixture(autouse=True)
def open_to_all() -> Iterator[None]:
    """The umask of a user who shares everything."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_what_is_made_in_the_block_is_private(tmp_path: Path) -> None:
    with private_files():
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
    (tmp_path / "after").touch()
    assert [mode(tmp_path / name) for name in ("folder", "file", "after")] == [0o700, 0o600, 0o666]


def test_the_umask_comes_back_with_the_last_block_however_threads_interleave() -> None:
    first, second = threading.Event(), threading.Event()

    def beside() -> None:
        with private_files():
            first.set()
            second.wait(10)

    thread = threading.Thread(target=beside)
    with private_files():
        thread.start()
        first.wait(10)
    assert umask() == 0o077  # the other thread's block goes on
    second.set()
    thread.join()
    assert umask() == 0
    with pytest.raises(ValueError, match="x"), private_files(), private_files():
        raise ValueError("x")
    assert umask() == 0


def test_what_is_there_stays_as_its_owner_has_it(tmp_path: Path) -> None:
    private_folder(tmp_path / "a" / "b")
    with whole(tmp_path / "a" / "b" / "c") as partial:
        partial.write_text("first")
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")] == [0o700, 0o700, 0o600]
    for name, shared in (("a/b", 0o755), ("a/b/c", 0o644)):
        (tmp_path / name).chmod(shared)
    (tmp_path / "a/b/c").write_text("kept")
    private_folder(tmp_path / "a" / "b")
    with whole(tmp_path / "a" / "b" / "c") as partial:
        partial.write_text("second")
    assert (mode(tmp_path / "a/b"), mode(tmp_path / "a/b/c")) == (0o755, 0o644)
    assert (tmp_path / "a/b/c").read_text() == "kept"


def test_the_database_and_the_artifacts_of_mlflow_are_private(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    with reaching(uri) as client:
        experiment_id(client, "mine", uri)
    made = tmp_path / "new"
    assert [mode(path) for path in (made, made / "mlflow.db", made / "artifacts")] == [0o700, 0o600, 0o700]
    assert {path.name for path in made.iterdir()} == {"mlflow.db", "artifacts", ".mlflow.db.lock"}


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:///a/b.db", Path("a/b.db")),
        ("sqlite:////a/b.db?timeout=3", Path("/a/b.db")),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("http://host:5000", None),
        ("postgresql://host/mlflow", None),
    ],
)
def test_which_store_is_a_file(uri: str, path: Path | None) -> None:
    assert sqlite_file(uri) == path


def test_what_a_command_writes_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @cli.app.command("write-for-a-test")
    def write() -> None:
        (tmp_path / "written").touch()

    monkeypatch.setattr(sys, "argv", ["fedrobust", "write-for-a-test"])
    try:
        with pytest.raises(SystemExit):
            cli.main()
    finally:
        cli.app.registered_commands.pop()
    assert mode(tmp_path / "written") == 0o600
    assert umask() == 0
