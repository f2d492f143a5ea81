"""The script of the local cluster: what it starts, ends and writes, and what it keeps secret."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cluster_state import DAMAGES, FOLDER, damage, started

from fedrobust.cluster.local_state import kept
from fedrobust.errors import ClusterError

pytestmark = pytest.mark.usefixtures("nobody")


@pytest.fixture
def local() -> ModuleType:
    spec = importlib.util.spec_from_file_location("local_cluster", FOLDER / "local.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def spawn() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts shells in sessions of their own; whatever is left of them is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


SLEEP = "import time; print('up', flush=True); time.sleep(100)"
FAMILY = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # will not end by itself
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
print(child.pid, flush=True)
time.sleep(100)
"""


def keep(folder: Path, local: ModuleType, **processes: subprocess.Popen[str]) -> Path:
    """What is kept of a cluster that was started in the folder. Returns where it is kept."""
    table = local.table()
    nodes = {name: {"pid": each.pid, "began": table[each.pid][2]} for name, each in processes.items()}
    (folder / "mlruns" / "cluster").mkdir(parents=True)
    (folder / "fedrobust-ray").mkdir()
    return started(folder, "http://127.0.0.1:1", nodes=nodes, temporary=str(folder / "fedrobust-ray"))


def gone(local: ModuleType, pid: int) -> bool:
    until = time.monotonic() + 20
    while pid in local.table():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def test_down_ends_what_was_started_and_what_that_started(
    tmp_path: Path, local: ModuleType, spawn: Callable[[str], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE", 0.5)
    node, stranger = spawn(FAMILY), spawn(SLEEP)
    assert node.stdout is not None
    child = int(node.stdout.readline())
    place = keep(tmp_path, local, head=node)
    folder = tmp_path / "mlruns" / "cluster"
    (folder / "env").touch()
    local.stop(folder)
    assert node.wait(20) == -signal.SIGKILL
    assert gone(local, child)
    assert stranger.poll() is None
    assert not place.exists()
    assert not list(folder.iterdir()) and not (tmp_path / "fedrobust-ray").exists()
    local.stop(folder)  # once more does no harm


@pytest.mark.parametrize("whose", ["a number that has come back", "somebody else's", "another machine's"])
def test_processes_that_are_not_the_cluster_s_are_left_alone(
    tmp_path: Path,
    local: ModuleType,
    spawn: Callable[[str], subprocess.Popen[str]],
    whose: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranger = spawn(SLEEP)
    place = keep(tmp_path, local, head=stranger)
    kept = json.loads((place / "state.json").read_text())
    folder = tmp_path / "mlruns" / "cluster"
    if whose == "a number that has come back":
        kept["nodes"]["head"]["began"] = "Mon Jan  1 00:00:00 2001"
    elif whose == "another machine's":
        kept["host"] = "elsewhere"
    (place / "state.json").write_text(json.dumps(kept))
    if whose == "somebody else's":
        user = os.geteuid() + 1
        monkeypatch.setattr("os.geteuid", lambda: user)
        monkeypatch.setattr("fedrobust.cluster.local_state.owned_text", lambda path: path.read_text())
        assert stranger.pid not in local.table()
    if whose == "another machine's":
        for what in (lambda: local.kill_node(folder, "head"), lambda: local.stop(folder), lambda: local.status(folder)):
            with pytest.raises(ClusterError, match="elsewhere"):
                what()
    else:
        with pytest.raises(SystemExit, match="head"):
            local.kill_node(folder, "head")
        local.stop(folder)
    time.sleep(0.2)
    assert stranger.poll() is None


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("verb", ["up", "down"])
def test_a_damaged_state_is_one_line_and_ends_nothing(
    tmp_path: Path,
    local: ModuleType,
    verb: str,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = started(tmp_path, "http://127.0.0.1:1")
    damage(place, how)
    monkeypatch.setattr(local, "end", lambda *_: pytest.fail("it has ended something"))
    monkeypatch.setattr(local.shutil, "rmtree", lambda *_, **__: pytest.fail("it has deleted something"))
    monkeypatch.setattr(local.subprocess, "Popen", lambda *_, **__: pytest.fail("it has started something"))
    monkeypatch.setattr(local.os, "umask", lambda mask: 0)
    command = ["local.py", "--folder", str(tmp_path / "mlruns" / "cluster"), verb]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        local.main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and str(place) in err
    assert place.exists()


def test_a_state_in_a_folder_of_somebody_else_is_not_read(
    tmp_path: Path, local: ModuleType, spawn: Callable[[str], subprocess.Popen[str]]
) -> None:
    node = spawn(SLEEP)
    folder, precious = tmp_path / "mlruns" / "cluster", tmp_path / "fedrobust-precious"
    folder.mkdir(parents=True)
    precious.mkdir()
    nodes = {"head": {"pid": node.pid, "began": local.table()[node.pid][2]}}
    (folder / "state.json").write_text(json.dumps({"nodes": nodes, "temporary": str(precious)}))
    local.stop(folder)
    with pytest.raises(SystemExit, match="node head"):
        local.kill_node(folder, "head")
    assert node.poll() is None
    assert precious.exists()


def test_a_node_dies_alone(tmp_path: Path, local: ModuleType, spawn: Callable[[str], subprocess.Popen[str]]) -> None:
    one, two = spawn(SLEEP), spawn(SLEEP)
    keep(tmp_path, local, **{"worker-1": one, "worker-2": two})
    folder = tmp_path / "mlruns" / "cluster"
    local.kill_node(folder, "worker-1")
    assert one.wait(20) == -signal.SIGKILL
    assert two.poll() is None
    with pytest.raises(SystemExit, match=r"worker-3.* worker-1, worker-2"):
        local.kill_node(folder, "worker-3")


@pytest.mark.parametrize("name", ["logs", "mlflow.db", "artifacts"])
def test_no_link_of_a_folder_leads_what_is_written_elsewhere(
    tmp_path: Path, local: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, precious = tmp_path / "mlruns" / "cluster", tmp_path / "precious"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "mlflow.log").symlink_to(precious)
    (folder / "env").symlink_to(precious)
    precious.write_text("of mine")
    popen = subprocess.Popen

    def started(*words: Any, **given: Any) -> subprocess.Popen[str]:
        if not given.get("start_new_session"):  # ps
            return popen(*words, **given)
        given["stdout"].write("of the node")
        given["stdout"].flush()
        raise OSError("enough")

    monkeypatch.setattr(local.subprocess, "Popen", started)
    with pytest.raises(OSError, match="enough"):
        local.start(folder, 0, 1, None, tmp_path)
    assert precious.read_text() == "of mine"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / name).symlink_to(precious)
    with pytest.raises(ClusterError, match=f"{name} is a link"):
        local.start(folder, 0, 1, None, tmp_path)
    assert precious.read_text() == "of mine"


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "password"),
    [
        (f"postgresql://user:{SECRET}@host/mlflow", SECRET),
        (f"postgresql+psycopg2://host/mlflow?user=me&password={SECRET}", SECRET),
        ("postgresql://user@host/mlflow", ""),
        ("sqlite:////a/b.db", ""),
    ],
)
def test_a_password_is_found_in_a_url(local: ModuleType, url: str, password: str) -> None:
    assert local.password_of(url) == password
    with pytest.raises(ClusterError, match=r"--mlflow-store: .* URL"):
        local.password_of("postgresql://[::1/mlflow")


def test_no_password_stands_on_a_command_line(
    tmp_path: Path, local: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://user:{SECRET}@host/mlflow"
    command = ["local.py", "--folder", str(tmp_path / "cluster"), "up"]
    monkeypatch.setattr(local.os, "umask", lambda mask: 0)
    monkeypatch.setattr(sys, "argv", [*command, "--mlflow-store", url])
    with pytest.raises(SystemExit, match=r"password.* MLFLOW_BACK"):
        local.main()

    started: list[tuple[list[str], dict[str, str]]] = []

    def popen(command: list[str], env: dict[str, str], **_: Any) -> subprocess.Popen[str]:
        started.append((command, env))
        raise OSError("enough")

    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", url)
    monkeypatch.setattr(local, "stop", lambda folder: None)
    monkeypatch.setattr(local.tempfile, "mkdtemp", lambda prefix, dir: str(tmp_path / "fedrobust-x"))
    monkeypatch.setattr(local.subprocess, "Popen", popen)
    with pytest.raises(SystemExit) as ended:
        local.main()
    assert ended.value.code == 2
    ((words, environment),) = started
    assert words[1:4] == ["-m", "mlflow", "server"] and SECRET not in " ".join(words)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == url
    state = local.State(
        temporary="/tmp/fedrobust-x", address="http://127.0.0.1:1", gcs="", mlflow="", workplace="", store=""
    )
    node = local.node_environment(tmp_path / "cluster", state)
    assert "MLFLOW_BACKEND_STORE_URI" not in node


def test_what_the_local_cluster_writes_is_its_owner_s(tmp_path: Path, nobody: Path) -> None:
    script = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('local', sys.argv[1])\n"
        "local = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(local)\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "def spawn(folder, state, name):\n"
        "    local.write(folder, state)\n"
        "    raise SystemExit('enough')\n"
        "local.spawn, local.stop = spawn, lambda folder: None\n"
        "sys.argv = ['local.py', '--folder', str(folder), 'up']\n"
        "local.main()\n"
    )
    folder = tmp_path / "cluster"
    folder.mkdir(mode=0o755)  # by an earlier version
    command = [sys.executable, "-c", script, str(FOLDER / "local.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, umask=0)
    assert done.stderr == "enough\n"
    found = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    assert found == {"cluster": 0o700, "logs": 0o700}
    place = kept(folder)
    assert place.is_relative_to(nobody)
    ours = {path.name: path.stat().st_mode & 0o777 for path in nobody.rglob("*")}
    modes = {".fedrobust": 0o700, "clusters": 0o700, place.name: 0o700, "token": 0o600, "state.json": 0o600}
    assert ours == modes
    shutil.rmtree(json.loads((place / "state.json").read_text())["temporary"])
