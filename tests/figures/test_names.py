"""Whatever users call their labels, attacks and options is drawn as they write it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from nasty import NAMES
from reported import IMAGES, journal, write

from fedrobust import figures
from fedrobust.duels.results import Turn, curve_figure
from fedrobust.figures import drawing
from fedrobust.matrices.pictures import heat_map
from fedrobust.report import write_report
from fedrobust.texts import head, visible, width
from fedrobust.tuning import Objective

LINES = ([1, 2], np.array([[0.2, 0.4]]))
VALUES = np.linspace(0, 1, 2 * len(NAMES)).reshape(len(NAMES), 2)
FEW = VALUES[:3]


def curve(names: Sequence[str]) -> Figure:
    by_seed = {"flip": {1: 0.4, 2: 0.6}}
    return curve_figure(Objective(metric=names[1]), [Turn(n, "fixed", 0, {"flip": 0.5}, by_seed, {}) for n in names])


def table(names: Sequence[str]) -> Figure:
    names = [visible(name) for name in names]
    values = pd.DataFrame(VALUES[: len(names)], index=list(names), columns=[1, 2]).reindex(columns=[1, 2])
    values.columns = pd.Index(names[:2])
    return heat_map(values, names[:1], dict.fromkeys(names, 0.5), names[0])


PICTURES: dict[str, tuple[int, Callable[[Sequence[str]], Figure]]] = {
    "client": (99, lambda n: figures.client_figure(VALUES[: len(n)], [1, 2], dict(enumerate(n)), "reputation")),
    "parts": (9, lambda n: figures.parts_figure(dict.fromkeys(n, FEW), [1, 2], {})),
    "panels": (9, lambda n: figures.panels_figure([figures.Panel(e, FEW, [1, 2], {}) for e in n], "weights")),
    "bands": (99, lambda n: figures.bands_figure({"accuracy": dict.fromkeys(n, LINES)})),
    "strips": (99, lambda n: figures.strips_figure(dict.fromkeys(n, VALUES[:2]))),
    "few labels": (8, lambda n: figures.partition_figure(np.ones((2, len(n)), int), n)),
    "many labels": (99, lambda n: figures.partition_figure(np.ones((2, len(n)), int), n)),
    "confusion": (99, lambda n: figures.confusion_figure(np.eye(len(n), dtype=int), n)),
    "misread": (8, lambda n: figures.misread_figure(IMAGES[[0] * 8], range(8), range(8), [0.5] * 8, n)),
    "heat map": (99, table),
    "curve": (99, curve),
}
"""How many names each picture is drawn with at a time, and what draws it."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing here may warn, and nobody has been told of fonts."""
    monkeypatch.setattr(drawing, "_told", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.fixture
def only_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without other fonts than matplotlib's own."""
    own = [entry for entry in fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(fontManager, "ttflist", own)
    monkeypatch.setattr(drawing, "findSystemFonts", list)


def texts(figure: Figure) -> list[Text]:
    return figure.findobj(Text)  # type: ignore[no-any-return]


@pytest.mark.parametrize("picture", PICTURES)
def test_every_name_is_in_the_picture_as_it_is_written(picture: str, only_usual: None) -> None:
    most, make = PICTURES[picture]
    names = NAMES[:most]
    with matplotlib.rc_context({"text.usetex": True, "text.parse_math": True}):  # as a user's own settings may be
        figure = make(names)
        assert figures.png(figure, dots=20).startswith(b"\x89PNG")
    assert not any(text.get_parse_math() or text.get_usetex() for text in texts(figure))
    shown = [re.sub("\\s|[\u2068\u2069]", "", text.get_text()) for text in texts(figure)]
    assert not any(visible(each) != each for each in shown)
    for name in names[:24]:
        if width(name.strip()):
            begun = "".join(head(visible(name), 8).replace("_", " " if picture == "parts" else "_").split())
            assert any(begun in each for each in shown), name
    if "" in names and picture in ("few labels", "bands", "confusion"):
        assert any("(empty)" in each for each in shown)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.text(st.characters(), max_size=12), min_size=2, max_size=6))
def test_any_labels_can_be_drawn(names: list[str]) -> None:
    for make in (figures.confusion_figure, figures.partition_figure):
        assert figures.png(make(np.eye(len(names), dtype=int), names), dots=20)


