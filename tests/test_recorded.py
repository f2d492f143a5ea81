"""The same files give the same bits as before: three runs, a matrix and a sweep, beside what was recorded of them.

`tests/recorded/expected.json` was made by `tests/recorded/play.py`. It is only made anew where the arithmetic is meant
to change, last when the products of the Gram matrix got other blocks. The bits are those of one kind of processor; on
another one, only who attacks and which cells there are is compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from fedrobust.experiment_file import load

RECORDED = Path(__file__).parent / "recorded"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_same_files_give_the_same_bits(tmp_path: Path) -> None:
    expected = json.loads((RECORDED / "expected.json").read_text())
    here = {package: version(package) for package in expected["versions"]}
    if here != expected["versions"] and os.environ.get("CI") != "true":
        pytest.skip(f"recorded with {expected['versions']}, here are {here}")
    done = subprocess.run(
        [sys.executable, str(RECORDED / "play.py")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    cells = [(row["attack"], row["defence"], row["seed"], row["state"]) for row in expected["matrix"]]
    assert [(row["attack"], row["defence"], row["seed"], row["state"]) for row in found["matrix"]] == cells
    for name in ("plain", "shared", "masked"):
        assert found[name]["attackers"] == expected[name]["attackers"]
    if found["processor"] != expected["processor"]:
        pytest.skip(f"the bits are those of {expected['processor']}, here is {found['processor'] or 'another'}")
    for row, before in zip(found.pop("matrix"), expected.pop("matrix"), strict=True):
        assert {name: row[name] for name in before} == before  # a new column is no other result
    for name, value in expected.items():
        assert found[name] == value, name


@pytest.mark.parametrize("name", ["plain", "shared", "masked"])
def test_the_recorded_experiments_are_still_the_same(name: str) -> None:
    """So a run that stopped under an older version goes on under this one."""
    expected = json.loads((RECORDED / "expected.json").read_text())
    assert load(RECORDED / f"{name}.yaml").digest() == expected[name]["configuration"]
