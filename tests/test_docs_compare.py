"""What the guide to comparisons shows runs as written, and its tables say what the code does."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reported import compared, write
from typer.main import get_command

import fedrobust
from fedrobust import cli
from fedrobust.cli.application import app
from fedrobust.report.distinctions import BUDGET, CANDIDATE, NEITHER, of_candidate

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "compare-runs.md").read_text(encoding="utf-8")
SHELL = re.findall(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SECTION = TEXT.partition("## Which candidate is better")[2].partition("\n## ")[0]


def commands() -> list[list[str]]:
    """Every call of fedrobust in the guide's blocks."""
    lines = [line.strip().replace("$seed", "1") for block in SHELL for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("fedrobust ")]


def cells(heading: str) -> list[list[str]]:
    """The rows of the table of the section whose head begins so."""
    table = SECTION.partition(f"| {heading}")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_every_command_of_the_guide_is_one() -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {words[1] for words in commands()} <= known
    assert ["fedrobust", "compare", "quickstart"] in commands()


def test_the_experiments_of_the_guide_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parent)
    loaded = [fedrobust.load(words[2], words[3:]) for words in commands() if words[1] == "run"]
    assert len(loaded) == 6 and {each.name for each in loaded} == {"quickstart"}


def test_the_sides_of_the_guide_are_those_of_the_code() -> None:
    setting, candidate, neither = (re.findall(r"`([\w.]+)`", row[1]) for row in cells("side |"))
    assert set(candidate) == set(CANDIDATE) and set(neither) == set(NEITHER) and set(BUDGET) <= set(setting)
    options = set(fedrobust.Experiment.model_fields)
    assert {path.split(".")[0] for path in (*setting, *candidate, *neither)} == options, "an option is on no side"
    assert not any(map(of_candidate, setting)) and all(map(of_candidate, candidate))


def test_the_comparison_of_the_guide_writes_the_files_that_it_names(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rule, accuracy in (("mean", 0.6), ("geometric_median", 0.8)):
        for seed in (1, 2, 3):
            folder = workplace / "mlruns/runs" / f"{rule}{seed}"
            folder.mkdir(parents=True)
            write(folder, compared(rule, seed, accuracy + seed / 100, name="quickstart"))
    monkeypatch.setattr(sys, "argv", ["fedrobust", "compare", "quickstart"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shown = " ".join(capsys.readouterr().out.split())
    assert "nnm + geometric median is better than nnm + mean by 0.20 (0.20 to 0.20) in balanced accuracy" in shown
    folder = Path("mlruns/compare/quickstart")
    for name in (row[0].strip("`") for row in cells("file |")):
        assert list(folder.glob(name)), name
        assert "*" in name or name in shown


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_commands_of_the_guide_do_what_they_say(workplace: Path) -> None:
    """Those of the section, with two rounds for each run."""
    shutil.copytree(DOCS.parent / "experiments", workplace / "experiments")
    script = "\n".join(re.findall(r"^```\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL))
    script = re.sub(r"(fedrobust run .*)", r"\1 federation.rounds=2", script)
    found = subprocess.run(
        ["bash", "-e", "-c", f'PATH="{Path(sys.executable).parent}:$PATH"\n{script}'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert (workplace / "mlruns/compare/quickstart/compare.html").exists()
