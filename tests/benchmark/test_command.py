"""`fedrobust benchmark` without a run: what is listed, and one line for what is wrong."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from benched import OWN, made_row, planted, usual, write_suite

from fedrobust.benchmark import Suite, shipped_suites
from fedrobust.cli import main


@pytest.fixture
def suite(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.delitem(sys.modules, "own_rule", raising=False)
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
    assert not Path("mlruns/runs").exists()


def test_other_code_is_not_verified(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not imported: it would be run."""
    monkeypatch.delitem(sys.modules, "own_rule", raising=False)
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
