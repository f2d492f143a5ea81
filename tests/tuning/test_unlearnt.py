"""A sweep in which no run is better than chance says so wherever its best trial is shown, and stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from played import Played, sweep, two_teams
from rich.console import Console
from studies import Page, by_rate, view_of

import fedrobust
import fedrobust.studies.teams as teams_room
import fedrobust.tuning.running as running
from fedrobust import cli
from fedrobust.errors import UnlearntError
from fedrobust.experiment import Experiment
from fedrobust.studies.finished import FinishedRun
from fedrobust.terminal import show_sweep
from fedrobust.tuning.chance import BestReached, unlearnt
from fedrobust.tuning.files import write_study
from fedrobust.tuning.objectives import Objective
from fedrobust.tuning.page import sweep_html
from fedrobust.tuning.views import tied

WORST = (
    "objectives.0.direction=minimize",
    "space={attacks: [{name: ipm, fraction: 0.2, epsilon: {float: [0.1, 1.0]}}]}",
)
"""A search for the worst attack."""


@pytest.fixture
def flat(played: Played) -> Played:
    """Nobody learns anything."""
    played.confusion = [[9, 1], [9, 1]]
    played.accuracy = lambda experiment, round: 0.503
    return played


def attacked(experiment: Experiment) -> bool:
    return bool(experiment.attacks)


SAID = "none of 3 runs is better than chance (test/balanced_accuracy 0.503 against 0.5) after 8 rounds"


def test_it_stops_after_a_batch_and_a_control_that_have_learnt_nothing(flat: Played) -> None:
    with pytest.raises(UnlearntError) as caught:
        sweep("fresh=[7]")
    said = f"{SAID}, nor is one without attackers: more rounds or data"
    assert str(caught.value) == (
        f"{said}; finished runs are kept in mlruns/sweeps/played; with --anyway (in Python: anyway=True) it goes on"
    )
    begun = sorted(name.partition(":")[0] for name in flat.begun)
    assert begun == ["control | played", *(f"trial {n} | seed 1 | played" for n in range(3))]
    assert flat.tags["control | played"]["phase"] == "control"
    folder = Path("mlruns/sweeps/played")
    assert (folder / "best.yaml").read_text().startswith(f"# {said}\n")
    assert fedrobust.load(folder / "best.yaml").seed == 1
    assert len((folder / "trials.csv").read_text().splitlines()) == 4
    assert flat.tagged == {"unlearnt": said}
    with pytest.raises(UnlearntError):
        sweep("fresh=[7]")
    assert set(flat.begun.values()) == {1} and len(flat.begun) == 4, "nothing is run again"


def test_anyway_it_goes_on_with_the_same_trials_and_says_so_where_the_best_is_shown(
    flat: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "write_study", write_study)
    straight = sweep(anyway=True, out=Path("straight"), storage="sqlite:///straight.db")
    assert not [name for name in flat.begun if name.startswith("control")]
    assert len(straight.trials) == 12
    with pytest.raises(UnlearntError):
        sweep()
    found = sweep(anyway=True)
    assert found.trials == straight.trials
    assert "nor is one without attackers" in found.unlearnt and "nor is" not in straight.unlearnt
    page = Page.read((found.folder / "sweep.html").read_text(encoding="utf-8"))
    assert page.text.count(f"N{found.unlearnt[1:]}.") == 1
    assert "Best trial, no better than chance" in page.text
    assert "All 12 completed trials have the same value" in page.text
    assert ("tr", {"class": "best"}) not in page.tags
    out = Console(record=True, width=200)
    show_sweep(out, found)
    shown = out.export_text()
    assert shown.count(found.unlearnt) == 1
    assert "all 12 completed trials have the same value: the search cannot tell them apart" in shown


@pytest.mark.parametrize(
    ("overrides", "accuracy"),
    [
        pytest.param(WORST, lambda experiment: 0.5 if attacked(experiment) else 0.8, id="an attack that ruins all"),
        pytest.param(
            ("attacks={flip: {name: sign_flip, fraction: 0.4}}",),
            lambda experiment: 0.5 if attacked(experiment) else 0.8,
            id="a defence against an attack that ruins all",
        ),
        pytest.param(
            (), lambda experiment: 0.53 if "trial 2" in str(experiment.tracking.run_name) else 0.5, id="one run"
        ),
    ],
)
def test_it_goes_on_where_anything_is_learnt(
    flat: Played, overrides: tuple[str, ...], accuracy: Callable[[Experiment], float]
) -> None:
    flat.accuracy = lambda experiment, round: accuracy(experiment)
    found = sweep(*overrides)
    assert len(found.trials) == 12
    controls = [name for name in flat.begun if name.startswith("control")]
    assert controls == (["control | played"] if overrides else []), "one cheap run, only where it is needed"
    expected = "after 8 rounds; one without attackers is (0.800)"
    assert found.unlearnt.endswith(expected) if overrides else found.unlearnt == ""


def test_a_search_for_the_worst_attack_stops_where_nothing_is_learnt_without_one(flat: Played) -> None:
    with pytest.raises(UnlearntError, match="nor is one without attackers"):
        sweep(*WORST)
    assert len(flat.begun) == 4


def test_a_control_that_fails_ends_nothing(flat: Played) -> None:
    flat.fails = lambda experiment: (experiment.tracking.run_name or "").startswith("control")
    found = sweep()
    assert len(found.trials) == 12
    assert found.unlearnt.endswith("after 8 rounds: more rounds or data")
    assert flat.begun["control | played"] == 1


def test_a_sweep_that_is_complete_stops_no_more(flat: Played) -> None:
    found = sweep("trials=3")
    assert len(found.trials) == 3 and found.unlearnt == f"{SAID}: more rounds or data"


def test_runs_of_an_older_version_say_nothing(flat: Played) -> None:
    flat.confusion = []
    assert sweep().unlearnt == ""


def test_the_command(flat: Played, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)

    def command(*options: str) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["fedrobust", "sweep", "sweep.yaml", *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    code, out, err = command()
    assert (code, len(err.splitlines())) == (1, 1)
    assert err.startswith(f"error: {SAID}, nor is one without attackers: more rounds or data; ")
    code, out, err = command("--anyway")
    assert (code, err) == (0, "")
    assert out.count("better than chance") == 1


def run(metrics: dict[str, float], labels: int = 2) -> FinishedRun:
    return FinishedRun("d", "l", "r", {"classes": labels} if labels else {}, {"1": {}, "2": metrics})


@pytest.mark.parametrize(
    ("objective", "metrics", "labels", "at_chance"),
    [
        ("test/balanced_accuracy", {"test/balanced_accuracy": 0.519}, 2, True),
        ("test/balanced_accuracy", {"test/balanced_accuracy": 0.521}, 2, False),
        ("test/balanced_accuracy", {"test/balanced_accuracy": 0.4}, 4, False),
        (
            "validation/balanced_accuracy",
            {"validation/balanced_accuracy": 0.9, "test/balanced_accuracy": 0.5},
            2,
            False,
        ),
        ("test/auroc", {"test/auroc": 0.9, "test/balanced_accuracy": 0.5}, 2, False),
        ("test/auroc", {"test/auroc": 0.5, "test/balanced_accuracy": 0.9}, 4, True),
        ("test/loss", {"test/loss": 0.1, "test/balanced_accuracy": 0.5}, 2, True),
        ("attack/success_rate", {"attack/success_rate": 0.9, "test/balanced_accuracy": 0.9}, 2, False),
        ("score", {"score": 7.0, "test/balanced_accuracy": 0.5}, 2, True),
    ],
)
def test_the_objective_judges_where_its_chance_is_known_and_balanced_accuracy_elsewhere(
    objective: str, metrics: dict[str, float], labels: int, at_chance: bool
) -> None:
    learning = BestReached([Objective(metric=objective)])
    assert not learning.learnt and not learning.at_chance and unlearnt(learning, learning) == ""
    learning.see([run(metrics, labels)])
    assert (learning.at_chance, learning.learnt) == (at_chance, not at_chance)
    assert bool(unlearnt(learning, BestReached([Objective(metric=objective)]))) == at_chance


@pytest.mark.parametrize("unknown", [run({}), run({"test/balanced_accuracy": float("nan")}), run({}, 1), run({}, 0)])
def test_a_run_without_the_figure_is_neither(unknown: FinishedRun) -> None:
    learning = BestReached([Objective(metric="test/loss")])
    learning.see([unknown])
    assert learning.best is None


def test_equal_trials_are_named() -> None:
    assert tied([(0.5,), (0.7,), (0.7,)], (0.7,)).startswith("2 of 3 completed trials have this value")
    assert tied([(0.7,), (0.5,)], (0.7,)) == ""
    assert tied([(0.7,)], (0.7,)) == ""
    assert tied([(0.7, 1.0), (0.7, 1.0)], (0.7, 1.0)) == "", "a front has room for both"
    view = view_of(lambda number, chosen: [0.95] if number > 3 else by_rate(number, chosen), trials=8)
    assert "4 of 8 completed trials have this value" in sweep_html(view)
