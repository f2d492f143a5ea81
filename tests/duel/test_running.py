"""Duels from start to end, with federations that are played."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from played import Played, two_teams
from refused import refused
from rich.console import Console

import fedrobust.studies.teams as teams_room
from fedrobust import cli
from fedrobust.duels import DuelPlan, load_duel
from fedrobust.duels.results import Turn
from fedrobust.duels.running import DuelResult, run_duel
from fedrobust.errors import DataError, ExperimentError, FederationError, TrackingError
from fedrobust.experiment import Experiment
from fedrobust.terminal import show_duel
from fedrobust.tuning.running import TrialDone

METRIC = "test/balanced_accuracy"
BOTH = ["mean + nothing", "clipping"]
ORDER = [
    *[("fixed", 0, name) for name in BOTH],
    *[("attacker", 1, name) for name in BOTH],
    ("defender", 1, "clipping"),
    *[("attacker", 2, name) for name in BOTH],
    ("defender", 2, "clipping"),
]


class Watching:
    """Watches a duel; may stop it after so many turns, or trials of its searches."""

    def __init__(self, turns: int | None = None, trials: int | None = None) -> None:
        self.turns, self.trials = list[Turn](), 0
        self._last, self._most = turns, trials

    def plan(self, items: int, finished: int) -> None:
        pass

    def done(self, item: Turn | TrialDone) -> None:
        if isinstance(item, Turn):
            self.turns.append(item)
        else:
            self.trials += 1
        if self._last == len(self.turns) > 0 or self._most == self.trials > 0:
            raise KeyboardInterrupt

    def say(self, what: str) -> None:
        pass


def duel(*overrides: str, **options: Any) -> DuelResult:
    """Run `duel.yaml` on two threads."""
    return run_duel(load_duel("duel.yaml", overrides), pool=SimpleNamespace(teams=2), **options)  # type: ignore[arg-type]


def of(found: DuelResult, defence: str) -> list[Turn]:
    return [turn for turn in found.turns if turn.defence == defence]


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as table:
        return list(csv.DictReader(table))


def tried(found: DuelResult, turn: Turn, name: str) -> dict[float, float]:
    """What a turn's search has tried of one option, and what came of it."""
    table = lines(found.folder / f"{turn.defence} {turn.label}" / "trials.csv")
    return {float(row[name]): float(row[METRIC]) for row in table}


def worth(seed: int, epsilon: float | None = None, tau: float | None = None, harm: float = 0.0) -> float:
    """What `strength` makes of an `ipm`, by hand."""
    if epsilon is not None:
        harm = 0.4 * max(0.0, epsilon if tau is None else 1 - abs(math.log10(epsilon / tau)))
    return (0.9 - harm - 0.01 * (seed % 3)) * (1 - 0.5**8)


def test_the_sides_take_turns_and_each_meets_what_the_other_has_found(played: Played, told: list[Any]) -> None:
    watch = Watching()
    found = duel("turns=2", watch=watch)
    assert [(turn.side, turn.number, turn.defence) for turn in found.turns] == ORDER
    assert found.turns == watch.turns
    assert watch.trials == 4 * 4 + 2 * 3, "a defence without a space has no turn"
    for defence, tau in (("mean + nothing", None), ("clipping", 0.1)):
        known: dict[str, float] = {}
        for turn in of(found, defence):
            if turn.side == "attacker":
                trials = tried(found, turn, "attacks.0.epsilon")
                assert trials == pytest.approx({epsilon: worth(1, epsilon, tau) for epsilon in trials})
                assert turn.chosen["attacks"][0]["epsilon"] == min(trials, key=trials.__getitem__)
                known[f"searched {turn.number}"] = turn.chosen["attacks"][0]["epsilon"]
            elif turn.side == "defender":
                trials = tried(found, turn, "aggregation.rule.tau")
                for chosen, value in trials.items():
                    against = [worth(1, harm=0.1), *(worth(1, epsilon, chosen) for epsilon in known.values())]
                    assert value == pytest.approx(min(against)), "the worst of all that is known"
                tau = turn.chosen["aggregation.rule.tau"]
                assert tau == max(trials, key=trials.__getitem__)
            expected = {"nobody": {s: worth(s) for s in (7, 8)}, "flip": {s: worth(s, harm=0.1) for s in (7, 8)}}
            expected |= {name: {s: worth(s, epsilon, tau) for s in (7, 8)} for name, epsilon in known.items()}
            assert turn.by_seed == {name: pytest.approx(seeds) for name, seeds in expected.items()}
            assert turn.by_attack == pytest.approx({name: sum(seeds.values()) / 2 for name, seeds in expected.items()})
            assert turn.value == min(turn.by_attack.values()) == turn.by_attack[turn.worst]
        assert len(set(known.values())) == 2, "another turn looks elsewhere"
    assert found.turns[0].worst == "flip"
    mlflow_is_told_of_every_turn(found, played, told)


