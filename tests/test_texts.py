"""Texts that are not the program's own."""

from __future__ import annotations

import csv
import io
import logging
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nasty import NAMES

from fedrobust.texts import (
    VisibleFormatter,
    cell,
    code,
    file_name,
    file_names,
    fit,
    is_name,
    markdown,
    visible,
    width,
    wrapped,
)

ANY = st.text(st.characters(), max_size=30) | st.sampled_from(NAMES)
ISOLATES = "\u2068\u2069"
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f\ud800-\udfff]")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]52;c;YQ==\x07", r"\x1b]52;c;YQ==\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x08\x7f", r"a\rb\x08\x7f"),
        ("a\nb\tc\u2028d", r"a\nb\tc\u2028d"),
        ("gnp\u202e.exe", r"gnp\u202e.exe"),
        ("\udcff", r"\udcff"),
        ("C:\\x1b", "C:\\x1b"),
        ("良性 نص हिन्दी e\u0301 a\u200fb 👩‍⚕️", "良性 نص हिन्दी e\u0301 a\u200fb 👩‍⚕️"),
    ],
)
def test_controls_are_seen_and_scripts_stay(text: str, shown: str) -> None:
    assert visible(text) == shown


@settings(max_examples=50, deadline=None)
@given(ANY)
def test_what_is_visible_has_no_control_and_can_be_written(text: str) -> None:
    shown = visible(text)
    assert not CONTROLS.search(shown) and visible(shown) == shown
    assert "\n" not in text or "\n" in visible(text, keep="\n")
    shown.encode()


def test_log_lines_have_no_controls() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "a\nb %s", ("\x1b[2J",), None)
    assert VisibleFormatter().format(record) == "a\nb \\x1b[2J"


@settings(max_examples=50, deadline=None)
@given(ANY, st.integers(8, 30))
def test_names_in_pictures_have_a_width_and_are_never_nothing(text: str, most: int) -> None:
    shown = fit(text, most).strip(ISOLATES)
    assert 0 < width(shown) <= max(most, len("(empty)")) and not CONTROLS.search(shown)
    if width(text.strip()) and width(visible(text)) <= most:
        assert shown == visible(text)


def test_names_from_right_to_left_turn_nothing_around() -> None:
    assert fit("نص", 9) == "\u2068نص\u2069" and fit("a א" * 9, 4) == "\u2068a א…\u2069"
    assert fit("ab", 9) == "ab"


def test_wide_characters_count_twice_and_marks_not() -> None:
    assert [width(each) for each in ("ab", "良性", "e\u0301", "", "a\u200f")] == [2, 4, 1, 0, 1]
    assert fit("良" * 30, 9) == "良良良良…" and fit("x" * 30, 9) == "xxxxxxxx…"
    assert fit("", 9) == fit(" \u200b", 9) == "(empty)"


@settings(max_examples=50, deadline=None)
@given(ANY, ANY)
def test_files_of_two_names_are_two_files(one: str, other: str) -> None:
    made = [file_name(each) for each in (one, other)]
    assert (made[0] == made[1]) == (one == other)
    for each in made:
        assert 0 < len(each.encode()) <= 120 and not CONTROLS.search(each)
        assert not set(each) & set("/\\:*?\"<>|$%&;'`\n") and each[0] not in "-. " and each[-1] not in ". "


@pytest.mark.parametrize(
    "name", ["quickstart", "nnm + median", "良性", "हिन्दी", "نص", "👍", "a.b", "İstanbul", "v1.0-x"]
)
def test_plain_names_are_files_as_they_are(name: str, tmp_path: Path) -> None:
    assert file_name(name) == unicodedata.normalize("NFC", name) == name
    (tmp_path / file_name(name)).write_text("x")


@pytest.mark.parametrize(
    "name",
    ["con", "NUL.png", "com1", "..", ".", "", " a", "a ", "a.", "-rf", "e\u0301", "x-0123abcd", "x" * 121, "良" * 41],
)
def test_other_names_get_a_digest(name: str, tmp_path: Path) -> None:
    made = file_name(name)
    assert re.fullmatch(r".+-[0-9a-f]{8}", made)
    (tmp_path / f"heatmap_{made}.png").write_text("x")
    assert file_name(made) != made  # nobody else's name is this one


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)", " =1", "＝1", "-", "\n=1"])
def test_a_cell_is_no_formula(text: str) -> None:
    assert str(cell(text)).startswith("'")


@pytest.mark.parametrize("value", [-0.5, "-0.5", "+5", "-1e-5", "-inf", 3, None, "a=1", "", "良", r"\t=1"])
def test_numbers_and_other_texts_are_cells_as_they_are(value: object) -> None:
    assert cell(value) is value or cell(value) == value


@settings(max_examples=50, deadline=None)
@given(ANY)
def test_cells_come_back_from_a_csv_file(text: str) -> None:
    out = io.StringIO()
    csv.writer(out).writerow([cell(text)])
    out.getvalue().encode()
    ((found,),) = csv.reader(io.StringIO(out.getvalue(), newline=""))
    assert found.removeprefix("'") == visible(text, keep="\n").removeprefix("'")


def test_markdown_has_the_text_as_it_is() -> None:
    assert markdown("sign_flip 0.5") == "sign_flip 0.5"
    assert markdown("a|b\n<i> *c* _d_ `e` [f](g) $h$") == r"a\|b \<i\> \*c\* \_d\_ \`e\` \[f\](g) \$h\$"


@pytest.mark.parametrize("text", ["a", "a`b", "``", "`", "a\nb`", ""])
def test_code_has_the_text_as_it_is(text: str) -> None:
    made = code(text)
    fence = re.match("`+", made)
    assert fence is not None and made.endswith(fence[0]) and "\n" not in made
    inside = made[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in inside and inside.strip(" ") == text.replace("\n", " ")


@pytest.mark.parametrize("name", ["a", "nnm + median", "_x", "5-2", "良性", "हिन्दी", "عربي", "İ"])
def test_names_of_parts_have_letters_of_any_script(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", ["", " a", "+a", "-a", "a/b", "a.b", "a\n", "\u0301a", "a$", "a\u202e", "a|b", "👍"])
def test_names_of_parts_have_no_other_signs(name: str) -> None:
    assert not is_name(name)


def test_files_beside_each_other_differ_in_more_than_case() -> None:
    names = ["here", "Here", "HERE", "a/b", "a_b", "straße", "STRASSE"]
    made = file_names(names)
    assert list(made) == names and made["here"] == "here" and made["a_b"] == "a_b"
    assert len({each.casefold() for each in made.values()}) == len(names)


@pytest.mark.parametrize(
    ("text", "most", "lines"),
    [
        ("clip + nnm + median", 30, ["clip + nnm + median"]),
        ("clip + nnm + geometric median", 16, ["clip + nnm +", "geometric median"]),
        ("a_name_with_underscores", 12, ["a_name_with_", "underscores"]),
        ("x" * 20, 8, ["x" * 8, "x" * 8, "x" * 4]),
        ("", 8, ["(empty)"]),
    ],
)
def test_a_wrapped_name_is_whole_on_several_lines(text: str, most: int, lines: list[str]) -> None:
    assert wrapped(text, most).split("\n") == lines


@given(ANY, st.integers(4, 20))
def test_a_wrapped_name_fits_and_holds_no_control(text: str, most: int) -> None:
    lines = wrapped(text, most).split("\n")
    assert len(lines) <= 8
    assert all(
        width(line.strip(ISOLATES)) <= max(most, 7) and not CONTROLS.search(line.strip(ISOLATES)) for line in lines
    )
