"""A run arrives in MLflow, and a server that dies costs nothing."""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tracked import ROUNDS, exactly_once, journal, reasons, rows, status, sync, write

from fedrobust import tracking
from fedrobust.errors import TrackingError
from fedrobust.records import read_run
from fedrobust.tracking import SYNCED, StepFigures, Tracker, flatten


class Failing:
    """An MLflow client that fails in its `at`-th call, when the server has stored nothing, half, or all of it."""

    def __init__(self, client: Any, at: int, stored: str, once: bool = False) -> None:
        self._client, self._at, self._stored, self._once, self._calls = client, at, stored, once, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **options: Any) -> Any:
            self._calls += 1
            if self._calls < self._at or (self._once and self._calls > self._at):
                return method(*args, **options)
            if self._calls == self._at and self._stored == "all":
                method(*args, **options)
            elif self._calls == self._at and self._stored == "half" and name == "log_batch":
                method(*args, metrics=options["metrics"])  # the server stores tags after metrics
            raise ConnectionError("gone")

        return call


def break_client(monkeypatch: pytest.MonkeyPatch, at: int, stored: str, once: bool = False) -> None:
    """Let the client that a `Tracker` gets from now on fail; the start of the run itself still works."""
    init = Tracker.__init__

    def broken(self: Tracker, client: Any, run: Any, records: Any = ()) -> None:
        init(self, Failing(client, at, stored, once), run, records)

    monkeypatch.setattr(Tracker, "__init__", broken)


def test_a_run_arrives_whole(database: Path) -> None:
    params = {f"option.{i}": "v" * 900 for i in range(230)}
    tracker = Tracker.open("whole", params, {"attack": "sign_flip", "long": "x" * 9000}, "a run")
    records = journal()
    for record in records:
        tracker.log(record)
    assert tracker.close()
    exactly_once(database, tracker.run_id, records)
    from mlflow import MlflowClient

    client = MlflowClient(tracking.tracking_uri())
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "a run"
    assert run.data.params.keys() == params.keys()
    assert run.data.tags["attack"] == "sign_flip" and run.data.tags[SYNCED] == str(len(records))
    assert client.get_experiment_by_name("whole").artifact_location == (database.parent / "artifacts").as_uri()
    assert run.data.metrics["test/accuracy"] == ROUNDS / 10  # the `end` record repeats it and must not be sent
    times = [time for key, _, _, time in rows(database, tracker.run_id) if key == "train/loss"]
    assert times == [run.info.start_time + 750 * number for number in range(1, ROUNDS + 1)]


def test_a_run_without_a_round_that_was_made_has_failed_when_it_is_sent_later(database: Path, tmp_path: Path) -> None:
    records = journal()
    for made in (True, False):
        tracker = Tracker.open("untrained", {}, {})
        tracker.close("KILLED")
        if not made:
            skipped = {"skipped": "below the quorum"}
            records = [each.model_copy(update=skipped) if each.kind == "round" else each for each in records]
        folder = tmp_path / tracker.run_id
        write(folder, records)
        sync(folder)
        assert status(database, tracker.run_id) == ("FINISHED" if made else "FAILED")


@pytest.mark.parametrize("stored", ["nothing", "half", "all"])
@pytest.mark.parametrize("at", [1, 2, 4, 7, 10])
def test_a_server_that_dies_costs_nothing(
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at: int,
    stored: str,
) -> None:
    records = journal()
    with monkeypatch.context() as patch:
        break_client(patch, at, stored)
        tracker = Tracker.open("dies", {}, {})
        for record in records:
            tracker.log(record)  # neither waits nor fails
        assert not tracker.close()
    assert tracker.behind
    assert [record.levelname for record in caplog.records if record.name == "fedrobust.tracking.tracker"] == ["WARNING"]
    assert f"fedrobust sync {tracker.run_id}" in caplog.text
    folder = tmp_path / tracker.run_id
    write(folder, records)
    assert sync(folder) == len(records) - (at if stored == "all" else at - 1)
    exactly_once(database, tracker.run_id, records)
    assert status(database, tracker.run_id) == "FINISHED"
    before = rows(database, tracker.run_id)
    assert sync(folder) == 0 and rows(database, tracker.run_id) == before


