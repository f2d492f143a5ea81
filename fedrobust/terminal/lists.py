"""Lists: a cluster's jobs, what this machine has."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fedrobust.databases import without_password
from fedrobust.errors import FedRobustError
from fedrobust.extras import missing
from fedrobust.machine import core_limits, memory_limits, usable_cores
from fedrobust.options import Options, members
from fedrobust.terminal.elements import columns, plain

if TYPE_CHECKING:
    from fedrobust.cluster import Job


def show_jobs(out: Console, jobs: Sequence[Job]) -> None:
    """Print a cluster's jobs, the latest last; their ids are not broken, because they are to be copied."""
    if not jobs:
        out.print("no jobs")
        return
    now = time.time()
    rows = [(job.id, job.status.lower(), job.since, job.took, _progress(job, now), job.command) for job in jobs]
    heads = ("job", "status", "began", "took", "progress", "command")
    table = columns(dict(zip(heads, zip(*rows, strict=True), strict=True)))
    table.columns[0].no_wrap = True
    out.print(table)


def _progress(job: Job, now: float) -> str:
    return (job.progress.shown(now) if job.progress is not None else "") or "–"


def show_machine(out: Console) -> None:
    """Print cores, memory, GPUs, versions, the tracking store, and which data sets are found."""
    table = Table(show_header=False)
    table.add_row("cores", f"{usable_cores()}{_limit(core_limits())}")
    memory = {name: round(amount / 2**30, 1) for name, amount in memory_limits().items()}
    table.add_row("memory", f"{min(memory.values()):g} GiB{_limit(memory)}")
    table.add_row("Python", platform.python_version())
    table.add_row("fedrobust", version("fedrobust"))
    lacking = ", ".join(missing("platform"))
    if lacking:
        table.add_row("platform", plain(f'not installed: pip install "fedrobust[platform]"; missing: {lacking}'))
    else:
        packages = ("torch", "ray", "pytorch-lightning", "mlflow", "optuna", "timm")
        table.add_row("packages", ", ".join(f"{name} {version(name)}" for name in packages))
        table.add_row("GPUs", plain(_gpus()))
        table.add_row("Ray cluster", plain(_ray()))
    table.add_row("MLflow store", plain(_store()))
    table.add_section()
    for name, source in members(_source()).items():
        try:
            found = source.model_validate({"name": name}).found()  # type: ignore[attr-defined]
        except Exception as error:
            found = f"not looked for: {error}"
        table.add_row(f"data: {name}", plain(found or "not found; give it a path, or set FEDROBUST_DATA"))
    out.print(table)


def _limit(limits: Mapping[str, float]) -> str:
    """Name the lowest limit, unless it is that of the machine."""
    least = min(limits, key=lambda name: limits[name])
    return "" if least == "machine" else f" of {limits['machine']:g} ({least}: {limits[least]:g})"


def _source() -> type[Options]:
    from fedrobust.data import Source

    return Source


def _gpus() -> str:
    import torch

    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none"


def _ray() -> str:
    from fedrobust.federation.joining import cluster_address
    from fedrobust.federation.session import check_ray

    try:
        address = cluster_address()
        check_ray()
    except FedRobustError as error:
        return str(error)
    return "none: a local one is started for each run" if address == "local" else address


def _store() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return without_password(uri)
    database = Path("mlruns/mlflow.db")
    return f"{database} ({'present' if database.exists() else 'made by the first run'})"
