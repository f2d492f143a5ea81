"""Code of the user's that an experiment file names as "package.module:Name".

It may lie beside the file. That folder is not trusted for anything else: it comes last in the search for modules, and
only when a name of this form is looked for, so that a `numpy.py` that lies there is never imported in place of NumPy.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

FORM = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
"""How such a name is written."""

_beside: ContextVar[tuple[Path, ...]] = ContextVar("beside", default=())
_folders: list[str] = []
_loaded: dict[str, str] = {}


@contextmanager
def looking_beside(folders: Sequence[Path]) -> Iterator[None]:
    """While the block runs, names are looked for in these folders, too: those of the files that name them."""
    token = _beside.set(tuple(folder.absolute() for folder in folders))
    try:
        yield
    finally:
        _beside.reset(token)


def named(name: str) -> Any:
    """What stands at "package.module:Name"; its module is imported. Raises whatever the module does then.

    Raises `ValueError` for a name of another form, and `ImportError` where a file of that name lies beside the
    experiment file, and another one, which was found before it, would be taken for it.
    """
    if not FORM.fullmatch(name):
        raise ValueError("expected the form package.module:Name")
    path, _, attribute = name.partition(":")
    places = _beside.get()
    look_in([str(place) for place in places])
    module = importlib.import_module(path)
    file = getattr(module, "__file__", None)
    own = [each for place in places for each in _files(place, path) if each.exists()]
    if own and not (file and any(each.samefile(file) for each in own)):
        raise ImportError(f"'{path}' is already {file or 'part of Python'}, not {own[0]}: give yours another name")
    found = getattr(module, attribute)
    if not path.startswith("fedrobust."):
        _loaded[name] = file or path
    return found


def look_in(folders: Sequence[str]) -> None:
    """Have modules be looked for in these folders, after everywhere else."""
    for folder in folders:
        if folder not in sys.path:
            sys.path.append(folder)
            _folders.append(folder)
            importlib.invalidate_caches()


def folders() -> list[str]:
    """The folders that `look_in` has put at the end of `sys.path` in this process."""
    return list(_folders)


def loaded() -> dict[str, str]:
    """What was named and imported in this process: name → file."""
    return dict(_loaded)


def _files(folder: Path, module: str) -> tuple[Path, Path]:
    path = folder.joinpath(*module.split("."))
    return path.with_suffix(".py"), path / "__init__.py"
