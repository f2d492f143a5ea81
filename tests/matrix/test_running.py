"""A whole matrix on a tiny federation: paired, resumable, recorded."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from reported import one_round
from rich.console import Console

import fedrobust.preparation as preparation
import fedrobust.studies.study as study_room
import fedrobust.studies.teams as teams_room
from fedrobust.cli import main
from fedrobust.errors import FederationError, TrackingError
from fedrobust.federation.pool import Pool
from fedrobust.matrices import load_matrix
from fedrobust.matrices.running import CellDone, MatrixResult, measured, run_matrix
from fedrobust.records import read_run
from fedrobust.studies.finished import FinishedRun, FinishedRuns
from fedrobust.studies.study import Study
from fedrobust.studies.teams import Teams
from fedrobust.terminal import MatrixProgress, show_matrix

BASE = """
name: base
data: {source: {name: npz, path: patches.npz}, split: {validation: 0.0}, partition: {name: dirichlet, alpha: 10.0}}
federation: {clients: 5, rounds: 3}
learning: {model: {name: cnn, channels: [4]}, local: {steps: 2, batch_size: 16, optimizer: {name: sgd, lr: 0.1}}}
evaluation: {last: 2}
"""
MATRIX = """
name: tiny
experiment: base.yaml
settings: {here: {fraction: 0.2}}
attacks: {flip: {name: sign_flip, scale: 9}, patch: patch_backdoor}
defences:
  mean: {aggregation: {rule: mean}}
  median: {aggregation: {rule: median}}
