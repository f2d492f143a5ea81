"""One word, one meaning: no two public classes of the package share a name, and none hides a name of `typing`."""

from __future__ import annotations

import ast
import typing
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "fedrobust"


def public_names(source: str) -> Iterator[str]:
    """Classes and type aliases that a module defines; an alias begins with a capital letter and is no constant."""
    for node in ast.parse(source).body:
        names = []
        if isinstance(node, ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from (name for name in names if name[0].isupper() and not name.isupper())


def homes() -> dict[str, list[str]]:
    """Name → the modules that define it."""
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in public_names(path.read_text(encoding="utf-8")):
            found[name].append(path.relative_to(PACKAGE).as_posix())
    return found


def test_the_names_of_a_module_are_its_classes_and_aliases() -> None:
    source = "class One: pass\nTwo = dict[str, int]\nThree: object = int\nFOUR = 4\n_Five = int\nsix = 6\n"
    assert list(public_names(source)) == ["One", "Two", "Three"]


def test_no_two_public_classes_share_a_name() -> None:
    assert not {name: files for name, files in homes().items() if len(files) > 1}


def test_no_public_class_hides_a_name_of_typing() -> None:
    assert not {name: files for name, files in homes().items() if name in typing.__all__}
