"""How a picture becomes a file: arranged and drawn once, and the same as matplotlib's own."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from reported import IMAGES, journal, recorded

from fedrobust import figures
from fedrobust.figures.drawing import drawing
from fedrobust.report import make_figures


def pictures() -> dict[str, Figure]:
    """All pictures of a run."""
    run = recorded(journal())
    partition = figures.partition_figure(np.array(run.start.hospital_labels), run.start.label_names, run.attackers)
    return {**make_figures(run, IMAGES), "partition": partition}


def test_every_picture_of_a_report_is_arranged_and_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: Counter[tuple[str, Figure]] = Counter()

    def counted(kind: type, method: str) -> None:
        own = getattr(kind, method)

        def counting(self: Any, *given: Any) -> Any:
            done[method, self if isinstance(self, Figure) else given[0]] += 1
            return own(self, *given)

        monkeypatch.setattr(kind, method, counting)

    counted(Figure, "draw")
    counted(ConstrainedLayoutEngine, "execute")
    drawn = pictures()
    assert len(drawn) == 8
    for figure in drawn.values():
        figures.png(figure)
    assert {figure: done["draw", figure] for figure in drawn.values()} == dict.fromkeys(drawn.values(), 1)
    assert max(done.values()) == 1


def test_a_picture_is_the_one_that_matplotlib_would_save() -> None:
    for (name, figure), other in zip(pictures().items(), pictures().values(), strict=True):
        out = io.BytesIO()
        with drawing():
            other.savefig(out, format="png", dpi=70)
        own, theirs = (np.asarray(Image.open(io.BytesIO(each))) for each in (figures.png(figure, 70), out.getvalue()))
        np.testing.assert_array_equal(own, theirs[..., :3], err_msg=name)
