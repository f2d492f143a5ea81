"""Texts that are not the program's own, as a terminal, a picture, a page, a table or a folder takes them.

Names of labels, experiments, attacks and options, what errors and journals say, what a cluster calls its jobs: all of
it may hold anything. Pure functions.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable
from hashlib import sha256

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f\ud800-\udfff]")
"""Controls of terminals, of lines and of the direction of writing; halves of characters, which no file takes."""
_FORMULA = tuple("=+-@＝＋－＠")
_MARKDOWN = re.compile(r"[\\`*\[\]<>&|~$#]|(?<!\w)_|_(?!\w)")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices."""
_DIGEST = re.compile(r"-[0-9a-f]{8}")


def visible(text: object, keep: str = "") -> str:
    r"""`text` with its control characters as they are written in Python, e.g. `\x1b`; those in `keep` stay.

    So it cannot move a terminal's cursor, fill its clipboard, begin a line or turn the direction of what follows.
    """
    return _UNSEEN.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], str(text))


class VisibleFormatter(logging.Formatter):
    """Log lines without control characters; their lines stay lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's message, and what was raised if it says so."""
        return visible(super().format(record), keep="\n\t")


def width(text: str) -> int:
    """How many columns a text takes: wide characters two, marks above or below others none."""
    unseen = sum(unicodedata.category(each) in ("Mn", "Me", "Cf") for each in text)
    return len(text) - unseen + sum(unicodedata.east_asian_width(each) in "WF" for each in text)


def head(text: str, most: int) -> str:
    """The beginning of a text, as much as `most` columns take; of marks on marks, four characters a column."""
    text = text[: 4 * most]
    while (over := width(text) - most) > 0:
        text = text[: -max(1, over // 2)]
    return text


def fit(text: str, most: int) -> str:
    """A name in a picture: visible, of at most `most` columns; one that is empty says so.

    One that is written from right to left is isolated, so that it does not turn around what stands beside it.
    """
    text = visible(text) if width(text.strip()) else "(empty)"
    text = text if text == head(text, most) else f"{head(text, most - 1)}…"
    leftward = any(unicodedata.bidirectional(each) in ("R", "AL", "AN") for each in text)
    return f"\u2068{text}\u2069" if leftward else text


def markdown(text: object) -> str:
    """`text` in a line of Markdown: what would be a sign there is escaped, and a line's end is a blank."""
    return _MARKDOWN.sub(r"\\\g<0>", visible(" ".join(str(text).splitlines())))


def code(text: object) -> str:
    """`text` as code in a line of Markdown, whatever backticks are in it."""
    line = visible(" ".join(str(text).splitlines()))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    blank = " " if "`" in line else ""
    return f"{fence}{blank}{line}{blank}{fence}"


def cell(value: object) -> object:
    """A value of a CSV file. A text that a spreadsheet would run as a formula gets a `'` in front; numbers get none."""
    if not isinstance(value, str):
        return value
    text = visible(value, keep="\n")
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _is_number(text) else text


def is_name(text: str) -> bool:
    """Whether `text` can name a part of a matrix, sweep or duel: letters of any script, digits, blanks, `+`, `-`, `_`.

    It begins with a letter, a digit or `_`.
    """
    begins = text[:1].isalnum() or text[:1] == "_"
    return begins and all(each in " +-_" or unicodedata.category(each)[0] in "LMN" for each in text)


def file_name(name: str, longest: int = 120) -> str:
    """A name for a file or folder that every system takes, of at most `longest` bytes in UTF-8, 40 or more.

    Letters, digits and pictures of any script, blanks inside and `_-+.` stay. A name that cannot stay as it is gets a
    digest behind it, so that two names never share a file.
    """
    plain = unicodedata.normalize("NFC", name)
    safe = "".join(each if each in "_-+. " or _is_letter(each) else "_" for each in plain)
    safe = safe.rstrip(". ").lstrip("-. ")
    kept = safe == name != "" and len(safe.encode()) <= longest
    if kept and not _RESERVED.fullmatch(safe) and not _DIGEST.fullmatch(safe[-9:]):
        return safe
    return _with_digest(safe, name, longest)


def file_names(names: Iterable[str], longest: int = 120) -> dict[str, str]:
    """Names for files beside each other: also of names that differ in upper and lower case alone, each has its own."""
    found: dict[str, str] = {}
    for name in names:
        made = file_name(name, longest)
        if made.casefold() in {each.casefold() for each in found.values()}:
            made = _with_digest(made, name, longest)  # no name that has a digest is left as it is
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
