"""Reports of many hospitals: counts and the ten that matter, nothing lost, and pages of a reasonable size."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from large import large
from reported import journal, recorded, write
from rich.console import Console

from fedrobust.figures.rows import MOST_ROWS, TENTHS, rows_of, tenths
from fedrobust.report import make_figures, write_report
from fedrobust.report.files import make_figures as figures_of
from fedrobust.report.officer import Checked, officer_page
from fedrobust.report.page import VERDICTS
from fedrobust.report.story import LONG_TABLE, SHORT_LIST, hospitals, listed, ranked, short_list
from fedrobust.result import Result
from fedrobust.terminal import show_result
from fedrobust.tracking.entries import metrics
from fedrobust.tracking.feed import MOST_CURVES, _Place

SIZES = [(200, 0.3), (1000, 1.0)]


@pytest.fixture(scope="module", params=SIZES, ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a large run, with its report."""
    place = write(tmp_path_factory.mktemp("large"), large(request.param[0], part=request.param[1]))
    write_report(place)
    return place


def rows(text: str, after: str) -> list[list[str]]:
    """The cells of the first table behind a text, without the head."""
    part = text.split(after, 1)[1].split("<tbody>", 1)[1].split("</tbody>", 1)[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in part.split("</tr>")]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in cells if row]


@pytest.mark.slow
def test_the_page_counts_all_hospitals_and_lists_ten(folder: Path) -> None:
    page = folder / "report.html"
    text, run = page.read_text(), recorded(large(*sizes(folder)))
    assert page.stat().st_size < 2e6
    stories = hospitals(run)
    counted = {row[0]: int(row[1].replace(",", "")) for row in rows(text, "Hospital by hospital")}
    assert counted == dict(Counter(VERDICTS[story.verdict] for story in stories))
    names = [int(row[0]) for row in rows(text, "taken in turn from")]
    assert names == [story.client for story in short_list(stories)] and len(names) == SHORT_LIST
    assert len(rows(text, "step by step")) <= LONG_TABLE and "hospitals.csv" in text and "journal.jsonl" in text


def sizes(folder: Path) -> tuple[int, int, float]:
    clients = len((folder / "hospitals.csv").read_text().splitlines()) - 1
    return clients, 6, dict(SIZES)[clients]


def test_the_file_beside_the_page_has_every_hospital(folder: Path) -> None:
    stories = hospitals(recorded(large(*sizes(folder))))
    with (folder / "hospitals.csv").open(newline="") as file:
        found = {int(row["client"]): row for row in csv.DictReader(file)}
    assert list(found) == sorted(story.client for story in stories)
    for story in stories:
        row = found[story.client]
        assert (row["verdict"], row["attack"]) == (story.verdict, story.attack or "")
        assert float(row["reputation"]) == story.reputation and int(row["suspected"]) == story.suspected


def test_many_different_notes_are_counted(tmp_path: Path) -> None:
    records = journal(rounds=12)
    for number, record in enumerate(records):
        if record["kind"] == "round":
            record |= {"stages": [{"name": "afa"}], "notes": [f"blocked {number}: {', '.join(map(str, range(500)))}"]}
    text = write_report(write(tmp_path, records)).read_text()
    assert text.count("blocked ") == SHORT_LIST and "2 other notes: see" in text
    assert all(len(note) < 400 for note in text.split("blocked ")[1:-1])


def test_pictures_name_only_the_hospitals_of_the_table(folder: Path) -> None:
    run = recorded(large(*sizes(folder)))
    for name, figure in figures_of(run).items():
        for axes in figure.axes:
            assert len(axes.get_yticklabels()) <= SHORT_LIST + 2, name
    labels = [text.get_text() for text in make_figures(run)["reputation"].axes[0].get_yticklabels()]
    attackers = len(run.attackers)
    assert labels[-2:] == [f"all {attackers} attackers", f"all {run.start.clients - attackers} honest"]
    assert [int(label.split()[-1]) for label in labels[:-2]] == [s.client for s in short_list(hospitals(run))]


