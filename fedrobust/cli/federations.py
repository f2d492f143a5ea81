"""The commands that run federations: `run`, `matrix`, `sweep`, `duel`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fedrobust.cli.application import Overrides, app, checking, only_checked, stoppable
from fedrobust.errors import ExperimentError, FedRobustError
from fedrobust.screen import harmless

if TYPE_CHECKING:
    from fedrobust.duels.running import DuelResult
    from fedrobust.matrices.running import MatrixResult
    from fedrobust.terminal import DuelProgress, MatrixProgress, SweepProgress
    from fedrobust.tuning.running import SweepResult

_Bar = TypeVar("_Bar")
_Found = TypeVar("_Found")

File = Annotated[Path, typer.Argument(help="An experiment file (YAML).", show_default=False)]
TeamsOption = Annotated[int | None, typer.Option(min=1, help="Runs at a time; by default as many as cores.")]
StorageOption = Annotated[
    str | None, typer.Option(metavar="URL", help="An Optuna storage, instead of mlruns/optuna.db.")
]
AnywayOption = Annotated[
    bool, typer.Option("--anyway", help="Go on even if the first runs have learnt nothing: figures may be undefined.")
]
OutOption = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where tables and pictures go.")]


@app.command()
def run(
    file: File,
    overrides: Overrides = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with a run that stopped, by its id.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write run id and final metrics to this file.")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Record when each process does what.")] = False,
) -> None:
    """Run an experiment: one federation, recorded in MLflow.

    Several values of an override, as in seed=1,2,3 or aggregation.rule=mean,median, make a run of each combination and
    compare them. Each command starts new runs; use --resume with the id to continue a run that stopped.
    """
    from fedrobust.cli.grid import combinations
    from fedrobust.experiment_file import load
    from fedrobust.terminal import Progress, console, show_code, show_profile, show_result

    overrides = [*(overrides or ()), *(["tracking.profile=true"] if profile else [])]
    if json_out is not None and checking.get() is None:
        _refuse_unwritable(json_out, file)
    if len(combined := combinations(overrides)) > 1:
        _run_grid(file, combined, resume, json_out)
        return
    experiment = load(file, overrides)
    if only_checked(experiment.tracking.experiment):
        return
    out = console()
    show_code(out)
    with stoppable(goes_on=False), Progress(out, experiment) as progress:
        from fedrobust.runner import run as run_experiment

        hooks, say = [harmless(progress.on_record)], harmless(progress.say)
        result = run_experiment(experiment, resume=resume, hooks=hooks, say=say)
    unwritten = None if json_out is None else _unwritten(json_out, {"run_id": result.run_id, **result.final})
    harmless(lambda what: show_result(out, what, experiment))(result)
    if experiment.tracking.profile:
        harmless(lambda what: show_profile(out, what))(result.folder)
    if unwritten is not None:
        raise FedRobustError(f"{unwritten}; the same figures are in {result.folder / 'journal.jsonl'}")


def _run_grid(file: Path, combined: Sequence[tuple[str, ...]], resume: str | None, json_out: Path | None) -> None:
    """Make a run of each combination of overrides, and compare them."""
    from fedrobust.cli.grid import make_grid, show_grid, told_apart
    from fedrobust.experiment_file import load
    from fedrobust.studies.composer import Mistakes
    from fedrobust.terminal import console, show_code

    if resume is not None:
        raise ExperimentError("--resume continues one run: give each override one value")
    differing, mistakes = told_apart(combined), Mistakes()
    loaded = {words: mistakes.attempt(partial(load, file, words), differing[words]) for words in combined}
    mistakes.refuse()
    runs = {words: experiment for words, experiment in loaded.items() if experiment is not None}
    if only_checked(next(iter(runs.values())).tracking.experiment):
        return
    out = console()
    show_code(out)
    results, failures = make_grid(file, runs, differing, out)
    figures = [{"overrides": words, "run_id": result.run_id, **result.final} for words, result in results.items()]
    unwritten = None if json_out is None else _unwritten(json_out, figures)
    show_grid(results, [*failures, *([unwritten] if unwritten else [])], out)


def _unwritten(path: Path, figures: object) -> str | None:
    """Write figures as JSON; if that fails, return why."""
    try:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        return f"--json {path}: could not be written: {error.strerror}"
    return None


def _refuse_unwritable(json_out: Path, file: Path) -> None:
    if json_out.is_dir() or not json_out.parent.is_dir():
        raise ExperimentError(f"--json {json_out}: must be a file in a folder that exists")
    if not os.access(json_out if json_out.exists() else json_out.parent, os.W_OK):
        raise ExperimentError(f"--json {json_out}: may not be written")
    if json_out.exists() and file.exists() and json_out.samefile(file):
        raise ExperimentError(f"--json {json_out}: is the experiment file itself")


@app.command()
def matrix(
    file: Annotated[Path, typer.Argument(help="A matrix file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH=VALUE", help="Overrides, e.g. worst=2 or only.defences=[mean,median]."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small version of it, as its file says.")] = False,
    teams: TeamsOption = None,
    out: OutOption = None,
    anyway: AnywayOption = False,
) -> None:
    """Run attacks × defences × settings × seeds, and report how well each defence works.

    The same command continues a matrix that was stopped: finished runs are not repeated.
    """
    from fedrobust.matrices import load_matrix
    from fedrobust.terminal import MatrixProgress, show_matrix

    grid = load_matrix(file, overrides or (), quick)
    if only_checked(grid.mlflow_experiment):
        return

    def run(progress: MatrixProgress) -> MatrixResult:
        from fedrobust.matrices.running import run_matrix

        return run_matrix(grid, progress, teams=teams, out=out, anyway=anyway)

    _watched(MatrixProgress, run, show_matrix)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH=VALUE", help="Overrides, e.g. trials=8 or sampler.startup=4."),
    ] = None,
    storage: StorageOption = None,
    teams: TeamsOption = None,
    out: OutOption = None,
    anyway: AnywayOption = False,
    resume: Annotated[bool, typer.Option("--resume", hidden=True)] = False,  # for older scripts: now the default
) -> None:
    """Search the options of an experiment: for the best defence, or for the worst attack.

    The same command continues a sweep that was stopped: finished runs are not repeated.
    """
    from fedrobust.terminal import SweepProgress, show_sweep
    from fedrobust.tuning import load_sweep

    plan = load_sweep(file, overrides or ())
    if only_checked(plan.mlflow_experiment):
        return

    def run(progress: SweepProgress) -> SweepResult:
        from fedrobust.tuning.running import run_sweep
        from fedrobust.tuning.sweep import STORAGE

        return run_sweep(plan, progress, storage=storage or STORAGE, teams=teams, out=out, anyway=anyway)

    _watched(SweepProgress, run, show_sweep)


@app.command()
def duel(
    file: Annotated[Path, typer.Argument(help="A duel file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH=VALUE", help="Overrides, e.g. turns=1 or attacker.trials=8."),
    ] = None,
    storage: StorageOption = None,
    teams: TeamsOption = None,
    out: OutOption = None,
    anyway: AnywayOption = False,
) -> None:
    """Search for an attack against each defence, tune the defence against the attacks found, and so on.

    The same command continues a duel that was stopped: finished runs are not repeated.
    """
    from fedrobust.duels import load_duel
    from fedrobust.terminal import DuelProgress, show_duel

    match = load_duel(file, overrides or ())
    if only_checked(match.mlflow_experiment):
        return

    def run(progress: DuelProgress) -> DuelResult:
        from fedrobust.duels.running import run_duel
        from fedrobust.tuning.sweep import STORAGE

        return run_duel(match, progress, storage=storage or STORAGE, teams=teams, out=out, anyway=anyway)

    _watched(partial(DuelProgress, turns=len(match.turns)), run, show_duel)


def _watched(
    progress: Callable[[Any], AbstractContextManager[_Bar]],
    run: Callable[[_Bar], _Found],
    show: Callable[[Any, _Found], None],
) -> None:
    """Run a study below a progress bar, and show the results. The bar appears before Ray, torch and MLflow are
    imported."""
    from fedrobust.terminal import console, show_code

    screen = console()
    show_code(screen)
    with stoppable(goes_on=True), progress(screen) as bar:
        found = run(bar)
    show(screen, found)
