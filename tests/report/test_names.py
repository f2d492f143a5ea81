"""Whatever stands in a journal is text in a page: no tag, no attribute, no script, no control character."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from nasty import NAMES
from reported import IMAGES, compared, journal, quarantining, recorded, write

from fedrobust.report import compare, write_report
from fedrobust.report.comparison_page import comparison_html
from fedrobust.report.page import html
from fedrobust.texts import visible

CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]")


class Parts(HTMLParser):
    """The tags of a page with their attributes' names, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "wbr":
            self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def report(name: str) -> str:
    """A report in which everything that is a text, or may be one in a journal of somebody else's, is `name`."""
    records = quarantining()
    experiment = records[0]["experiment"]
    experiment |= {"name": name, "privacy": {"name": name}}
    experiment["aggregation"] = {"stages": [{"name": name, "option": name}], "rule": {"name": name, "list": [name, 1]}}
    experiment["attacks"] = [{"name": name}]
    experiment["data"]["partition"] |= {"name": name}
    records[0] |= {"attackers": {"1": name, "4": name}, "label_names": [name, name], "run": name, "digest": name}
    for record in records:
        if record["kind"] == "round":
            record["notes"] = [name]
            record["anomaly_parts"] = {client: {name: 0.5} for client in record["anomaly_parts"]}
            scores = dict.fromkeys(record["anomaly_parts"], 0.5)
            record["stages"] = [{"name": name, "scores": scores, "weights": scores}]
            if record["round"] == 2:
                record["skipped"] = name
    return html(recorded(records), {"curves": b"\x89PNG" + bytes(20)}, audit=name)


def comparison(name: str) -> str:
    """A comparison of runs whose options are `name`."""
    journals = [compared(rule, seed, name=name) for rule in ("krum", name) for seed in (1, 2)]
    for records in journals:
        experiment = records[0]["experiment"]
        experiment["data"]["partition"]["name"] = name + experiment["aggregation"]["rule"]["name"]
        records[0]["run"] = name
    journals[0][0]["experiment"][name] = [name, 0]
    return comparison_html(
        name, compare([recorded(records) for records in journals]), {"curves": b"\x89PNG" + bytes(20)}, {"trust": name}
    )


@pytest.mark.parametrize("page", [report, comparison])
@pytest.mark.parametrize("name", NAMES)
def test_names_are_text_in_a_page(page: Callable[[str], str], name: str) -> None:
    plain, made = Parts(page("plain")), page(name)
    found = Parts(made)
    made.encode()
    assert not CONTROLS.search(made)
    assert found.tags == plain.tags
    words = " ".join(visible(name, keep="\n").split())
    assert words in " ".join(found.text.split())


def test_a_report_of_all_of_them_is_written(tmp_path: Path) -> None:
    records: list[Any] = journal()
    records[0] |= {"label_names": [NAMES[0], "\ud800\x1b[31m"], "attackers": {"1": "良\n\x9b", "4": "_x$"}}
    page = write_report(write(tmp_path, records), IMAGES)
    assert "_x$" in page.read_text(encoding="utf-8")
    assert {path.stem for path in tmp_path.glob("figures/*.png")} >= {"confusion", "misread", "reputation"}
