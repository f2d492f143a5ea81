"""Jobs: what is shipped, what a jobs server is asked for and what its refusals become; with a server in miniature."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from jobs_server import Server
from refused import refused
from submitted import called

from fedrobust.cli import app
from fedrobust.cluster import Cluster, ClusterError, find_cluster, find_job, jobs, logs, stop, submit
from fedrobust.cluster.folder import select
from fedrobust.cluster.shipping import DRIVERS, entrypoint, environment, pack, prepare
from fedrobust.errors import DataError
from fedrobust.naming import commit


@pytest.fixture(autouse=True)
def unnamed(nobody: Path) -> None:
    """No cluster and no token of whoever runs the tests."""


SHIPPED = ["experiments/mine.py", "experiments/small.yaml"]


def test_the_same_files_make_the_same_package(folder: Path) -> None:
    one, two = folder / "mlruns" / "one.zip", folder / "mlruns" / "two.zip"
    pack(select(folder).files, one)
    os.utime(folder / "experiments" / "mine.py", (0, 0))
    pack(select(folder).files, two)
    assert one.read_bytes() == two.read_bytes()
    assert zipfile.ZipFile(one).namelist() == SHIPPED


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ([], {"found": None, "allows": "matrix"}),
        (["report", "abc"], {"found": "'report'", "allows": "matrix"}),
        (["run", "seed=3"], {"found": "'run seed=3'"}),
        (["run", "experiments/other.yaml"], {"file": "experiments/other.yaml", "says": "no such file"}),
        (["run", "../elsewhere.yaml"], {"file": "../elsewhere.yaml", "says": "outside"}),
        (["run", "mlruns/best.yaml"], {"file": "mlruns/best.yaml", "says": "results or caches"}),
    ],
)
def test_commands_that_could_not_run_there(folder: Path, command: list[str], problem: dict[str, Any]) -> None:
    (folder / "mlruns" / "best.yaml").touch()
    with refused(ClusterError, **problem):
        prepare(command, folder)


def test_a_command_names_its_files_from_the_folder(folder: Path) -> None:
    absolute = str(folder / "experiments" / "small.yaml")
    command = ["matrix", "--teams", "2", absolute, "only.defences=[mean]", "--quick"]
    assert prepare(command, folder).command == [*command[:3], "experiments/small.yaml", *command[4:]]


def test_what_can_be_submitted_is_a_command() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(DRIVERS) <= known | {"duel"}


def test_the_environment_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("FEDROBUST_DATA", "/here")
    monkeypatch.setenv("SECRET_OF_MINE", "stays")
    commit.cache_clear()
    monkeypatch.delenv("FEDROBUST_COMMIT", raising=False)
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    found = environment({"FEDROBUST_DATA": "/there"})
    assert found["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert found["FEDROBUST_DATA"] == "/there"
    assert found["OMP_NUM_THREADS"] == "1"
    assert not {"SECRET_OF_MINE", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & set(found)
    assert "PYTHONPATH" not in found, "what lies beside the file would be imported before what is installed"
    assert found["FEDROBUST_COMMIT"] == commit(), "the tests run in the clone"
    monkeypatch.chdir("docs")
    assert "FEDROBUST_COMMIT" not in environment({})
    monkeypatch.setenv("FEDROBUST_COMMIT", "abc")
    commit.cache_clear()
    assert commit() == "abc"
    commit.cache_clear()


def fake_python(place: Path) -> Path:
    """A program that tells where it was started, and with what."""
    place.mkdir(parents=True)
    program = place / "python"
    program.write_text('#!/bin/sh\npwd\nfor word in "$@"; do echo "<$word>"; done\n', encoding="utf-8")
    program.chmod(0o755)
    return program


def driven(script: str, folder: Path, **variables: str) -> list[str]:
    """The output of a job's script where no raylet is to be found: its first line names the node."""
    done = subprocess.run(
        ["sh", "-c", script], cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("on node ")
    return lines[1:]


def test_a_job_works_in_the_workplace_on_the_shipped_files(folder: Path, tmp_path: Path) -> None:
    program = fake_python(tmp_path / "bin")
    path = f"{program.parent}:{os.environ['PATH']}"
    command = ["run", "experiments/small.yaml", "name=it's $HOME"]
    rest = ["<-P>", "<-m>", "<fedrobust.cli>", "<run>", f"<{folder}/experiments/small.yaml>", "<name=it's $HOME>"]
    there = tmp_path / "a place"
    assert driven(entrypoint(command, str(there)), folder, PATH=path) == [str(there), *rest]
    assert driven(entrypoint(command), folder, PATH=path, FEDROBUST_HOME=str(there / "b")) == [str(there / "b"), *rest]
    assert driven(entrypoint(command), folder, PATH=path, HOME=str(tmp_path)) == [str(tmp_path / "fedrobust"), *rest]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, as clusters have it")
def test_a_job_is_driven_by_the_python_of_the_cluster(folder: Path, tmp_path: Path) -> None:
    own = fake_python(tmp_path / "environment of the cluster" / "bin")
    linked = tmp_path / "env"
    linked.symlink_to(own.parent.parent)
    script = entrypoint(["run", "experiments/small.yaml"], str(tmp_path / "work"))
    supervisor = [sys.executable, "-c", "import subprocess, sys; subprocess.run(['sh', '-c', sys.argv[1]])", script]
    raylet = "import subprocess, sys; subprocess.run(sys.argv[2:])"
    marked = f"--python_worker_command={linked}/bin/python setup_worker.py --more"
    done = subprocess.run(
        [sys.executable, "-c", raylet, marked, *supervisor], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1:3] == [str(tmp_path / "work"), "<-P>"]


def test_submit_ships_and_asks(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    job = submit(["run", "experiments/small.yaml", "seed=3"], find_cluster(server.address), variables={"A": "1"})
    (asked,) = server.submitted
    assert asked["submission_id"] == job
    assert job.startswith("run-small-")
    assert asked["metadata"] == {"command": "run experiments/small.yaml seed=3"}
    assert asked["runtime_env"]["env_vars"]["A"] == "1"
    ((name, package),) = server.packages.items()
    assert asked["runtime_env"]["working_dir"] == f"gcs://{name}"
    assert zipfile.ZipFile(BytesIO(package)).namelist() == SHIPPED
    submit(["run", "experiments/small.yaml"], find_cluster(server.address))
    assert len(server.packages) == 1


def test_a_refused_token_is_one_line(server: Server) -> None:
    with pytest.raises(ClusterError, match=r"none .*RAY_AUTH_TOKEN"):
        jobs(Cluster(server.address))
    with pytest.raises(ClusterError, match=r"not accept .*RAY_AUTH_TOKEN$"):
        jobs(Cluster(server.address, "wrong", "RAY_AUTH_TOKEN"))
    with pytest.raises(ClusterError, match=r"http://127\.0\.0\.1:1: .*refused"):
        jobs(Cluster("http://127.0.0.1:1"))


def test_jobs_are_found_by_the_beginning_of_their_id(server: Server) -> None:
    for name in ("run-a-1", "run-a-2", "matrix-b"):
        server.add(name)
    at = find_cluster()
    assert [job.id for job in jobs(at)] == ["run-a-1", "run-a-2", "matrix-b"]
    assert find_job(at, "mat").command == "run matrix-b.yaml"
    assert find_job(at, "run").id == "run-a-2", "the newest one"
    with refused(ClusterError, found="'sweep'", allows="run-a-1", says="no job"):
        find_job(at, "sweep")


def test_following_outlives_a_lost_connection(server: Server) -> None:
    server.add("run-a")
    server.drops = 1
    assert "".join(logs(find_cluster(), "run-a", follow=True)) == server.log
    assert server.drops == 0
    assert "".join(logs(find_cluster(), "run-a")) == server.log


def test_following_ends_where_the_cluster_stays_away(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("run-a")
    server.drops = 1000
    monkeypatch.setattr("fedrobust.cluster.ray_jobs.PATIENCE", -1)
    with pytest.raises(ClusterError, match="fedrobust logs run-a --follow"):
        list(logs(find_cluster(), "run-a", follow=True))


def test_stopping(server: Server) -> None:
    server.add("run-a")
    assert stop(find_cluster(), "run-a").status == "STOPPED"
    with refused(ClusterError, says="run-a has ended before: STOPPED"):
        stop(find_cluster(), "run-a")


def test_the_commands(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    assert called("submit", "--env", "A=b=c", "--", "run", "experiments/small.yaml", "--resume", "x") == 0
    out, err = capsys.readouterr()
    assert err.startswith("sends 2 files, ")
    assert err.endswith(f"goes to {server.address}, with the token from RAY_AUTH_TOKEN\n")
    (job,) = server.jobs
    assert f"job {job} at {server.address}\n" in out
    assert "http://mlflow:5000/#/experiments" in out and "secret" not in out + err
    assert out.endswith(f"{server.log}job {job}: SUCCEEDED\nbring its results here with: fedrobust fetch {job}\n")
    assert server.submitted[0]["runtime_env"]["env_vars"]["A"] == "b=c"
    assert server.submitted[0]["entrypoint"].endswith("--resume x")
    assert called("jobs") == 0
    assert "succeeded" in capsys.readouterr().out
    assert called("logs", job) == 0
    assert capsys.readouterr().out == server.log
    assert called("stop", job) == 2
    assert capsys.readouterr().err == f"error: job {job} has ended before: SUCCEEDED\n"


def test_the_end_of_a_followed_job_is_the_end_of_the_command(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for job, code, ours in (("run-a", 3, 3), ("run-b", -9, 137), ("run-c", None, 1)):
        server.add(job, "FAILED", exit_code=code)
        assert called("logs", job, "--follow") == ours
        assert f"job {job}: FAILED" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_following_and_not_the_job(server: Server, folder: Path, how: signal.Signals) -> None:
    server.add("run-a")
    server.goes_on = True
    command = [sys.executable, "-m", "fedrobust.cli", "logs", "run-a", "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert [following.stdout.readline() for _ in range(3)] == server.log.splitlines(keepends=True)
        following.send_signal(how)
        out, told = following.communicate(timeout=60)
    assert (following.returncode, out) == (1, "")
    assert told == "\njob run-a goes on; follow it with: fedrobust logs run-a --follow\n"
    assert server.jobs["run-a"]["status"] == "RUNNING"


@pytest.mark.parametrize("words", [("submit", "--", "report", "abc"), ("submit", "--env", "A", "--", "run", "x.yaml")])
def test_what_cannot_be_submitted_is_said_in_a_line(
    server: Server,
    folder: Path,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert called(*words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not server.submitted


def test_missing_data_are_said_to_be_missing_on_the_node_of_the_driver(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise DataError("npz: nowhere.npz does not exist")

    monkeypatch.setattr("fedrobust.cli.app", missing)
    assert called() == 2
    assert (alone := capsys.readouterr().err) == "error: npz: nowhere.npz does not exist\n"
    monkeypatch.setenv("FEDROBUST_JOB", "1")
    assert called() == 2
    there = capsys.readouterr().err
    assert there.startswith(alone)
    assert platform.node() in there
    assert "--env FEDROBUST_DATA=PATH" in there
