"""A run in MLflow: started, updated line by line while it goes on, and completed afterwards if lines are missing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fedrobust.records import Record, RecordedRun
from fedrobust.timeline import Recording, recording, step
from fedrobust.tracking.artifacts import upload
from fedrobust.tracking.entries import LONGEST_NAME, StepFigures, shortened
from fedrobust.tracking.faults import fault, refuse_deleted
from fedrobust.tracking.feed import REASONS, Feed, mark, mark_failed, send_figures, send_last, set_tags
from fedrobust.tracking.store import experiment_id, reaching, tracking_uri

logger = logging.getLogger(__name__)

PAUSES = (1.0, 4.0)
"""Seconds between the attempts to reach a server that does not answer."""
DIED = "the process that made it has died"
"""Reason of the end of a run that nobody has ended."""
PARENT = "mlflow.parentRunId"
"""Tag with the id of the parent run."""


class Tracker:
    """Sends a run's records to MLflow from its own thread, and never makes the run wait or fail.

    `log` must be called once for every line of the journal, in the journal's order, after the line is committed.
    """

    def __init__(self, client: Any, run: Any, journal: Sequence[Record | StepFigures] = ()) -> None:
        self._uri = tracking_uri()
        self.run_id: str = run.info.run_id
        """MLflow's id of the run, and the name of the run's folder."""
        self.behind = False
        """Whether the server became unreachable: `sync` has to send the rest."""
        self._client, self._experiment_id = client, run.info.experiment_id
        self._feed = Feed(client, run)
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.recording: Recording | None = None
        """Gets what the thread that sends does, from when it is set."""
        self._closing = threading.Event()
        for record in journal:
            self.log(record)
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        experiment: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        run_name: str | None = None,
        parent: str | None = None,
    ) -> Tracker:
        """Start a run in the MLflow experiment `experiment`.

        params: as `flatten` returns them.
        tags: name → text.
        run_name: name of the run; by default MLflow chooses one.
        parent: id of a run of the same experiment that contains this one.

        Takes about three seconds the first time; safe to call from a background thread. Raises `TrackingError` if the
        server or database cannot be used.
        """
        uri = tracking_uri()
        with reaching(uri) as client:
            from mlflow.entities import Param

            own = {key: shortened(value) for key, value in tags.items()}
            own_name = None if run_name is None else shortened(run_name, LONGEST_NAME)
            if parent is not None:
                own[PARENT] = parent
            run = client.create_run(experiment_id(client, experiment, uri), run_name=own_name, tags=own)
            entries = [Param(key, shortened(value)) for key, value in params.items()]
            for start in range(0, len(entries), 100):
                client.log_batch(run.info.run_id, params=entries[start : start + 100])
            return cls(client, run)

    @classmethod
    def resume(cls, run_id: str, journal: Sequence[Record | StepFigures]) -> Tracker:
        """Continue the run `run_id`; the records of its `journal` that MLflow lacks are sent first.

        Raises `TrackingError` as `open` does, and if the store does not have the run or has it as deleted.
        """
        with _known(run_id) as (client, run):
            for tag in run.data.tags.keys() & set(REASONS.values()):  # it goes on
                client.delete_tag(run_id, tag)
            client.update_run(run_id, status="RUNNING")
            return cls(client, run, journal)

    def log(self, record: Record | StepFigures) -> None:
        """Queue a journal record for sending; returns at once."""
        self._put(partial(self._feed.send, record))

    def figures(self, figures: Mapping[str, float], run_id: str | None = None) -> None:
        """Queue figures that belong to no round, for this run or for the child `run_id`; returns at once."""
        self._put(partial(send_figures, self._client, run_id or self.run_id, dict(figures), int(1000 * time.time())))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Queue tags of this run, name → text; an empty text replaces that of an earlier execution. Returns at once."""
        self._put(partial(set_tags, self._client, self.run_id, dict(tags)))

    def last(self, journal: Sequence[Record], run_id: str) -> None:
        """Queue the last value of each figure of a journal, for the child `run_id`, whose curves are not sent; returns
        at once."""
        self._put(partial(send_last, self._client, run_id, tuple(journal)))

    def stopped(self, reason: str, begun: Sequence[str]) -> None:
        """Queue the end of parts of this run that nothing was wrong with: the runs `begun` get the status killed and
        the reason as the tag `stopped`. Returns at once."""
        self._put(partial(mark, self._client, tuple(begun), "KILLED", reason))

    def failed(self, reason: str, begun: Sequence[str], name: str, tags: Mapping[str, str]) -> None:
        """Queue a failure: the runs `begun` for a part of this one get the status failed and the reason as the tag
        `failed`.

        If there are none, a run with this name and these tags is made, so that the part is visible. Returns at once.
        """
        below = {**tags, PARENT: self.run_id}
        self._put(partial(mark_failed, self._client, self._experiment_id, reason, tuple(begun), name, below))

    def upload(self, folder: Path, again: bool = False, register: str | None = None) -> None:
        """Queue the upload of the files in the run's folder that MLflow lacks, and of `model/` as a model; returns at
        once.

        again: also upload files that MLflow has in the same size.
        register: the model's name in the registry, if any.
        """
        self._put(partial(upload, self._client, self.run_id, folder, again, register))

    def close(self, status: str = "FINISHED", timeout: float = 120.0, reason: str = "") -> bool:
        """Send the remaining lines, then set the run's final status.

        status: as MLflow names it.
        timeout: seconds to wait.
        reason: why the run failed or was killed, for the tag `failed` or `stopped`.

        Returns False if `sync` has to be called later.
        """
        if reason and status in REASONS:
            self._put(partial(mark, self._client, (self.run_id,), status, reason))
        else:
            self._put(partial(self._client.set_terminated, self.run_id, status))
        self._jobs.put(None)
        self._closing.set()
        self._thread.join(timeout)
        self.behind |= self._thread.is_alive()
        return not self.behind

    def _put(self, job: Callable[[], object]) -> None:
        if not self.behind:
            self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            error = self._attempt(job)
            if error is not None:
                self.behind = True
                told = fault(error, self._uri, self.run_id)
                logger.warning("the run goes on without MLflow: %s; after that: fedrobust sync %s", told, self.run_id)
                return

    def _attempt(self, job: Callable[[], object]) -> Exception | None:
        for pause in (*PAUSES, None):
            try:
                with recording(self.recording), step("send"):
                    job()
                return None
            except Exception as error:  # errors of MLflow, a driver or the network must not stop a run
                if pause is None:
                    return error
                self._closing.wait(pause)
        raise AssertionError("unreachable")


