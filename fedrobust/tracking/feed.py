"""Sends the lines of a journal to MLflow, each once.

The time stamp of a metric is the run's start plus the durations of the rounds, so a journal line always produces the
same rows, and MLflow stores identical rows only once. The tag `fedrobust.synced` counts the lines that have arrived; it
is sent together with them. So a run that is resumed, or sent again after a failure of the server, shows no step twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedrobust.records import Record, RoundRecord, RunStart
from fedrobust.tracking.entries import FAILED, STOPPED, StepFigures, allowed, finite, metrics, shortened

SYNCED = "fedrobust.synced"
"""Tag with the number of journal lines that MLflow has."""
REASONS = {"FAILED": FAILED, "KILLED": STOPPED}
"""Final status → tag with the reason."""
MOST_CURVES = 100
"""With more hospitals than this, MLflow gets means over attackers and over honest hospitals instead of curves of each:
a thousand hospitals would have nine thousand curves. The journal has the figures of all."""
BATCH = 900
"""Metrics in one request; MLflow accepts at most 1,000 entries."""


class _Place(NamedTuple):
    """Where a journal has been read up to."""

    time: int
    """Time stamp of the next figures, in milliseconds."""
    width: int = 2
    """Digits of a client's id."""
    attackers: frozenset[int] | None = None
    """The malicious hospitals, if there are too many hospitals for a curve each."""

    def after(self, record: Record | StepFigures) -> _Place:
        """Return the place of the figures of the next record."""
        if isinstance(record, RunStart):
            crowd = frozenset(record.attackers) if record.clients > MOST_CURVES else None
            return self._replace(width=max(2, len(str(record.clients - 1))), attackers=crowd)
        if isinstance(record, RoundRecord):
            return self._replace(time=self.time + int(1000 * (record.seconds.get("round") or 0.0)))
        return self

    def rows(self, record: Record | StepFigures, hospitals: bool = True) -> dict[str, tuple[float, int, int]]:
        """Return the figures of the record of this place: name → value, time stamp, step."""
        step = record.step if isinstance(record, StepFigures) else getattr(record, "round", 0)
        found = metrics(record, self.width, hospitals, self.attackers if hospitals else None)
        return {name: (value, self.time, step) for name, value in found.items()}


class Feed:
    """Sends the journal of one run line by line, skipping the lines that MLflow already has."""

    def __init__(self, client: Any, run: Any) -> None:
        self.sent = int(run.data.tags.get(SYNCED, 0))
        self._client, self._run_id = client, run.info.run_id
        self._place, self._line = _Place(run.info.start_time), 0

    def send(self, record: Record | StepFigures) -> None:
        """Send the next line. After an error, call it again with the same line: the position advances only on
        success."""
        from mlflow.entities import Metric, RunTag

        place = self._place.after(record)
        if self._line >= self.sent:
            rows = [Metric(name, *row) for name, row in place.rows(record).items()]
            while len(rows) > BATCH:
                self._client.log_batch(self._run_id, metrics=rows[:BATCH])
                rows = rows[BATCH:]
            self._client.log_batch(self._run_id, metrics=rows, tags=[RunTag(SYNCED, str(self._line + 1))])
        self._place, self._line = place, self._line + 1


def send_last(client: Any, run_id: str, journal: Sequence[Record]) -> None:
    """Send the last value of each figure of a journal, except those of single hospitals.

    They are the rows that `Feed` would send, so that `sync` can complete the curves later.
    """
    from mlflow.entities import Metric

    place, found = _Place(client.get_run(run_id).info.start_time), dict[str, tuple[float, int, int]]()
    for record in journal:
        place = place.after(record)
        found |= place.rows(record, hospitals=False)
    client.log_batch(run_id, metrics=[Metric(name, *row) for name, row in found.items()][:BATCH])


def send_figures(client: Any, run_id: str, figures: Mapping[str, float], now: int) -> None:
    """Send figures that belong to no round; `now` is their time in milliseconds.

    client: an MLflow client.
    run_id: MLflow's id of the run.
    figures: name → value; values that are not finite are left out.
    """
    from mlflow.entities import Metric

    rows = [Metric(allowed(name), float(value), now, 0) for name, value in figures.items() if finite(value)]
    for start in range(0, len(rows), BATCH):
        client.log_batch(run_id, metrics=rows[start : start + BATCH])


def set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run, name → text; a tag with an empty text is not made, but an existing one is emptied.

    client: an MLflow client.
    run_id: MLflow's id of the run.
    """
    there = client.get_run(run_id).data.tags
    for name, text in tags.items():
        if text or name in there:
            client.set_tag(run_id, name, shortened(text))


def mark_failed(
    client: Any, experiment_id: str, reason: str, begun: Sequence[str], name: str, tags: Mapping[str, str]
) -> None:
    """Mark the runs `begun` as failed, with the reason; if there are none, mark a new run with this name and these
    tags.

    client: an MLflow client.
    experiment_id: of the MLflow experiment of a new run.
    """
    if not begun:
        own = {key: shortened(value) for key, value in tags.items()}
        begun = [client.create_run(experiment_id, run_name=name, tags=own).info.run_id]
    mark(client, begun, "FAILED", reason)


def mark(client: Any, runs: Sequence[str], status: str, reason: str) -> None:
    """Give the runs a final status, and the reason as the tag that belongs to it.

    client: an MLflow client.
    runs: MLflow's ids.
    status: `FAILED` or `KILLED`.
    """
    for run_id in runs:
        client.set_tag(run_id, REASONS[status], shortened(reason))
        client.set_terminated(run_id, status)
