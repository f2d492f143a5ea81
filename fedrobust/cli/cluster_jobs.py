"""The commands for jobs on a cluster: `submit`, `jobs`, `logs`, `stop`, `fetch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrobust.cli.application import app, checking
from fedrobust.errors import ExperimentError
from fedrobust.extras import missing
from fedrobust.texts import visible

if TYPE_CHECKING:
    from fedrobust.cluster import Cluster


Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The cluster's jobs server; or RAY_API_SERVER_ADDRESS, or this folder's local one."
    ),
]
JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's id, or its beginning, or the file's name: the newest such job.")
]


@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    command: Annotated[
        list[str], typer.Argument(metavar="-- run|matrix|sweep|duel FILE ...", help="What is to be run.")
    ],
    address: Address = None,
    follow: Annotated[bool, typer.Option(help="Show the job's output until it ends.")] = True,
    workplace: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Folder on the head node for mlruns/; or FEDROBUST_HOME there, ~/fedrobust."),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Set in the job's environment, e.g. FEDROBUST_DATA.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Check file and options here first; not if only the cluster has your classes.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")] = False,
) -> None:
    """Run a command on a Ray cluster, with the files of the working folder.

    The file and the options are checked here, before anything is sent.
    """
    from fedrobust.cluster import DRIVERS, find_cluster, prepare, runs_page, tracking_server
    from fedrobust.cluster import submit as submit_job

    for each in env or ():
        if "=" not in each:
            raise ExperimentError(f"--env {each}: must be NAME=VALUE")
    found = _checked(command) if check and command[0] in DRIVERS else []
    if dry_run:
        print(*prepare(command).selection.listing(), sep="\n")
        return
    variables = dict(each.split("=", 1) for each in env or ())
    cluster = find_cluster(address)
    job = submit_job(command, cluster, workplace=workplace, variables=variables, tell=_say)
    print(f"job {job} at {cluster.address}", flush=True)
    if server := tracking_server(cluster, variables):
        print(f"MLflow: {runs_page(server, *found)}", flush=True)
    if follow:
        _follow(cluster, job)
    else:
        print(f"look at it with: fedrobust logs {job} --follow")


def _checked(command: Sequence[str]) -> list[str]:
    """Make the checks with which a command begins; return the name of its runs' experiment in MLflow.

    Raises what the command would raise.
    """
    verb, found = typer.main.get_group(app).commands[command[0]], list[str]()
    before = checking.set(found)
    try:
        with verb.make_context(f"fedrobust {command[0]}", list(command[1:])) as context:
            verb.invoke(context)
    except ExperimentError as error:
        if any(missing("platform")):  # a class of the user's own may need it
            raise error.advising("without fedrobust[platform] here, --no-check leaves this to the cluster") from None
        raise
    finally:
        checking.reset(before)
    return found


@app.command()
def jobs(address: Address = None) -> None:
    """List a cluster's jobs."""
    from fedrobust.cluster import find_cluster
    from fedrobust.cluster import jobs as list_jobs
    from fedrobust.terminal import console, show_jobs

    show_jobs(console(), list_jobs(find_cluster(address)))


@app.command()
def logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends.")] = False,
    address: Address = None,
) -> None:
    """Show the output of a job."""
    from fedrobust.cluster import find_cluster
    from fedrobust.cluster import logs as read_logs

    cluster = find_cluster(address)
    chosen = _chosen(cluster, job)
    if follow:
        _follow(cluster, chosen)
    else:
        print(*read_logs(cluster, chosen), sep="", end="")


@app.command()
def stop(job: JobName, address: Address = None) -> None:
    """End a job as a Ctrl-C would: committed results are kept, and the job can be submitted again."""
    from fedrobust.cluster import find_cluster
    from fedrobust.cluster import stop as stop_job

    cluster = find_cluster(address)
    ended = stop_job(cluster, _chosen(cluster, job, running=True))
    print(f"job {ended.id}: {ended.status}")


@app.command()
def fetch(
    job: JobName,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the files go; by default mlruns/jobs/ID.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also checkpoints and models; never keys.")] = False,
    address: Address = None,
) -> None:
    """Bring the tables, pages and records of a job here; of a running job, what there is so far."""
    from fedrobust.cluster import fetch as fetch_results
    from fedrobust.cluster import find_cluster, written

    cluster = find_cluster(address)
    found, results = fetch_results(cluster, _chosen(cluster, job), everything)
    paths = written(results, to or Path("mlruns/jobs") / found.id, found.id)
    pages = [path for path in paths if path.suffix in (".md", ".html")] or paths[:1]
    print(*(visible(path) for path in pages), sep="\n")
    print(f"{len(paths)} files are in {visible(to or Path('mlruns/jobs') / found.id)}")
    if results.left:
        shown = ", ".join(results.left[:5]) + (", ..." if len(results.left) > 5 else "")
        print(f"{len(results.left)} stay there: {shown}" + ("" if everything else "; --all brings more"))
    if not found.over:
        print(f"job {found.id} is {found.status.lower()}: this is what there is so far, and tables come at its end")


def _chosen(cluster: Cluster, job: str, running: bool = False) -> str:
    """Return the id of the job that a user means by `job`, and say which one that is if `job` is not the id.

    running: prefer one that has not ended.
    """
    from fedrobust.cluster import find_job

    found = find_job(cluster, job, running)
    if found.id != job:
        _say(f"job {found.id}, begun {found.since}: {found.command}")
    return found.id


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    if ended.exit_code != 2:  # which has begun nothing
        print(f"bring its results here with: fedrobust fetch {ended.id}")
    if ended.status != "SUCCEEDED":
        code = ended.exit_code or 1
        raise typer.Exit(code if code > 0 else 128 - code)  # ended by a signal: the code that shells use
