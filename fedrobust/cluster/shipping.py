"""What is sent: the files of the working folder, and the script that drives a command on the cluster."""

from __future__ import annotations

import os
import shlex
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedrobust.cluster.address import ClusterError
from fedrobust.naming import commit

DRIVERS = ("run", "matrix", "sweep", "duel")
"""The commands that may be submitted: those that read a file and run federations."""
MOST = 100_000_000
"""Bytes that a working folder may have, without what is never shipped."""
NEVER = {".git", ".venv", "venv", "__pycache__", "node_modules", "lightning_logs", ".ipynb_checkpoints"} | {
    f".{tool}" for tool in ("mypy_cache", "pytest_cache", "ruff_cache", "hypothesis", "tox")
}
"""Folders that are not shipped, wherever they lie."""
NEVER_AT_THE_TOP = {"data", "mlruns", "build", "dist"}
"""Folders that are not shipped if they lie in the working folder itself."""
PASSED_ON = ("FEDROBUST_DATA", "MLFLOW_TRACKING_URI")
"""Variables that a job gets from the environment of who submits it, if they are set there."""
GRACE = 120
"""Seconds that a job has to end in order when it is stopped: a round, and what is written after it."""

_DRIVE = r"""
shipped=$PWD
raylet=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$PPID/status 2>/dev/null)
python=$(tr '\0' '\n' 2>/dev/null </proc/$raylet/cmdline | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p')
mkdir -p {workplace} && cd {workplace} || exit 2
echo "on node $(hostname), in $PWD"
exec "${{python:-python}}" -P -m fedrobust.cli {command}
"""
# The job's parent is a worker of the raylet, whose command line names the cluster's Python; `python` may be another.
# -P: what lies in the workplace must not hide the code that was shipped or installed.


def checked(command: Sequence[str], folder: Path) -> list[str]:
    """The command with its files relative to `folder`. Raises `ClusterError` where it could not run on a cluster."""
    allowed = ", ".join(DRIVERS)
    if not command:
        raise ClusterError(f"nothing to submit: give a command after --, one of {allowed}")
    if command[0] not in DRIVERS:
        raise ClusterError(f"'{command[0]}' cannot be submitted; what can: {allowed}")
    named = [word for word in command[1:] if names_file(word)]
    if not named:
        raise ClusterError(f"'{shlex.join(command)}' names no file: {command[0]} reads a .yaml file")
    relative = {word: _inside(word, folder) for word in named}
    return [command[0], *(relative.get(word, word) for word in command[1:])]


def names_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) and "=" not in word


def _inside(name: str, folder: Path) -> str:
    path = Path(os.path.normpath(folder / name))  # a link stays what it is called
    if not path.is_relative_to(folder):
        raise ClusterError(
            f"{name} lies outside of {folder}, which is what is shipped: copy it there, or go where it is"
        )
    if not path.is_file():
        raise ClusterError(f"{name}: there is no such file in {folder}")
    shipped = path.relative_to(folder)
    if path not in to_ship(folder):
        raise ClusterError(f"{name} is not shipped: {shipped.parts[0]} is left out, or git ignores it")
    return shipped.as_posix()


def to_ship(folder: Path) -> list[Path]:
    """The files of a folder that are shipped, sorted: without `NEVER`, and without what git ignores."""
    listing = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(listing, capture_output=True, check=True).stdout.decode().split("\0")
        found = [folder / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        found = []
        for root, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if _is_shipped((Path(root) / name).relative_to(folder))]
            found += [Path(root) / name for name in names]
    return sorted({path for path in found if _is_shipped(path.relative_to(folder)) and path.is_file()})


def _is_shipped(path: Path) -> bool:
    return path.parts[0] not in NEVER_AT_THE_TOP and not NEVER & set(path.parts) and path.suffix != ".egg-info"


def refuse_big(folder: Path, files: Sequence[Path], most: int) -> None:
    """Raise `ClusterError` with the biggest files if all of them have more than `most` bytes."""
    sizes = {path: path.stat().st_size for path in files}
    if (total := sum(sizes.values())) > most:
        biggest = sorted(sizes, key=lambda path: -sizes[path])[:5]
        shown = ", ".join(f"{path.relative_to(folder)} ({sizes[path] / 1e6:.1f} MB)" for path in biggest)
        raise ClusterError(
            f"{folder} has {total / 1e6:.0f} MB to ship, more than {most / 1e6:g} MB; the biggest files: {shown}; "
            "move them to data/ or mlruns/, which stay here, or have git ignore them"
        )


def pack(folder: Path, files: Sequence[Path], package: Path) -> None:
    """Write a zip whose bytes depend on the files' names and contents alone: a cluster keeps the same one only once."""
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.writestr(_entry(path.relative_to(folder).as_posix()), path.read_bytes())


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return entry


def entrypoint(command: Sequence[str], workplace: str | None = None) -> str:
    """The shell script that a job is: find the cluster's Python, go to the workplace, run the command."""
    words = [f'"$shipped"/{shlex.quote(word)}' if names_file(word) else shlex.quote(word) for word in command]
    place = '"${FEDROBUST_HOME:-$HOME/fedrobust}"' if workplace is None else shlex.quote(workplace)
    return _DRIVE.format(workplace=place, command=" ".join(words)).strip()


def environment(command: Sequence[str], variables: Mapping[str, str]) -> dict[str, str]:
    """What the job and its actors find in their environment, beside what their nodes were started with.

    The authentication mode is the nodes' own affair: a job inherits it, and the token.
    """
    beside = {Path(word).parent.as_posix() for word in command if names_file(word)} - {"."}
    own = {
        "FEDROBUST_JOB": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE),
        # A user's classes may lie beside the file; actors start in the copy of the working folder.
        **({"PYTHONPATH": os.pathsep.join(sorted(beside))} if beside else {}),
        # Of a clone the code is shipped, and its repository is not.
        **({"FEDROBUST_COMMIT": commit()} if Path("fedrobust/naming.py").exists() else {}),
    }
    return own | {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)} | dict(variables)
