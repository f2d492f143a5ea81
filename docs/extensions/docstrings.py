"""Docstrings are plain text with `code` in it; here they become reStructuredText, so that no sign in them is markup."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from options_text import options_of
from sphinx.application import Sphinx

from fedrobust.options import Options

CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
MARKUP = re.compile(r"([*|\\_])")
ARRAY = re.compile(r"ndarray\[tuple\[.*?\], dtype\[.*?\]\]")


def plain(text: str) -> str:
    """One paragraph: `code` is literal, all else is text."""
    parts, end = [], 0
    for found in CODE.finditer(text):
        parts += [MARKUP.sub(r"\\\1", text[end : found.start()]), _code(found[2])]
        end = found.end()
    return "".join([*parts, MARKUP.sub(r"\\\1", text[end:])])


def _code(text: str) -> str:
    """A name becomes a link where the site has it."""
    text = " ".join(text.split())
    if re.fullmatch(r"[A-Z]\w*(\.\w+)*", text):
        return rf"\ :py:obj:`.{text}`\ "
    return rf"\ ``{text}``\ "


def paragraphs(lines: Iterable[str]) -> Iterator[list[str]]:
    """What stands between empty lines."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []


def arguments(text: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """`name: what it is` for each of some arguments, in one paragraph; empty where it does not begin with one."""
    either = "|".join(map(re.escape, names))
    if not either or not re.match(rf"({either}): ", text):
        return []
    starts = list(re.finditer(rf"(?:^|(?<=[.;] ))({either}): ", text))
    ends = [*(found.start() for found in starts[1:]), len(text)]
    return [(found[1], text[found.end() : end].strip()) for found, end in zip(starts, ends, strict=True)]


ITEM = re.compile(r"(- |\d+\. )")


def items(block: list[str]) -> Iterator[tuple[str, list[str]]]:
    """A block as runs of text and of list items, with the mark of each item; text has none."""
    mark, lines = "", list[str]()
    for line in block:
        found = ITEM.match(line)
        if found or (mark and not line.startswith(" ")):
            if lines:
                yield mark, lines
            mark, lines = found[1] if found else "", []
        lines.append(line.removeprefix(mark).strip() if found else line.strip())
    yield mark, lines


def converted(lines: Iterable[str], names: Iterable[str] = ()) -> list[str]:
    """A docstring as reStructuredText. `names`: arguments of what it describes."""
    made: list[str] = []
    names = list(names)
    for block in paragraphs(lines):
        if block[0].startswith(">>>"):
            made += [*block, ""]
            continue
        for mark, run in items(block):
            text = " ".join(run)
            if found := arguments(text, names):
                made += [f":param {name}: {plain(what)}" for name, what in found]
            else:
                made.append(f"{mark}{plain(text)}")
            made.append("")
    return made


def _names(what: str, it: Any) -> list[str]:
    if what not in ("class", "function", "method", "exception"):
        return []
    try:
        return list(inspect.signature(it).parameters)
    except (TypeError, ValueError):
        return []


def on_docstring(app: Sphinx, what: str, name: str, it: Any, options: Any, lines: list[str]) -> None:
    """Convert it, and say which options a class has."""
    lines[:] = converted(lines, _names(what, it))
    if inspect.isclass(it) and issubclass(it, Options):
        lines += options_of(it, plain)


def on_signature(
    app: Sphinx, what: str, name: str, it: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Options are listed below their class, not in its signature; an array is an array."""
    if inspect.isclass(it) and issubclass(it, Options):
        return "", ""
    return tuple(each and ARRAY.sub("ndarray", each) for each in (signature, returns))  # type: ignore[return-value]


def on_member(app: Sphinx, what: str, name: str, it: Any, skip: bool, options: Any) -> bool | None:
    """The fields of options stand in their list already."""
    owner = app.env.current_document.autodoc_class
    module = import_module(app.env.current_document.autodoc_module)
    of = getattr(module, owner, None) if owner else None
    fields = {*of.model_fields, "model_config"} if inspect.isclass(of) and issubclass(of, Options) else ()
    return True if name in fields else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", on_docstring)
    app.connect("autodoc-process-signature", on_signature)
    app.connect("autodoc-skip-member", on_member)
    return {"parallel_read_safe": True}
