"""The reference has a place for everything that a user imports; `make docs` finds names that are not there."""

from __future__ import annotations

import re
from pathlib import Path

from fedrobust.terminal import families

PAGES = Path(__file__).parent.parent / "docs" / "reference"
TEXT = "".join(page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md")))


def test_pages_have_every_family_once() -> None:
    listed = re.findall(r"^\.\. family:: (\S+)$", TEXT, re.MULTILINE)
    assert sorted(name for name in listed if ":" not in name) == sorted(families())


def test_pages_have_every_room_of_a_family() -> None:
    rooms = {option.__module__.split(".")[1] for options in families().values() for option in options.values()}
    listed = re.findall(r"^\.\. public:: fedrobust\.(\S+)$", TEXT, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert rooms <= set(listed)
