from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from PIL import Image

from fedrobust import figures
from fedrobust.figures.style import ATTACK, INK, apart
from fedrobust.report import CHAPTERS, Run, make_figures, save_partition, verdict, write_report


def journal(clients: int = 6, rounds: int = 5, attackers: tuple[int, ...] = (1, 4), weights: bool = True) -> list[Any]:
    """A run in which hospital 1 is caught from round 3 on, hospital 0 is wrongly suspected once, and 5 is rejected."""
    start = {
        "kind": "start",
        "run": "0123",
        "experiment": {
            "name": "a <b>trial</b> & more",
            "seed": 7,
            "data": {"partition": {"name": "dirichlet", "alpha": 0.5}},
            "attacks": [{"name": "sign_flip"}] if attackers else [],
            "aggregation": {"stages": [{"name": "nnm"}], "rule": {"name": "krum"}},
        },
        "clients": clients,
        "label_names": ["benign", "<script>alert(1)</script>"],
        "attackers": {str(client): "sign_flip" for client in attackers},
        "hospital_labels": [[10 * client, 5] for client in range(clients)],
        "parameters": 1234,
        "digest": "ab" * 32,
    }
    records: list[dict[str, Any]] = [start]
    for number in range(1, rounds + 1):
        present = [client for client in range(clients) if client != 3 or number != 2]
        records.append(
            {
                "kind": "round",
                "round": number,
                "participants": present,
                "attacking": list(attackers),
                "rejected": {"5": "not finite"} if number == 2 and clients > 5 else {},
                "weights": {str(client): client / 100 for client in present} if weights else None,
                "anomaly": {str(client): None if client == 0 else 0.2 for client in present},
                "anomaly_parts": {str(client): {"norm": 0.2, "average_cosine": client / 100} for client in present},
                "reputation": {str(client): 0.1 * number for client in range(clients)},
                "suspected": [
                    client for client in (0, 1) if (client == 0 and number == 2) or (client == 1 and number > 2)
                ],
                "detection": {"defense/precision": 0.5},
                "seconds": {"round": 0.25},
            }
        )
        metrics = {"test/accuracy": 0.9, "test/balanced_accuracy": 0.1 * number, "attack/success_rate": None}
        records.append(
            {
                "kind": "evaluation",
                "round": number,
                "metrics": metrics,
                "hospitals": {str(client): 0.5 for client in range(clients)},
                "confusion": [[8, 2], [1, 9]],
            }
        )
    misread = {"indices": [2, 0], "truth": [0, 1], "predicted": [1, 0], "confidence": [0.6, 0.99]}
    return [*records, {"kind": "end", "round": rounds, "final": {}, "misread": misread}]


def quarantining(acts: bool = True) -> list[Any]:
    """The same run with quarantine: 1 is in from round 4 on, 2 in round 2 alone; 4 attacks from round 3 on, and changes
    its identity in rounds 3 and 5."""
    records = journal()
    records[0]["experiment"]["trust"] = {"acts": acts}
    for record in records:
        if record["kind"] == "round":
            number = record["round"]
            record["quarantined"] = [client for client, inside in ((1, number > 3), (2, number == 2)) if inside]
            record["attacking"] = [1, 4] if number > 2 else [1]
            if number > 2:
                record["identities"] = {"4": 6 if number < 5 else 7}
    return records


def write(folder: Path, records: list[Any]) -> Path:
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def heat_map(figure: Any) -> Any:
    """The rows that a heat map shows, top to bottom."""
    return figure.axes[0].images[0].get_array()


IMAGES = np.random.default_rng(0).integers(0, 255, (4, 12, 12, 3), dtype=np.uint8)


def test_every_client_and_round_stands_where_it_belongs() -> None:
    run = Run.of(journal())
    weights = run.by_client("weights")
    assert weights.shape == (6, 5)
    assert weights[4, 0] == 0.04 and np.isnan(weights[3, 1]) and np.isfinite(weights[3, 2])
    assert np.isnan(run.by_client("anomaly")[0]).all()
    assert np.argwhere(run.marks("rejected")).tolist() == [[5, 1]]
    assert np.argwhere(run.marks("suspected")).tolist() == [[0, 1], [1, 2], [1, 3], [1, 4]]


