"""Two directives of the reference, which need no entry for a new class.

`.. family:: aggregation.rule` documents every class that this part of an experiment file can name, `.. family::
package.module:Class` every named class below a base. `.. public:: ROOM` documents the classes and functions that a room
exports, without those of families and those that a page names itself.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fedrobust.options import Options, members
from fedrobust.terminal import families

PAGES = Path(__file__).parent.parent / "reference"


class Family(SphinxDirective):
    """All members of one family of options, by name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for name, option in _members(self.arguments[0]).items():
            lines += [f".. index:: {name}", "", f".. rubric:: {name}", ""]
            lines += [f".. autoclass:: {_home(option)}.{option.__name__}", ""]
        return self.parse_text_to_nodes("\n".join(lines))


def _members(family: str) -> dict[str, type[Options]]:
    """The classes of a family of experiment files, or of another base, as `package.module:Class`."""
    module, _, base = family.partition(":")
    return members(getattr(import_module(module), base)) if base else families()[family]


class Public(SphinxDirective):
    """What else a room exports."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        room = import_module(self.arguments[0])
        lines: list[str] = []
        for name in rest(self.arguments[0]):
            it = getattr(room, name)
            kind = "class" if inspect.isclass(it) else "function"
            lines += [f".. auto{kind}:: {self.arguments[0]}.{name}", *(["   :members:"] * (kind == "class")), ""]
        return self.parse_text_to_nodes("\n".join(lines))


def rest(room: str) -> list[str]:
    """The classes and functions of a room's `__all__` that are its own, in no family, and named on no page."""
    module, named = import_module(room), named_on_pages()
    in_families = {option for options in families().values() for option in options.values()}
    found = {name: getattr(module, name) for name in module.__all__}
    return [
        name
        for name, it in found.items()
        if (inspect.isclass(it) or inspect.isfunction(it))
        and it not in in_families
        and it.__name__ not in named
        and _home(it) == room
    ]


def named_on_pages() -> set[str]:
    """What `.. autoclass::` and its like name on the pages of the reference, without their modules."""
    text = "".join(page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md")))
    return {name.rpartition(".")[2] for name in re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE)}


def _home(it: type) -> str:
    """The room that something is imported from, or else its module."""
    room = ".".join(it.__module__.split(".")[:2])
    return room if getattr(import_module(room), it.__name__, None) is it else it.__module__


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("family", Family)
    app.add_directive("public", Public)
    return {"parallel_read_safe": True}
