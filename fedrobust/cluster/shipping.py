"""What is sent: a command and the files that it needs, and the script that runs it on the cluster."""

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
from fedrobust.job import JOB, SHIPPED
from fedrobust.naming import commit

DRIVERS = ("run", "matrix", "sweep", "duel")
"""The commands that may be submitted: those that read a file and run federations."""
PASSED_ON = ("FEDROBUST_DATA", "MLFLOW_TRACKING_URI")
"""Variables that a job gets from the environment of the user who submits it, if they are set there."""
GRACE = 120
"""Seconds that a stopped job has to end properly: to finish a round and write its results."""

_MAY_HIDE = {"fedrobust", "test", "tests", "docs", "examples", "benchmarks", "setup", "conftest"}
"""Modules at the top of a working folder that may hide others without harm; a clone's own code is meant to be run."""
_COMMENT = re.compile(r"(^|\s)#.*")
_CLASS = re.compile(r"(?<![\w./:])([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*(?![\w:])")
"""A class of the user's own, `module:Class`."""
_FILE = re.compile(r"(?<![\w./-])[\w./-]+\.ya?ml\b")
"""An experiment file that is named by another one, relative to that file."""

_PYTHON = r"""
raylet=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$PPID/status 2>/dev/null)
python=$(tr '\0' '\n' 2>/dev/null </proc/$raylet/cmdline | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p')
"""
# The job's parent is a worker of the raylet; its command line has the cluster's Python. `python` may be another.


@dataclass(frozen=True)
class Shipment:
    """A command, with files relative to the working folder, and the files that are shipped."""

    command: list[str]
    selection: Selection
    typed: str = ""
    """What stands before the path of the command's file in the words that the user typed, e.g. `./`."""


def prepare(command: Sequence[str], folder: Path | None = None) -> Shipment:
    """Select what is sent to run `fedrobust COMMAND` elsewhere.

    command: the command, without `fedrobust`, and its arguments.
    folder: the working folder, by default the current one.

    Raises `ClusterError` if the command cannot be submitted, if it names no file that is shipped, if such a file names
    a class or another experiment file that exists but is not shipped, if a module would be imported instead of an
    installed one, and as `select` does.
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
    typed = named[0].removesuffix(relative[named[0]]) if named[0].endswith(relative[named[0]]) else ""
    return Shipment([command[0], *(relative.get(word, word) for word in command[1:])], selection, typed)


def refuse_hiding(names: Iterable[str]) -> None:
    """Raise `ClusterError` if a module at the top, where a job's Python looks first, hides an installed one.

    names: the paths of the shipped files.

    For example, a shipped `mlflow.py` would be run by everything that imports MLflow, even if no file names a class of
    it.
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
    path = path.parent.resolve() / path.name  # if the file is a link, its own name is used
    if not path.is_relative_to(folder):
        reason = f"lies outside of {folder}, which is what is shipped: copy it there, or go where it is"
        raise ClusterError(Problem(reason).at(Path(name)))
    if not path.is_file():
        raise ClusterError(Problem(f"there is no such file in {folder}").at(Path(name)))
    return path.relative_to(folder).as_posix()


def _check_names(folder: Path, name: str, selection: Selection, texts: Sequence[str], seen: set[str]) -> None:
    """Raise `ClusterError` if a file names a class, or an experiment file, that exists but is not shipped.

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
    """Raise `ClusterError` if the file `name`, which `by` names, exists but is not shipped."""
    if name in selection.files or not (folder / name).is_file():
        return
    outside = name.startswith(("../", "/"))
    why = f"it lies outside of {folder}" if outside else f"it belongs to {selection.why_not(name)}"
    problem = Problem(f"is not shipped: {why}").at(Path(name))
    raise ClusterError(problem.at(Path(by)) if by else problem)


def pack(files: Mapping[str, bytes], package: Path) -> None:
    """Write a zip file whose bytes depend only on the names and contents of `files`: a cluster stores the same file
    only once.

    package: path of the zip file.
    """
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(_entry(name), files[name])


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return entry


def entrypoint(command: Sequence[str], workplace: str | None = None) -> str:
    """Return the shell script of a job: find the cluster's Python, go to the workplace, run the command."""
    words = [f'"${SHIPPED}"/{shlex.quote(word)}' if names_file(word) else shlex.quote(word) for word in command]
    place = '"${FEDROBUST_HOME:-$HOME/fedrobust}"' if workplace is None else shlex.quote(workplace)
    start = [f"mkdir -p {place} && cd {place} || exit 2", 'echo "on node $(hostname), in $PWD"']
    return script(*start, python=f"-P -m fedrobust.cli {' '.join(words)}")
    # -P: files in the workplace must not hide the code that was shipped or installed.


def script(*lines: str, python: str) -> str:
    """Return a shell script that does `lines`, and then runs the cluster's Python.

    python: the arguments of Python; the folder of the job's files is in the environment variable `job.SHIPPED`.
    """
    return "\n".join([f"export {SHIPPED}=$PWD", _PYTHON.strip(), *lines, f'exec "${{python:-python}}" {python}'])


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of the job and its actors, besides those with which their nodes were started.

    The authentication mode is not among them: a job inherits it from its node, and the token.
    """
    own = {
        JOB: "1",
        "OMP_NUM_THREADS": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE),
        # the code of a clone is shipped, but not its repository
        **({"FEDROBUST_COMMIT": commit()} if Path("fedrobust/naming.py").exists() else {}),
    }
    return own | {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)} | dict(variables)
