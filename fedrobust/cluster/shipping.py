"""What is sent: a command and the files that it needs, and the script that drives it on the cluster."""

from __future__ import annotations

import os
import re
import shlex
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

from fedrobust.cluster.folder import Selection, select
from fedrobust.errors import ClusterError, Problem
from fedrobust.naming import commit

DRIVERS = ("run", "matrix", "sweep", "duel")
"""The commands that may be submitted: those that read a file and run federations."""
PASSED_ON = ("FEDROBUST_DATA", "MLFLOW_TRACKING_URI")
"""Variables that a job gets from the environment of who submits it, if they are set there."""
GRACE = 120
"""Seconds that a job has to end in order when it is stopped: a round, and what is written after it."""

_MAY_HIDE = {"fedrobust", "test", "tests", "docs", "examples", "benchmarks", "setup", "conftest"}
"""Modules at the top of a working folder that hide nothing which matters; a clone's own code is meant to be run."""
_COMMENT = re.compile(r"(^|\s)#.*")
_CLASS = re.compile(r"(?<![\w./:])([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*(?![\w:])")
"""A class of a user's own, `module:Class`."""
_FILE = re.compile(r"(?<![\w./-])[\w./-]+\.ya?ml\b")
"""An experiment file that another one names, seen from there."""

_DRIVE = r"""
export FEDROBUST_SHIPPED=$PWD
raylet=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$PPID/status 2>/dev/null)
python=$(tr '\0' '\n' 2>/dev/null </proc/$raylet/cmdline | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p')
mkdir -p {workplace} && cd {workplace} || exit 2
echo "on node $(hostname), in $PWD"
exec "${{python:-python}}" -P -m fedrobust.cli {command}
"""
# The job's parent is a worker of the raylet, whose command line names the cluster's Python; `python` may be another.
# -P: what lies in the workplace must not hide the code that was shipped or installed.


@dataclass(frozen=True)
class Shipment:
    """A command, its files named from the working folder, and what is shipped of that."""

    command: list[str]
    selection: Selection


def prepare(command: Sequence[str], folder: Path | None = None) -> Shipment:
    """What is sent so that `fedrobust COMMAND` can run elsewhere on the files of `folder`, by default the current one.

    Raises `ClusterError` where the command cannot be submitted, names no file that is shipped, or where one of these
    names a class or another experiment file that is there and is not; where a module would be imported in the place of
    an installed one; and as `select` does.
    """
    folder = (folder or Path.cwd()).resolve()
    if not command:
        raise ClusterError(Problem("nothing to submit: give a command after --", allowed=tuple(DRIVERS)))
    if command[0] not in DRIVERS:
        raise ClusterError(Problem("this cannot be submitted", "", f"'{command[0]}'", tuple(DRIVERS)))
    named = [word for word in command[1:] if names_file(word)]
    if not named:
        reason = f"names no file: {command[0]} reads a .yaml file"
        raise ClusterError(Problem(reason, found=f"'{shlex.join(command)}'"))
    relative = {word: _inside(word, folder) for word in named}
    selection = select(folder)
    texts, seen = [word for word in command[1:] if word not in named], set[str]()
    for name in relative.values():
        _refuse_missing(folder, name, selection)
        _check_names(folder, name, selection, texts, seen)
    refuse_hiding(selection.files)
    return Shipment([command[0], *(relative.get(word, word) for word in command[1:])], selection)


def refuse_hiding(names: Iterable[str]) -> None:
    """Raise `ClusterError` where a module at the top, where a job's Python is told to look first, hides another one.

    Who wrote an `mlflow.py` would have it run by everything that imports MLflow, whether a class of it is named or not.
    """
    for name in names:
        path = PurePosixPath(name)
        module = path.parent if path.name == "__init__.py" else path.with_suffix("")
        if path.suffix == ".py" and len(module.parts) == 1 and module.name in _installed():
            reason = f"would be imported in the place of the installed module {module.name}: rename it"
            raise ClusterError(Problem(reason).at(Path(name)))


@cache
def _installed() -> frozenset[str]:
    return frozenset((sys.stdlib_module_names | packages_distributions().keys()) - _MAY_HIDE)


def names_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) and "=" not in word


def _inside(name: str, folder: Path) -> str:
    path = folder / name
    path = path.parent.resolve() / path.name  # a file that is a link stays what it is called
    if not path.is_relative_to(folder):
        reason = f"lies outside of {folder}, which is what is shipped: copy it there, or go where it is"
        raise ClusterError(Problem(reason).at(Path(name)))
    if not path.is_file():
        raise ClusterError(Problem(f"there is no such file in {folder}").at(Path(name)))
    return path.relative_to(folder).as_posix()


def _check_names(folder: Path, name: str, selection: Selection, texts: Sequence[str], seen: set[str]) -> None:
    """Raise `ClusterError` where a file names a class, or an experiment file, that is there and not shipped.

    texts: the command's other words, which may name classes, too.
    """
    seen.add(name)
    beside = PurePosixPath(name).parent
    own = _COMMENT.sub("", selection.files[name].decode(errors="replace"))
    for module in sorted({module for text in (own, *texts) for module in _CLASS.findall(text)}):
        for start in (beside, PurePosixPath()):
            path = start.joinpath(*module.split("."))
            for candidate in (path.with_suffix(".py"), path / "__init__.py"):
                _refuse_missing(folder, candidate.as_posix(), selection, name)
    for other in (os.path.normpath(beside / found) for found in _FILE.findall(own)):
        _refuse_missing(folder, other, selection, name)
        if other in selection.files and other not in seen:
            _check_names(folder, other, selection, (), seen)


def _refuse_missing(folder: Path, name: str, selection: Selection, by: str = "") -> None:
    """by: the file that names this one."""
    if name in selection.files or not (folder / name).is_file():
        return
    outside = name.startswith(("../", "/"))
    why = f"it lies outside of {folder}" if outside else f"it belongs to {selection.why_not(name)}"
    problem = Problem(f"is not shipped: {why}").at(Path(name))
    raise ClusterError(problem.at(Path(by)) if by else problem)


def pack(files: Mapping[str, bytes], package: Path) -> None:
    """Write a zip whose bytes depend on the files' names and contents alone: a cluster keeps the same one only once."""
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(_entry(name), files[name])


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return entry


def entrypoint(command: Sequence[str], workplace: str | None = None) -> str:
    """The shell script that a job is: find the cluster's Python, go to the workplace, run the command."""
    words = [f'"$FEDROBUST_SHIPPED"/{shlex.quote(word)}' if names_file(word) else shlex.quote(word) for word in command]
    place = '"${FEDROBUST_HOME:-$HOME/fedrobust}"' if workplace is None else shlex.quote(workplace)
    return _DRIVE.format(workplace=place, command=" ".join(words)).strip()


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What the job and its actors find in their environment, beside what their nodes were started with.

    The authentication mode is the nodes' own affair: a job inherits it, and the token.
    """
    own = {
        "FEDROBUST_JOB": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE),
        # Of a clone the code is shipped, and its repository is not.
        **({"FEDROBUST_COMMIT": commit()} if Path("fedrobust/naming.py").exists() else {}),
    }
    return own | {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)} | dict(variables)
