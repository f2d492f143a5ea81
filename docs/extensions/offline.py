"""A page that would fetch anything from a network is an error."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

FETCHED = re.compile(
    r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["'](?:https?:)?//[^"']*|url\(["']?https?:[^)]*"""
)


def fetches(folder: Path) -> list[str]:
    """What the pages and style sheets below a folder would fetch, with the file that does."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".html", ".css"))
    return [f"{path}: {found}" for path in files for found in FETCHED.findall(path.read_text(encoding="utf-8"))]


def on_end(app: Sphinx, error: Exception | None) -> None:
    """Look through what was written."""
    if error is None and (found := fetches(Path(app.outdir))):
        raise ExtensionError("the site must be readable offline: " + "; ".join(found))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", on_end)
    return {"parallel_read_safe": True}
