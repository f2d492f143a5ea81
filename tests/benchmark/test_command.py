"""`fedrobust benchmark` without a run: what is listed, and one line for what is wrong."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from benched import OWN, made_row, planted, usual, write_suite
from tiny import write_patches

from fedrobust.benchmark import BenchmarkEntry, BenchmarkRow, Suite, read_row, shipped_suites
from fedrobust.benchmark.running import Reproduced
from fedrobust.cli import main


@pytest.fixture
def suite(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    sys.modules.pop("own_rule", None)
    Path("own_rule.py").write_text(OWN)
    suite = write_suite(workplace)
    for entry in ("median", "own_rule:Equal"):
        row = made_row(suite, usual, planted, entry=entry)
        Path(f"{row.name}.json").write_text(row.written())
    return suite


def ended(monkeypatch: pytest.MonkeyPatch, command: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedrobust", "benchmark", *command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_suites_are_listed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(shipped_suites())
    assert not list(workplace.iterdir())


def test_rows_of_others_are_ranked_without_a_run(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "median.json own_rule_Equal.json --suite tiny.yaml") == 0
    shown = capsys.readouterr().out
    assert "no rows are stored for tiny-v1" in shown
    assert shown.count("flip") == 2
    assert "→ own_rule_Equal" in shown
    assert not Path("mlruns").exists()


def change(**fields: object) -> None:
    row = json.loads(Path("own_rule_Equal.json").read_text())
    row["entry"] |= fields
    Path("own_rule_Equal.json").write_text(json.dumps(row))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("mdian", "did you mean 'median'?"),
        ("median --suite histology", "allowed: histology-v1, idc-v1"),
        ("median median --suite tiny.yaml", "two entries have this name; found 'median'"),
        ("median multi_krum --suite tiny.yaml --out one.json", "--out one.json: of several entries, give a folder"),
        (
            "median --suite tiny.yaml --out tiny.yaml",
            "--out tiny.yaml: expected a folder, or a file",
        ),
        ("--out one.json", "--out: needs an entry"),
        ("nowhere.json --suite tiny.yaml", "nowhere.json: cannot be read"),
        ("--verify nowhere.json", "nowhere.json: cannot be read"),
        ("--verify median.json", "suite: found 'tiny-v1'; allowed: histology-v1, idc-v1"),
        ("--verify median.json --suite histology-v1", "median.json: suite: is a row of another suite"),
        ("median --suite tiny.yaml", "patches.npz: does not exist"),
        ("median --suite idc-v1", "FEDROBUST_DATA"),
    ],
)
def test_one_line(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, says: str
) -> None:
    assert ended(monkeypatch, command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not Path("mlruns").exists()


@pytest.mark.parametrize("quick", [False, True])
def test_a_row_is_written_and_ranked(
    suite: Suite, quick: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(entry: BenchmarkEntry, suite: Suite, quick: bool, *_: object, **__: object) -> BenchmarkRow:
        return made_row(suite, usual, planted, entry=entry.name, quick=quick)

    monkeypatch.setattr("fedrobust.benchmark.running.run_entry", made)
    write_patches(Path("patches.npz"))
    assert ended(monkeypatch, f"mean multi_krum median.json --suite tiny.yaml {'--quick' * quick}") == 0
    shown = capsys.readouterr().out
    folder = Path("mlruns/benchmark/rows/tiny-v1")
    files = [folder / f"{name}{'-quick' * quick}.json" for name in ("mean", "multi_krum")]
    assert [f"row: {file}" for file in files] == shown.splitlines()[-2:]
    assert [read_row(file, suite).quick for file in files] == [quick, quick]
    assert shown.count("patch") == (9 if quick else 6)  # as the worst backdoor in every row, and in every setting
    assert ended(monkeypatch, "mean --suite tiny.yaml --out rows/own.json") == 0
    assert not read_row(Path("rows/own.json"), suite).quick


def test_a_row_that_differs_ends_with_exit_code_1(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def again(row: BenchmarkRow, entry: BenchmarkEntry, suite: Suite, cells: int, *_: object, **__: object) -> object:
        others = [each.model_copy(update={"accuracy": 0.3}) if each.seed == changed else each for each in row.cells]
        pairs = zip(row.cells, others, strict=True)
        return [Reproduced(row.name, claimed, other) for claimed, other in pairs][:cells]

    monkeypatch.setattr("fedrobust.benchmark.running.verify", again)
    changed = 0
    assert ended(monkeypatch, "--verify median.json --suite tiny.yaml") == 0
    assert "6 of 6 cells agree: 6 to the bit" in capsys.readouterr().out
    changed = 1
    assert ended(monkeypatch, "--verify median.json --suite tiny.yaml --cells 32") == 1
    assert "24 of 32 cells agree" in capsys.readouterr().out


@pytest.mark.parametrize("beside", ["mean", "--quick", "--out rows"])
def test_what_would_be_ignored_beside_verify_is_refused(
    beside: str, suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, f"{beside} --verify median.json --suite tiny.yaml") == 2
    assert capsys.readouterr().err.startswith("error: --verify: computes cells of this row again; leave ")


def test_other_code_is_not_verified(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not imported: it would be run."""
    sys.modules.pop("own_rule", None)
    Path("own_rule.py").write_text("raise SystemExit('imported')\n")
    assert ended(monkeypatch, "--verify own_rule_Equal.json --suite tiny.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"own_rule\.py: own_rule:Equal is not the code that was measured: its SHA-256 is \w{8}…", line)
    change(code={})
    assert ended(monkeypatch, "--verify own_rule_Equal.json --suite tiny.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "own_rule_Equal.json: entry.code: must have each class of the options" in line
    Path("own_rule.py").unlink()
    change(code={"own_rule:Equal": "0" * 64})
    assert ended(monkeypatch, "--verify own_rule_Equal.json --suite tiny.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "aggregation.rule.name: cannot import 'own_rule:Equal'" in line