def test_hospitals_are_judged_by_the_last_round() -> None:
    stories = {story.client: story for story in Run.of(journal()).hospitals()}
    assert [story.client for story in Run.of(journal()).hospitals()] == [1, 4, 0, 2, 3, 5]
    assert {client: story.verdict for client, story in stories.items() if story.verdict != "honest"} == {
        1: "caught",
        4: "missed",
    }
    assert (stories[1].suspected, stories[1].first, stories[0].suspected, stories[5].rejected) == (3, 3, 1, 1)
    assert stories[3].participated == 4 and stories[3].weight == pytest.approx(0.03)
    assert stories[2].patches == 25 and stories[2].reputation == 0.5


def test_quarantine_and_identities_are_told() -> None:
    run = Run.of(quarantining())
    stories = {story.client: story for story in run.hospitals()}
    assert run.acts and not Run.of(quarantining(acts=False)).acts and not Run.of(journal()).acts
    assert (stories[1].quarantined, stories[1].quarantined_from, stories[1].quarantined_now) == (2, 4, True)
    assert (stories[2].quarantined, stories[2].quarantined_from, stories[2].quarantined_now) == (1, 2, False)
    assert (stories[1].attacked, stories[4].attacked, stories[0].attacked) == (5, 3, 0)
    assert stories[4].identities == (4, 6, 7) and stories[1].identities == (1,)
    assert np.argwhere(run.renewed()).tolist() == [[4, 2], [4, 4]]
    assert run.identities()[4].tolist() == [4, 4, 6, 6, 7]


def test_parts_of_the_score_stand_where_they_belong() -> None:
    parts = Run.of(journal()).parts()
    assert list(parts) == ["norm", "average_cosine"]
    assert parts["average_cosine"][4].tolist() == [0.04] * 5
    assert np.argwhere(np.isnan(parts["norm"])).tolist() == [[3, 1]]


@pytest.mark.parametrize("acts", [True, False])
def test_where_quarantine_acts_it_is_what_counts(acts: bool) -> None:
    records = quarantining(acts)
    records[-3] |= {"suspected": [], "quarantined": [1, 2]}
    stories = {story.client: story.verdict for story in Run.of(records).hospitals()}
    assert [stories[1], stories[2]] == (["caught", "wrongly quarantined"] if acts else ["missed", "honest"])
    text = verdict(Run.of(records))
    told = "2 hospitals are quarantined: 1 rightly, 1 wrongly; 1 of the attackers was missed."
    assert text.endswith(told if acts else "no hospitals are suspected; 2 of the attackers were missed.")


@pytest.mark.parametrize(
    ("attackers", "suspected", "text"),
    [
        ((), [], "No hospital attacked; after round 2, no hospitals are suspected."),
        ((), [2], "No hospital attacked; after round 2, 1 hospital is suspected, wrongly."),
        ((1,), [1], "1 hospital is suspected: 1 rightly, 0 wrongly; no attacker was missed."),
        ((1, 2), [2, 3], "2 hospitals are suspected: 1 rightly, 1 wrongly; 1 of the attackers was missed."),
        ((1, 2), [], "After round 2, no hospitals are suspected; 2 of the attackers were missed."),
    ],
)
def test_the_verdict_says_who_was_suspected_rightly(
    attackers: tuple[int, ...], suspected: list[int], text: str
) -> None:
    records = journal(clients=4, rounds=2, attackers=attackers)
    records[-3]["suspected"] = suspected
    assert verdict(Run.of(records)).endswith(text)
    assert not attackers or verdict(Run.of(records)).startswith(
        f"{len(attackers)} of 4 hospitals attacked. After round 2"
    )


