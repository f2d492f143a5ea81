"""How much of the machine a process may use."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fedrobust.machine import core_limits, memory_limits, usable_cores

CORES = len(os.sched_getaffinity(0))


def made(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None, id="v2: no limit"),
        pytest.param({"sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1.0, id="v2: a container's"),
        pytest.param({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, id="v2: a fraction"),
        pytest.param({"sys/fs/cgroup/cpu.max": "20000 100000\n"}, 0.2, id="v2: less than one"),
        pytest.param({"sys/fs/cgroup/cpu.max": "nonsense"}, None, id="v2: nonsense"),
        pytest.param({"sys/fs/cgroup/cpu.max": "100000 0"}, None, id="v2: no period"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
                "sys/fs/cgroup/slurm/job_7/cpu.max": "100000 100000",
                "sys/fs/cgroup/slurm/job_7/step_0/cpu.max": "max 100000",
            },
            1.0,
            id="v2: of an outer group",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/user.slice/mine:1\n",
                "sys/fs/cgroup/user.slice/cpu.max": "400000 100000",
                "sys/fs/cgroup/user.slice/mine:1/cpu.max": "50000 50000",
            },
            1.0,
            id="v2: the least",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/docker/4f\n", "sys/fs/cgroup/cpu.max": "100000 100000"},
            1.0,
            id="v2: the host's path in a container",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/cpu.max": "100000 100000"},
            1.0,
            id="v2: a path out of the namespace",
        ),
        pytest.param({f"{V1}/cpu.cfs_quota_us": "-1\n", f"{V1}/cpu.cfs_period_us": "100000\n"}, None, id="v1: none"),
        pytest.param(
            {
                "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/docker/4f\n1:name=systemd:/\n0::/\n",
                f"{V1}/cpu.cfs_quota_us": "150000\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            1.5,
            id="v1: a container's",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "2:cpu,cpuacct:/slurm/job_7\n",
                "sys/fs/cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000\n",
            },
            1.0,
            id="v1: a job's",
        ),
    ],
)
def test_the_share_of_a_control_group(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    root = made(tmp_path, files)
    limits = core_limits({}, root)
    assert limits.get("cgroup") == cores
    assert usable_cores({}, root) == (CORES if cores is None else max(1, int(min(cores, CORES))))


@pytest.mark.parametrize(
    ("environment", "limit"),
    [
        ({"SLURM_CPUS_PER_TASK": "1", "SLURM_CPUS_ON_NODE": "64"}, ("SLURM_CPUS_PER_TASK", 1)),
        ({"SLURM_CPUS_ON_NODE": "1"}, ("SLURM_CPUS_ON_NODE", 1)),
        ({"SLURM_CPUS_PER_TASK": "", "SLURM_CPUS_ON_NODE": "1"}, ("SLURM_CPUS_ON_NODE", 1)),
        ({"SLURM_CPUS_PER_TASK": "0"}, None),
        ({"SLURM_CPUS_PER_TASK": "-3"}, None),
        ({"SLURM_CPUS_PER_TASK": "two"}, None),
        ({"SLURM_CPUS_PER_TASK": "100000"}, ("SLURM_CPUS_PER_TASK", 100000)),
    ],
)
def test_the_share_of_a_slurm_job(tmp_path: Path, environment: dict[str, str], limit: tuple[str, int] | None) -> None:
    limits = core_limits(environment, tmp_path)
    assert {name: cores for name, cores in limits.items() if name.startswith("SLURM")} == dict([limit] if limit else [])
    assert usable_cores(environment, tmp_path) == min([CORES, *([limit[1]] if limit else [])])


def test_the_cores_that_the_process_is_bound_to() -> None:
    asked = "from fedrobust.machine import usable_cores; print(usable_cores({}))"
    first = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", asked],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {first}),
    )
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"sys/fs/cgroup/memory.max": "1000000\n"}, 1000000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "1000000\n"}, 1000000),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"proc/self/cgroup": "4:memory:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "5000\n"}, 5000),
    ],
)
def test_the_memory_of_a_control_group(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    limits = memory_limits(made(tmp_path, files))
    assert limits.get("cgroup") == limit
    assert limits["machine"] > 1e8


KEPT = """
import resource, sys
import numpy as np
from fedrobust.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(64 * 2**20, dtype=np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = [faults() for _ in range(3)][-1]
keep_freed_memory()
print(before, [faults() for _ in range(3)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc")
def test_memory_that_was_freed_is_used_again() -> None:
    """Each page that the system has to find is a fault; with large pages there are 2 MiB to one."""
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before >= 32
    assert after < before / 4
