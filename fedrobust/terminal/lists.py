"""Lists: a cluster's jobs, what this machine has."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedrobust.databases import without_password
from fedrobust.errors import FedRobustError
from fedrobust.extras import missing
from fedrobust.machine import core_limits, memory_limits, usable_cores
from fedrobust.options import Options, members
from fedrobust.terminal.elements import columns, plain

if TYPE_CHECKING:
    from fedrobust.cluster import Job
    from fedrobust.data import Outline
    from fedrobust.experiment import Experiment

ENOUGH_PATIENTS = 10
"""With patches of fewer patients, a referee decided worse in trials."""
FEW = 8
"""More names than these are not listed, only counted."""


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


def show_data(
    out: Console, experiment: Experiment, outline: Outline, parts: Mapping[str, np.ndarray], hospital: np.ndarray
) -> None:
    """Print which patches an experiment has, as its source tells before any image is opened.

    outline: of the patches.
    parts: the positions of each part of the split, with `root` if patches are set aside.
    hospital: (N,) of each patch.
    """
    table = Table(show_header=False)
    table.add_row("patches", str(len(outline)))
    table.add_row("labels", _counted(np.array(outline.label_names)[outline.labels], outline.label_names))
    for name, texts in (("patients", outline.groups), ("centres", outline.centres)):
        table.add_row(name, "unknown" if texts is None else _counted(texts, np.unique(texts).tolist()))
    for part, positions in parts.items():
        if not len(positions):
            continue
        whose = "" if outline.groups is None else f" of {len(np.unique(outline.groups[positions]))} patients"
        table.add_row("set aside" if part == "root" else part, f"{len(positions)}{whose}")
    if "root" in parts:
        table.add_row("coordinator", _own(experiment, outline, parts["root"]))
    held = np.bincount(hospital[parts["train"]], minlength=experiment.federation.clients)
    table.add_row("hospitals", f"{len(held)}, with {held.min()} to {held.max()} patches to train on")
    for note in outline.notes:
        table.add_row("note", plain(note))
    out.print(table)


def _own(experiment: Experiment, outline: Outline, pool: np.ndarray) -> Text:
    """Which of the patches that are set aside the coordinator gets, and whether they suffice."""
    drawn = experiment.data.root.drawn(pool, outline.labels, outline.groups, experiment.seed)
    patients = len(drawn) if outline.groups is None else len(np.unique(outline.groups[drawn]))
    whose = "" if outline.groups is None else f" of {patients} patients"
    names, labels = outline.label_names, outline.labels[drawn]
    doubts = [f"no {name}" for label, name in enumerate(names) if not (labels == label).any()]
    if patients < ENOUGH_PATIENTS:
        doubts.append(f"{ENOUGH_PATIENTS} patients or more decide better")
    if len(drawn) < experiment.data.root.patches:
        doubts.append(f"{experiment.data.root.patches} patches were asked for")
    doubts += ["raise data.root.set_aside"] * bool(doubts)
    found = f"{len(drawn)}{whose}: {_counted(np.array(names)[labels], names)}"
    return plain("; ".join([found, *doubts]))


def _counted(texts: np.ndarray, names: Sequence[str]) -> Text:
    """How often each name occurs; of many names, how many there are."""
    counts = [int((texts == name).sum()) for name in names[:FEW]]
    if len(names) > FEW:
        return plain(str(len(names)))
    return plain(", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True)))


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
