"""The commands for jobs on a cluster: `submit`, `jobs`, `logs`, `stop`."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from fedrobust.cli.application import app
from fedrobust.errors import ExperimentError

if TYPE_CHECKING:
    from fedrobust.cluster import Cluster


Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The cluster's jobs server; or RAY_API_SERVER_ADDRESS, or this folder's local one."
    ),
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
    from fedrobust.databases import without_password

    tracking = variables.get("MLFLOW_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI", "")
    if tracking.startswith("http"):
        print(
            f"MLflow: {without_password(tracking).rstrip('/')}/#/experiments?workflowType=machine_learning", flush=True
        )
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
    """End a job as a Ctrl-C would: committed results are kept, and the job can be submitted again."""
    from fedrobust.cluster import find_cluster
    from fedrobust.cluster import stop as stop_job

    ended = stop_job(find_cluster(address), job)
    print(f"job {ended.id}: {ended.status}")


def _follow(cluster: Cluster, job: str) -> None:
    """Show a job's output, and exit with its exit code. A Ctrl-C ends only the output, not the job."""
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
        raise typer.Exit(code if code > 0 else 128 - code)  # ended by a signal: the code that shells use