def sync(folder: Path, recorded: RecordedRun) -> int:
    """Send MLflow the missing records of the run in `folder`, whose name is the run's id; return how many.

    recorded: the records of the run.

    A run that has ended gets the status FINISHED; if all rounds were skipped, it gets FAILED and its model is not
    registered. Raises `TrackingError` as `Tracker.resume` does.
    """
    run_id = folder.name
    with _known(run_id) as (client, run):
        feed = Feed(client, run)
        missing = max(0, len(recorded.records) - feed.sent)
        for record in recorded.records:
            feed.send(record)
        untrained = recorded.skips.untrained
        register = None if untrained else recorded.start.options.tracking.registered
        upload(client, run_id, folder, register=register)
        status = "FAILED" if untrained else "FINISHED"
        if recorded.end is not None and run.info.status != status:
            client.set_terminated(run_id, status)
        return missing


def experiment_of(run_id: str) -> str:
    """Return the name of the MLflow experiment of a run. Raises `TrackingError` as `Tracker.resume` does."""
    with _known(run_id) as (client, run):
        return str(client.get_experiment(run.info.experiment_id).name)


def end_children(run_id: str) -> int:
    """Mark child runs as killed if their status is running but their process has died; return how many.

    Raises `TrackingError` as `Tracker.resume` does.
    """
    with _known(run_id) as (client, run):
        experiment = run.info.experiment_id
        below = f"tags.`{PARENT}` = '{run_id}' and attributes.status = 'RUNNING'"
        ended = 0
        while found := client.search_runs([experiment], below, max_results=1000):
            for child in found:
                mark(client, [child.info.run_id], "KILLED", DIED)
            ended += len(found)
        return ended


@contextmanager
def _known(run_id: str) -> Iterator[tuple[Any, Any]]:
    """Yield a client, and the run with this id, which has not been deleted; see `reaching`."""
    uri = tracking_uri()
    with reaching(uri, run_id) as client:
        run = client.get_run(run_id)
        refuse_deleted(client, run, uri)
        yield client, run