class Page(HTMLParser):
    """Collects what a page refers to, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]


def test_the_page_needs_nothing_else_and_runs_nothing(tmp_path: Path) -> None:
    text = write_report(write(tmp_path, journal()), IMAGES).read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "a &lt;b&gt;trial&lt;/b&gt; &amp; more" in text and "<b>trial" not in text
    pictures = [name for chapter in CHAPTERS.values() for name in chapter]
    assert len(page.references) == len(pictures)
    for reference in page.references:
        data = re.fullmatch(r"data:image/png;base64,(.*)", reference)
        assert data is not None
        assert Image.open(io.BytesIO(base64.b64decode(data[1]))).width > 300
    assert sorted(path.stem for path in tmp_path.glob("figures/*.png")) == sorted(set(pictures) - {"partition"})


def test_figures_of_the_last_round_and_settings_are_on_the_page(tmp_path: Path) -> None:
    text = write_report(write(tmp_path, journal())).read_text()
    assert "sign_flip against nnm → krum · 6 hospitals · dirichlet 0.5 · 5 rounds · seed 7" in text
    assert "<b>0.500</b><span>balanced accuracy</span>" in text and "attack success</span>" not in text
    assert "<td>data.partition.alpha</td><td>0.5</td>" in text
    assert 'id="misread"' not in text  # no images were given


def test_a_rule_without_weights_says_so(tmp_path: Path) -> None:
    text = write_report(write(tmp_path, journal(weights=False))).read_text()
    assert "no hospital has a weight" in text and 'id="weights"' not in text and 'id="reputation"' in text
    text = write_report(write(tmp_path, journal())).read_text()
    assert "no hospital has a weight" not in text and 'id="weights"' in text


def table(text: str) -> list[list[str]]:
    """The cells of the table of hospitals, row by row, its head first."""
    part = text.split("Hospital by hospital")[1].split("</table>")[0]
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in part.split("</tr>")]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in cells if row]


def test_the_table_tells_quarantine_identities_and_how_often_who_attacked(tmp_path: Path) -> None:
    head, *rows = table(write_report(write(tmp_path, quarantining())).read_text())
    told = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert told["1"]["rounds quarantined"] == "2, from 4" and told["0"]["rounds quarantined"] == "–"
    assert told["1"]["rounds suspected"] == "3, from 3" and told["1"]["in the end"] == "caught"
    assert told["4"]["truth"] == "sign_flip, 3 of 5 rounds" and told["1"]["truth"] == "sign_flip"
    assert told["4"]["identities"] == "4, 6, 7" and told["2"]["identities"] == "–"


def test_the_table_says_that_quarantine_was_recorded_only(tmp_path: Path) -> None:
    head, *rows = table(write_report(write(tmp_path, quarantining(acts=False))).read_text())
    assert rows[0][head.index("quarantine, recorded only")] == "2, from 4" and "rounds quarantined" not in head


def test_the_step_by_step_table_begins_with_the_parts_of_the_score(tmp_path: Path) -> None:
    records = journal()
    records[-3] |= {"f": 1, "notes": [], "stages": [{"name": "krum", "scores": None, "weights": {"4": 0.25}}]}
    text = write_report(write(tmp_path, records)).read_text().split("step by step")[1]
    assert re.findall(r"<th>(.*?)</th>", text) == [
        "hospital",
        "truth",
        "anomaly: norm",
        "anomaly: average cosine",
        "krum: weight",
    ]
    assert "<td>4</td><td>sign_flip</td><td>0.2</td><td>0.04</td><td>0.25</td>" in text


def test_a_journal_of_before_quarantine_and_parts_has_a_report(tmp_path: Path) -> None:
    records = journal()
    for record in records:
        record.pop("anomaly_parts", None)
    text = write_report(write(tmp_path, records), IMAGES).read_text()
    assert 'id="reputation"' in text and 'id="anomaly"' in text and 'id="parts"' not in text
    assert not {"rounds quarantined", "quarantine, recorded only", "identities"} & set(table(text)[0])
    assert "are suspected" in text or "is suspected" in text


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_a_run_that_stopped_early_has_a_report(tmp_path: Path, lines: int) -> None:
    text = write_report(write(tmp_path, journal()[:lines]), IMAGES).read_text()
    assert ('id="curves"' in text) == (lines == 3) and 'id="partition"' in text


def test_the_runners_partition_picture_is_kept(tmp_path: Path) -> None:
    save_partition(tmp_path, np.array([[3, 4], [5, 6]]), ["a", "b"], [1], patients=[2, 3])
    before = (tmp_path / "partition.png").read_bytes()
    text = write_report(write(tmp_path, journal())).read_text()
    assert (tmp_path / "partition.png").read_bytes() == before and base64.b64encode(before).decode() in text


def test_long_tables_keep_the_hospitals_that_matter(tmp_path: Path) -> None:
    text = write_report(write(tmp_path, journal(clients=60, rounds=2))).read_text()
    assert "56 other hospitals were honest" in text  # 0 suspected, 1 and 4 attack, 5 rejected
    assert len(re.findall(r"<tr[> ]", text.split("Hospital by hospital")[1].split("<section>")[0])) == 1 + 4


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


def test_heat_maps_show_attackers_first_and_absences_as_gaps() -> None:
    values = np.arange(12.0).reshape(4, 3) / 12
    values[1, 2] = np.nan
    shown = heat_map(figures.client_figure(values, [1, 2, 3], {2: "alie"}, "reputation"))
    np.testing.assert_array_equal(shown[0], values[2])
    np.testing.assert_array_equal(shown[1], values[0])
    assert shown.mask.sum() == 1 and shown.mask[2, 2]


def lines(axes: Any, colour: str, across: bool = True) -> list[list[float]]:
    """The lines of a colour in a heat map: row and ends of each that lies, column and ends of each that stands."""
    own = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    segments = [s for lines in own if to_hex(lines.get_color()[0]) == to_hex(colour) for s in lines.get_segments()]
    place, ends = (1, 0) if across else (0, 1)
    return [
        [float(segment[0, place]), *segment[:, ends].tolist()]
        for segment in segments
        if (segment[0, 1] == segment[1, 1]) == across
    ]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def test_marks_stand_in_the_rounds_they_belong_to() -> None:
    """Hospital 2 attacks and stands on top: row 0; hospital 0 is in row 1."""
    attacking, quarantined, renewed, suspected = (np.zeros((3, 6), dtype=bool) for _ in range(4))
    attacking[2, [0, 1, 4]] = True
    quarantined[2, 1:] = quarantined[0, 3] = True
    renewed[2, 4] = suspected[0, 2] = True
    marks = figures.Marks(suspected, None, quarantined, attacking, renewed)
    figure = figures.client_figure(np.ones((3, 6)), range(1, 7), {2: "alie"}, "reputation", marks)
    axes = figure.axes[0]
    assert [ends for row, *ends in lines(axes, ATTACK)] == [[0.5, 2.5], [4.5, 5.5]]
    assert all(0.1 < row < 0.5 for row, *_ in lines(axes, ATTACK))
    assert lines(axes, "white") == [[0, 1.5, 6.5], [1, 3.5, 4.5]]
    assert lines(axes, INK, across=False) == [[4.5, -0.5, 0.5]]
    dots: list[Any] = [found for found in axes.collections if isinstance(found, PathCollection)]
    assert [dot.get_offsets().tolist() for dot in dots] == [[[3.0, 1.0]]]
    assert legend(figure) == ["attacks", "in quarantine", "suspected", "new identity"]


def test_quarantine_that_does_not_act_is_called_so() -> None:
    marks = figures.Marks(quarantined=np.ones((2, 2), dtype=bool), acts=False)
    figure = figures.client_figure(np.ones((2, 2)), [1, 2], {}, "reputation", marks)
    assert legend(figure) == ["quarantine, recorded only"]


def test_each_part_of_the_score_has_a_panel_with_attackers_first() -> None:
    rng = np.random.default_rng(3)
    parts = {name: rng.random((4, 3)) for name in ("norm", "average_cosine", "own")}
    parts["own"][0, 1] = np.nan
    figure: Any = figures.parts_figure(parts, [1, 2, 3], {3: "alie"})
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["norm", "average cosine", "own"]
    for axes, values in zip(panels, parts.values(), strict=True):
        shown = axes.images[0].get_array()
        np.testing.assert_array_equal(shown.filled(np.nan), values[[3, 0, 1, 2]])
        assert axes.images[0].get_clim() == (0.0, 1.0)
    assert legend(figure) == ["no figure"]


def test_a_heat_map_names_attackers_and_rounds() -> None:
    figure = figures.client_figure(np.ones((3, 4)), [5, 6, 7, 8], {2: "alie"}, "weights")
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["alie · 2", "0", "1"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["5", "6", "7", "8"]


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
    run = Run.of(journal())
    figure = make_figures(run, IMAGES)["misread"]
    panels = [axes for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(panels[0].images[0].get_array(), IMAGES[0])
    np.testing.assert_array_equal(panels[1].images[0].get_array(), IMAGES[2])
    assert panels[0].texts[0].get_text() == "benign\n99%" and panels[1].get_title() == "benign"


def test_curves_hold_the_evaluations_and_leave_out_what_is_missing() -> None:
    upper: Any = make_figures(Run.of(journal()))["curves"].axes[0]
    lines = [line for line in upper.get_lines() if len(line.get_xdata()) == 5]
    assert [np.round(line.get_ydata(), 6).tolist() for line in lines] == [[0.1, 0.2, 0.3, 0.4, 0.5], [0.9] * 5]
    assert lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5]


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
    make_figures(Run.of(journal()), IMAGES)
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == []
