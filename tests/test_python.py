"""FedRobust from Python, with real Ray and MLflow: sessions, hooks, stops, results as tables."""

from __future__ import annotations

import rlcompleter
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from refused import refused
from tiny import write_files

import fedrobust
import fedrobust.preparation as preparation
from fedrobust.records import Record
from fedrobust.tracking import tracking_uri


def client() -> MlflowClient:
    return MlflowClient(tracking_uri())


QUICK = {"federation.rounds": 4, "tracking.model": False}


@pytest.fixture(scope="module")
def session(place: Path, ray_local: None) -> Iterator[fedrobust.api.Session]:  # type: ignore[name-defined]
    """A session of two client actors, and in the working folder the files of a small federation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        write_files(place)
        with fedrobust.session(workers=2) as opened:
            yield opened


@pytest.fixture(scope="module")
def whole(session: Any) -> tuple[fedrobust.Result, list[Record], list[fedrobust.ProgressReport]]:
    records, reports = list[Record](), list[fedrobust.ProgressReport]()
    return fedrobust.run("tiny.yaml", QUICK, hooks=[records.append], progress=reports.append), records, reports


pytestmark = pytest.mark.usefixtures("in_place")


def test_hooks_get_typed_records_in_order(whole: Any) -> None:
    result, records, reports = whole
    kinds = [(type(record).__name__, getattr(record, "round", 0)) for record in records]
    rounds = [pair for pair in kinds if pair[0] == "RoundRecord"]
    evaluations = [pair for pair in kinds if pair[0] == "EvaluationRecord"]
    assert kinds[0] == ("RunStart", 0) and kinds[-1] == ("RunEnd", 4)
    assert rounds == [("RoundRecord", round) for round in range(1, 5)]
    assert evaluations == [("EvaluationRecord", round) for round in range(1, 5)]
    assert all(kinds.index(("EvaluationRecord", r)) > kinds.index(("RoundRecord", r)) for r in range(1, 5))
    assert tuple(records) == result.recorded.records
    assert [each.done for each in reports] == sorted(each.done for each in reports)
    assert reports[-1] == fedrobust.ProgressReport(reports[-1].what, 4, 4)
    assert {"reading the data", "starting actors", "training"} <= {each.what for each in reports}


def test_a_result_is_two_tables_and_a_few_lines(whole: Any) -> None:
    result: fedrobust.Result = whole[0]
    table, hospitals = result.frame(), result.hospitals()
    assert list(table.index) == [1, 2, 3, 4] and table.index.name == "round"
    assert table.columns[0].startswith("test/")
    for evaluation in result.recorded.evaluations:
        for name, value in evaluation.metrics.items():
            assert value is None or table.loc[evaluation.round, name] == value
    losses = result.recorded.rounds[2].train_loss.values()
    assert table.loc[3, "train/loss"] == pytest.approx(sum(losses) / len(losses))
    assert not [name for name in table.columns if name.startswith(("reputation/", "weight/"))]
    assert list(hospitals.index) == list(range(8))
    assert {client: name for client, name in hospitals["attack"].items() if name} == result.attackers
    assert hospitals["patches"].sum() == sum(map(sum, result.recorded.start.hospital_labels))
    assert hospitals["patches"].equals(hospitals.filter(like="patches/").sum(axis=1))
    last = result.recorded.rounds[-1].reputation
    assert all(hospitals.loc[client, "reputation"] == pytest.approx(value) for client, value in last.items())
    assert list(hospitals.index[hospitals["suspected"]]) == result.suspected
    assert hospitals.loc[0, "weight"] == pytest.approx(
        pd.Series([record.weights[0] for record in result.recorded.rounds if record.weights]).mean()
    )
    lines = repr(result).splitlines()
    assert 2 < len(lines) < 6 and str(result.folder) in lines[-1] and max(map(len, lines)) < 200


def test_stop_ends_a_run_as_stopped_and_it_can_go_on(whole: Any) -> None:
    def stop(record: Record) -> None:
        if isinstance(record, fedrobust.RoundRecord) and record.round == 2:
            raise fedrobust.Stop("enough")

    result = fedrobust.run("tiny.yaml", QUICK, hooks=[stop])
    assert result.stopped == "enough" and len(result.recorded.rounds) == 2 and result.recorded.end is None
    assert "stopped after 2 of 4 rounds: enough" in repr(result)
    assert len(result.frame()) == 2 and "model_sha256" not in result.final and result.state_dict
    assert (result.folder / "report.html").exists()
    run = client().get_run(result.run_id)
    assert (run.info.status, run.data.tags["stopped"]) == ("KILLED", "enough")
    again = fedrobust.run("tiny.yaml", QUICK, resume=result.run_id)
    assert again.stopped is None and again.final["model_sha256"] == whole[0].final["model_sha256"]
    run = client().get_run(result.run_id)
    assert run.info.status == "FINISHED" and "stopped" not in run.data.tags


@pytest.mark.parametrize("kind", [fedrobust.RunStart, fedrobust.RunEnd])
def test_a_stop_before_the_first_round_and_after_the_last(kind: type, whole: Any) -> None:
    def stop(record: Record) -> None:
        if isinstance(record, kind):
            raise fedrobust.Stop

    result = fedrobust.run("tiny.yaml", {**QUICK, "federation.rounds": 1}, hooks=[stop])
    if kind is fedrobust.RunStart:
        assert (result.stopped, result.recorded.rounds) == ("by a hook", ())
        assert result.final["suspected"] == [] and result.frame().empty and len(result.hospitals()) == 8
        assert result.hospitals()["accuracy"].dtype == float
        assert "no figures" in repr(result)
    else:
        assert result.stopped is None and result.recorded.end is not None


def test_a_trial_that_is_pruned_in_a_hook_is_pruned(whole: Any) -> None:
    runs = list[str]()

    def objective(trial: optuna.Trial) -> float:
        def prune(record: Record) -> None:
            if isinstance(record, fedrobust.RunStart):
                runs.append(record.run)
            if isinstance(record, fedrobust.EvaluationRecord) and trial.number == 1:
                raise optuna.TrialPruned("hopeless")

        rate = trial.suggest_float("rate", 0.01, 0.1)
        result = fedrobust.run("tiny.yaml", {**QUICK, "learning.local.optimizer.lr": rate}, hooks=[prune])
        return float(result.final["test/balanced_accuracy"])

    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
    run = client().get_run(runs[1])
    assert (run.info.status, run.data.tags["stopped"]) == ("KILLED", "pruned: hopeless")


def test_a_session_starts_actors_once_and_reads_data_once(whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read, said = list[int](), list[str]()
    real = preparation.hospitals_of
    monkeypatch.setattr(preparation, "hospitals_of", lambda each: (read.append(each.seed), real(each))[1])
    for overrides in ({"aggregation.rule": "mean", "aggregation.stages": []}, {"seed": 6}, {"seed": 6}):
        options = {**QUICK, "federation.rounds": 1, **overrides}
        fedrobust.run("tiny.yaml", options, progress=lambda report: said.append(report.what))
    assert read == [6], "seed 5 was read by an earlier run"
    assert said.count("starting actors") == 3, "said by each run, and not again for new actors"


def test_one_session_and_one_run_in_it_at_a_time(whole: Any, session: Any) -> None:
    with pytest.raises(fedrobust.ExperimentError, match="open already"), fedrobust.session():
        pass

    def nested(record: Record) -> None:
        fedrobust.run("tiny.yaml", {**QUICK, "federation.rounds": 1})

    with pytest.raises(fedrobust.ExperimentError, match="hook"):
        fedrobust.run("tiny.yaml", {**QUICK, "federation.rounds": 1}, hooks=[nested])
    found = list[fedrobust.Result]()

    def beside() -> None:
        found.append(fedrobust.run("tiny.yaml", {**QUICK, "federation.rounds": 1}))

    threads = [threading.Thread(target=beside) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.final["model_sha256"] for each in found}) == 1 and len({each.run_id for each in found}) == 2


@pytest.mark.parametrize("workers", ["2", 1.5, True, [2]])
def test_wrong_workers_of_a_session(workers: Any) -> None:
    with refused(path="workers", found=repr(workers)):
        fedrobust.session(workers)
    with refused(path="count"):
        fedrobust.session(0)
    with refused(path="cuont"):
        fedrobust.session({"cuont": 2})


def test_what_there_is_can_be_listed_and_completed() -> None:
    assert set(fedrobust.__all__) <= set(dir(fedrobust))
    complete = rlcompleter.Completer({"fedrobust": fedrobust}).complete
    found = {complete("fedrobust.s", index) for index in range(10)}
    assert {"fedrobust.sweep(", "fedrobust.session("} <= found
    for name in fedrobust.__all__:
        assert getattr(fedrobust, name).__doc__
