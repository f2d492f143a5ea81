"""The steps of a tutorial or guide: files to save, and commands to type."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```(\w*) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REFUSED = "# exit code 2"
"""Behind a command that must be refused."""


class Step(NamedTuple):
    """A block of a page."""

    language: str
    file: str
    text: str

    @property
    def commands(self) -> list[str]:
        return [] if self.language else self.text.splitlines()

    def save(self, folder: Path) -> None:
        """Beside the experiment that it begins with, as the tutorial says, or else into the folder itself."""
        below = "experiments" if "experiment: quickstart.yaml" in self.text else "."
        (folder / below / self.file).write_text(self.text, encoding="utf-8")


def steps(page: Path) -> list[Step]:
    return [Step(*found) for found in FENCE.findall(page.read_text(encoding="utf-8"))]


def type_all(page: Path, folder: Path) -> list[str]:
    """Save every file and type every command of a page; what each command has printed.

    folder: the working folder of this process.
    """
    path, said = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), []
    for step in steps(page):
        if step.file:
            step.save(folder)
        for command in step.commands:
            done = subprocess.run(
                ["bash", "-c", command], capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
            )
            assert done.returncode == (2 if command.endswith(REFUSED) else 0), command + done.stdout + done.stderr
            said.append(done.stdout + done.stderr)
    return said
