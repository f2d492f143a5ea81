"""An entry: the defence whose row is computed, and the code that it is made of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedrobust.benchmark.suite import CONTROL, PARTS, Suite
from fedrobust.draft import Draft
from fedrobust.errors import ExperimentError, Problem
from fedrobust.experiment import Experiment
from fedrobust.matrices.grid import NOBODY, ORACLE
from fedrobust.texts import is_name
from fedrobust.users_code import FORM, loaded


@dataclass(frozen=True)
class BenchmarkEntry:
    """A defence that has been read and checked against a suite."""

    name: str
    """Its name in tables."""
    options: Mapping[str, Any]
    """`aggregation` and `trust` with every option resolved."""
    code: Mapping[str, str]
    """Each class of the user's own, as "module:Class" → SHA-256 of the file that defines it."""
    folders: tuple[Path, ...]
    """Folders in which these files were looked for."""

    @property
    def code_digest(self) -> str:
        """Return one digest of all of its code; empty if every class is of this package."""
        return hashlib.sha256(repr(sorted(self.code.items())).encode()).hexdigest() if self.code else ""


def read_entry(text: str, suite: Suite) -> BenchmarkEntry:
    """Return the entry that a word of the command line names.

    text: a rule's name (`median`), a rule of the user's own (`mine:Rule`, in the current folder or installed, or
        `folder/mine.py:Rule`), or a YAML file with the keys `aggregation` and `trust`, as in an experiment file.
    suite: in whose experiment it must be possible.

    Raises `ExperimentError` with a line for each error.
    """
    path = Path(text)
    if path.suffix.lower() in (".yaml", ".yml"):
        return checked_entry(path.stem, Draft.read(path), suite)
    folder, rule, name = Path(), text, text
    module, colon, attribute = text.rpartition(":")
    if text.endswith(".py") or (colon and not attribute):
        hint = f"for example '{module if colon else text}:Rule'"
        raise ExperimentError(Problem("name the class, too", "entry", f"'{text}'", hint=hint))
    if colon and module.endswith(".py"):
        file = Path(module)
        if not file.is_file():
            raise ExperimentError(Problem("no such file").at(file))
        folder, rule = file.parent, f"{file.stem}:{attribute}"
        if not FORM.fullmatch(rule):
            reason = f"'{rule}' is not a name in Python: use letters, digits and _ in the names of file and class"
            raise ExperimentError(Problem(reason).at(file))
    if FORM.fullmatch(rule):
        name = re.sub(r"[.:]", "_", rule)
    draft = Draft.of(f"entry '{text}'", {"aggregation": {"rule": rule}})
    return checked_entry(name, replace(draft, beside=(folder,)), suite)


def checked_entry(name: str, draft: Draft, suite: Suite) -> BenchmarkEntry:
    """Return the entry `name` with the options of `draft`.

    Raises `ExperimentError`, whose problems name the lines of the entry's file, if the suite's experiment with these
    options is none.
    """
    origin = draft.entry()
    if not is_name(name) or name in (NOBODY, ORACLE):
        reason = f"'{name}' cannot be the name of a row: use letters, digits, blanks, + - _"
        raise ExperimentError(Problem(reason).at(origin))
    for key in draft.tree:
        if key not in PARTS:
            reason = "unknown key; a defence has these, and all else is the suite's"
            raise ExperimentError(Problem(reason, str(key), allowed=PARTS).at(draft.origin_of(key)))
    if "aggregation" not in draft.tree:
        raise ExperimentError(Problem("is missing", "aggregation").at(origin))
    shared = {**suite.options.experiment, "seed": suite.options.seeds[0]}
    experiment = draft.changed(shared, f"suite {suite.name}").checked(Experiment)
    resolved = experiment.resolved()
    options = {part: resolved[part] for part in PARTS}
    if name == CONTROL and options != _control(suite):
        raise ExperimentError(
            Problem(f"'{CONTROL}' is the row of the plain mean: give the file another name").at(origin)
        )
    files = loaded()
    code = {each: sha256_of(Path(files[each])) for each in sorted(set(classes_in(options))) if each in files}
    return BenchmarkEntry(name, options, code, draft.beside)


def source_beside(name: str, folders: Iterable[Path]) -> Path | None:
    """Return the file that would define "module:Class" if it is in one of the folders; nothing is imported."""
    modules = [folder.joinpath(*name.partition(":")[0].split(".")) for folder in folders]
    files = [file for module in modules for file in (module.with_suffix(".py"), module / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes; empty if there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _control(suite: Suite) -> dict[str, Any]:
    resolved = Draft.of(CONTROL, {**suite.options.experiment, "aggregation": {"rule": CONTROL}}).checked(Experiment)
    return {part: resolved.resolved()[part] for part in PARTS}


def classes_in(value: Any) -> Iterator[str]:
    """Yield what may be names of the user's classes in options, `module:Class`."""
    if isinstance(value, str) and FORM.fullmatch(value):
        yield value
    for each in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from classes_in(each)
