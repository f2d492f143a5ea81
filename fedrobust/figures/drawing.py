"""Common drawing rules: one style whatever the user's settings, no text as a formula, fonts that have its
characters."""

from __future__ import annotations

import io
import logging
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontPath, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from PIL import Image

logger = logging.getLogger(__name__)

DOTS_PER_INCH = 140
"""Resolution of the pictures."""
USUAL = "DejaVu Sans"
"""The font that comes with matplotlib; other fonts are used for characters that it lacks."""
PACKAGES = {
    "fonts-noto-cjk": ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH"),
    "fonts-symbola": ("So", "Sk"),
}
"""Font packages, and the Unicode names or categories of the characters that they have."""
OTHERS = "fonts-noto-core"
"""The package that has most of the remaining characters."""

_LOOK = ["default", {"text.parse_math": False, "text.usetex": False, "font.family": [USUAL]}]
_settings = threading.RLock()
_unusable: set[str] = set()
_told: set[str] = set()
"""Packages that have been named: each is named only once in a process."""


@contextmanager
def drawing() -> Iterator[None]:
    """In the block, matplotlib has its default settings, whatever the user's are, and treats no text as a formula.

    Every function that makes a figure is decorated with it. The settings belong to the whole process, so only one
    thread at a time may draw.
    """
    told = logging.getLogger("matplotlib.font_manager")
    with _settings, matplotlib.style.context(_LOOK):
        level = told.level
        told.setLevel(logging.ERROR)  # hides messages about fonts without a bold face
        try:
            yield
        finally:
            told.setLevel(level)


@drawing()
def png(figure: Figure, dots: int = DOTS_PER_INCH) -> bytes:
    """Return a figure as a PNG file with `dots` pixels per inch. Characters without a font become boxes, and are logged
    once."""
    texts = {text: text.get_text() for text in figure.findobj(Text)}
    families, missing = fonts("".join(texts.values()))
    for text, characters in texts.items():
        if own := _drawn(characters):
            face, usual = (fontManager.findfont(font) for font in (text.get_fontproperties(), USUAL))
            if not _having(face, own) >= _having(usual, own):  # slanted and bold faces support fewer scripts
                text.set(fontstyle="normal", fontweight="normal")
        if len(families) > 1:
            text.set_fontfamily(families)
    tell(missing)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        _print(figure, dots, out)
    return out.getvalue()


def _print(figure: Figure, dots: int, out: io.BytesIO) -> None:
    """Arrange the figure, and draw it once; `savefig` would draw it twice for its layout, for the same picture."""
    figure.set_dpi(dots)
    canvas = FigureCanvasAgg(figure)
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
    canvas.draw()
    opaque = np.asarray(canvas.buffer_rgba())[..., :3]
    Image.fromarray(np.ascontiguousarray(opaque)).save(out, "png", dpi=(dots, dots))
    if layout is not None:
        figure.set_layout_engine(layout)


def fonts(text: str) -> tuple[list[str], str]:
    """Return the font families for the characters of `text`, the usual one first, and the characters without a font.

    Fonts that were installed after matplotlib made its font list are found, too.
    """
    families, missing = [USUAL], _drawn(text)
    missing -= _having(fontManager.findfont(USUAL), missing)
    for search in (_families, _new_families):
        if missing:
            found, missing = search(missing)
            families += found
    return families, "".join(dict.fromkeys(each for each in text if each in missing))


def tell(missing: str) -> None:
    """Log the characters in `missing`, which no font has, and the packages that have them; each package once in a
    process."""
    packages = sorted({_package(each) for each in missing} - _told)
    if packages:
        _told.update(packages)
        shown = missing[:12] + ("…" if len(missing) > 12 else "")
        logger.warning(
            "no font here has %s: pictures show boxes instead, tables and pages show it; fonts that have it: "
            "the package %s",
            shown,
            " and ".join(packages),
        )


def _families(wanted: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Return as few families as possible that have most of the characters, and the characters that none has."""
    entries = {entry.name: FontPath(entry.fname, entry.index) for entry in fontManager.ttflist}
    known = {name: path for name, path in entries.items() if not name.startswith("Last Resort")}
    families, missing = list[str](), wanted
    while missing:
        covered = {name: _having(path, missing) for name, path in known.items()}
        best = max(
            covered, key=lambda name: (len(covered[name]), "Sans" in name, "Mono" not in name, name[-3:] == " SC")
        )
        if not covered[best]:
            break
        families.append(best)
        missing -= covered[best]
    return families, missing


def _new_families(wanted: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """The same for fonts that are not in matplotlib's list yet."""
    for path in {*findSystemFonts()} - {entry.fname for entry in fontManager.ttflist} - _unusable:
        try:
            fontManager.addfont(path)
        except Exception:  # a font that has only colour glyphs, or is broken
            _unusable.add(path)
    return _families(wanted)


@cache
def _having(path: FontPath, wanted: frozenset[str]) -> frozenset[str]:
    """Return the characters that a font has."""
    try:
        font = FT2Font(path.path, face_index=path.face_index)
        return frozenset(each for each in wanted if font.get_char_index(ord(each)))
    except (OSError, RuntimeError):  # it was deleted, or is broken
        return frozenset()


def _package(character: str) -> str:
    words = {unicodedata.name(character, "").split(" ")[0], unicodedata.category(character)}
    return next((package for package, has in PACKAGES.items() if words & {*has}), OTHERS)


def _drawn(text: str) -> frozenset[str]:
    """Return the characters that a font may lack: not ASCII, blanks, or marks that only modify other characters."""
    return frozenset(
        each
        for each in text
        if not (each.isascii() or each.isspace() or unicodedata.category(each) == "Cf" or "\ufe00" <= each <= "\ufe0f")
    )
