"""Texts from outside the program, made safe for a terminal, a picture, a page, a table or a folder.

Names of labels, experiments, attacks and options, messages in errors and journals, names of jobs on a cluster: all of
these may contain any characters. Pure functions.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from hashlib import sha256

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f\ud800-\udfff]")
"""Control characters of terminals, lines and writing direction, and surrogates, which no file accepts."""
_FORMULA = tuple("=+-@＝＋－＠")
_MARKDOWN = re.compile(r"[\\`*\[\]<>&|~$#]|(?<!\w)_|_(?!\w)")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Device names that Windows reserves."""
_DIGEST = re.compile(r"-[0-9a-f]{8}")


def visible(text: object, keep: str = "") -> str:
    r"""Return `text` with control characters written as in Python, e.g. `\x1b`, except those in `keep`.

    So a text cannot move a terminal's cursor, fill its clipboard, begin a line or reverse the direction of what
    follows.
    """
    return _UNSEEN.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], str(text))


class VisibleFormatter(logging.Formatter):
    """Formats log messages without control characters, except line breaks."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's message, and its traceback if it has one."""
        return visible(super().format(record), keep="\n\t")


def width(text: str) -> int:
    """Return how many columns a text takes: two for wide characters, none for combining marks."""
    unseen = sum(unicodedata.category(each) in ("Mn", "Me", "Cf") for each in text)
    return len(text) - unseen + sum(unicodedata.east_asian_width(each) in "WF" for each in text)


def head(text: str, most: int) -> str:
    """Return the beginning of `text`, at most `most` columns wide, and at most four characters a column."""
    text = text[: 4 * most]
    while (over := width(text) - most) > 0:
        text = text[: -max(1, over // 2)]
    return text


def fit(text: str, most: int) -> str:
    """Return a name for a picture: visible characters, at most `most` columns, and a placeholder if `text` is empty.

    Right-to-left names are isolated, so that they do not reverse the text beside them.
    """
    text = visible(text) if width(text.strip()) else "(empty)"
    text = text if text == head(text, most) else f"{head(text, most - 1)}…"
    leftward = any(unicodedata.bidirectional(each) in ("R", "AL", "AN") for each in text)
    return f"\u2068{text}\u2069" if leftward else text


def wrapped(text: str, most: int, lines: int = 8) -> str:
    """Return a name for a picture as `fit` does, but whole: on several lines of at most `most` columns.

    lines: at most; a longer text ends in `…`.
    """
    left, found = visible(text) if width(text.strip()) else "(empty)", list[str]()
    while width(left) > most and len(found) < lines - 1:
        line = head(left, most)
        cut = max(line.rfind(mark) + len(mark) for mark in (" ", "_", "/", ",")) if len(line) < len(left) else 0
        line = line[:cut] if cut > len(line) // 3 else line
        found.append(line.rstrip())
        left = left[len(line) :].lstrip()
    return "\n".join(fit(line, most) for line in [*found, left])


def enumerated(names: Sequence[str], most: int = 3) -> str:
    """Return names as one text; of many, the first ones and how many more there are."""
    shown = names if len(names) <= most + 1 else names[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(shown) < len(names) else "")


def markdown(text: object) -> str:
    """Return `text` for a line of Markdown: special characters are escaped, and line ends become blanks."""
    return _MARKDOWN.sub(r"\\\g<0>", visible(" ".join(str(text).splitlines())))


def code(text: object) -> str:
    """Return `text` as code in a line of Markdown; it may contain backticks."""
    line = visible(" ".join(str(text).splitlines()))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    blank = " " if "`" in line else ""
    return f"{fence}{blank}{line}{blank}{fence}"


def cell(value: object) -> object:
    """Return a value for a CSV file. A text that a spreadsheet would run as a formula gets a `'` in front; numbers do
    not."""
    if not isinstance(value, str):
        return value
    text = visible(value, keep="\n")
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _is_number(text) else text


def is_name(text: str) -> bool:
    """Return whether `text` can name a part of a study: letters of any script, digits, blanks, `+`, `-`, `_`.

    It must begin with a letter, a digit or `_`.
    """
    begins = text[:1].isalnum() or text[:1] == "_"
    return begins and all(each in " +-_" or unicodedata.category(each)[0] in "LMN" for each in text)


def file_name(name: str, longest: int = 120) -> str:
    """Return a file or folder name that every system accepts, of at most `longest` bytes in UTF-8 (40 or more).

    Letters, digits and pictographs of any script, inner blanks and `_-+.` are kept. If `name` has to be changed, a
    digest is appended, so that two names never share a file.
    """
    plain = unicodedata.normalize("NFC", name)
    safe = "".join(each if each in "_-+. " or _is_letter(each) else "_" for each in plain)
    safe = safe.rstrip(". ").lstrip("-. ")
    kept = safe == name != "" and len(safe.encode()) <= longest
    if kept and not _RESERVED.fullmatch(safe) and not _DIGEST.fullmatch(safe[-9:]):
        return safe
    return _with_digest(safe, name, longest)


def file_names(names: Iterable[str], longest: int = 120) -> dict[str, str]:
    """Return file names for several `names`, name → file name; names that differ only in case get different files.

    longest: most bytes of a file name, as in `file_name`.
    """
    found: dict[str, str] = {}
    for name in names:
        made = file_name(name, longest)
        if made.casefold() in {each.casefold() for each in found.values()}:
            made = _with_digest(made, name, longest)  # unchanged names have no digest, so this cannot collide with them
        found[name] = made
    return found


def _with_digest(safe: str, name: str, longest: int) -> str:
    begun = safe.encode()[: longest - 9].decode(errors="ignore").rstrip(". ")
    return f"{begun or 'unnamed'}-{sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _is_letter(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind[0] in "LMN" or kind == "So"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
