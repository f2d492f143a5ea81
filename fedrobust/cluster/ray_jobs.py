"""Jobs through Ray's own client: submit, list, read, stop; every error is one line."""

from __future__ import annotations

import asyncio
import http.client
import re
import secrets
import shlex
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedrobust.cluster.address import Cluster, redirected
from fedrobust.cluster.output import JobProgress, progress, shown
from fedrobust.cluster.shipping import GRACE, entrypoint, environment, names_file, pack, prepare, script
from fedrobust.cluster.unpacking import JobFiles, parsed
from fedrobust.errors import ClusterError, Problem
from fedrobust.job import SHIPPED, TYPED
from fedrobust.texts import visible

ANSWER = 30.0
"""Seconds within which a cluster must answer."""
PATIENCE = 120.0
"""Seconds without a connection after which following a job is given up; and for packing its results."""
MOST = 50_000_000
"""Maximum number of bytes of a job's results that are fetched."""
COLLECT = Path(__file__).with_name("collect.py")
"""The file that packs results; it is sent."""
COLLECTING = re.compile(r"fetch-[0-9a-f]{16}")
"""The ids of jobs that pack results: a cluster may list them for some time after they were removed."""


@dataclass(frozen=True)
class Job:
    """A job as the cluster describes it."""

    id: str
    command: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    began: datetime | None
    ended: datetime | None
    exit_code: int | None
    message: str
    entrypoint: str = field(default="", repr=False)
    """The shell script that it runs."""
    progress: JobProgress | None = None
    """What it has told; `jobs` asks for it, and only of running jobs."""

    @property
    def own(self) -> bool:
        """Whether `submit` has sent it, and not another program."""
        return SHIPPED in self.entrypoint

    @property
    def over(self) -> bool:
        """Whether it has ended, successfully or not."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def since(self) -> str:
        """When it began, in the local time of this machine."""
        return f"{self.began.astimezone():%Y-%m-%d %H:%M}" if self.began else "–"

    @property
    def took(self) -> str:
        """How long it has been running, or ran: hours, minutes, seconds."""
        return str((self.ended or datetime.now(UTC)) - self.began).partition(".")[0] if self.began else "–"

    def runs_file(self, name: str) -> bool:
        """Return whether `name` is that of its file, with or without the folder, the ending, and the command in front
        (`matrix-mine`)."""
        stem = _plain(Path(name).stem if names_file(name) else name)
        return bool(stem) and re.fullmatch(rf"([a-z]+-)?{re.escape(stem)}-[0-9a-f]{{6}}", self.id) is not None


def submit(
    command: Sequence[str],
    cluster: Cluster,
    folder: Path | None = None,
    workplace: str | None = None,
    variables: Mapping[str, str] | None = None,
    tell: Callable[[str], object] | None = None,
) -> str:
    """Ship `folder`, and run `fedrobust COMMAND` on the cluster. Return the job's id.

    command: the command, without `fedrobust`, and its arguments.
    cluster: the cluster, see `find_cluster`.
    folder: the working folder, by default the current one.
    workplace: the folder on the head node that the job works in.
    variables: added to the environment of the job and its actors, besides those of `PASSED_ON`.
    tell: called beforehand with lines that say what is sent, what stays, where it goes and with which token.

    Raises `ClusterError`; then nothing has been submitted.
    """
    shipment = prepare(command, folder)
    typed, command = shlex.join(command), shipment.command
    for line in (*shipment.selection.summary(), f"goes to {cluster.description}"):
        if tell is not None:
            tell(line)
    stem = Path(next(word for word in command if names_file(word))).stem
    job = f"{command[0]}-{_plain(stem)}-{secrets.token_hex(3)}"
    told = environment({TYPED: shipment.typed, **(variables or {})})
    with tempfile.TemporaryDirectory() as temporary, _reaching(cluster) as client:
        package = Path(temporary) / "working_dir.zip"
        pack(shipment.selection.files, package)
        client.submit_job(
            entrypoint=entrypoint(command, workplace),
            submission_id=job,
            runtime_env={"working_dir": str(package), "env_vars": told},
            metadata={"command": typed},
        )
    return job


def jobs(cluster: Cluster) -> list[Job]:
    """Return all jobs of the cluster, the latest last; running ones with their progress. Raises `ClusterError`."""
    with _reaching(cluster) as client:
        return [
            replace(each, progress=_progress(client, each)) if each.own and not each.over else each
            for each in _jobs(client)
            if not COLLECTING.fullmatch(each.id)
        ]


def find_job(cluster: Cluster, job: str, running: bool = False) -> Job:
    """Return the job with the id `job`; or else the newest job of a file that is called `job`; or else the newest one
    whose id begins with `job`.

    running: prefer the newest one that has not ended, if there is one.

    Raises `ClusterError`.
    """
    with _reaching(cluster) as client:
        return _find(client, job, running)


def logs(cluster: Cluster, job: str, follow: bool = False) -> Iterator[str]:
    """Yield the output of a job in pieces; with `follow` until it ends, also after lost connections. Ray's line with
    the shell script of the job, and the lines that tell its progress, are left out.

    Raises `ClusterError`, also if a cluster does not come back while its job is followed.
    """
    with _reaching(cluster) as client:
        found = _find(client, job)
        going_on = follow and not found.over
        pieces = _followed(client, found.id, cluster) if going_on else [str(client.get_job_logs(found.id))]
        yield from shown(pieces, f"Running entrypoint for job {found.id}: {found.entrypoint}\n")


def stop(cluster: Cluster, job: str) -> Job:
    """End a job as a Ctrl-C would, and wait until it has ended. Raises `ClusterError` if it had already ended."""
    with _reaching(cluster) as client:
        found = _find(client, job, running=True)
        if found.over:
            raise ClusterError(f"job {found.id} has ended before: {found.status}")
        client.stop_job(found.id)
        until = time.monotonic() + GRACE + 30
        while not (found := _find(client, found.id)).over:
            if time.monotonic() > until:
                raise ClusterError(f"job {found.id} is {found.status} still; look at: fedrobust logs {found.id}")
            time.sleep(0.5)
    return found


def fetch(cluster: Cluster, job: str, everything: bool = False) -> tuple[Job, JobFiles]:
    """Return a job, and the files of its results: tables, pages, pictures and records, never keys.

    A short job of its own packs them on the head node and prints them, because a jobs server sends no files; it is
    removed from the list of jobs at the end.

    job: as in `find_job`.
    everything: also files of other kinds, such as checkpoints and models.

    Raises `ClusterError` if the job has not told where its results are, if they are gone, or more than `MOST` bytes.
    """
    with _reaching(cluster) as client:
        found = _find(client, job)
        told = progress(str(client.get_job_logs(found.id)))
        if not told.folder:
            raise ClusterError(f"job {found.id} has not told where its results are: it has begun no run yet, or none")
        words = [told.folder, told.parent, str(MOST), "all" if everything else ""]
        collecting = f"fetch-{secrets.token_hex(8)}"
        with tempfile.TemporaryDirectory() as temporary:
            package = Path(temporary) / "working_dir.zip"
            pack({COLLECT.name: COLLECT.read_bytes()}, package)
            client.submit_job(
                entrypoint=script(python=f'-I -S "${SHIPPED}"/{COLLECT.name} {shlex.join(words)}'),
                submission_id=collecting,
                runtime_env={"working_dir": str(package)},
                metadata={"command": f"fetch {found.id}"},
            )
        try:
            until = time.monotonic() + PATIENCE
            while not _find(client, collecting).over:
                if time.monotonic() > until:
                    raise ClusterError(f"the results of job {found.id} have not been packed within {PATIENCE:g} s")
                time.sleep(0.3)
            return found, parsed(str(client.get_job_logs(collecting)), MOST)
        finally:
            with suppress(RuntimeError, OSError, ClusterError):  # what went wrong before is what counts
                if not _find(client, collecting).over:
                    client.stop_job(collecting)
                client.delete_job(collecting)


def _jobs(client: Any) -> list[Job]:
    told = [each for each in client.list_jobs() if each.submission_id]
    found = [
        Job(
            each.submission_id,
            visible((each.metadata or {}).get("command") or _first_line(each.entrypoint)),  # of another program
            each.status.value,
            _moment(each.start_time),
            _moment(each.end_time),
            each.driver_exit_code,
            visible(each.message or ""),
            each.entrypoint,
        )
        for each in told
    ]
    return sorted(found, key=lambda job: job.began or datetime.now(UTC))


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _plain(name: str) -> str:
    """Return a name as it is part of an id."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _find(client: Any, job: str, running: bool = False) -> Job:
    found = _jobs(client)
    meanings = [
        [each for each in found if each.id == job],
        [each for each in found if each.runs_file(job)],
        [each for each in found if job and each.id.startswith(job) and not COLLECTING.fullmatch(each.id)],
    ]
    fitting = next(filter(None, meanings), [])
    if not fitting:
        raise ClusterError(Problem("no job is called this", "", f"'{job}'", tuple(each.id for each in found[-5:])))
    return ([each for each in fitting if running and not each.over] or fitting)[-1]