@pytest.mark.parametrize("picture", ["few labels", "heat map"])
def test_a_picture_does_not_depend_on_the_users_settings(picture: str) -> None:
    def draw() -> bytes:
        return figures.png(PICTURES[picture][1](["a", "b", "c"]), dots=30)

    plain = draw()
    own: dict[str, Any] = {
        "text.usetex": True,
        "figure.facecolor": "black",
        "axes.edgecolor": "red",
        "font.size": 20,
        "font.family": ["serif"],
        "savefig.bbox": "tight",
        "savefig.transparent": True,
        "axes.formatter.use_mathtext": True,
    }
    with matplotlib.rc_context(own):
        assert draw() == plain
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["figure.facecolor"] == "black"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["良性", "恶性"], "no font here has 良性恶: .*fonts-noto-cjk"),
        (["हिन्दी", "b"], "no font here has .*ह.*: .*fonts-noto-core"),
        (["👍🏽", "良"], "no font here has 👍🏽良: .*fonts-noto-cjk and fonts-symbola"),
        (["良" * 40, "かナ한，"], "no font here has .*: .*fonts-noto-cjk"),
    ],
)
def test_a_font_that_is_missing_is_told_once_in_a_run(
    names: list[str], told: str, only_usual: None, caplog: pytest.LogCaptureFixture
) -> None:
    figures.png(figures.confusion_figure(np.eye(2, dtype=int), names), dots=20)
    figures.png(figures.confusion_figure(np.eye(2, dtype=int), names[::-1]), dots=20)
    (line,) = caplog.messages
    assert re.fullmatch(told, line)


@pytest.mark.parametrize(
    "names", [["benign", "malignant"], ["نص", "עברית"], ["Größe µm", "ł, ő – “x” ≥ 5"], ["a\u200fb", "e\u0301"]]
)
def test_what_the_usual_font_has_is_not_told(
    names: list[str], only_usual: None, caplog: pytest.LogCaptureFixture
) -> None:
    figures.png(figures.confusion_figure(np.eye(2, dtype=int), names), dots=20)
    assert not caplog.messages


def test_a_whole_report_tells_of_a_font_once(
    tmp_path: Path, only_usual: None, caplog: pytest.LogCaptureFixture
) -> None:
    records = journal()
    records[0] |= {"label_names": ["良性", "恶性"]}
    page = write_report(write(tmp_path, records), IMAGES)
    assert len(caplog.messages) == 1 and "“良性”, “恶性”" in page.read_text(encoding="utf-8")


@pytest.fixture
def font(tmp_path: Path) -> Path:
    """A font that was just installed, which has two characters: boxes."""
    pen = TTGlyphPen(None)
    for place, point in enumerate([(0, 0), (800, 0), (800, 800), (0, 800)]):
        (pen.lineTo if place else pen.moveTo)(point)
    pen.closePath()
    box = pen.glyph()
    made = FontBuilder(1000, isTTF=True)
    made.setupGlyphOrder([".notdef", "one", "two"])
    made.setupCharacterMap({ord("良"): "one", ord("性"): "two"})
    made.setupGlyf({".notdef": box, "one": box, "two": box})
    made.setupHorizontalMetrics(dict.fromkeys([".notdef", "one", "two"], (1000, 0)))
    made.setupHorizontalHeader(ascent=800, descent=-200)
    made.setupNameTable({"familyName": "Two Boxes", "styleName": "Regular"})
    made.setupOS2()
    made.setupPost()
    made.save(tmp_path / "boxes.ttf")
    return tmp_path / "boxes.ttf"


def test_a_font_that_has_the_characters_is_found_although_it_is_new(
    font: Path, only_usual: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = font.with_name("broken.ttf")
    broken.write_bytes(b"no font")
    monkeypatch.setattr(drawing, "findSystemFonts", lambda: [str(broken), str(font)])
    figure = figures.partition_figure(np.eye(2, dtype=int), ["良性", "b"])
    assert figures.png(figure, dots=20)
    assert drawing.fonts("良性 b") == (["DejaVu Sans", "Two Boxes"], "")
    assert all(text.get_fontfamily() == ["DejaVu Sans", "Two Boxes"] for text in texts(figure) if text.get_text())
    assert not caplog.messages
    assert drawing.fonts("良恶") == (["DejaVu Sans", "Two Boxes"], "恶")


def test_a_slanted_face_without_a_script_is_not_used(only_usual: None, recwarn: pytest.WarningsRecorder) -> None:
    figure = PICTURES["heat map"][1](["نص", "b"])
    figures.png(figure, dots=20)
    harmless, other = (figure.axes[0].get_xticklabels()[place] for place in (0, 1))
    assert harmless.get_color() != other.get_color() and harmless.get_fontstyle() == "normal"
    figure = PICTURES["heat map"][1](["a", "b"])
    figures.png(figure, dots=20)
    assert figure.axes[0].get_xticklabels()[0].get_fontstyle() == "italic"


def test_marks_and_blanks_need_no_font(only_usual: None) -> None:
    assert drawing.fonts("a\u200d\ufe0f\u200f \u3000\n\U000e0041") == (["DejaVu Sans"], "")


def test_threads_draw_one_after_the_other_and_leave_the_settings(only_usual: None) -> None:
    make = PICTURES["few labels"][1]
    before, alone = dict(matplotlib.rcParams), figures.png(make(["$a$", "b"]), dots=30)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: figures.png(make(["$a$", "b"]), dots=30), range(4))) == {alone}
    assert dict(matplotlib.rcParams) == before