@pytest.mark.parametrize("stored", ["nothing", "half", "all"])
def test_a_request_that_fails_once_is_sent_again(
    database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stored: str
) -> None:
    records = journal()
    break_client(monkeypatch, 3, stored, once=True)
    tracker = Tracker.open("hiccup", {}, {})
    for record in records:
        tracker.log(record)
    assert tracker.close() and not caplog.records
    exactly_once(database, tracker.run_id, records)


def test_a_run_below_another_and_figures_of_no_round(tmp_path: Path, database: Path) -> None:
    import mlflow

    parent = Tracker.open("nested", {}, {})
    child = Tracker.open("nested", {}, {"attack": "ipm"}, parent=parent.run_id)
    assert child.close()
    parent.figures({"headline": 0.5, "unknown": math.nan, "never": math.inf})
    parent.figures({"cell/auroc": 0.75}, child.run_id)
    folder = tmp_path / "tables"
    folder.mkdir()
    for text in ("0.90", "0.80"):  # of the same size
        (folder / "table.md").write_text(text)
        parent.upload(folder, again=True)
    assert parent.close()
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert [row[:3] for row in rows(database, parent.run_id)] == [("headline", 0, 0.5)]
    assert [row[:3] for row in rows(database, child.run_id)] == [("cell/auroc", 0, 0.75)]
    assert Path(client.download_artifacts(parent.run_id, "table.md")).read_text() == "0.80"


def test_parts_that_failed_say_why(database: Path) -> None:
    """A run that was begun for a part, and a part for which none was."""
    import mlflow

    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    parent = Tracker.open("failures", {}, {})
    begun = Tracker.open("failures", {}, {"trial": "1"}, "trial 1", parent.run_id)
    begun.close("FINISHED")
    parent.failed("round 1: no update arrived", [begun.run_id], "trial 1", {"trial": "1"})
    parent.failed("data: " + "x" * 6000, [], "trial 2", {"trial": "2"})
    assert parent.close()
    (experiment,) = [each for each in client.search_experiments() if each.name == "failures"]
    found = {run.data.tags.get("trial"): run for run in client.search_runs([experiment.experiment_id])}
    assert set(found) == {None, "1", "2"}
    assert found["1"].info.run_id == begun.run_id
    for trial, why in (("1", "round 1: no update arrived"), ("2", "data: xxx")):
        assert found[trial].info.status == "FAILED"
        assert found[trial].data.tags["failed"].startswith(why)
        assert found[trial].data.tags["mlflow.parentRunId"] == parent.run_id
        assert found[trial].info.run_name == f"trial {trial}"


def test_runs_below_one_whose_process_died_are_ended(database: Path) -> None:
    parent, other = (Tracker.open("ended", {}, {}, name) for name in ("sweep", "other sweep"))
    done, dead, foreign = (Tracker.open("ended", {}, {}, "trial", each.run_id) for each in (parent, parent, other))
    done.close()
    assert tracking.end_children(parent.run_id) == 1
    states = [status(database, each.run_id) for each in (parent, done, dead, other, foreign)]
    assert states == ["RUNNING", "FINISHED", "KILLED", "RUNNING", "RUNNING"]
    assert reasons(database, dead.run_id) == {"stopped": "the process that made it has died"}
    assert reasons(database, done.run_id) == {}
    assert tracking.end_children(parent.run_id) == 0
    with pytest.raises(TrackingError):
        tracking.end_children("unknown")
    for each in (dead, foreign, other, parent):
        each.close()


@pytest.mark.parametrize(("status_", "tag"), [("KILLED", "stopped"), ("FAILED", "failed")])
def test_a_run_that_is_closed_says_why_until_it_goes_on(database: Path, status_: str, tag: str) -> None:
    tracker = Tracker.open("closed", {}, {})
    assert tracker.close(status_, reason="the oracle is at chance")
    assert (status(database, tracker.run_id), reasons(database, tracker.run_id)) == (
        status_,
        {tag: "the oracle is at chance"},
    )
    again = Tracker.resume(tracker.run_id, [])
    assert reasons(database, tracker.run_id) == {}
    assert again.close()
    assert status(database, tracker.run_id) == "FINISHED"


