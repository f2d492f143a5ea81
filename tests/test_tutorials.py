"""What the tutorials tell a reader to save and to type does what they say. The notebooks have a file of their own."""

from __future__ import annotations

import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from steps import REFUSED, steps, type_all

import fedrobust
from fedrobust.errors import ExperimentError
from fedrobust.tuning import load_sweep

REPOSITORY = Path(__file__).parent.parent
TUTORIALS = sorted((REPOSITORY / "docs" / "tutorials").glob("*.md"))


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_every_command_is_accepted(tutorial: Path, workplace: Path) -> None:
    shutil.copytree(REPOSITORY / "experiments", workplace / "experiments")
    accepted = 0
    for step in steps(tutorial):
        if step.file:
            step.save(workplace)
        for command in step.commands:
            program, *words = shlex.split(command, comments=True)
            if program == "python":
                runpy.run_path(words[0])
            elif command.endswith(REFUSED):
                with pytest.raises(ExperimentError):
                    fedrobust.run(fedrobust.load(words[1], words[2:]))
                assert not Path("mlruns").exists()
            elif words[0] == "sweep":
                load_sweep(words[1], words[2:])
            elif words[0] == "run" and not words[1].startswith("mlruns/"):
                fedrobust.load(words[1], words[2:])
            else:
                assert words in (["init"], ["compare", "quickstart"]) or words[1] == "mlruns/sweeps/weak_spot/best.yaml"
            accepted += 1
    assert accepted >= 4


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_experiments_that_are_only_shown_are_experiments(tutorial: Path, workplace: Path) -> None:
    for step in steps(tutorial):
        if step.language == "yaml" and not step.file:
            (workplace / "shown.yaml").write_text(step.text, encoding="utf-8")
            fedrobust.load("shown.yaml")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_every_command_does_what_it_says(tutorial: Path, workplace: Path) -> None:
    """As typed, in an empty folder."""
    type_all(tutorial, workplace)
