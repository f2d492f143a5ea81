"""The commands for a working folder: `init`, which creates one, and `ui`, which shows its runs."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from fedrobust.cli.application import app
from fedrobust.errors import ExperimentError, FedRobustError
from fedrobust.extras import missing

SHIPPED = {".yaml", ".json", ".py"}
"""The suffixes of the example files."""
IGNORED = "/mlruns/\n"
"""The `.gitignore` of a working folder: runs, tables and keys."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made if need be.", show_default=False)] = Path(),
) -> None:
    """Write the example experiments to a folder. Existing files are not changed."""
    with as_file(files("fedrobust") / "examples") as examples:
        shipped = {path.relative_to(examples): path for path in sorted(examples.rglob("*")) if path.suffix in SHIPPED}
        texts = {Path("experiments") / name: path.read_bytes() for name, path in shipped.items()}
    if not texts:
        raise FedRobustError("the examples are missing: this was installed from a part of the repository")
    texts[Path(".gitignore")] = IGNORED.encode()
    kept = [name for name, text in texts.items() if not _written(folder / name, text)]
    print(f"{len(texts) - len(kept)} files written to {folder.absolute()}")
    if kept:
        print(f"kept as they were: {', '.join(map(str, kept))}")
    if Path(".gitignore") in kept and "mlruns" not in (folder / ".gitignore").read_text(errors="replace"):
        print("add /mlruns/ to your .gitignore: that is where runs are kept")
    print("next:")
    if any(missing("platform")):
        print('  pip install "fedrobust[platform]"')
    if folder.absolute() != Path.cwd():
        print(f"  cd {shlex.quote(str(folder))}")
    print("  fedrobust run experiments/quickstart.yaml\n  fedrobust ui")


def _written(path: Path, text: bytes) -> bool:
    """Write a file unless it exists; return whether it was written. Raises `ExperimentError` if a folder cannot be
    made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ExperimentError(f"{path.parent}: there is a file where a folder is needed") from None
    try:
        with path.open("xb") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens, on 127.0.0.1 alone.")] = 5000,
) -> None:
    """Show the runs of this folder in the MLflow UI, until a Ctrl-C."""
    from fedrobust.tracking.ui import address, ui_server

    command, environment = ui_server(port)
    print(f"MLflow UI: {address(port)}", flush=True)
    os.execve(sys.executable, command, environment)
