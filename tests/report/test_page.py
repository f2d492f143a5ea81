"""The page: what it says, and that it needs nothing else."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reported import IMAGES, journal, quarantining, recorded, write
from traced import played

from fedrobust.records.trace import TRACE, trace_of, write_trace
from fedrobust.report import CHAPTERS, hospitals, save_partition, verdict, write_report


@pytest.mark.parametrize("acts", [True, False])
def test_where_quarantine_acts_it_is_what_counts(acts: bool) -> None:
    records = quarantining(acts)
    records[-3] |= {"suspected": [], "quarantined": [1, 2]}
    stories = {story.client: story.verdict for story in hospitals(recorded(records))}
    assert [stories[1], stories[2]] == (["caught", "wrongly quarantined"] if acts else ["missed", "honest"])
    text = verdict(recorded(records))
    told = "2 hospitals are quarantined: 1 rightly, 1 wrongly; 1 of the attackers was missed."
    assert text.endswith(told if acts else "no hospitals are suspected; 2 of the attackers were missed.")


@pytest.mark.parametrize(
    ("attackers", "suspected", "text"),
    [
        ((), [], "No hospital attacked; after round 2, no hospitals are suspected."),
        ((), [2], "No hospital attacked; after round 2, 1 hospital is suspected (recorded only), wrongly."),
        ((1,), [1], "1 hospital is suspected (recorded only): 1 rightly, 0 wrongly; no attacker was missed."),
        (
            (1, 2),
            [2, 3],
            "2 hospitals are suspected (recorded only): 1 rightly, 1 wrongly; 1 of the attackers was missed.",
        ),
        ((1, 2), [], "After round 2, no hospitals are suspected; 2 of the attackers were missed."),
    ],
)
def test_the_verdict_says_who_was_suspected_rightly(
    attackers: tuple[int, ...], suspected: list[int], text: str
) -> None:
    records = journal(clients=4, rounds=2, attackers=attackers)
    records[-3]["suspected"] = suspected
    assert verdict(recorded(records)).endswith(text)
    assert not attackers or verdict(recorded(records)).startswith(
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
    write_trace(write(tmp_path, journal()) / TRACE, trace_of(played()), {"name": "a <b>trial</b>"})
    text = write_report(tmp_path, IMAGES).read_text()
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


@pytest.mark.parametrize(("success", "bad"), [(0.0, False), (0.004, False), (0.6, True)])
def test_only_an_attack_that_works_is_shown_as_bad(tmp_path: Path, success: float, bad: bool) -> None:
    records = journal()
    records[-2]["metrics"] = records[-2]["metrics"] | {"attack/success_rate": success}
    text = write_report(write(tmp_path, records)).read_text()
    assert f'<div class="card{" bad" if bad else ""}"><b>{success:.3f}</b><span>attack success</span>' in text
    assert text.count('class="card bad"') == bad


@pytest.mark.parametrize("privacy", ["clear", "masked"])
def test_the_title_names_the_protocol(tmp_path: Path, privacy: str) -> None:
    records = journal()
    records[0]["experiment"] |= {"privacy": {"name": privacy}, "name": "trial"}
    text = write_report(write(tmp_path, records)).read_text()
    assert f"<title>trial · privacy {privacy}</title>" in text and f"<h1>trial · privacy {privacy}</h1>" in text


@pytest.mark.parametrize("acts", [True, False])
def test_suspicion_that_does_not_act_is_recorded_only(tmp_path: Path, acts: bool) -> None:
    text = write_report(write(tmp_path, quarantining(acts))).read_text()
    assert f"<th>{'rounds suspected' if acts else 'suspected, recorded only'}</th>" in text
    assert ("suspected (recorded only)" in text) != acts


def test_figures_of_the_last_round_and_settings_are_on_the_page(tmp_path: Path) -> None:
    text = write_report(write(tmp_path, journal())).read_text()
    assert "sign_flip against nnm → krum · 6 hospitals · dirichlet 0.5 · 5 rounds · seed 7" in text
    assert "<b>0.500</b><span>balanced accuracy</span>" in text and "attack success</span>" not in text
    assert "<td>data.partition.alpha</td><td>0.5</td>" in text
    assert 'id="misread"' not in text  # no images were given


def test_a_rule_without_weights_says_so(tmp_path: Path) -> None:
    text = write_report(write(tmp_path, journal(weights=False))).read_text()
    assert (
        "No hospital has a weight, because krum gives none" in text
        and 'id="weights"' not in text
        and 'id="reputation"' in text
    )
    text = write_report(write(tmp_path, journal())).read_text()
    assert "No hospital has a weight" not in text and 'id="weights"' in text


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


def test_skipped_rounds_stand_at_the_top(tmp_path: Path) -> None:
    assert "skipped" not in write_report(write(tmp_path, journal())).read_text()
    records = journal()
    for record in records:
        if record["kind"] == "round" and record["round"] in (2, 4):
            record["skipped"] = "2 < 3 usable"
    top = write_report(write(tmp_path, records)).read_text().split("<section>")[0]
    assert "Rounds skipped: 2 of 5: in 2 rounds: 2 &lt; 3 usable." in top
    assert "<span>balanced accuracy</span>" in top


@pytest.mark.parametrize("attackers", [(), (1, 4)])
def test_the_initial_model_has_no_figures_and_nobody_was_judged(tmp_path: Path, attackers: tuple[int, ...]) -> None:
    records = journal(attackers=attackers)
    for record in records:
        if record["kind"] == "round":
            for judged in ("anomaly", "anomaly_parts", "weights"):
                del record[judged]
            record |= {"skipped": "0 of 6 updates were usable", "suspected": [], "detection": {}}
    text = write_report(write(tmp_path, records), IMAGES).read_text()
    assert "No round changed the model: it is the initial one, and has no figures here. Rounds skipped: 5 of 5" in text
    assert "nobody was judged" in text and "suspected" not in text.split("<section>")[0]
    assert "balanced accuracy" not in text.replace("data.", "") and "missed<" not in text
    for picture in ("curves", "confusion", "misread"):
        assert f'id="{picture}"' not in text
    head, *rows = table(text)
    assert {row[head.index("test accuracy")] for row in rows} == {"–"}


@pytest.mark.slow
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
