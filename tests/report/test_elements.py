"""Templates of pages: what is put into them is text, whatever it looks like."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from nasty import NAMES
from studies import Page

from fedrobust.report.elements import render
from fedrobust.texts import visible

ROOT = Path(__file__).parent.parent.parent
TEMPLATES = sorted((ROOT / "fedrobust").rglob("*.j2"))


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_a_text_and_its_control_characters_are_seen(name: str) -> None:
    html = render("report/templates/base.html.j2", title=name)
    page = Page.read(html)
    assert [tag for tag, _ in page.tags] == ["html", "head", "meta", "meta", "title", "style", "body", "main"]
    assert page.text.strip() == visible(name, keep="\n").strip()
    assert visible(html, keep="\n") == html and html.encode()


def test_a_name_that_a_template_does_not_get_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render("report/templates/base.html.j2")


def test_no_template_lets_a_text_through_as_it_is() -> None:
    assert len(TEMPLATES) > 3
    for path in TEMPLATES:
        text = path.read_text(encoding="utf-8")
        assert not {"safe", "autoescape"} & set(text.replace("|", " ").replace("%", " ").split()), path


def test_every_template_is_in_the_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    shipped = {path for pattern in data["fedrobust"] for path in (ROOT / "fedrobust").glob(pattern)}
    assert {*TEMPLATES, *(ROOT / "fedrobust").rglob("*.css")} <= shipped
