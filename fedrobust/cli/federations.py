"""The commands that run federations: `run`, `matrix`, `sweep`, `duel`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrobust.cli.application import app, stoppable
from fedrobust.errors import ExperimentError, FedRobustError
from fedrobust.screen import harmless

if TYPE_CHECKING:
    pass


File = Annotated[Path, typer.Argument(help="An experiment file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, e.g. seed=3 or aggregation.rule=krum.")
]


@app.command()
def run(
    file: File,
    overrides: Overrides = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with a run that stopped, by its id.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write run id and final metrics to this file.")
    ] = None,
) -> None:
    """Run an experiment: one federation, recorded in MLflow."""
    from fedrobust.experiment_file import load
    from fedrobust.terminal import Progress, console, show_code, show_result

    if json_out is not None:
        _refuse_unwritable(json_out, file)
    experiment = load(file, overrides or ())
    out = console()
    show_code(out)
    with stoppable(None), Progress(out, experiment) as progress:
        from fedrobust.runner import run as run_experiment

        hooks, say = [harmless(progress.on_record)], harmless(progress.say)
        result = run_experiment(experiment, resume=resume, hooks=hooks, say=say)
    unwritten = None if json_out is None else _unwritten(json_out, {"run_id": result.run_id, **result.final})
    harmless(lambda what: show_result(out, what, experiment))(result)
    if unwritten is not None:
        raise FedRobustError(f"{unwritten}; the same figures are in {result.folder / 'journal.jsonl'}")


def _unwritten(path: Path, figures: Mapping[str, object]) -> str | None:
    """Write figures as JSON; why that could not be done, if so."""
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
        typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, e.g. worst=2 or only.defences=[mean,median]."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small version of it, as its file says.")] = False,
    teams: Annotated[int | None, typer.Option(min=1, help="Cells at a time; by default as many as cores.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where cells and tables go.")] = None,
) -> None:
    """Run attacks × defences × settings × seeds, and tell what each defence is worth.

    Cells that are finished are not run again: a matrix that was stopped goes on when it is started again.
    """
    from fedrobust.matrix import load_matrix
    from fedrobust.terminal import MatrixProgress, console, show_code, show_findings

    grid = load_matrix(file, overrides or (), quick)
    screen = console()
    show_code(screen)
    with stoppable(), MatrixProgress(screen) as progress:
        from fedrobust.matrix.running import run_matrix

        findings = run_matrix(grid, progress, teams, out)
    show_findings(screen, findings)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, e.g. trials=8 or sampler.startup=4."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that stopped.")] = False,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="An Optuna storage, instead of mlruns/optuna.db.")
    ] = None,
    teams: Annotated[int | None, typer.Option(min=1, help="Runs at a time; by default as many as cores.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where tables and pictures go.")] = None,
) -> None:
    """Search the options of an experiment: for the best defence, or for the worst attack."""
    from fedrobust.terminal import SweepProgress, console, show_code, show_sweep
    from fedrobust.tuning import load_sweep

    plan = load_sweep(file, overrides or ())
    screen = console()
    show_code(screen)
    with stoppable(["--resume"]), SweepProgress(screen) as progress:
        from fedrobust.tuning.running import STORAGE, run_sweep

        findings = run_sweep(plan, progress, resume=resume, storage=storage or STORAGE, teams=teams, out=out)
    show_sweep(screen, findings)


@app.command()
def duel(
    file: Annotated[Path, typer.Argument(help="A duel file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, e.g. turns=1 or attacker.trials=8."),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="An Optuna storage, instead of mlruns/optuna.db.")
    ] = None,
    teams: Annotated[int | None, typer.Option(min=1, help="Runs at a time; by default as many as cores.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where sweeps, table and curve go.")] = None,
) -> None:
    """Search an attacker against each defence, tune the defence against what was found, and so on.

    What is finished is not run again: a duel that was stopped goes on when it is started again.
    """
    from fedrobust.duel import load_duel
    from fedrobust.terminal import DuelProgress, console, show_code, show_duel

    match = load_duel(file, overrides or ())
    screen = console()
    show_code(screen)
    with stoppable(), DuelProgress(screen) as progress:
        from fedrobust.duel.running import run_duel
        from fedrobust.tuning.running import STORAGE

        findings = run_duel(match, progress, storage=storage or STORAGE, teams=teams, out=out)
    show_duel(screen, findings)
