"""The options of a class as reStructuredText, see `fedrobust.option_texts`."""

from __future__ import annotations

import re
from collections.abc import Callable

from fedrobust.option_texts import family_of, own_options, shared_options
from fedrobust.options import Options


def options_of(option: type[Options], plain: Callable[[str], str]) -> list[str]:
    """The options of a class as a definition list; those that are its family's as they are there are not repeated."""
    made: list[str] = []
    for each in own_options(option):
        text = plain(each.description)
        made += [f"``{each.name}``: {_marked(each.words)}", *([f"   {text}"] if text else ["   \\ "]), ""]
    if (family := family_of(option)) and shared_options(option):
        made += [f"Also the options of :py:obj:`.{family.__name__}`.", ""]
    return [".. rubric:: Options", "", *made] if made else []


def _marked(words: str) -> str:
    """Classes become links, values are literal."""
    return re.sub(r"`([^`]+)`", lambda found: _linked(found[1]), words)


def _linked(word: str) -> str:
    return f":py:obj:`.{word}`" if re.fullmatch(r"[A-Z]\w*", word) else f"``{word}``"
