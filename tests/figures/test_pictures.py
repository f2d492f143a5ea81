"""The other pictures: partition, curves, patches that were misread."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reported import IMAGES, journal, recorded

from fedrobust import figures
from fedrobust.figures.style import apart
from fedrobust.report import make_figures


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "rounds", "labels"), [(1, 1, 2), (3, 500, 9), (200, 2, 20), (40, 30, 4)])
def test_figures_can_be_drawn_at_every_size(clients: int, rounds: int, labels: int) -> None:
    rng = np.random.default_rng(clients)
    values = rng.random((clients, rounds))
    attackers = {0: "sign_flip"} if clients > 1 else {}
    marks = values > 0.5
    names = [f"a rather long label {label}" for label in range(labels)]
    counts = rng.integers(0, 900, (clients, labels))
    everything = figures.Marks(marks, ~marks, values > 0.7, values > 0.6, values > 0.9, acts=False)
    drawn = [
        figures.client_figure(values, range(1, rounds + 1), attackers, kind, everything) for kind in figures.HEAT_MAPS
    ]
    parts = {f"a_part_{part}": values for part in range(min(labels, 4))}
    drawn.append(figures.parts_figure(parts, range(1, rounds + 1), attackers, everything))
    drawn.append(figures.partition_figure(counts, names, attackers, patients=[1] * clients))
    drawn.append(figures.confusion_figure(rng.integers(0, 9, (labels, labels)), names))
    drawn.append(figures.curves_figure({"accuracy": ([rounds], [0.5])}, dict.fromkeys(range(1, rounds + 1), 1), 0.5))
    patches = rng.integers(0, 255, (30, 8, 8, 3), dtype=np.uint8)
    drawn.append(figures.misread_figure(patches, [0] * 30, [1] * 30, list(np.linspace(0, 1, 30)), names))
    for figure in drawn:
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=40)
        assert out.tell() > 500


@settings(max_examples=20, deadline=None)
@given(arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(1, 8)), elements=st.integers(0, 500)))
def test_partition_bars_are_the_counts(counts: np.ndarray) -> None:
    names = [str(label) for label in range(counts.shape[1])]
    axes = figures.partition_figure(counts, names).axes[0]
    widths = np.array([[bar.get_width() for bar in label] for label in axes.containers]).T
    lefts = np.array([[bar.get_x() for bar in label] for label in axes.containers]).T
    np.testing.assert_array_equal(widths, counts)
    np.testing.assert_array_equal(lefts, np.cumsum(counts, axis=1) - counts)


def test_misread_patches_are_shown_with_the_surest_first() -> None:
    run = recorded(journal())
    figure = make_figures(run, IMAGES)["misread"]
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), IMAGES[0])
    np.testing.assert_array_equal(axes.images[1].get_array(), IMAGES[2])
    assert [text.get_text() for text in axes.texts[:2]] == ["<script>alert(…", "benign\n99%"]
    lefts = [image.get_extent()[0] for image in axes.images]
    assert lefts == sorted(lefts) and lefts[1] - lefts[0] > figures.model.PATCH  # side by side


def test_curves_hold_the_evaluations_and_leave_out_what_is_missing() -> None:
    upper: Any = make_figures(recorded(journal()))["curves"].axes[0]
    lines = [line for line in upper.get_lines() if len(line.get_xdata()) == 5]
    assert [np.round(line.get_ydata(), 6).tolist() for line in lines] == [[0.1, 0.2, 0.3, 0.4, 0.5], [0.9] * 5]
    assert lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("confusion", "chance"), [([[8, 2], [1, 9]], 1 / 2), ([[8, 0, 2], [0, 0, 0], [0, 1, 9]], 1 / 2)]
)
def test_chance_is_that_of_the_labels_that_occur(confusion: list[list[int]], chance: float) -> None:
    """Balanced accuracy is a mean over these."""
    records = journal()
    records[0] |= {"label_names": ["a", "b", "c"][: len(confusion)], "hospital_labels": [[1] * len(confusion)] * 6}
    for record in records:
        if record["kind"] == "evaluation":
            record["confusion"] = confusion
    upper: Any = make_figures(recorded(records))["curves"].axes[0]
    (line,) = [line for line in upper.get_lines() if line.get_linestyle() != "-" and len(set(line.get_ydata())) == 1]
    assert line.get_ydata()[0] == pytest.approx(chance)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_labels_keep_apart_and_in_order(values: list[float]) -> None:
    places = apart(values, 0.07)
    order = np.argsort(values, kind="stable")
    gaps = np.diff(np.array(places)[order])
    assert (gaps >= 0.07 - 1e-3).all()
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    make_figures(recorded(journal()), IMAGES)
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == []
