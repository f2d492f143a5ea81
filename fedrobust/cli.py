"""The command line. Imports what a command needs only when that command runs: `--help` answers at once."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrobust.errors import DataError, ExperimentError, FedRobustError
from fedrobust.private import private_files

if TYPE_CHECKING:
    from fedrobust.cluster import Cluster

app = typer.Typer(
    name="fedrobust",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a federation of hospitals, attack it, defend it, and record every round.",
)

INTERRUPTED = 130
"""The exit code after a Ctrl-C or a SIGTERM, as shells have it."""

File = Annotated[Path, typer.Argument(help="An experiment file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, e.g. seed=3 or aggregation.rule=krum.")
]


def main() -> None:
    """Entry point: errors meant for a person are printed as they are, without a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)  # what a batch system sends
    try:
        with private_files():  # whatever a command makes
            app()
    except FedRobustError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        if isinstance(error, DataError) and "FEDROBUST_JOB" in os.environ:
            node = f"the driver's node, {platform.node()}, is the one that reads the data"
            print(f"error: {node}: put it there, or submit with --env FEDROBUST_DATA=PATH", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer has caught the KeyboardInterrupt
            begun = "a matrix or duel goes on when it is started again, a sweep with --resume, a run with --resume RUN"
            print(f"stopped; {begun}", file=sys.stderr)
        raise


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


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
    from fedrobust.terminal import Progress, console, show_result

    if json_out is not None and (json_out.is_dir() or not json_out.parent.is_dir()):
        raise ExperimentError(f"--json {json_out}: must be a file in a folder that exists")
    sys.path.insert(0, str(file.resolve().parent))  # a user's classes may lie beside the file
    experiment = load(file, overrides or ())
    out = console()
    with Progress(out, experiment) as progress:
        from fedrobust.runner import run as run_experiment

        result = run_experiment(experiment, resume=resume, hooks=[progress.on_record], say=progress.say)
    show_result(out, result, experiment)
    if json_out is not None:
        json_out.write_text(json.dumps({"run_id": result.run_id, **result.final}, indent=2) + "\n", encoding="utf-8")


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
    from fedrobust.terminal import MatrixProgress, console, show_findings

    sys.path.insert(0, str(file.resolve().parent))
    grid = load_matrix(file, overrides or (), quick)
    screen = console()
    with MatrixProgress(screen) as progress:
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
    from fedrobust.terminal import SweepProgress, console, show_sweep
    from fedrobust.tuning import load_sweep

    sys.path.insert(0, str(file.resolve().parent))
    plan = load_sweep(file, overrides or ())
    screen = console()
    with SweepProgress(screen) as progress:
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
    from fedrobust.terminal import DuelProgress, console, show_duel

    sys.path.insert(0, str(file.resolve().parent))
    match = load_duel(file, overrides or ())
    screen = console()
    with DuelProgress(screen) as progress:
        from fedrobust.duel.running import run_duel
        from fedrobust.tuning.running import STORAGE

        findings = run_duel(match, progress, storage=storage or STORAGE, teams=teams, out=out)
    show_duel(screen, findings)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN... | EXPERIMENT...", help="Ids of runs, or names of experiments: all their runs."),
    ],
) -> None:
    """Compare runs: what differs, the final figures over the seeds, and a page with curves and reputations."""
    from fedrobust.report import write_comparison
    from fedrobust.runner import COMPARISONS, RUNS
    from fedrobust.terminal import console, show_comparison

    show_comparison(console(), *write_comparison(runs, RUNS, COMPARISONS))


