"""The lines of a journal arrive each once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tracked import exactly_once, journal, rows, status, sync, write

from fedrobust import tracking
from fedrobust.tracking import SYNCED, Tracker, feed


def test_more_metrics_than_one_request_may_hold(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MOST_CURVES", 400)
    records = journal(rounds=1, clients=400)
    tracker = Tracker.open("many", {}, {})
    for record in records:
        tracker.log(record)
    assert tracker.close()
    found = Counter((key, step) for key, step, _, _ in rows(database, tracker.run_id))
    assert len(found) == 3 * 400 + 10 and set(found.values()) == {1}


@pytest.mark.parametrize("sent", [0, 3, 6])
def test_a_resumed_run_goes_on_without_repeating_a_step(database: Path, sent: int) -> None:
    """Six lines were committed when the run was killed; `sent` of them had reached MLflow."""
    records = journal()
    first = Tracker.open("resumed", {}, {})
    for record in records[:sent]:
        first.log(record)
    assert first.close("KILLED")
    again = Tracker.resume(first.run_id, records[:6])
    for record in records[6:]:
        again.log(record)
    assert again.close() and again.run_id == first.run_id
    exactly_once(database, first.run_id, records)
    assert status(database, first.run_id) == "FINISHED"


def test_lines_run_again_after_a_crash_are_not_sent_twice(database: Path, tmp_path: Path) -> None:
    """`sync` sent a line that was never committed; the resumed run repeats it, a little slower."""
    records = journal()
    tracker = Tracker.open("crashed", {}, {})
    tracker.close("FAILED")
    write(tmp_path / tracker.run_id, records[:6])
    assert sync(tmp_path / tracker.run_id) == 6
    slower = [
        record.model_copy(update={"seconds": {"round": 9.0}}) if record.kind == "round" else record
        for record in records
    ]
    again = Tracker.resume(tracker.run_id, records[:4])
    for record in slower[4:]:
        again.log(record)
    assert again.close()
    assert set(Counter((key, step) for key, step, _, _ in rows(database, tracker.run_id)).values()) == {1}


def test_sync_leaves_a_torn_line_and_a_run_without_end_alone(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracker = Tracker.open("torn", {}, {})
    tracker.close("KILLED")
    folder = tmp_path / tracker.run_id
    write(folder, journal()[:4])
    with (folder / "journal.jsonl").open("a") as out:
        out.write('{"kind":"round","round":99')
    assert sync(folder) == 4
    run = MlflowClient(tracking.tracking_uri()).get_run(tracker.run_id)
    assert run.info.status == "KILLED" and run.data.tags[SYNCED] == "4"
