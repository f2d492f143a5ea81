"""What every page is made of: Jinja2 templates, which escape all that is put into them.

A page is one HTML file with no reference to anything outside it; only a sweep's has scripts.
"""

from __future__ import annotations

import base64
from functools import cache
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedrobust.figures.drawing import DOTS_PER_INCH
from fedrobust.texts import visible


def render(template: str, **values: Any) -> str:
    """The page that a template makes of `values`; `template` is its path in the package.

    No text in a page is a tag unless it is `Markup`, and control characters are seen. A name that the template asks for
    and does not get is an error.
    """
    return _environment().get_template(template).render(values)


def document(title: str, body: str) -> str:
    """A page with everything that it needs."""
    return (
        _environment()
        .from_string('{% extends "report/templates/base.html.j2" %}{% block body %}{{ body }}{% endblock %}')
        .render(title=title, body=Markup(body))
    )


def escaped(text: object) -> str:
    """A text for a page, inside or in an attribute: nothing in it is a tag, and its control characters are seen."""
    return escape(visible(text, keep="\n"))


def picture(name: str, text: str, file: bytes) -> str:
    """A PNG file inside the page, with its caption."""
    data, width = base64.b64encode(file).decode(), int.from_bytes(file[16:20], "big") * 102 // DOTS_PER_INCH
    image = f'<img src="data:image/png;base64,{data}" width="{width}" alt="{escaped(text)}">'
    return f'<figure id="{name}">{image}<figcaption>{escaped(text)}</figcaption></figure>'


def plural(count: int, word: str) -> str:
    """`3 rounds`, `1 round`, `no rounds`."""
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"


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
    environment.filters |= {"breakable": _breakable, "plural": plural}
    return environment


def _seen(value: Any) -> Any:
    """What is put into a page, before it is escaped."""
    return value if isinstance(value, Markup) else visible(value, keep="\n")


def _breakable(text: object) -> Markup:
    """A name that may be broken after its dots and slashes."""
    return Markup(str(Markup.escape(_seen(text))).replace(".", ".<wbr>").replace("/", "/<wbr>"))