def test_terminal_result_and_officer_name_few(folder: Path) -> None:
    run = recorded(large(*sizes(folder)))
    assert run.end is not None
    suspected = list(run.end.final["suspected"])
    result = Result("0123", "large", folder, run, run.end.final, run.attackers, suspected)
    out = Console(record=True, width=100)
    show_result(out, result)
    shown = re.sub(r"[\s│]+", " ", out.export_text())
    missed = len(set(run.attackers) - set(suspected))
    rightly = len(run.attackers) - missed
    assert f"{rightly} rightly, {len(suspected) - rightly} wrongly, {missed} attackers not" in shown
    assert f"{len(run.attackers)} of {run.start.clients:,}: " in shown
    assert len(re.findall(r"hospital \d+\b(?!\.)", shown)) == 10 and len(shown) < 1500
    assert len(repr(result)) < 700 and f"{len(suspected)} hospitals (" in repr(result)
    assert len(officer_page(run, Checked(None))) < 10_000


def test_mlflow_gets_means_instead_of_thousands_of_curves(folder: Path) -> None:
    run = recorded(large(*sizes(folder)))
    place = _Place(0).after(run.start)
    found = place.rows(run.rounds[-1])
    assert len(found) < 40
    bad = np.array(sorted(run.attackers))
    every = np.array([run.rounds[-1].reputation[client] for client in range(run.start.clients)], dtype=float)
    assert found["reputation/attackers"][0] == pytest.approx(every[bad].mean())
    assert found["reputation/honest"][0] == pytest.approx(np.delete(every, bad).mean())
    inside = set(run.rounds[-1].quarantined)
    assert found["quarantined/attackers"][0] == len(inside & set(run.attackers))


@pytest.mark.parametrize("clients", [MOST_CURVES, MOST_CURVES + 1])
def test_up_to_a_hundred_hospitals_have_curves_in_mlflow(clients: int) -> None:
    run = recorded(journal(clients=clients))
    found = _Place(0).after(run.start).rows(run.rounds[0])
    single = [name for name in found if re.fullmatch(r"\w+/\d+", name)]
    assert bool(single) == (clients == MOST_CURVES)
    assert len(metrics(run.rounds[0], hospitals=False)) < len(found)


@pytest.mark.parametrize(("clients", "short"), [(LONG_TABLE, False), (LONG_TABLE + 1, False), (250, True)])
def test_few_hospitals_are_all_listed_and_of_more_those_with_events(clients: int, short: bool) -> None:
    stories = hospitals(recorded(large(clients, malicious=0.15)))
    found, is_short = listed(stories)
    assert is_short == short
    eventful = [story for story in stories if story.eventful]
    expected = short_list(stories) if short else stories if clients == LONG_TABLE else eventful
    assert found == expected


def test_the_short_list_takes_from_each_kind_in_turn() -> None:
    stories = hospitals(recorded(large(200)))
    kinds = ranked(stories)
    found = {story.client for story in short_list(stories)}
    for kind, own in kinds.items():
        first = [story.client in found for story in own]
        assert 3 <= sum(first) <= 4 and first == sorted(first, reverse=True), kind
    weights = [story.weight or 0 for story in kinds["missed"]]
    assert weights == sorted(weights, reverse=True)
    caught = [replace(story) for story in stories if story.verdict == "caught"]
    assert len(short_list(caught)) == SHORT_LIST  # if there is only one kind, it has all places


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.floats(0, 1)))
def test_tenths_are_sorted_within_the_figures_and_keep_their_mean(values: np.ndarray) -> None:
    values = values.copy()
    values[values > 0.8] = np.nan
    found = tenths(values)
    assert found.shape == (min(TENTHS, len(values)), values.shape[1])
    for own, column in zip(found.T, values.T, strict=True):
        there = column[np.isfinite(column)]
        assert np.isnan(own).all() == (not len(there))
        if len(there):
            assert (np.diff(own) >= -1e-9).all()
            assert there.min() - 1e-9 <= own.min() and own.max() <= there.max() + 1e-9
            if len(there) % len(own) == 0:
                assert own.mean() == pytest.approx(there.mean(), abs=1e-9)


def test_rows_are_hospitals_up_to_the_limit_and_bands_beyond_it() -> None:
    values = np.random.default_rng(0).random((MOST_ROWS + 1, 4))
    few = rows_of(values[:-1], {3, 7})
    assert few.clients[:3] == [3, 7, 0] and not few.bands and few.gaps == (2,) and len(few.values) == MOST_ROWS
    many = rows_of(values, {3, 7}, chosen=[5, 7])
    assert many.clients == [7, 5] and many.gaps == (1, 2, 4)
    assert [(band.label, band.first, band.rows) for band in many.bands] == [
        ("all 2 attackers", 2, 2),
        ("all 59 honest", 4, TENTHS),
    ]
    np.testing.assert_array_equal(many.values[:2], values[[7, 5]])
