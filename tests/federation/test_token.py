"""A local Ray has a token from its first start on, the same one for all processes that start at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedrobust.federation import token
from fedrobust.federation.token import ensure_token


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of somebody who has said nothing of tokens."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is taken away again
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_token_is_made_once_and_is_its_owner_s(home: Path) -> None:
    before = os.umask(0)
    try:
        ensure_token()
    finally:
        os.umask(before)
    path = home / ".ray" / "auth_token"
    made = path.read_text()
    assert len(made) == 64
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    ensure_token()
    assert path.read_text() == made
    assert list(path.parent.iterdir()) == [path]
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_those_that_start_at_once_have_the_same_token(home: Path) -> None:
    barrier = threading.Barrier(8)

    def made(_: int) -> str:
        barrier.wait()
        ensure_token()
        return (home / ".ray" / "auth_token").read_text()

    with ThreadPoolExecutor(8) as pool:
        (found,) = set(pool.map(made, range(8)))
    assert len(found) == 64
    assert len(list((home / ".ray").iterdir())) == 1


def test_who_is_late_takes_the_token_of_the_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    monkeypatch.setattr(token.secrets, "token_hex", lambda count: path.write_text("of the first") and "x")
    ensure_token()
    assert path.read_text() == "of the first"


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/nowhere/token")],
)
def test_what_the_user_has_said_stays(home: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    ensure_token()
    assert not list(home.iterdir())
    assert os.environ[name] == value


@pytest.mark.parametrize("why", ["a file", "no home"])
def test_without_a_home_the_token_is_the_process_s_own(home: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    (home / ".ray").touch()
    if why == "no home":
        monkeypatch.setattr(Path, "home", homeless)
    ensure_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.long
@pytest.mark.parametrize("writable", [True, False])
def test_a_local_session_lets_nobody_in_without_the_token(home: Path, writable: bool) -> None:
    script = (
        "import os, subprocess, sys, ray\n"
        "from fedrobust.federation.session import ray_session\n"
        "with ray_session():\n"
        "    assert ray.get(ray.remote(lambda: 3).remote()) == 3\n"
        "    join = f\"import ray; ray.init(address='{ray.get_runtime_context().gcs_address}'); print('in')\"\n"
        "    others = {k: v for k, v in os.environ.items() if not k.startswith('RAY_')} | {'HOME': sys.argv[1]}\n"
        "    command = [sys.executable, '-c', join]\n"
        "    for environment in (others, dict(os.environ)):\n"
        "        done = subprocess.run(command, env=environment, capture_output=True, text=True)\n"
        "        print('in' in done.stdout.split())\n"
    )
    if not writable:
        (home / ".ray").touch()
    (home / "other").mkdir()
    command = [sys.executable, "-c", script, str(home / "other")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=home)
    assert done.stdout.splitlines()[-2:] == ["False", "True"]