@app.command()
def report(run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or the beginning of it.")]) -> None:
    """Write a run's report again, and say where it is."""
    from fedrobust.report import write_again
    from fedrobust.runner import KEY, find_run

    print(write_again(find_run(run), KEY))


@app.command()
def sync(run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or the beginning of it.")]) -> None:
    """Send to MLflow what a run recorded while the tracking server was away."""
    from fedrobust.federation.journal import read_journal
    from fedrobust.runner import find_run
    from fedrobust.tracking import sync as sync_run

    folder = find_run(run)
    count = sync_run(folder, read_journal(folder))
    print(f"{count} records sent" if count else "nothing to send: the tracking server has everything")


@app.command()
def audit(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, the beginning of it, or a folder.")],
    key: Annotated[
        Path | None, typer.Option(metavar="PUB", help="The coordinator's public key, as it was handed to you.")
    ] = None,
) -> None:
    """Check that a run's audit log is unbroken, and that everything in the run's folder is as it left it."""
    from fedrobust.federation.verification import verify_all
    from fedrobust.secure.audit import AuditError, read_public
    from fedrobust.terminal import console, show_verdict

    public = None if key is None else read_public(key)
    if Path(run).is_dir():
        verdict = verify_all(Path(run), public)
    else:
        from fedrobust.runner import find_run

        folder = find_run(run)
        verdict = verify_all(folder, public, folder.name)
    if verdict.broken:
        raise AuditError(f"{verdict.broken}; {verdict.lines} lines hold")
    show_verdict(console(), verdict, key)


@app.command()
def schema(
    matrix: Annotated[bool, typer.Option("--matrix", help="That of matrix files instead.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="That of sweep files instead.")] = False,
    duel: Annotated[bool, typer.Option("--duel", help="That of duel files instead.")] = False,
) -> None:
    """Print the JSON schema of experiment files, for editors."""
    from fedrobust.duel import Duel
    from fedrobust.experiment import Experiment
    from fedrobust.matrix import Matrix
    from fedrobust.tuning import Sweep

    model = Matrix if matrix else Sweep if sweep else Duel if duel else Experiment
    print(json.dumps(model.model_json_schema(), indent=2))


@app.command(name="list")
def list_options() -> None:
    """List every source, partition, model, attack, stage and rule, with one line about each."""
    from fedrobust.terminal import console, show_options

    show_options(console())


@app.command()
def doctor() -> None:
    """Say what this machine has: cores, GPUs, Ray, the MLflow store, data sets."""
    from fedrobust.terminal import console, show_machine

    show_machine(console())


Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The cluster's jobs server; or RAY_API_SERVER_ADDRESS, or that of make cluster."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or the beginning of it.")]


@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- run|matrix|sweep FILE ...", help="What is to be run.")],
    address: Address = None,
    follow: Annotated[bool, typer.Option(help="Show the job's output until it ends.")] = True,
    workplace: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Folder on the head node for mlruns/; or FEDROBUST_HOME there, ~/fedrobust."),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Set in the job's environment, e.g. FEDROBUST_DATA.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")] = False,
) -> None:
    """Run a command on a Ray cluster, with the files of the working folder."""
    from fedrobust.cluster import find_cluster, prepare
    from fedrobust.cluster import submit as submit_job

    if dry_run:
        print(*prepare(command).selection.listing(), sep="\n")
        return
    for each in env or ():
        if "=" not in each:
            raise ExperimentError(f"--env {each}: must be NAME=VALUE")
    variables = dict(each.split("=", 1) for each in env or ())
    cluster = find_cluster(address)
    tell = partial(print, file=sys.stderr, flush=True)
    job = submit_job(command, cluster, workplace=workplace, variables=variables, tell=tell)
    print(f"job {job} at {cluster.address}", flush=True)
    tracking = variables.get("MLFLOW_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI", "")
    if tracking.startswith("http"):
        print(f"MLflow: {tracking.rstrip('/')}/#/experiments?workflowType=machine_learning", flush=True)
    if follow:
        _follow(cluster, job)
    else:
        print(f"look at it with: fedrobust logs {job} --follow")


@app.command()
def jobs(address: Address = None) -> None:
    """List a cluster's jobs."""
    from fedrobust.cluster import find_cluster
    from fedrobust.cluster import jobs as list_jobs
    from fedrobust.terminal import console, show_jobs

    show_jobs(console(), list_jobs(find_cluster(address)))


@app.command()
def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends.")] = False,
    address: Address = None,
) -> None:
    """Show the output of a job."""
    from fedrobust.cluster import find_cluster
    from fedrobust.cluster import logs as read_logs

    cluster = find_cluster(address)
    if follow:
        _follow(cluster, job)
    else:
        print(*read_logs(cluster, job), sep="", end="")


@app.command()
def stop(job: JobId, address: Address = None) -> None:
    """End a job as a Ctrl-C would: what is committed stays, and it can be submitted again."""
    from fedrobust.cluster import find_cluster
    from fedrobust.cluster import stop as stop_job

    ended = stop_job(find_cluster(address), job)
    print(f"job {ended.id}: {ended.status}")


def _follow(cluster: Cluster, job: str) -> None:
    """Show a job's output; its end is ours. A Ctrl-C ends the showing, and not the job."""
    from fedrobust.cluster import find_job
    from fedrobust.cluster import logs as read_logs

    try:
        for piece in read_logs(cluster, job, follow=True):
            print(piece, end="", flush=True)
        ended = find_job(cluster, job)
    except KeyboardInterrupt:
        print(f"\njob {job} goes on; follow it with: fedrobust logs {job} --follow", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"job {ended.id}: {ended.status}" + (f": {ended.message}" if ended.exit_code is None else ""))
    if ended.status != "SUCCEEDED":
        code = ended.exit_code or 1
        raise typer.Exit(code if code > 0 else 128 - code)  # a signal, as shells have it


if __name__ == "__main__":
    main()