screening: [1]
fresh: [2]
worst: 1
"""


class Seen:
    """Watches a matrix; may stop it after so many cells."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.plans: list[tuple[int, int]] = []
        self.cells: list[CellDone] = []
        self._stop_after = stop_after

    def plan(self, items: int, finished: int) -> None:
        self.plans.append((items, finished))

    def done(self, item: CellDone) -> None:
        self.cells.append(item)
        if len(self.cells) == self._stop_after:
            raise KeyboardInterrupt

    def say(self, what: str) -> None:
        pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    draw, labels = np.random.default_rng(3), np.arange(200) % 2
    images = np.clip(draw.normal(110, 20, (200, 12, 12, 3)) + 60 * labels[:, None, None, None], 0, 255)
    groups = np.array([f"patient {i // 2 % 20}" for i in range(200)])
    np.savez(folder / "patches.npz", images=images.astype(np.uint8), labels=labels.astype(np.int64), groups=groups)
    (folder / "base.yaml").write_text(BASE)
    (folder / "matrix.yaml").write_text(MATRIX)
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def sittings(place: Path, pool: Pool) -> tuple[Seen, Seen, MatrixResult]:
    """A matrix that is stopped after four cells, and started again, when one cell's federation fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        first, second = Seen(stop_after=4), Seen()
        with pytest.raises(KeyboardInterrupt):
            run_matrix(load_matrix("matrix.yaml"), first, pool=pool)
        shutil.copytree("mlruns/matrix/tiny", "stopped")
        run = teams_room.run

        def failing(experiment: Any, **options: Any) -> Any:
            if experiment.attacks and experiment.attacks[0].name == "patch_backdoor" and experiment.seed == 2:
                raise FederationError("round 2: worker 0 to train: it died 3 times")
            return run(experiment, **options)

        patch.setattr(teams_room, "run", failing)
        return first, second, run_matrix(load_matrix("matrix.yaml"), second, pool=pool)


def test_finished_cells_are_not_run_again(sittings: tuple[Seen, Seen, MatrixResult]) -> None:
    first, second, findings = sittings
    assert len(first.cells) == 4
    ran = [cell.digest for cell, _ in first.cells + second.cells]
    assert len(set(ran)) == len(ran) == len(findings.table)
    assert second.plans[0] == (14, 4)
    lines = (findings.folder / "cells.jsonl").read_text().splitlines()
    assert [json.loads(line)["digest"] for line in lines] == ran
    assert (findings.table["phase"] == "control").sum() == 2 * 3


def test_what_there_is_when_a_matrix_is_stopped_is_written(sittings: tuple[Seen, Seen, MatrixResult]) -> None:
    table, page = pd.read_csv("stopped/cells.csv"), Path("stopped/table.md").read_text()
    done = table[table["state"] == "done"]
    ran = [(cell.attack, cell.defence, cell.seed) for cell, _ in sittings[0].cells]
    assert sorted(zip(done["attack"], done["defence"], done["seed"], strict=True)) == sorted(ran)
    assert "**Incomplete**: the matrix was stopped before its end." in page
    assert f"{len(ran)} of {len(table)} cells are done, 0 failed, {len(table) - len(ran)} are missing." in page
    assert {"summary.csv", "detection.csv", "cells.parquet", "heatmap_here.png"} <= {
        each.name for each in Path("stopped").iterdir()
    }
    assert "**Incomplete**" not in (sittings[2].folder / "table.md").read_text()


def test_cells_hold_the_figures_of_their_runs(sittings: tuple[Seen, Seen, MatrixResult]) -> None:
    table = sittings[2].table
    done = table[table["state"] == "done"]
    assert done["balanced_accuracy"].between(0, 1).all()
    assert done["robustness"].notna().any()
    screening = done[done["phase"] == "screening"].set_index(["attack", "defence"])
    assert screening.loc[("flip", "mean"), "balanced_accuracy"] < screening.loc[("flip", "median"), "balanced_accuracy"]
    planted = screening.loc[("patch", "mean")]
    assert np.isfinite([planted["attack_success"], planted["baseline_success"]]).all()
    folder = Path("mlruns/runs") / planted["run_id"]
    records = [json.loads(text) for text in (folder / "journal.jsonl").read_text().splitlines()]
    evaluated = [record for record in records if record["kind"] == "evaluation"]
    assert [record["round"] for record in evaluated] == [2, 3]
    mean = np.mean([record["metrics"]["test/balanced_accuracy"] for record in evaluated])
    assert planted["balanced_accuracy"] == pytest.approx(mean)
    assert not (folder / "report.html").exists()


def test_a_cell_that_fails_is_listed(sittings: tuple[Seen, Seen, MatrixResult]) -> None:
    findings = sittings[2]
    failed = findings.table[findings.table["state"] == "failed"]
    assert len(failed) and set(failed["attack"]) == {"patch"}
    assert sum(verdict.unfinished for verdict in findings.verdicts) == len(failed)
    page = (findings.folder / "table.md").read_text()
    assert "it died 3 times" in page
    assert "--resume" not in page, "a cell is no run that goes on alone"
    out = Console(record=True, width=140)
    show_matrix(out, findings)
    assert f"{len(failed)} cells failed" in out.export_text()


def test_mlflow_holds_one_parent_and_a_run_for_each_cell(sittings: tuple[Seen, Seen, MatrixResult]) -> None:
    import mlflow

    findings = sittings[2]
    client = mlflow.MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")
    parent = client.get_run((findings.folder / "parent.txt").read_text().strip())
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["matrix"] == "tiny"
    assert "here/median/robustness" not in parent.data.metrics, "incomplete"
    assert "here/median: no figure for patch (failed on seed 2)" in parent.data.tags["incomplete"]
    assert {"table.md", "cells.parquet", "heatmap_here.png"} <= {
        each.path for each in client.list_artifacts(parent.info.run_id)
    }
    for line in findings.table[findings.table["state"] == "done"].itertuples():
        run = client.get_run(line.run_id)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.data.tags["attack"], run.data.tags["defence"]) == (line.attack, line.defence)
        assert (run.data.tags["setting"], run.data.tags["phase"]) == (line.setting, line.phase)
        assert run.data.metrics["cell/balanced_accuracy"] == pytest.approx(line.balanced_accuracy)
        recorded = read_run(Path("mlruns/runs") / line.run_id)
        for name, value in recorded.final.items():
            assert value is None or run.data.metrics[name] == pytest.approx(value), "the names of single runs"
        assert run.data.metrics["round/seconds"] == recorded.rounds[-1].seconds["round"]
        assert [each.step for each in client.get_metric_history(line.run_id, "test/balanced_accuracy")] == [3]
        assert run.info.status == "FINISHED"


def test_run_again_the_failed_cells_are_mended_and_nothing_else_is_run(
    sittings: tuple[Seen, Seen, MatrixResult],
    pool: Pool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, seen = sittings[2].table, Seen()
    again = run_matrix(load_matrix("matrix.yaml"), seen, pool=pool)
    assert {cell.attack for cell, _ in seen.cells} == {"patch"}
    assert len(seen.cells) == before["state"].eq("failed").sum()
    assert again.table["state"].eq("done").all()
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")
    parent = client.get_run((again.folder / "parent.txt").read_text().strip())
    for verdict in again.verdicts:
        assert parent.data.metrics[f"here/{verdict.defence}/robustness"] == pytest.approx(verdict.robustness.value)
    assert parent.data.tags["incomplete"] == ""
    monkeypatch.setattr(sys, "argv", ["fedrobust", "matrix", "matrix.yaml"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert ": balanced accuracy" not in shown
    assert "mlruns/matrix/tiny" in shown


class FakeTracker:
    run_id = "parent"

    def figures(self, figures: dict[str, float], run_id: str) -> None:
        pass

    def last(self, journal: Any, run_id: str) -> None:
        pass


class FakePool:
    teams = 3


def test_cells_run_side_by_side_and_read_their_data_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three cells are under way at once; the data of a seed are read by one of them, and the others wait for it."""
    together, reads = threading.Barrier(3), []

    def reading(experiment: Any) -> Any:
        reads.append(experiment.seed)
        return SimpleNamespace(label_counts=lambda: np.ones((5, 2), dtype=np.int64), tested=lambda: 7)

    def running(experiment: Any, **options: Any) -> Any:
        together.wait(timeout=20)
        assert options["part"].parent == "parent"
        return SimpleNamespace(recorded=one_round(0.75), run_id="run")

    monkeypatch.setattr(preparation, "hospitals_of", reading)
    monkeypatch.setattr(teams_room, "run", running)
    store, seen = FinishedRuns(tmp_path / "cells.jsonl"), Seen()
    with Teams(seen.say, pool=FakePool()) as teams:  # type: ignore[arg-type]
        study = Study(tmp_path, store, teams, FakeTracker())  # type: ignore[arg-type]
        cells = load_matrix("matrix.yaml").controls()
        study.make_all(cells, partial(measured, study), lambda cell, run: seen.done((cell, run)))
    store.close()
    assert len(seen.cells) == 6
    assert sorted(reads) == [1, 2]
    assert {outcome.figures["balanced_accuracy"] for _, outcome in seen.cells} == {0.75}
    assert {outcome.figures["classes"] for _, outcome in seen.cells} == {7}, "the labels that occur in the test"


