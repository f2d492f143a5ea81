"""What a bar says while runs go on: how many are done, how long the rest takes, and that something is going on."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from fedrobust.experiment import Experiment
from fedrobust.records import RoundRecord
from fedrobust.studies.finished import FinishedRun
from fedrobust.terminal import DuelProgress, MatrixProgress, Progress, SweepProgress, elements
from fedrobust.terminal.pace import FEW, Pace, about
from fedrobust.tuning.study import Completed, Trial

COUNT = re.compile(r"(\d+)/(\d+) [a-z ]+(, about (\d+ h )?\d+ min left)?(: .*)?")
"""What programs read of the lines."""


class Clock:
    """A clock that tests move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def written() -> Console:
    return Console(file=io.StringIO(), width=140, force_terminal=False)


def lines(out: Console) -> list[str]:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def cell(name: str = "mean | nobody | easy | seed 1") -> Any:
    return SimpleNamespace(label=name)


@pytest.mark.parametrize(("teams", "expected"), [(1, 100.0), (2, 50.0), (4, 25.0)])
def test_the_rest_takes_the_median_with_the_teams_at_work(teams: int, expected: float) -> None:
    pace, now = Pace(), 0.0
    for number in range(5 * teams):
        wave, place = divmod(number, teams)
        took = 40.0 if wave == 0 else 5.0  # the first run of each team imports torch and reads the data
        now = (40.0 if wave == 0 else 40.0 + 5.0 * wave) + 0.01 * place
        if number < teams + FEW:
            assert pace.left(20) is None, "nothing until a few are finished"
        pace.add(took, now)
    assert pace.left(20) == pytest.approx(expected)
    assert pace.left(0) == 0.0
    assert pace.left(1) == pytest.approx(5.0), "one run takes its time, however many teams there are"


def test_one_run_that_hangs_changes_no_estimate() -> None:
    pace = Pace()
    for number, took in enumerate((60.0, 5.0, 5.0, 500.0, 5.0, 5.0)):
        pace.add(took, 1000.0 * (number + 1))
    assert pace.left(10) == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "about 1 min"),
        (89, "about 1 min"),
        (250, "about 4 min"),
        (3600, "about 1 h 00 min"),
        (8000, "about 2 h 13 min"),
    ],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_a_matrix_counts_cells_and_shows_no_time_until_a_few_are_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), written()
    with MatrixProgress(out) as progress:
        progress.plan(100, 40)
        for took in (300.0, 60.0, 60.0, 60.0):
            clock.now += took
            progress.done((cell(), FinishedRun("", "", "", {"balanced_accuracy": 0.75}, took=took)))
        progress.plan(47, 44)  # what will really be done
        clock.now += 60.0
        progress.done((cell(), FinishedRun("", "", took=60.0)))
        progress.done((cell(), FinishedRun("", "", failed="no room")))
        progress.done((cell(), FinishedRun("", "", took=60.0)))
    assert lines(out) == [
        "starting",
        "40/100 cells",
        "41/100 cells: mean | nobody | easy | seed 1: balanced accuracy 0.750",
        "42/100 cells: mean | nobody | easy | seed 1: balanced accuracy 0.750",
        "43/100 cells: mean | nobody | easy | seed 1: balanced accuracy 0.750",
        "44/100 cells, about 56 min left: mean | nobody | easy | seed 1: balanced accuracy 0.750",
        "44/47 cells, about 3 min left",
        "45/47 cells, about 2 min left: mean | nobody | easy | seed 1: balanced accuracy –",
        "mean | nobody | easy | seed 1 failed: no room",
        "47/47 cells: mean | nobody | easy | seed 1: balanced accuracy –",
    ]


def trial(number: int) -> Trial:
    return Trial(number, {}, Completed((0.5,)), {})


@pytest.mark.parametrize("kind", [SweepProgress, DuelProgress])
def test_trials_of_a_batch_are_reported_together(kind: type[SweepProgress], monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), written()
    with kind(out) as progress:
        progress.plan(20, 0)
        for batch in range(3):
            clock.now += 600.0 if batch == 0 else 120.0
            for number in (2 * batch, 2 * batch + 1):
                clock.now += 0.01
                progress.done((trial(number), [trial(0)]))
    noun = "trials" if kind is SweepProgress else "trials of this search"
    found = [line for line in lines(out) if ": trial " in line]
    assert found[1] == f"2/20 {noun}: trial 1: 0.500; best 0.500 (trial 0)"
    assert found[-1] == f"6/20 {noun}, about 14 min left: trial 5: 0.500; best 0.500 (trial 0)"


def test_a_duel_counts_its_turns() -> None:
    out = written()
    turns = [
        SimpleNamespace(defence="mean", label=f"attacker {n}", failed="", value=0.5, worst="ipm", equally_bad=["ipm"])
        for n in (1, 2)
    ]
    with DuelProgress(out, turns=3) as progress:
        for turn in turns:
            progress.done(cast(Any, turn))
    assert lines(out)[1:] == [
        "1/3 turns: mean, attacker 1: 0.500, under ipm",
        "2/3 turns: mean, attacker 2: 0.500, under ipm",
    ]


def test_a_run_says_how_long_its_rounds_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), written()
    with Progress(out, Experiment.model_validate({"federation": {"rounds": 30}})) as progress:
        for number, took in enumerate((20.0, 60.0, 60.0, 60.0), 1):
            clock.now += took
            progress.on_record(RoundRecord.of({"round": number, "participants": [], "seconds": {"round": took}}))
        assert progress.sign_of_life() == "4/30 rounds, about 26 min left: starting, for 3 min"


@pytest.mark.parametrize(
    "bar",
    [MatrixProgress, SweepProgress, DuelProgress, lambda out: Progress(out, Experiment())],
    ids=["matrix", "sweep", "duel", "run"],
)
def test_a_file_gets_a_line_at_once_and_a_sign_of_life_soon(bar: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "FIRST", 0.0)
    monkeypatch.setattr(elements, "LONGEST", 0.0)
    monkeypatch.setattr(elements, "TICK", 0.01)
    out = written()
    with bar(out) as progress:
        assert lines(out)[0] == "starting"
        progress.say("reading the data")
        while not any(line.endswith("reading the data, for 0 s") for line in lines(out)):
            progress._ended.wait(0.01)
        if not isinstance(progress, Progress):
            progress.plan(12, 3)
            assert COUNT.fullmatch(progress.sign_of_life())
    count = len(lines(out))
    progress._ended.wait(0.05)
    assert len(lines(out)) == count, "a bar that has ended says nothing"
