"""docs/make/worst_case.py: from the folders of sweeps to the table and the picture of the worst cases."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedrobust.experiment import Experiment
from fedrobust.experiment_file import dump

DOCS = Path(__file__).parents[1] / "docs"
METRIC = "test/balanced_accuracy"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "make" / "worst_case.py"))


def sweep(folder: Path, name: str, fresh: dict[int, dict[int, float]], runs: list[dict[str, Any]]) -> None:
    """Write what a sweep leaves; `fresh`: trial → seed → accuracy; `runs`: the options of each trial."""
    own = folder / "mlruns" / "sweeps" / f"each_{name}"
    own.mkdir(parents=True)
    with (own / "fresh.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["number", "seed", METRIC, "reason"])
        for trial, seeds in fresh.items():
            table.writerows([trial, seed, value, ""] for seed, value in [*seeds.items(), ("all", 0.0)])
    with (own / "trials.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["number", "state", METRIC])
        table.writerows([number, "completed", 0.6 + number / 100] for number in range(5))
    lines = []
    for number, options in enumerate(runs):
        run = f"{name}{number}"
        (folder / "mlruns" / "runs" / run).mkdir(parents=True)
        experiment = Experiment.model_validate(options)
        (folder / "mlruns" / "runs" / run / "experiment.yaml").write_text(dump(experiment))
        lines.append(
            {"label": f"trial {number} | {'nobody | ' if name == 'nobody' else ''}seed 1 | {name}", "run_id": run}
        )
    (own / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_worst_on_the_fresh_seeds_is_shown_with_its_attack(tmp_path: Path, script: dict[str, Any]) -> None:
    flip = {"name": "label_flip", "fraction": 0.2}
    late = {"name": "ipm", "epsilon": 0.25, "fraction": 0.2, "schedule": {"name": "sleeper", "rounds": 8}}
    free = [{"aggregation": {"rule": rule}} for rule in ("median", "mean")]
    sweep(tmp_path, "nobody", {0: {121: 0.1, 122: 0.1, 123: 0.1}, 1: {121: 0.8, 122: 0.9, 123: 0.7}}, free)
    sweep(
        tmp_path,
        "mean",
        {0: {121: 0.8, 122: 0.9, 123: 0.7}, 1: {121: 0.65, 122: 0.7, 123: 0.6}},
        [{"attacks": [flip]}, {"attacks": [late]}],
    )
    sweep(tmp_path, "median", {0: {121: 0.8, 122: 0.9, 123: 0.7}}, [{"attacks": [flip]}])
    found = script["read"](tmp_path)
    assert found["nobody"] == {121: 0.8, 122: 0.9, 123: 0.7}
    mean = found["defences"]["mean"]
    assert mean["attack"] == {"name": "ipm", "fraction": 0.2, "epsilon": 0.25, "schedule": late["schedule"]}
    assert mean["trials"] == 5 and mean["seed 1"] == 0.61
    lines = script["table"]("IDC", yaml.safe_load(yaml.safe_dump(found)))
    assert lines[0] == "**IDC** (nobody attacking: 0.800)"
    row = "| `median` | 5 | `label_flip` | 0.600 | 0.800 (0.700 to 0.900) | **1.00** [1.00, 1.00] |"
    assert lines[-2] == row
    assert lines[-1] == (
        "| `mean` | 5 | `ipm` (epsilon 0.25, sleeper rounds 8) | 0.610 | 0.650 (0.600 to 0.700) "
        "| **0.50** [0.50, 0.50] |"
    )
    script["draw"]({"IDC": found}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_what_is_stored_stays_beside_what_is_found(script: dict[str, Any]) -> None:
    stored = {"nobody": {121: 0.8}, "defences": {"mean": {"trials": 60}, "median": {"trials": 60}}}
    found = {"nobody": {121: 0.8}, "defences": {"median": {"trials": 61}, "dnc": {"trials": 60}}}
    assert script["merged"](stored, found)["defences"] == {
        "mean": {"trials": 60},
        "median": {"trials": 61},
        "dnc": {"trials": 60},
    }
    with pytest.raises(SystemExit, match="other figures"):
        script["merged"](stored, {**found, "nobody": {121: 0.7}})


def test_the_table_of_the_worst_cases_is_current(script: dict[str, Any]) -> None:
    stored = yaml.safe_load((DOCS / "worst_cases.yaml").read_text(encoding="utf-8"))
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    shown = page.partition(script["BEGIN"])[2].partition(script["END"])[0].strip()
    assert shown == script["tables"](stored), "run docs/make/worst_case.py"
    for found in stored.values():
        for each in found["defences"].values():
            Experiment.model_validate({"attacks": [each["attack"]]})
            assert set(each["fresh"]) == set(found["nobody"])