def test_cells_with_the_same_data_are_adjacent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = []

    def running(experiment: Any, **options: Any) -> Any:
        begun.append(experiment.seed)
        return SimpleNamespace(recorded=one_round(0.75), run_id="run")

    hospitals = SimpleNamespace(label_counts=lambda: np.ones((5, 2), dtype=np.int64), tested=lambda: 7)
    monkeypatch.setattr(preparation, "hospitals_of", lambda experiment: hospitals)
    monkeypatch.setattr(teams_room, "run", running)
    store = FinishedRuns(tmp_path / "cells.jsonl")
    with Teams(Seen().say, pool=SimpleNamespace(teams=1)) as teams:  # type: ignore[arg-type]
        study = Study(tmp_path, store, teams, FakeTracker())  # type: ignore[arg-type]
        both = [[cell for cell in load_matrix("matrix.yaml").controls() if cell.seed == seed] for seed in (2, 1)]
        cells = [cell for pair in zip(*both, strict=True) for cell in pair]
        assert [cell.seed for cell in cells] == [2, 1, 2, 1, 2, 1]
        made = study.make_all(cells, partial(measured, study))
    store.close()
    assert begun == [2, 2, 2, 1, 1, 1]
    assert [run.digest for run in made] == [cell.digest for cell in cells]