def _progress(client: Any, job: Job) -> JobProgress:
    try:
        return progress(str(client.get_job_logs(job.id)))
    except RuntimeError:  # e.g. its node does not answer; the others can still be listed
        return JobProgress()


def _followed(client: Any, job: str, cluster: Cluster) -> Iterator[str]:
    """Yield pieces of a log as they are written. After a lost connection the log starts again: known pieces are
    skipped."""
    import aiohttp

    seen, heard = 0, time.monotonic()
    with asyncio.Runner() as runner:
        while True:
            passed, pieces = 0, client.tail_job_logs(job)
            try:
                while piece := runner.run(_next(pieces)):
                    new = piece[max(0, seen - passed) :]
                    passed += len(piece)
                    seen, heard = max(seen, passed), time.monotonic()
                    if new:
                        yield new
                if _find(client, job).over:
                    return
                heard = time.monotonic()
            except (OSError, RuntimeError, aiohttp.ClientError) as error:  # errors of the server, or of the network
                if time.monotonic() - heard > PATIENCE:
                    raise ClusterError(
                        f"the cluster at {cluster.address} does not answer any more ({_first_line(error)}); "
                        f"go on with: fedrobust logs {job} --follow"
                    ) from error
            finally:
                with suppress(RuntimeError):  # a signal has interrupted it; the runner ends that
                    runner.run(pieces.aclose())
            time.sleep(1)


