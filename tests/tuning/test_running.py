"""Sweeps from start to end, with federations that are played."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from played import Played, Watching, accuracy, sweep, two_teams
from refused import refused
from rich.console import Console
from studies import Page

import fedrobust
import fedrobust.studies.teams as teams_room
import fedrobust.tuning.files as files
import fedrobust.tuning.running as running
from fedrobust import cli
from fedrobust.errors import ExperimentError, FederationError, TrackingError
from fedrobust.experiment import Experiment
from fedrobust.federation.actors import ActorDied
from fedrobust.records import EvaluationRecord
from fedrobust.studies.finished import FinishedRuns
from fedrobust.terminal import show_sweep
from fedrobust.tuning.files import write_study
from fedrobust.tuning.study import Completed, Failed, Pruned
from fedrobust.tuning.sweep import load_sweep

ATTACKED = (
    "attacks={nobody: [], flip: {name: sign_flip, fraction: 0.2}, ipm: {name: ipm, fraction: 0.2}}",
    "seeds=[1,2]",
)


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as table:
        return list(csv.DictReader(table))


def test_a_sweep_finds_what_is_best_and_writes_it_down(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "write_study", write_study)
    watch = Watching()
    found = sweep("trials=24", watch=watch)
    assert [trial.number for trial in found.trials] == list(range(24)) == [trial.number for trial in watch.trials]
    for trial in found.trials:
        experiment = load_sweep("sweep.yaml").experiment(trial.values, seed=1)
        assert trial.outcome == Completed((pytest.approx(accuracy(experiment, 8)),))
    best = max(found.trials, key=lambda trial: trial.outcome.values[0])  # type: ignore[union-attr]
    assert found.best == [best]
    assert found.best[0].values["aggregation"] == {"rule": "median"}
    assert abs(best.values["learning.local.optimizer.lr"] - 0.03) < 0.02
    assert watch.best[-1] == found.best
    assert played.told[-1].figures["best/test/balanced_accuracy"] == best.outcome.values[0]  # type: ignore[union-attr]
    assert fedrobust.load(found.folder / "best.yaml") == load_sweep("sweep.yaml").experiment(best.values, seed=1)
    assert len(lines(found.folder / "trials.csv")) == 24
    assert {"trials.csv", "sweep.html"} <= {path.name for path in found.folder.iterdir()}
    (name,) = [name for name in played.tags if name.startswith("trial 3 |")]
    rate = found.trials[3].values["learning.local.optimizer.lr"]
    assert name.startswith(f"trial 3 | seed 1 | played: lr {rate:.4g}, aggregation ")
    assert played.tags[name] == {"trial": "3", "seed": "1", "phase": "trial", "parent": "parent"}


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["none", "{name: median, startup: 3, warmup: 2}", "{name: wilcoxon, p: 0.2}"])
def test_the_trials_do_not_depend_on_the_number_of_teams_or_on_who_is_quicker(played: Played, pruner: str) -> None:
    found = []
    for teams, pace in ((1, 0), (3, 3)):
        played.wait = lambda experiment, pace=pace: 0.0005 * ((hash(experiment.digest()) >> 3) % (pace + 1))
        storage = f"sqlite:///{teams}.db"
        found.append(
            sweep(*ATTACKED, f"pruner={pruner}", teams=teams, storage=storage, out=Path(f"teams{teams}")).trials
        )
    assert found[0] == found[1]
    assert any(isinstance(trial.outcome, Pruned) for trial in found[0]) == (pruner != "none")


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["none", "{name: median, startup: 3, warmup: 2}", "{name: wilcoxon, p: 0.2}"])
def test_a_trial_whose_run_fails_ends_the_same_whoever_is_quicker(played: Played, pruner: str) -> None:
    """The last two runs of some trials fail, in rounds 5 and 7; the pruner would end some of these before."""
    played.fails_in = lambda experiment: (
        {"sign_flip": 5, "ipm": 7}.get(attacked(experiment), 0) * (experiment.seed == 2) * unlucky(experiment)
    )

    def unlucky(experiment: Experiment) -> bool:
        return (experiment.tracking.run_name or "").split(" |")[0] in ("trial 5", "trial 6", "trial 7", "trial 8")

    def attacked(experiment: Experiment) -> str:
        return experiment.attacks[0].name if experiment.attacks else ""

    found = []
    for place, slow in enumerate(("sign_flip", "ipm", "", "none of them")):
        played.wait = lambda experiment, slow=slow: 0.003 * (attacked(experiment) == slow)
        storage, out = f"sqlite:///{place}.db", Path(f"slow{place}")
        found.append(sweep(*ATTACKED, f"pruner={pruner}", teams=6, storage=storage, out=out).trials)
    assert found[0] == found[1] == found[2] == found[3]
    ended = [type(trial.outcome) for trial in found[0][5:9]]
    assert Failed in ended
    assert (Pruned in ended) == (pruner != "none")


def test_a_pruned_trial_stops_within_a_round_and_leaves_out_the_rest_of_its_runs(played: Played) -> None:
    found = sweep(*ATTACKED, "pruner={name: wilcoxon, p: 0.2}", teams=1)
    pruned = [trial.number for trial in found.trials if isinstance(trial.outcome, Pruned)]
    assert pruned
    for number in pruned:
        made = [name for name in played.begun if name.startswith(f"trial {number} |")]
        assert len(made) < 6
    single = sweep("name=single", "pruner={name: median, startup: 3, warmup: 2}", teams=1)
    for trial in single.trials:
        (name,) = [name for name in played.rounds if name.startswith(f"trial {trial.number} | seed 1 | single: ")]
        ended = isinstance(trial.outcome, Pruned)
        assert played.finished[name] == (not ended)
        assert played.rounds[name] == max(trial.reports)
        assert (played.rounds[name] < 8) == ended


def test_a_driver_that_dies_loses_nothing_and_counts_nothing_twice(played: Played) -> None:
    straight = sweep(*ATTACKED, out=Path("straight"), storage="sqlite:///straight.db")
    expected, played.told = played.told, []
    played.begun.clear()
    played.finished.clear()
    for stop_after in (2, 5, None):
        watch = Watching(stop_after)
        try:
            found = sweep(*ATTACKED, watch=watch)
        except KeyboardInterrupt:
            continue
    assert found.trials == straight.trials
    assert found.best == straight.best
    assert set(played.finished.values()) == {1}, "a run that is finished is not made again"
    assert len(played.finished) == 12 * 6
    assert played.told == expected


def test_runs_of_a_batch_that_was_cut_are_kept(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies after five runs of the first batch: only the rest of it is run again."""
    add, count = FinishedRuns.add, [0]

    def dying(self: FinishedRuns, outcome: object) -> None:
        add(self, outcome)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(FinishedRuns, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        sweep(*ATTACKED, teams=1)
    kept = {json.loads(line)["label"] for line in Path("mlruns/sweeps/played/runs.jsonl").read_text().splitlines()}
    assert 5 <= len(kept) <= 6, "the next one may end by itself meanwhile"
    again = sweep(*ATTACKED, teams=1)
    assert len(again.trials) == 12
    assert all(played.finished[label] == 1 for label in kept)


def test_a_run_that_fails_fails_its_trial_and_no_other(played: Played) -> None:
    played.fails = lambda experiment: "trial 4 |" in (experiment.tracking.run_name or "") and experiment.seed == 2
    found = sweep(*ATTACKED)
    assert [trial.number for trial in found.trials if isinstance(trial.outcome, Failed)] == [4]
    assert found.trials[4].outcome == Failed("round 1: no update arrived")
    row = lines(found.folder / "trials.csv")[4]
    assert (row["state"], row["reason"]) == ("failed", "round 1: no update arrived")
    assert played.told[4].figures == {}


def test_a_metric_that_no_run_has_is_refused_before_anything_starts(played: Played) -> None:
    entry = "objectives.0.metric"
    with refused(entry=entry, hint="did you mean 'test/balanced_accuracy'?", says="'test/balanced_acuracy'"):
        sweep("objectives.0.metric=test/balanced_acuracy")
    with refused(entry=entry, allows="test/balanced_accuracy", says="'good'"):
        sweep("objectives.0.metric=good")
    with refused(says="'score'"):
        sweep("objectives.0.metric=score")
    assert not Path("mlruns").exists()
    sweep()
    with pytest.raises(ExperimentError, match="file or its experiment"):
        sweep("objectives.0.metric=test/accuracy")
    with pytest.raises(FederationError, match=r"all 12 trials .*; see .*csv$"):
        sweep("name=other", "objectives.0.metric=test/auroc")


def test_the_best_are_measured_again_on_seeds_that_the_search_has_not_seen(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "write_study", write_study)
    found = sweep(*ATTACKED, "fresh=[7,8]", "again=2")
    plan = load_sweep("sweep.yaml", ATTACKED)
    ranked = sorted(found.trials, key=lambda trial: (-trial.outcome.values[0], trial.number))  # type: ignore[union-attr]
    assert [each.trial for each in found.fresh] == ranked[:2]
    for each in found.fresh:
        by_attack = [
            sum(accuracy(plan.experiment(each.trial.values, attack, seed), 8) for seed in (7, 8)) / 2
            for attack in plan.attacks
        ]
        assert each.values == (pytest.approx(min(by_attack)),)
        assert set(each.by_seed) == {7, 8}
    table = lines(found.folder / "fresh.csv")
    assert [(row["number"], row["seed"]) for row in table[:3]] == [
        (str(ranked[0].number), s) for s in ("7", "8", "all")
    ]
    assert float(table[2]["test/balanced_accuracy"]) == found.fresh[0].values[0]  # type: ignore[index]
    heads, *shown = Page.read((found.folder / "sweep.html").read_text(encoding="utf-8")).tables[1]
    assert heads[2:] == ["on fresh seeds", "seed 7", "seed 8"]
    for each, row in zip(found.fresh, shown, strict=True):
        values = [each.trial.outcome, each, *(each.by_seed[seed] for seed in (7, 8))]
        figures = [getattr(value, "values", value) for value in values]
        assert row == [str(each.trial.number), *(f"{figure[0]:.5g}" for figure in figures)]  # type: ignore[index]
    assert fedrobust.load(found.folder / "best.yaml").attacks[0].name == "sign_flip", "under the worst attack"
    assert {tags["phase"] for name, tags in played.tags.items() if "seed 7" in name} == {"fresh"}


def test_several_objectives_leave_a_front(played: Played) -> None:
    objectives = "objectives=[{metric: test/balanced_accuracy}, {metric: defense/recall, direction: minimize}]"
    found = sweep(objectives, "sampler=nsga_ii")
    top = max(trial.outcome.values[0] for trial in found.trials)  # type: ignore[union-attr]
    assert [trial.outcome.values for trial in found.best] == [(top, 0.5)]  # type: ignore[union-attr]
    assert (found.folder / f"best_{found.best[0].number}.yaml").exists()


def test_a_time_budget_ends_a_sweep_between_batches(played: Played) -> None:
    found = sweep("hours=1e-9")
    assert found.trials == []
    assert found.best == []


def test_the_same_command_goes_on_and_makes_nothing_twice(played: Played) -> None:
    found = sweep()
    begun = played.begun.copy()
    assert sweep().trials == found.trials
    assert played.begun == begun
    more = sweep("trials=14")
    assert len(more.trials) == 14
    assert sum((played.begun - begun).values()) == 2, "more trials make no other sweep"


def test_more_trials_are_those_that_there_would_have_been_from_the_start(played: Played) -> None:
    """Also where the last batch of the smaller sweep was cut short, and however often."""
    median = "pruner={name: median, startup: 3, warmup: 2}"
    options = (median, "parallel=4")
    whole = sweep(*options, "trials=15", storage="sqlite:///whole.db", out=Path("whole")).trials
    for trials in (1, 6, 7, 10, 15):
        grown = sweep(*options, f"trials={trials}").trials
        assert grown == whole[:trials]
    assert any(isinstance(trial.outcome, Pruned) for trial in whole)


def test_an_error_that_ends_a_sweep_says_how_it_goes_on(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> object:
        raise TrackingError("no answer")

    monkeypatch.setattr(teams_room, "run", gone)
    with pytest.raises(TrackingError, match=r"^no answer; the same command goes on where it stopped$"):
        sweep()
    assert lines(Path("mlruns/sweeps/played/trials.csv")) == []


def test_a_run_on_a_fresh_seed_that_fails_says_why_and_is_made_again(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "write_study", write_study)
    played.fails_in = lambda experiment: 3 * (experiment.seed == 8)
    found = sweep("fresh=[7,8]", "again=1")
    reason = "round 3: no update arrived from seed 8"
    assert found.fresh[0].failed == {8: reason}
    assert found.fresh[0].values is None
    table = lines(found.folder / "fresh.csv")
    assert [(row["seed"], row["reason"]) for row in table] == [("7", ""), ("8", reason), ("all", "")]
    heads, row = Page.read((found.folder / "sweep.html").read_text(encoding="utf-8")).tables[1]
    assert (heads[-1], row[-1]) == ("reason", f"seed 8: {reason}")
    out = Console(record=True, width=140)
    show_sweep(out, found)
    assert f"fresh seed 8 failed: {reason}" in out.export_text()
    played.fails_in = lambda experiment: 0
    assert sweep("fresh=[7,8]", "again=1").fresh[0].values is not None
    page = Page.read((found.folder / "sweep.html").read_text(encoding="utf-8"))
    assert "reason" not in page.tables[1][0]


def test_what_is_measured_on_fresh_seeds_is_there_when_a_sweep_is_stopped(played: Played) -> None:
    """One that is stopped among its fresh runs has none of them; one that goes on, and is stopped, has all it had."""
    played.fails_in = lambda experiment: stop() if experiment.seed == 8 else 0

    def stop() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep("fresh=[7,8]", "again=1")
    assert not Path("mlruns/sweeps/played/fresh.csv").exists()
    played.fails_in = lambda experiment: 0
    expected = sweep("fresh=[7,8]", "again=1")
    table = Path("mlruns/sweeps/played/fresh.csv").read_bytes()
    played.accuracy = lambda experiment, round: 0.1  # none of the trials to come is better
    with pytest.raises(KeyboardInterrupt):
        sweep("fresh=[7,8]", "again=1", "trials=18", watch=Watching(2))
    assert Path("mlruns/sweeps/played/fresh.csv").read_bytes() == table
    assert expected.fresh[0].values is not None


def test_a_page_that_cannot_be_drawn_costs_itself_alone(
    played: Played, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> object:
        raise ValueError("no such glyph")

    monkeypatch.setattr(running, "write_study", write_study)
    monkeypatch.setattr(files, "sweep_html", broken)
    found = sweep()
    written = {each.name for each in found.folder.iterdir()}
    assert {"trials.csv", "best.yaml"} <= written and "sweep.html" not in written
    drawn = [record.getMessage().rpartition("/")[2] for record in caplog.records if "drawn" in record.getMessage()]
    assert set(drawn) == {"sweep.html could not be drawn: no such glyph"}


def test_a_run_whose_team_has_lost_an_actor_is_begun_again(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = [0]

    def dying(experiment: Experiment, **options: object) -> object:
        if str(experiment.tracking.run_name).startswith("trial 2 | seed 1 | played:") and deaths[0] < 2:
            deaths[0] += 1
            for hook in options["hooks"]:  # type: ignore[attr-defined]
                hook(EvaluationRecord.of({"round": 1, "metrics": {"test/balanced_accuracy": 0.0}}))
            raise ActorDied("the actor died while waiting for round 2: the coordinator")
        return played.run(experiment, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(teams_room, "run", dying)
    found = sweep()
    assert deaths == [2]
    assert all(isinstance(trial.outcome, Completed) for trial in found.trials)


def test_from_python_with_a_function_of_ones_own(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)
    found = fedrobust.sweep(
        "base.yaml",
        space={"learning.local.optimizer.lr": {"log": [0.001, 1.0]}},
        objective=lambda result: -abs(result.final["test/balanced_accuracy"] - 0.7),
        trials=6,
    )
    values = [trial.outcome.values[0] for trial in found.trials]  # type: ignore[union-attr]
    made = [found.plan.experiment(trial.values, seed=1) for trial in found.trials]
    assert values == pytest.approx([-abs(accuracy(each, 8) - 0.7) for each in made])
    assert found.best[0].outcome == Completed((max(values),))
    with refused(file="fedrobust.sweep", entry="space.aggregation.g"):
        fedrobust.sweep(fedrobust.load("base.yaml"), space={"aggregation.g": {"int": [1, 3]}}, name="c")


def test_a_sweep_in_python_goes_on_with_the_same_function_only(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)

    def worth(result: fedrobust.Result) -> float:
        return float(result.final["test/balanced_accuracy"])

    def other(result: fedrobust.Result) -> float:
        return -float(result.final["test/balanced_accuracy"])

    options: dict[str, Any] = {
        "space": {"learning.local.optimizer.lr": {"log": [0.001, 1.0]}},
        "trials": 4,
    }
    found = fedrobust.sweep("base.yaml", objective=worth, **options)
    begun = played.begun.copy()
    assert fedrobust.sweep("base.yaml", objective=worth, **options).trials == found.trials
    with pytest.raises(ExperimentError, match="objective function"):
        fedrobust.sweep("base.yaml", objective=other, **options)
    assert played.begun == begun


def test_older_scripts_may_say_that_a_sweep_is_to_go_on(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does anyway, as a matrix and a duel do."""
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)
    for words in ([], ["--resume"]):
        monkeypatch.setattr("sys.argv", ["fedrobust", "sweep", "sweep.yaml", "trials=2", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
    assert sum(played.begun.values()) == 2


def test_the_command(played: Played, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)
    monkeypatch.setattr("sys.argv", ["fedrobust", "sweep", "sweep.yaml", "trials=5", "fresh=[7]", "--out", "here"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    shown = capsys.readouterr().out
    values = [float(row["test/balanced_accuracy"]) for row in lines(Path("here/trials.csv"))]
    for number, value in enumerate(values):
        so_far = values[: number - number % 3 + 3]
        best = max(so_far)
        told = re.escape(f"trial {number}: {value:.3f}; best {best:.3f} (trial {values.index(best)})")
        assert re.search(rf"^{number + 1}/5 trials(, about 1 min left)?: {told}$", shown, re.MULTILINE)
    (fresh,) = [
        row for row in lines(Path("here/fresh.csv")) if (row["number"], row["seed"]) == (str(values.index(best)), "all")
    ]
    assert f"{float(fresh['test/balanced_accuracy']):.3f}" in shown
    assert "5 trials completed\ntables, sweep.html, best.yaml: here\n" in shown
