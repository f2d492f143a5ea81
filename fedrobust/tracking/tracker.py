"""A run as MLflow sees it: begun, told of line by line while it goes on, and sent what it lacks afterwards."""

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
from fedrobust.tracking.artifacts import upload
from fedrobust.tracking.entries import LONGEST_NAME, StepFigures, shortened
from fedrobust.tracking.faults import fault, refuse_deleted
from fedrobust.tracking.feed import Feed, mark_failed, send_figures
from fedrobust.tracking.store import experiment_id, reaching, tracking_uri

logger = logging.getLogger(__name__)

PAUSES = (1.0, 4.0)
"""Seconds between the attempts to reach a server that does not answer."""
PARENT = "mlflow.parentRunId"
"""Tag: the run that a run is nested below."""


class Tracker:
    """Sends a run's records to MLflow from a thread of its own, and never makes the run wait or fail.

    `log` must be called once for every line of the journal, in the journal's order, after the line is committed.
    """

    def __init__(self, client: Any, run: Any, journal: Sequence[Record | StepFigures] = ()) -> None:
        self._uri = tracking_uri()
        self.run_id: str = run.info.run_id
        """MLflow's id of the run, and the name of the run's folder."""
        self.behind = False
        """The server went away: `sync` has to send the rest."""
        self._client, self._experiment_id = client, run.info.experiment_id
        self._feed = Feed(client, run)
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
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
        """Start a run in the MLflow experiment `experiment`; `params` as `flatten` makes them.

        `parent` is the id of a run of the same experiment that this one is nested below.

        Takes about three seconds the first time; safe to call from a thread beside other work. Raises `TrackingError`
        if the server or database cannot be used.
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
        """Go on with a run whose committed records are `journal`; those that MLflow lacks are sent first.

        Raises `TrackingError` as `open` does, and if the store does not know the run or has it as deleted.
        """
        with _known(run_id) as (client, run):
            client.update_run(run_id, status="RUNNING")
            return cls(client, run, journal)

    def log(self, record: Record | StepFigures) -> None:
        """Have a journal record sent; returns at once."""
        self._put(partial(self._feed.send, record))

    def figures(self, figures: Mapping[str, float], run_id: str | None = None) -> None:
        """Have figures that belong to no round sent, for this run or for one below it; returns at once."""
        self._put(partial(send_figures, self._client, run_id or self.run_id, dict(figures), int(1000 * time.time())))

    def failed(self, reason: str, begun: Sequence[str], name: str, tags: Mapping[str, str]) -> None:
        """Have the runs `begun` for a part of this one marked as failed, with the reason as the tag `failed`; where
        there are none, one of that name and these tags, so that the part is there; returns at once."""
        below = {**tags, PARENT: self.run_id}
        self._put(partial(mark_failed, self._client, self._experiment_id, reason, tuple(begun), name, below))

    def upload(self, folder: Path, again: bool = False, register: str | None = None) -> None:
        """Have the files of the run's folder that MLflow lacks uploaded, a `model/` as a model; returns at once.

        `again` uploads those that it has in the same size, too. `register`: the model's name in the registry, if any.
        """
        self._put(partial(upload, self._client, self.run_id, folder, again, register))

    def close(self, status: str = "FINISHED", timeout: float = 120.0) -> bool:
        """Send what is left, then set the run's final status; False if `sync` has to be called later."""
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
                job()
                return None
            except Exception as error:  # whatever MLflow, a database driver or the network raises must not stop a run
                if pause is None:
                    return error
                self._closing.wait(pause)
        raise AssertionError("unreachable")


def sync(folder: Path, recorded: RecordedRun) -> int:
    """Send MLflow what it lacks of the run in `folder`, whose name is the run's id; returns how many records.

    A run that has ended becomes FINISHED, or FAILED and its model is not
    registered where all rounds were skipped. Raises `TrackingError` as `Tracker.resume` does.
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


def end_children(run_id: str) -> int:
    """Mark the runs below a run as killed that are said to be running though their process has died; return how many.

    Raises `TrackingError` as `Tracker.resume` does.
    """
    with _known(run_id) as (client, run):
        experiment = run.info.experiment_id
        below = f"tags.`{PARENT}` = '{run_id}' and attributes.status = 'RUNNING'"
        ended = 0
        while found := client.search_runs([experiment], below, max_results=1000):
            for child in found:
                client.set_terminated(child.info.run_id, "KILLED")
            ended += len(found)
        return ended


@contextmanager
def _known(run_id: str) -> Iterator[tuple[Any, Any]]:
    """A client, and the run with this id, which has not been deleted; see `reaching`."""
    uri = tracking_uri()
    with reaching(uri, run_id) as client:
        run = client.get_run(run_id)
        refuse_deleted(client, run, uri)
        yield client, run
