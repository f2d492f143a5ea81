"""Records that were damaged, or that somebody wrote: each command that reads them says so in one line."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from reported import journal

from fedrobust.cli import main
from fedrobust.errors import FedRobustError
from fedrobust.report import write_again, write_comparison

pytestmark = pytest.mark.slow

RUN, OTHER = "0123456789abcdef0123456789abcdef", "f" * 32


def written(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def command(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code and error lines of a command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fedrobust", *words])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, capsys.readouterr().err.splitlines()


@pytest.fixture
def run(workplace: Path) -> Path:
    folder = workplace / "mlruns" / "runs" / RUN
    folder.mkdir(parents=True)
    (folder / "journal.jsonl").write_bytes(written(journal()))
    other = folder.with_name(OTHER)
    other.mkdir()
    start, *rest = journal()
    start["experiment"]["seed"] = 8
    (other / "journal.jsonl").write_bytes(written([start, *rest]))
    return folder


START = journal()[0]
WRONG: dict[str, Any] = {
    "a folder": None,
    "empty": b"",
    "not JSON": b"{\n",
    "binary": bytes(range(256)) + b"\n",
    "a list": written([[1]]),
    "a number": written([1]),
    "null": written([None]),
    "no start": written(journal()[1:]),
    "no kind": written([{key: value for key, value in START.items() if key != "kind"}]),
    "deep": b"[" * 100_000 + b"\n",
    "only a start": written([{"kind": "start"}]),
    "another kind of value": written([START | {"label_names": 3}]),
    "an experiment that is none": written([START | {"experiment": []}]),
    "clients in words": written([START | {"clients": "six"}, *journal()[1:]]),
    "metrics in words": written(
        [*journal()[:2], {"kind": "evaluation", "round": 1, "metrics": {"test/accuracy": "good"}}]
    ),
    "no metrics": written([*journal()[:2], {"kind": "evaluation", "round": 1}]),
    "a round in words": written([START, journal()[1] | {"round": "one"}]),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize(
    "words", [["report", RUN], ["compare", RUN, OTHER], ["sync", RUN], ["audit", RUN]], ids=lambda words: words[0]
)
def test_a_journal_that_is_none_is_told_in_one_line(
    what: str, words: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "journal.jsonl"
    path.unlink()
    if WRONG[what] is None:
        path.mkdir()
    else:
        path.write_bytes(WRONG[what])
    code, lines = command(words, capsys)
    if code == 0 and words[0] in ("report", "compare"):
        return  # it does not need what is wrong
    assert code in (1, 2) and len(lines) == 1, lines
    assert lines[0].startswith("error: ") and len(lines[0]) < 600, lines


@pytest.mark.parametrize(
    "name", ["audit.jsonl", "audit.pub", "checkpoint.npz", "experiment.yaml", "audit.seal", "model"]
)
@pytest.mark.parametrize("words", [["report"], ["audit"], ["run", "e.yaml", "--resume"]], ids=lambda words: words[0])
def test_a_log_that_is_a_folder_is_told_in_one_line(
    name: str, words: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("e.yaml").write_text("data: {source: {name: histology, patients: 20, size: 24}}\n")
    (run / name).mkdir()
    code, lines = command([*words, RUN], capsys)
    if code == 0:
        assert words == ["report"]
        return
    assert code in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "), lines


@pytest.mark.parametrize("place", ["mlruns", "mlruns/runs", f"mlruns/runs/{RUN}", "mlruns/compare"])
@pytest.mark.parametrize(
    "words", [["report", RUN], ["compare", RUN, OTHER], ["audit", RUN]], ids=lambda words: words[0]
)
def test_a_file_where_a_folder_is_due_is_told_in_one_line(
    place: str, words: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / place).parent.mkdir(parents=True, exist_ok=True)
    (workplace / place).write_text("x")
    code, lines = command(words, capsys)
    assert code in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "), lines


def paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in a record."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [before, *(place for key, each in inside for place in paths(each, (*before, key)))]


JOURNAL = journal(clients=3, rounds=2, attackers=(1,))
PLACES = [(number, *place) for number, record in enumerate(JOURNAL) for place in paths(record) if place]
VALUES = st.sampled_from([None, -1, 2**63, 0.5, 1e308, True, "", "x", [], {}, [None], {"x": 1}, [[1, 2]], "\x1b[2J"])


@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES, st.booleans()), min_size=1, max_size=2))
@settings(
    max_examples=6, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_field_holds_a_report_is_made_or_the_journal_is_named(
    run: Path, changes: list[tuple[tuple[Any, ...], Any, bool]]
) -> None:
    lines = copy.deepcopy(JOURNAL)
    for (number, *place), value, gone in changes:
        node: Any = lines[number]
        try:
            for key in place[:-1]:
                node = node[key]
            if gone:
                del node[place[-1]]
            else:
                node[place[-1]] = value
        except (LookupError, TypeError):
            continue
    (run / "journal.jsonl").write_bytes(written(lines))
    try:
        write_again(run, Path("nowhere.pem"))
        write_comparison([RUN, OTHER], run.parent, Path("out"))
    except FedRobustError as error:
        assert len(str(error).splitlines()) == 1 and "journal" in str(error)