def test_what_is_no_failure_of_a_federation_ends_the_matrix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cells under way are told to stop at their next round, those that wait never begin."""
    begun = []

    def running(experiment: Any, hooks: Any, **options: Any) -> Any:
        begun.append(experiment)
        if len(begun) == 3:
            raise TrackingError("gone")
        for _ in range(2000):
            time.sleep(0.01)
            hooks[0]({"kind": "round"})
        raise AssertionError("nobody said stop")

    monkeypatch.setattr(preparation, "hospitals_of", lambda experiment: None)
    monkeypatch.setattr(teams_room, "run", running)
    store, seen = FinishedRuns(tmp_path / "cells.jsonl"), Seen()
    with (
        Teams(seen.say, pool=FakePool()) as teams,  # type: ignore[arg-type]
        pytest.raises(TrackingError, match="gone"),
    ):
        study = Study(tmp_path, store, teams, FakeTracker())  # type: ignore[arg-type]
        cells = load_matrix("matrix.yaml").controls()
        study.make_all(cells, partial(measured, study), lambda cell, run: seen.done((cell, run)))
    store.close()
    assert len(begun) == 3
    assert not store.by_digest


def test_an_error_that_ends_a_matrix_says_how_it_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And the tables of what there is are written, even where there is nothing."""

    @contextmanager
    def parent(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(run_id="parent", figures=None, upload=lambda folder, again: None)

    def gone(experiment: Any, **options: Any) -> Any:
        raise TrackingError("no answer")

    monkeypatch.setattr(preparation, "hospitals_of", lambda experiment: None)
    monkeypatch.setattr(teams_room, "run", gone)
    monkeypatch.setattr(study_room, "parent_run", parent)
    with pytest.raises(TrackingError, match=r"^no answer; the same command goes on where it stopped$"):
        run_matrix(load_matrix("matrix.yaml"), out=tmp_path, pool=FakePool())  # type: ignore[arg-type]
    assert "0 of 10 cells are done, 0 failed, 10 are missing." in (tmp_path / "table.md").read_text()


def test_a_cell_without_a_figure_is_shown() -> None:
    """An accuracy that no round has is no number, and ends nothing."""
    out = Console(record=True, width=140, force_terminal=False)
    with MatrixProgress(out) as progress:
        progress.done((load_matrix("matrix.yaml").controls()[0], FinishedRun("", "")))
    assert "balanced accuracy –" in out.export_text()


@pytest.mark.slow
def test_a_matrix_with_other_rounds_is_another_matrix(pool: Pool) -> None:
    small = ["name=other", "only.attacks=[flip]", "only.defences=[mean]", "changes={evaluation.last: 1}"]
    first = run_matrix(load_matrix("matrix.yaml", [*small, "fresh=[2]"]), pool=pool)
    fewer = Seen()
    second = run_matrix(
        load_matrix("matrix.yaml", [*small, "changes={evaluation.last: 1, federation.rounds: 2}"]), fewer, pool=pool
    )
    more = Seen()
    third = run_matrix(load_matrix("matrix.yaml", [*small, "fresh=[2,3]"]), more, pool=pool)
    assert first.folder == second.folder == third.folder == Path("mlruns/matrix/other")
    assert len(fewer.cells) == len(first.table), "all cells are others"
    assert {cell.seed for cell, _ in more.cells} == {3}, "finished cells come back; a further seed is run"
    (store,) = Path("mlruns").glob("mlflow.db")
    with sqlite3.connect(store) as tracked:
        below = "select value from tags where key = 'mlflow.parentRunId' and run_uuid = ?"
        parents = [
            {tracked.execute(below, (run,)).fetchone()[0] for run in each.table["run_id"]} for each in (second, third)
        ]
        assert [len(each) for each in parents] == [1, 1] and parents[0] != parents[1]
        assert parents[1] == {Path("mlruns/matrix/other/parent.txt").read_text().strip()}
        named = "select e.name from runs r join experiments e on e.experiment_id = r.experiment_id where r.run_uuid = ?"
        for run in (*third.table["run_id"], *parents[0], *parents[1]):
            assert tracked.execute(named, (run,)).fetchone() == ("other",), "the matrix's own, not that of its base"


def test_a_matrix_that_moves_to_another_mlflow_experiment_gets_a_run_there(pool: Pool) -> None:
    small = ["name=moved", "only.attacks=[flip]", "only.defences=[mean]", "changes={evaluation.last: 1}", "fresh=[2]"]
    folder = run_matrix(load_matrix("matrix.yaml", small), pool=pool).folder
    before, seen = (folder / "parent.txt").read_text(), Seen()
    there = load_matrix("matrix.yaml", [*small, "changes={evaluation.last: 1, tracking.experiment: there}"])
    assert run_matrix(there, seen, pool=pool).folder == folder
    assert not seen.cells, "where MLflow shows it changes no cell"
    assert (folder / "parent.txt").read_text() != before
    with sqlite3.connect("mlruns/mlflow.db") as tracked:
        named = "select e.name from runs r join experiments e on e.experiment_id = r.experiment_id where r.run_uuid = ?"
        assert tracked.execute(named, ((folder / "parent.txt").read_text().strip(),)).fetchone() == ("there",)
