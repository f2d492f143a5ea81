"""The building blocks of all pages: Jinja2 templates, which escape everything that is inserted.

A page is one HTML file with no reference to anything outside it; only a sweep's page has scripts.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedrobust.figures.drawing import DOTS_PER_INCH
from fedrobust.texts import visible

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Heads and rows, as the macro `table` takes them; floats are shown with five digits."""


def render(template: str, **values: Any) -> str:
    """Return the page that a template makes of `values`; `template` is its path in the package.

    A text cannot add tags unless it is `Markup`, and control characters are made visible. A name that the template uses
    but that is not given is an error.
    """
    return _environment().get_template(template).render(values)


def plural(count: int, word: str, many: str = "") -> str:
    """Return `3 rounds`, `1 round`, `no rounds`.

    word: for one.
    many: for several, if that is not `word` with an s.
    """
    return f"{count or 'no'} {word if count == 1 else many or f'{word}s'}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fedrobust", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "data": _data, "plural": plural, "shown_width": _shown_width}
    environment.filters |= {"thousands": "{:,}".format}
    return environment


def _seen(value: Any) -> Any:
    """Convert a value that is inserted into a page, before it is escaped."""
    return value if isinstance(value, Markup) else visible(value, keep="\n")


def _breakable(text: object) -> Markup:
    """Return a name that may be broken after its dots and slashes."""
    return Markup(str(Markup.escape(_seen(text))).replace(".", ".<wbr>").replace("/", "/<wbr>"))


def _data(png: bytes) -> Markup:
    """Return a URL that contains the PNG file itself."""
    return Markup(f"data:image/png;base64,{base64.b64encode(png).decode()}")


def _shown_width(png: bytes) -> int:
    """Return the width of a PNG file on the page, in pixels of the page."""
    return int.from_bytes(png[16:20], "big") * 102 // DOTS_PER_INCH
