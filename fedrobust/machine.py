"""How much of the machine this process may use: batch systems and containers may allow only a part."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Options of mallopt(3)."""


def core_limits(environment: Mapping[str, str] = os.environ, root: Path = ROOT) -> dict[str, float]:
    """Return the limits on the cores of this process: name of the limit → cores, fractions for control groups.

    environment: the variables in which Slurm sets the job's limits.
    root: the folder that contains `proc` and `sys`.
    """
    limits: dict[str, float] = {"machine": os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        limits["affinity"] = len(os.sched_getaffinity(0))
    quotas = [quota for folder in _groups("cpu", root) if (quota := _cores(folder)) is not None]
    if quotas:
        limits["cgroup"] = min(quotas)
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if (given := environment.get(name, "")).isdecimal() and int(given):
            return limits | {name: int(given)}
    return limits


def usable_cores(environment: Mapping[str, str] = os.environ, root: Path = ROOT) -> int:
    """Return how many whole cores this process may keep busy: its lowest limit, rounded down, and at least 1.

    Arguments as in `core_limits`.
    """
    return max(1, int(min(core_limits(environment, root).values())))


def memory_limits(root: Path = ROOT) -> dict[str, int]:
    """Return the limits on the memory of this process and its children: name of the limit → bytes.

    root: the folder that contains `proc` and `sys`.
    """
    limits = {"machine": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    names = ("memory.max", "memory.limit_in_bytes")
    given = [_number(folder / name) for folder in _groups("memory", root) for name in names]
    if known := [limit for limit in given if limit is not None and 0 < limit < limits["machine"]]:
        limits["cgroup"] = min(known)
    return limits


def keep_freed_memory() -> None:
    """Have this process use the memory that it frees again, instead of giving it back to the system.

    glibc gives a block of more than 32 MB back at once, and the system fills the next one with zeros, page by page: a
    quarter of the time of training on patches of 96 pixels. See mallopt(3). Without glibc nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            mallopt(option, value)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, from the outermost to the innermost.

    In a container the path may be that of the host, which does not exist here; the container's limit is then at the
    top.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    top = root / "sys/fs/cgroup"
    for line in ["0::/", *lines]:
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "", "/")
        if controllers and controller not in controllers.split(","):
            continue
        for mount in {top / controllers, top / controller} if controllers else {top}:
            yield mount
            parts = PurePosixPath(path).parts[1:]
            if ".." not in parts:
                yield from (mount.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1))


def _cores(folder: Path) -> float | None:
    """Return the cores (processor time per time) that a control group may use, in cgroup v1 or v2; None: no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        quota, period = (str(_number(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        return int(quota) / int(period)
    return None


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
