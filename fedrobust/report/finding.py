"""Finding runs by what users call them: the id, its beginning, or the experiment that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedrobust.errors import ExperimentError, Problem
from fedrobust.options import nearest
from fedrobust.records import run_of


def find_run(run: str, runs: Path) -> Path:
    """Return the folder in `runs` of the run with this id, or of the only one whose id begins with `run`.

    Raises `ExperimentError` if there is none, or more than one.
    """
    found = sorted(runs.glob(f"{run}*")) if run.isalnum() else []
    if len(found) == 1:
        return found[0]
    if found:
        reason = f"{len(found)} runs in {runs} begin so; give more of the id"
        raise ExperimentError(Problem(reason, found=f"'{run}'"))
    raise ExperimentError(Problem(f"no such run in {runs}; ids are the names of the folders there", found=f"'{run}'"))


def find_runs(names: Sequence[str], runs: Path) -> list[Path]:
    """Return the folders in `runs` of all runs that `names` select, each once, in the order of their last change.

    A name is that of an experiment, in its file or in MLflow (`tracking.experiment`), or a run's id as in `find_run`.
    Raises `ExperimentError` if a name selects no run.
    """
    experiments: dict[str, list[Path]] = {}
    for folder in runs.iterdir() if runs.is_dir() else ():
        for name in _experiments(folder):
            experiments.setdefault(name, []).append(folder)
    found: set[Path] = set()
    for name in names:
        if name in experiments:
            found.update(experiments[name])
        elif name.isalnum() and any(runs.glob(f"{name}*")):
            found.add(find_run(name, runs))
        else:
            reason, known = f"no run in {runs} has this id or experiment", tuple(_some(sorted(experiments)))
            raise ExperimentError(Problem(reason, "", f"'{name}'", known, nearest(name, experiments)))
    return sorted(found, key=lambda folder: (_written(folder), folder.name))


def _experiments(folder: Path) -> set[str]:
    """Return the names of a run's experiment; none if its journal cannot be read."""
    try:
        with (folder / "journal.jsonl").open("rb") as file:
            options = run_of(file.readline()).start.options
    except (OSError, ExperimentError):
        return set()
    return {options.name, options.tracking.experiment or options.name}


def _written(folder: Path) -> float:
    journal = folder / "journal.jsonl"
    return journal.stat().st_mtime if journal.exists() else 0.0


def _some(names: Sequence[str], most: int = 8) -> list[str]:
    return [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
