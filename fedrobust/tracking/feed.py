"""Sends the lines of a journal to MLflow, each once.

The time stamp of a metric is the run's start plus the durations of the rounds, so a journal line always produces the
same rows, and MLflow stores identical rows only once. The tag `fedrobust.synced` counts the lines that have arrived; it
is sent together with them. So a run that is resumed, or sent again after a failure of the server, shows no step twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedrobust.records import Record, RoundRecord, RunStart
from fedrobust.tracking.entries import FAILED, StepFigures, allowed, finite, metrics, shortened

SYNCED = "fedrobust.synced"
"""Tag with the number of journal lines that MLflow has."""
BATCH = 900
"""Metrics in one request; MLflow accepts at most 1,000 entries."""


class Feed:
    """Sends the journal of one run line by line, skipping the lines that MLflow already has."""

    def __init__(self, client: Any, run: Any) -> None:
        self.sent = int(run.data.tags.get(SYNCED, 0))
        self._client, self._run_id = client, run.info.run_id
        self._time, self._line, self._width = run.info.start_time, 0, 2

    def send(self, record: Record | StepFigures) -> None:
        """Send the next line. After an error, call it again with the same line: the position advances only on
        success."""
        from mlflow.entities import Metric, RunTag

        width, time, step = self._width, self._time, 0
        if isinstance(record, RunStart):
            width = max(2, len(str(record.clients - 1)))
        elif isinstance(record, StepFigures):
            step = record.step
        else:
            step = record.round
        if isinstance(record, RoundRecord):
            time += int(1000 * (record.seconds.get("round") or 0.0))
        if self._line >= self.sent:
            rows = [Metric(name, value, time, step) for name, value in metrics(record, width).items()]
            while len(rows) > BATCH:
                self._client.log_batch(self._run_id, metrics=rows[:BATCH])
                rows = rows[BATCH:]
            self._client.log_batch(self._run_id, metrics=rows, tags=[RunTag(SYNCED, str(self._line + 1))])
        self._time, self._width, self._line = time, width, self._line + 1


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
    for run_id in begun:
        client.set_tag(run_id, FAILED, shortened(reason))
        client.set_terminated(run_id, "FAILED")
