"""From the outcomes of cells to the tables, on outcomes made up so that every figure can be worked out by hand."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from celled import MATRIX, outcome
from nasty import NAMES

import fedrobust.matrices.files as files
from fedrobust.matrices import MatrixPlan, load_matrix
from fedrobust.matrices.files import headline_metrics, write_results
from fedrobust.matrices.grid import Cell
from fedrobust.matrices.results import harmless, screened, table_of, to_measure_again, verdicts
from fedrobust.studies.finished import FinishedRun, FinishedRuns
from fedrobust.studies.study import Study
from fedrobust.texts import visible


@pytest.fixture
def grid(workplace: Path) -> MatrixPlan:
    Path("base.yaml").write_text("federation: {clients: 10}\n")
    Path("matrix.yaml").write_text(MATRIX)
    return load_matrix("matrix.yaml")


@pytest.fixture
def cells(grid: MatrixPlan) -> list[Cell]:
    first = [*grid.controls(), *grid.screening()]
    table = table_of(first, {cell.digest: outcome(cell) for cell in first})
    return [*first, *grid.fresh(to_measure_again(table, 1, 1, grid.backdoors))]


@pytest.fixture
def table(cells: list[Cell]) -> Any:
    return table_of(cells, {cell.digest: outcome(cell) for cell in cells})


def line(table: Any, **where: object) -> Any:
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_each_cell_is_measured_by_the_oracle_of_its_seed(table: Any) -> None:
    assert line(table, attack="flip", defence="median", seed=1).robustness == pytest.approx(0.32 / 0.40)
    found = line(table, attack="weak", defence="median", seed=12)
    assert found.oracle == pytest.approx(0.92)
    assert found.robustness == pytest.approx(0.30 / 0.42)
    patch = line(table, attack="patch", defence="mean", seed=1)
    assert (patch.baseline_success, patch.gain) == pytest.approx((0.10, 0.85))
    assert math.isnan(line(table, attack="flip", defence="mean", seed=1).gain)


def test_a_backdoor_with_another_name_keeps_the_base_rate_of_its_trigger(cells: list[Cell]) -> None:
    runs = {cell.digest: outcome(cell) for cell in cells}
    text = Path("matrix.yaml").read_text()
    assert "patch:" in text
    Path("matrix.yaml").write_text(text.replace("patch:", "square:"))
    renamed = load_matrix("matrix.yaml")
    again = table_of([*renamed.controls(), *renamed.screening()], runs)
    found = line(again, attack="square", defence="mean", seed=1)
    assert (found.baseline_success, found.gain) == pytest.approx((0.10, 0.85))


def test_a_cell_without_figures_makes_no_attack_harmless(cells: list[Cell], grid: MatrixPlan) -> None:
    """The control has learnt nothing on its seed, whatever becomes of later cells."""
    runs = {cell.digest: outcome(cell, at_chance=[1]) for cell in cells}
    assert harmless(table_of(cells, runs), "here", "mean", grid.backdoors) == []
    last = [cell for cell in cells if cell.defence == "mean" and cell.seed == 1][-1]
    del runs[last.digest]
    assert harmless(table_of(cells, runs), "here", "mean", grid.backdoors) == []


def test_every_attack_is_screened_and_the_worst_of_each_defence_come_back(grid: MatrixPlan, table: Any) -> None:
    values = screened(table, "here")
    assert list(values.index) == ["mean", "median"]
    assert list(values.columns) == ["flip", "weak", "patch"]
    assert values.loc["mean"].tolist() == pytest.approx([0.0, 0.39 / 0.40, 1.0])
    chosen = to_measure_again(table, 1, 1, grid.backdoors)
    assert chosen == {("here", "mean"): ["flip", "patch"], ("here", "median"): ["weak", "patch"]}
    assert harmless(table, "here", "mean", grid.backdoors) == ["weak"], "the backdoor costs no accuracy, but it works"


def test_the_verdicts(grid: MatrixPlan, table: Any) -> None:
    best, worst = verdicts(table, "mean", grid.backdoors)
    assert (best.defence, worst.defence) == ("median", "mean")
    assert best.worst_attack == "weak"
    assert best.robustness.value == pytest.approx((2 * 0.28 / 0.40 + 0.30 / 0.42) / 3)
    assert best.robustness.low < best.robustness.value < best.robustness.high
    assert best.to_the_best == pytest.approx((0.0, 0.0, 0.0))
    assert worst.robustness.value == pytest.approx((0.0 + 0.02 / 0.42) / 3)
    assert worst.to_the_best.value == pytest.approx(worst.robustness.value - best.robustness.value)
    assert best.cost == pytest.approx((0.02, 0.02, 0.02)), "paired: every seed costs the same"
    assert worst.cost.value == 0.0
    assert best.worst_backdoor == "patch"
    assert (best.success.value, best.gain.value) == pytest.approx((0.30 + 0.02 / 3, 0.20 + 0.02 / 3))
    assert (best.unfinished, best.seconds) == (0, 10.0)
    flat = best.flat()
    assert (flat["robustness"], flat["robustness_low"]) == (best.robustness.value, best.robustness.low)
    assert headline_metrics([best])["here/median/robustness"] == best.robustness.value


def test_failed_and_missing_cells_are_seen(grid: MatrixPlan, cells: list[Cell]) -> None:
    outcomes = {cell.digest: outcome(cell) for cell in cells}
    broken, *missing = [cell for cell in cells if (cell.attack, cell.defence) == ("weak", "median") and cell.seed > 1]
    outcomes[broken.digest] = FinishedRun(broken.digest, broken.label, failed="round 3: it died 3 times")
    for cell in missing:
        del outcomes[cell.digest]
    table = table_of(cells, outcomes)
    assert table["state"].value_counts().to_dict() == {"done": len(cells) - 3, "missing": 2, "failed": 1}
    verdict = next(each for each in verdicts(table, "mean", grid.backdoors) if each.defence == "median")
    assert verdict.unfinished == 3
    assert (verdict.worst_attack, math.isnan(verdict.robustness.value)) == ("", True), "what is left is no minimum"
    assert verdict.lacks == {"weak": "failed on seed 11; not finished on seeds 12, 13"}
    folder = Path("out")
    folder.mkdir()
    write_results(folder, grid, table)
    page = (folder / "table.md").read_text()
    assert "here, weak, median, seed 11: round 3: it died 3 times" in page


def test_the_files(grid: MatrixPlan, table: Any) -> None:
    folder = Path("out")
    folder.mkdir()
    write_results(folder, grid, table)
    names = {"cells.csv", "cells.parquet", "summary.csv", "detection.csv", "table.md", "heatmap_here.png"}
    assert {path.name for path in folder.iterdir()} == names
    read = pd.read_parquet(folder / "cells.parquet")
    pd.testing.assert_frame_equal(read, table)
    assert pd.read_csv(folder / "cells.csv")["robustness"].tolist() == pytest.approx(
        table["robustness"].tolist(), nan_ok=True
    )
    summary = pd.read_csv(folder / "summary.csv").set_index("defence")
    assert summary.loc["median", "cost"] == pytest.approx(0.02)
    detection = pd.read_csv(folder / "detection.csv").set_index("defence")
    assert detection.loc["median", "hardest_attack"] == "weak"
    assert detection.loc["median", "least_auroc"] == 0.5
    assert detection.loc["median", "rounds_to_eject"] == 3.0
    page = (folder / "table.md").read_text()
    for told in ("weak (harmless)", "**0.000**", "*0.100; 0.100*", "0.300; 0.307", "30 of 30 cells"):
        assert told in page, told
    assert (folder / "heatmap_here.png").read_bytes()[:4] == b"\x89PNG"


def test_names_of_any_script_and_any_reason_are_texts_in_files_of_their_own(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "png", lambda *_, **__: b"")
    Path("base.yaml").write_text("federation: {clients: 10}")
    settings = ["हिन्दी", "良", "good", "Good", "x" * 300]
    text = MATRIX.replace("small", "良 + " + "x" * 300).replace("median:", "_médiane_:")
    text = text.replace("{here: {fraction: 0.2}}", str({name: {"fraction": 0.2} for name in settings}))
    Path("matrix.yaml").write_text(text, encoding="utf-8")
    grid = load_matrix(Path("matrix.yaml"))
    cells = [*grid.controls(), *grid.screening()]
    reasons = dict(zip(dict.fromkeys(cell.digest for cell in cells), cycle(NAMES), strict=False))
    outcomes = {cell.digest: FinishedRun(cell.digest, cell.label, failed=reasons[cell.digest]) for cell in cells}
    folder = Path("out")
    folder.mkdir()
    write_results(folder, grid, table_of(cells, outcomes))
    maps = [path.name for path in folder.glob("heatmap_*.png")]
    assert len({name.casefold() for name in maps}) == len(settings)
    assert {"heatmap_हिन्दी.png", "heatmap_良.png", "heatmap_good.png"} < set(maps)
    read = pd.read_csv(folder / "cells.csv", keep_default_na=False)
    for reason, name in zip(read["failed"], [reasons[cell.digest] for cell in cells], strict=True):
        assert reason.removeprefix("'").split() == visible(name, keep="\n").split()
        assert not reason.lstrip().startswith(("=", "+", "-", "@"))
    page = (folder / "table.md").read_text(encoding="utf-8")
    assert visible(page, keep="\n") == page and "<script>" not in page.replace("\\<", "")
    failed = page.partition("## Failed cells")[2]
    assert len([line for line in failed.splitlines() if line.startswith("- ")]) == sum(
        bool(reasons[cell.digest]) for cell in cells
    )


@pytest.mark.slow
@pytest.mark.parametrize("there", ["nothing", "controls", "screening", "one seed", "the first", "the last", "failures"])
@pytest.mark.parametrize("planned", ["before the fresh seeds", "all"])
def test_whatever_cells_there_are_there_are_tables(
    grid: MatrixPlan, cells: list[Cell], there: str, planned: str, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = {
        "nothing": [],
        "controls": grid.controls(),
        "screening": grid.screening(),
        "one seed": [cell for cell in cells if cell.seed == 11],
        "the first": cells[:1],
        "the last": cells[-1:],
        "failures": [],
    }[there]
    outcomes = {cell.digest: outcome(cell) for cell in chosen}
    if there == "failures":
        outcomes = {cell.digest: FinishedRun(cell.digest, cell.label, failed="it died") for cell in cells}
    shown = [cell for cell in cells if planned == "all" or cell.phase != "fresh"]
    table = table_of(shown, outcomes)
    write_results(Path(), grid, table, complete=False)
    page = Path("table.md").read_text()
    assert "**Incomplete**" in page
    assert "nan" not in page
    left = sum(cell.digest not in outcomes for cell in shown)
    assert f"{len(shown) - left} of {len(shown)} cells are done, 0 failed" in page or there == "failures"
    assert (f", {left} are missing." in page) == bool(left)
    assert (
        "## Failed cells\n\nWhen the matrix is started again with the same command, they are run again." in page
    ) == (there == "failures")
    assert (pd.read_csv("cells.csv")["state"] == "missing").sum() == left
    assert set(pd.read_csv("summary.csv")["defence"]) == {"mean", "median"}
    assert set(pd.read_csv("detection.csv").columns) > {"defence", "least_auroc"}
    assert Path("heatmap_here.png").exists()
    assert not caplog.records
    write_results(Path(), grid, table)
    assert "**Incomplete**" not in Path("table.md").read_text()


def test_a_picture_that_cannot_be_drawn_costs_no_table(
    grid: MatrixPlan, table: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("no such glyph")

    monkeypatch.setattr(files, "heat_map", broken)
    assert write_results(Path(), grid, table)
    assert Path("table.md").exists()
    assert "heatmap_here.png could not be drawn: no such glyph" in caplog.text


def test_the_store_keeps_whole_lines_and_the_last_outcome(tmp_path: Path, cells: list[Cell]) -> None:
    path = tmp_path / "cells.jsonl"
    first, second, third = cells[:3]
    store = FinishedRuns(path)
    store.add(FinishedRun(first.digest, first.label, failed="it died"))
    store.add(outcome(second))
    study = Study(tmp_path, store, None, None)  # type: ignore[arg-type]
    assert study.missing([first, second, third, third]) == [first, third], "a failed cell is tried again"
    with pytest.raises(Exception, match="another process"):
        FinishedRuns(path)
    store.add(outcome(first))
    store.close()
    with path.open("ab") as file:
        file.write(b'{"digest": "cut sh')
    again = FinishedRuns(path)
    assert again.by_digest == {each.digest: outcome(each) for each in (first, second)}
    again.add(outcome(third))
    again.close()
    assert len(path.read_text().splitlines()) == 4
    last = FinishedRuns(path)
    assert not Study(tmp_path, last, None, None).missing([first, second, third])  # type: ignore[arg-type]
    last.close()