def mlflow_is_told_of_every_turn(found: DuelResult, played: Played, told: list[Any]) -> None:
    steps = {("fixed", 0): 0, ("attacker", 1): 1, ("defender", 1): 2, ("attacker", 2): 3, ("defender", 2): 4}
    assert [(line.step, line.figures) for line in told] == [
        (steps[turn.side, turn.number], {f"worst/{turn.defence}": turn.value}) for turn in found.turns
    ]
    judging = {name: tags for name, tags in played.tags.items() if tags["phase"] == "fresh"}
    assert judging["clipping, attacker 1 | searched 1 | seed 7 | played"] == {
        "defence": "clipping",
        "turn": "attacker 1",
        "attack": "searched 1",
        "seed": "7",
        "phase": "fresh",
        "parent": "duel",
    }
    assert {tags["turn"] for name, tags in judging.items() if " | nobody | " in name and "mean" in name} == {"fixed"}


@pytest.mark.slow
def test_each_run_is_made_once_however_often_a_duel_is_stopped(played: Played, told: list[Any]) -> None:
    straight = duel("turns=2", out=Path("straight"), storage="sqlite:///straight.db")
    lines_told = list(told)
    judged = {name for name in played.finished if played.tags[name]["phase"] == "fresh"}
    played.begun.clear()
    played.finished.clear()
    for watch in (Watching(trials=3), Watching(turns=3), Watching(trials=7)):
        with pytest.raises(KeyboardInterrupt):
            duel("turns=2", watch=watch)
    found = duel("turns=2")
    assert found.turns == straight.turns
    assert told == lines_told
    assert set(played.finished.values()) == {1}
    assert {name for name in played.finished if played.tags[name]["phase"] == "fresh"} == judged
    for name in ("turns.csv", "duel.md", "duel.png"):
        assert (found.folder / name).read_bytes() == (straight.folder / name).read_bytes()


def test_a_duel_that_is_over_makes_no_run_and_more_turns_go_on(played: Played, told: list[Any]) -> None:
    first = duel()
    begun = played.begun.copy()
    assert duel().turns == first.turns
    assert played.begun == begun
    both = duel("turns=2")
    assert both.turns[: len(first.turns)] == first.turns
    new = played.begun - begun
    assert len([name for name in new if name.startswith("trial")]) == 2 * 4 + 4 * 3
    assert set(new.values()) == {1}


def test_what_there_is_when_a_duel_is_stopped_is_written(played: Played, told: list[Any]) -> None:
    folder = Path("mlruns/duels/played")
    with pytest.raises(KeyboardInterrupt):
        duel(watch=Watching(trials=1))
    three = [
        *[("mean + nothing", "fixed attacks")] * 2,
        *[("clipping", "fixed attacks")] * 2,
        *[("mean + nothing", "attacker 1")] * 3,
    ]
    assert [(row["defence"], row["turn"]) for row in lines(folder / "turns.csv")] == three[:4]
    with pytest.raises(KeyboardInterrupt):
        duel(watch=Watching(turns=3))
    assert [(row["defence"], row["turn"]) for row in lines(folder / "turns.csv")] == three
    assert "**Incomplete**" in (folder / "duel.md").read_text()
    with pytest.raises(KeyboardInterrupt):
        duel(watch=Watching(turns=1))
    assert [(row["defence"], row["turn"]) for row in lines(folder / "turns.csv")] == three, "this sitting came less far"
    duel()
    assert "**Incomplete**" not in (folder / "duel.md").read_text()