async def _next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)


@contextmanager
def _reaching(cluster: Cluster) -> Iterator[Any]:
    """Yield a client of the cluster's jobs server; any error in the block becomes a `ClusterError` of one line."""
    _knock(cluster)
    from ray.exceptions import RayError

    try:
        yield _client(cluster)
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, RayError) as error:  # or no Ray answers
        raise ClusterError(f"the cluster at {cluster.address}: {_first_line(error)}") from error


def _client(cluster: Cluster) -> Any:
    from fedrobust.cluster.client import Client

    return Client(cluster)


def _knock(cluster: Cluster) -> None:
    """Request the list of jobs before importing Ray, which takes seconds."""
    request = urllib.request.Request(f"{cluster.address}/api/jobs/", headers=cluster.headers)
    direct = [urllib.request.ProxyHandler({})] if cluster.loopback else []
    try:
        with urllib.request.build_opener(_NoRedirect, *direct).open(request, timeout=ANSWER):
            return
    except urllib.error.HTTPError as error:
        if 300 <= error.code < 400:
            raise ClusterError(redirected(cluster, error.headers.get("Location"))) from None
        raise ClusterError(_refused(cluster, error.code)) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ClusterError(f"no cluster answers at {cluster.address}: {_first_line(reason)}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an answer: by default, urllib would send the token to any host that a redirect names."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _refused(cluster: Cluster, code: int) -> str:
    where = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    if code == 401:
        return f"the cluster at {cluster.address} wants a token, and none was found in {where}"
    if code == 403:
        return f"the cluster at {cluster.address} does not accept the token from {cluster.origin or where}"
    return f"{cluster.address} answers with HTTP {code} where a Ray cluster lists its jobs"


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return visible(lines[0]) if lines else type(error).__name__