def test_parts_that_were_stopped_are_killed_and_not_failed(database: Path) -> None:
    parent = Tracker.open("stops", {}, {})
    part = Tracker.open("stops", {}, {}, "trial 1", parent.run_id)
    part.close("KILLED")
    parent.stopped("trial 1 was pruned", [part.run_id])
    assert parent.close()
    assert status(database, part.run_id) == "KILLED"
    assert reasons(database, part.run_id) == {"stopped": "trial 1 was pruned"}


def test_the_last_figures_of_a_part_are_rows_of_its_curves(tmp_path: Path, database: Path) -> None:
    """Under the names of every run; completed later, they are the same as if the curves had been sent."""
    parent, whole = Tracker.open("parts", {}, {}), Tracker.open("parts", {}, {})
    part = Tracker.open("parts", {}, {}, "cell", parent.run_id)
    for record in (records := journal()):
        whole.log(record)
    assert part.close() and whole.close()
    parent.last(records, part.run_id)
    assert parent.close()
    found = {name: (step, value) for name, step, value, _ in rows(database, part.run_id)}
    assert found["test/accuracy"] == (4, 0.4) and found["round/seconds"] == (4, 0.75)
    assert found["train/loss"][1] == 0.25 and found["defense/precision"] == (4, 1.0)
    assert not [name for name in found if re.search(r"/\d\d$", name)], "no figures of single hospitals"
    curves = {(name, step, value) for name, step, value, _ in rows(database, whole.run_id)}
    assert {(name, *each) for name, each in found.items()} <= curves
    write(tmp_path / part.run_id, records)
    sync(tmp_path / part.run_id)
    exactly_once(database, part.run_id, records)


def test_names_that_mlflow_does_not_take_are_written_otherwise(database: Path) -> None:
    tracker = Tracker.open("names", flatten({"defences": {"nnm + median": 3, "a/b c-d.e:f_g": 1}}), {})
    tracker.log(StepFigures(2, {"worst/nnm + median": 0.5}))
    tracker.figures({"fresh/a@b": 0.25})
    assert tracker.close()
    assert {(name, value) for name, _, value, _ in rows(database, tracker.run_id)} == {
        ("worst/nnm _ median", 0.5),
        ("fresh/a_b", 0.25),
    }
    from mlflow import MlflowClient

    params = MlflowClient(tracking.tracking_uri()).get_run(tracker.run_id).data.params
    assert params == {"defences.nnm _ median": "3", "defences.a/b c-d.e:f_g": "1"}


def test_a_long_name_of_a_run_is_cut_to_what_every_database_takes(database: Path) -> None:
    tracker = Tracker.open("names", {}, {}, "良 " + "x" * 300)
    assert tracker.close()
    from mlflow import MlflowClient

    name = MlflowClient(tracking.tracking_uri()).get_run(tracker.run_id).info.run_name
    assert name.startswith("良 x") and name.endswith("…") and len(name) == 250


def test_mlflow_itself_is_left_as_it_was() -> None:
    import mlflow

    before = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    tracker = Tracker.open("quiet", {}, {})
    assert mlflow.active_run() is None
    tracker.close()
    assert (mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before


def test_the_module_is_imported_without_mlflow() -> None:
    import subprocess
    import sys

    code = "import sys, fedrobust.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_from_before_records_had_a_format_is_synchronised(database: Path, tmp_path: Path) -> None:
    (recorded,) = (Path(__file__).parent.parent / "recorded" / "runs").iterdir()
    tracker = Tracker.open("old", {}, {}, "a run of an older version")
    folder = Path(shutil.copytree(recorded, tmp_path / "runs" / tracker.run_id))
    assert sync(folder) == len(read_run(recorded).records) == 12
    assert sync(folder) == 0
    exactly_once(database, tracker.run_id, list(read_run(recorded).records))
    figures = {(key, step): value for key, step, value, _ in rows(database, tracker.run_id)}
    assert figures["test/balanced_accuracy", 5] == 1.0
    assert status(database, tracker.run_id) == "FINISHED"
