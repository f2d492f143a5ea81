"""How docstrings and options become pages. `make docs` itself makes the site, and stops at any warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrobust.aggregation import MoNNA, MultiKrum
from fedrobust.attacks import Alie
from fedrobust.experiment import Federation
from fedrobust.matrices import Matrix
from fedrobust.studies.options import StudyOptions


@pytest.fixture(autouse=True)
def extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "docs" / "extensions"))


def test_signs_in_docstrings_are_no_markup() -> None:
    from docstrings import converted

    assert converted(["Σ p_i |u_i|* of `wᵀU`, x_"]) == ["Σ p\\_i \\|u\\_i\\|\\* of \\ ``wᵀU``\\ , x\\_", ""]


def test_arguments_are_told_from_text() -> None:
    from docstrings import converted

    lines = ["rows: what (n, d) holds,", "    on two lines. f: how many.", "", "note: is no argument."]
    made = converted(lines, ["rows", "f"])
    assert made == [
        ":param rows: what (n, d) holds, on two lines.",
        ":param f: how many.",
        "",
        "note: is no argument.",
        "",
    ]


def test_lists_need_no_empty_line_before_them() -> None:
    from docstrings import converted

    made = converted(["one of", "- `a`: first", "  still first", "- b", "and then text"])
    assert [line for line in made if line] == ["one of", "- \\ ``a``\\ : first still first", "- b", "and then text"]


def test_examples_stay_as_they_are() -> None:
    from docstrings import converted

    assert converted([">>> f(*x_)", "|1|"]) == [">>> f(*x_)", "|1|", ""]


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (MultiKrum, "``m``: whole number ≥ 1 or null; default ``null``"),
        (MoNNA, "``pivot``: whole number ≥ 0 or ``medoid``; default ``medoid``"),
        (Alie, "``direction``: ``plus``, ``minus``; default ``plus``"),
        (Alie, "Also the options of :py:obj:`.Attack`."),
        (Federation, "``participation``: number > 0, ≤ 1; default ``1.0``"),
        (StudyOptions, "``changes``: mapping"),
        (Matrix, "``settings``: mapping; required"),
    ],
)
def test_an_option_says_what_it_may_be(option: type, line: str) -> None:
    from options_text import options_of

    assert line in options_of(option, str)


def test_what_a_family_shares_is_said_once() -> None:
    from options_text import options_of

    assert not any(line.startswith("``fraction``") for line in options_of(Alie, str))


def test_a_page_that_fetches_something_is_found(tmp_path: Path) -> None:
    from offline import fetches

    (tmp_path / "good.html").write_text('<a href="https://example.org">x</a><script src="_static/x.js"></script>')
    assert not fetches(tmp_path)
    (tmp_path / "bad.html").write_text('<script async src="https://cdn.example.org/x.js"></script>')
    (tmp_path / "bad.css").write_text("@import url(https://fonts.example.org/x.css)")
    assert len(fetches(tmp_path)) == 2
