"""The user's own code, which an experiment file names as "package.module:Name".

It may be in the same folder as the file. That folder is not trusted for anything else: it is searched last, and only
for names of this form, so that a `numpy.py` there is never imported instead of NumPy.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

FORM = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
"""The form of such a name."""

_beside: ContextVar[tuple[Path, ...]] = ContextVar("beside", default=())
_folders: list[str] = []
_loaded: dict[str, str] = {}


@contextmanager
def looking_beside(folders: Sequence[Path]) -> Iterator[None]:
    """During the block, also search these folders, those of the files that name the code."""
    token = _beside.set(tuple(folder.absolute() for folder in folders))
    try:
        yield
    finally:
        _beside.reset(token)


def named(name: str) -> Any:
    """Import the module of "package.module:Name" and return the object. Raises whatever the import raises.

    Raises `ValueError` if the name has another form, and `ImportError` if a file of that name is beside the experiment
    file but a different module of the same name would be imported.
    """
    if not FORM.fullmatch(name):
        raise ValueError("expected the form package.module:Name")
    path, _, attribute = name.partition(":")
    places = _beside.get()
    look_in([str(place) for place in places])
    own = [each for place in places for each in _files(place, path) if each.exists()]

    def check(file: str | None) -> None:
        if own and not (file and Path(file).exists() and any(each.samefile(file) for each in own)):
            raise ImportError(f"'{path}' is already {file or 'part of Python'}, not {own[0]}: give yours another name")

    if path not in sys.modules:  # before another module is run
        check(file_of(path))
    module = importlib.import_module(path)
    file = getattr(module, "__file__", None)
    check(file)
    found = getattr(module, attribute)
    if not path.startswith("fedrobust."):
        _loaded[name] = file or path
    return found


def file_of(module: str) -> str | None:
    """Return the file that an import of "package.module" would run, as far as it can be said without importing its
    packages; None if there is none."""
    parts, places, spec = module.split("."), None, None
    for end in range(1, len(parts) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:end]), places)
        if spec is None or (end < len(parts) and spec.submodule_search_locations is None):
            return None
        places = spec.submodule_search_locations
    return spec.origin if spec is not None else None


def look_in(folders: Sequence[str]) -> None:
    """Add `folders` at the end of the search path for modules."""
    for folder in folders:
        if folder not in sys.path:
            sys.path.append(folder)
            _folders.append(folder)
            importlib.invalidate_caches()


def folders() -> list[str]:
    """Return the folders that `look_in` has added to `sys.path` in this process."""
    return list(_folders)


def loaded() -> dict[str, str]:
    """Return what was named and imported in this process: name → file."""
    return dict(_loaded)


def _files(folder: Path, module: str) -> tuple[Path, Path]:
    path = folder.joinpath(*module.split("."))
    return path.with_suffix(".py"), path / "__init__.py"