def test_a_duel_that_is_stopped_before_a_turn_is_judged_says_so(
    played: Played, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the error says how to go on."""

    def running(*_: Any, **__: Any) -> Any:
        raise TrackingError("gone")

    monkeypatch.setattr(teams_room, "run", running)
    with pytest.raises(TrackingError, match=r"^gone; the same command goes on where it stopped$"):
        duel()
    page = Path("mlruns/duels/played/duel.md").read_text()
    assert "**Incomplete**" in page
    assert "No turn is judged yet." in page
    assert not Path("mlruns/duels/played/duel.png").exists()


def test_a_run_that_fails_in_a_search_costs_its_trial(played: Played, told: list[Any]) -> None:
    calm = duel(out=Path("calm"), storage="sqlite:///calm.db")
    best = {float(key): value for key, value in tried(calm, calm.turns[2], "attacks.0.epsilon").items()}
    worst = min(best, key=best.__getitem__)
    played.fails = lambda experiment: "trial" in str(experiment.tracking.run_name) and ipm(experiment) == worst
    found = duel()
    del best[worst]
    assert found.turns[2].chosen["attacks"][0]["epsilon"] == min(best, key=best.__getitem__)


def ipm(experiment: Experiment) -> float | None:
    return next((each["epsilon"] for each in experiment.resolved()["attacks"] if each["name"] == "ipm"), None)


def test_a_turn_without_a_result_says_where_to_look(played: Played, told: list[Any]) -> None:
    played.fails = lambda experiment: ipm(experiment) is not None
    found = duel("defences={clipping: {options: {aggregation.rule: {name: centered_clipping, tau: 0.1}}}}")
    assert [bool(turn.failed) for turn in found.turns] == [False, True]
    told_where = r"all 4 trials failed: round 1: no update arrived; see mlruns/.*/clipping attacker 1/trials\.csv"
    assert re.fullmatch(told_where, found.turns[1].failed)
    assert Path("mlruns/duels/played/clipping attacker 1/trials.csv").exists()
    assert "failed" in (found.folder / "duel.md").read_text()


@pytest.mark.slow
def test_a_run_that_judges_and_fails_costs_its_defence_and_no_other_and_is_made_again(
    played: Played, told: list[Any]
) -> None:
    def clipped(experiment: Experiment) -> bool:
        return experiment.resolved()["aggregation"]["rule"]["name"] == "centered_clipping"

    calm = duel("turns=2", out=Path("calm"), storage="sqlite:///calm.db")
    expected = list(told)
    played.fails = lambda experiment: experiment.seed == 8 and ipm(experiment) is not None and clipped(experiment)
    found = duel("turns=2")
    reason = "searched 1, seed 8: round 1: no update arrived"
    assert of(found, "mean + nothing") == of(calm, "mean + nothing")
    assert [(turn.label, turn.failed) for turn in of(found, "clipping")] == [
        ("fixed attacks", ""),
        ("attacker 1", reason),
    ]
    failed = of(found, "clipping")[1]
    assert math.isnan(failed.value)
    assert set(failed.by_attack) == {"nobody", "flip"}, "what the other runs gave is not lost"
    page = (found.folder / "duel.md").read_text()
    assert f"- clipping, attacker 1: {reason}" in page
    assert re.search(r"\| clipping \| 0\.\d+ \(flip\) \| failed \| –", page)
    assert [row["failed"] for row in lines(found.folder / "turns.csv") if row["failed"]] == [reason]
    out = Console(record=True, width=140)
    show_duel(out, found)
    shown = out.export_text()
    assert "1 turns failed; they are listed in duel.md, and taken again" in shown
    assert "nan" not in shown
    assert told == expected[: len(told)], "MLflow has the beginning, and the rest later"
    played.fails = lambda experiment: False
    assert duel("turns=2").turns == calm.turns
    assert told == expected


def test_a_figure_that_is_not_finite_fails_the_turn(played: Played, told: list[Any]) -> None:
    """And where no turn has a value, that is an error when all is written."""
    watch, folder = Watching(), Path("mlruns/duels/nan")
    with pytest.raises(FederationError, match=r"^all 2 turns .*nobody, seed 7: test/auroc .*; see .*duel\.md$"):
        duel("name=nan", "objective.metric=test/auroc", watch=watch)
    assert [turn.side for turn in watch.turns] == ["fixed", "fixed"]
    assert watch.turns[0].failed.startswith("nobody, seed 7: test/auroc is not a finite number; nobody, seed 8: ")
    assert "**Incomplete**" not in (folder / "duel.md").read_text()
    assert not (folder / "duel.png").exists()


def test_what_a_turn_dies_of_costs_its_defence_and_no_other(
    played: Played, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that die of anything, values that do not go together, and options of a user's own class that raise."""
    calm = duel(out=Path("calm"), storage="sqlite:///calm.db")

    def refusing(self: Any, standing: Any, *options: Any, of: Any = DuelPlan.search) -> Any:
        if standing.turn == "attacker 1":
            raise ExperimentError("attacks.0.epsilon: too large")
        return of(self, standing, *options)

    def raising(self: Any, standing: Any, *options: Any, of: Any = DuelPlan.experiment) -> Any:
        if (standing.defence, standing.turn) == ("clipping", "attacker 1"):
            raise LookupError("no such organ")
        return of(self, standing, *options)

    def dying(experiment: Experiment) -> BaseException | None:
        mine = experiment.resolved()["aggregation"]["rule"]["name"] == "centered_clipping"
        return DataError("too few patches") if mine and experiment.seed == 8 else None

    for place, patched in enumerate((("search", refusing), ("experiment", raising), None)):
        with monkeypatch.context() as patch:
            if patched:
                patch.setattr(DuelPlan, *patched)
            played.dies = dying if patched is None else lambda experiment: None
            turns = duel(out=Path(str(place)), storage=f"sqlite:///{place}.db")
        assert of(turns, "mean + nothing") == of(calm, "mean + nothing")
        last = of(turns, "clipping")[-1]
        expected = ["attacks.0.epsilon: too large", "LookupError: no such organ (", "seed 8: too few patches; flip, "]
        assert expected[place] in last.failed
        assert last.failed in [row["failed"] for row in lines(turns.folder / "turns.csv")]


def test_a_metric_that_no_run_has_is_refused(played: Played) -> None:
    with refused(entry="objective.metric", hint="did you mean 'test/accuracy'?"):
        duel("objective.metric=test/acuracy")
    with refused(path="objective.metric", says="no function"):
        duel("objective.metric=score")


def test_a_defence_that_makes_a_figure_small(played: Played, told: list[Any]) -> None:
    """Both directions: what one side wants to be small, the other wants to be large."""
    found = duel("objective.direction=minimize")
    for turn in found.turns:
        assert turn.value == max(turn.by_attack.values())
    (attacker,) = [turn for turn in found.turns if (turn.defence, turn.side) == ("clipping", "attacker")]
    trials = tried(found, attacker, "attacks.0.epsilon")
    assert trials[attacker.chosen["attacks"][0]["epsilon"]] == max(trials.values())


def test_data_that_are_not_there_are_refused_before_anything_starts(played: Played, told: list[Any]) -> None:
    with pytest.raises(DataError, match=r"nowhere\.npz"):
        duel("changes={data.source: {name: npz, path: nowhere.npz}}")
    assert not Path("mlruns").exists()


def test_the_command(
    played: Played, told: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)
    monkeypatch.setattr("sys.argv", ["fedrobust", "duel", "duel.yaml", "attacker.trials=3", "--out", "here"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    shown = capsys.readouterr().out
    with Path("here/turns.csv").open() as table:
        worst = [row for row in csv.DictReader(table) if row["worst"] == "True"]
    for row in worst:
        value = float(row[METRIC])
        assert f"{row['defence']}, {row['turn']}: {value:.3f}, under {row['attack']}\n" in shown
    for word in ("fixed", "attacker", "defender", "–", "here", "clipping: defender 1 searches", ": trial 2: "):
        assert word in shown
    assert lines_of_table(shown, "clipping") == [
        f"{float(row[METRIC]):.3f}" for row in worst if row["defence"] == "clipping"
    ]


def lines_of_table(shown: str, first: str) -> list[str]:
    (line,) = [line for line in shown.splitlines() if line.startswith(f"│ {first} ")]
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_a_pool_is_leased_for_all_of_it(played: Played, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    leased = []

    def pool(experiment: Experiment, say: object, teams: int | None) -> Any:
        leased.append(teams)
        return two_teams(experiment, say, teams)

    monkeypatch.setattr(teams_room, "leased_pool", pool)
    run_duel(load_duel("duel.yaml", ["attacker.trials=2"]), teams=3)
    assert leased == [3]


def test_a_duel_with_other_rounds_is_refused_before_anything_is_written(played: Played, told: list[Any]) -> None:
    folder = duel("turns=1").folder
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with refused(file=folder, says="has results with other options"):
        duel("turns=1", "changes={federation.rounds: 3}")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert load_duel("duel.yaml").mlflow_experiment == "played"
    assert load_duel("duel.yaml", ["changes.tracking.experiment=mine"]).mlflow_experiment == "mine"
    plan = load_duel("duel.yaml")
    search = plan.search(plan.begin("clipping"), "attacker", 1)
    assert search.experiment(search.space.chosen(search.space.middle), trial=0).tracking.experiment == "played"
