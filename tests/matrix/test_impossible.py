"""What a cell dies of is its result, and the matrix goes on; only what concerns all cells ends it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from played import two_teams
from reported import one_round

import fedrobust.preparation as preparation
import fedrobust.studies.study as study_room
import fedrobust.studies.teams as teams_room
from fedrobust import cli
from fedrobust.audit.signing import AuditError
from fedrobust.data.histology import Histology
from fedrobust.errors import DataError, ExperimentError, FederationError, FedRobustError, NoPlaceError, TrackingError
from fedrobust.experiment import Experiment
from fedrobust.federation.actors import ActorDied
from fedrobust.matrices import load_matrix
from fedrobust.matrices.running import MatrixResult, run_matrix

BASE = """
name: base
data: {source: {name: histology, patients: 20}}
federation: {clients: 6, rounds: 1}
"""
MATRIX = """
name: played
experiment: base.yaml
settings:
  here: {fraction: 0.2}
  there: {fraction: 0.2, data.partition: {name: dirichlet, alpha: 7.0}}
attacks: {flip: sign_flip, away: absent}
defences:
  mean: {aggregation: {rule: mean}}
  sure: {aggregation: {rule: median, f: 2}}
screening: [1]
fresh: [2]
worst: 1
backdoors: 0
"""
CELLS = 2 * (2 * 3 + 2 * 2 + 2)

OWN: dict[str, Callable[[], BaseException]] = {
    "data that do not fit": lambda: DataError("data: too few patches"),
    "an attack that does not fit": lambda: ExperimentError("attacks.0: no label 9"),
    "a federation that ends": lambda: FederationError("round 1: no update arrived"),
    "an actor that always dies": lambda: ActorDied("the actor died"),
    "a log that does not hold": lambda: AuditError("line 3: not signed"),
    "no memory": MemoryError,
    "no end of calls": RecursionError,
    "a user's own class": lambda: KeyError("layer"),
    "a user's own way out": lambda: SystemExit(3),
}
EVERYONES: dict[str, Callable[[], BaseException]] = {
    "no tracking server": lambda: TrackingError("no answer"),
    "no place": lambda: NoPlaceError("all teams have lost actors"),
    "a full disk": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "a Ctrl-C": KeyboardInterrupt,
}


class Stage:
    """Stands in for Ray, data and MLflow: what a run gives depends on its rule alone, and some die."""

    run_id = "parent"

    def __init__(self) -> None:
        self.dies: Callable[[Experiment], BaseException | None] = lambda experiment: None
        self.failures: dict[str, str] = {}
        self.figured: dict[str, float] = {}
        self.tagged: dict[str, str] = {}
        self.made: list[str] = []
        self.accuracy = 0.0
        """That of all runs; 0: it depends on the rule."""

    def run(self, experiment: Experiment, **_: Any) -> Any:
        if (death := self.dies(experiment)) is not None:
            raise death
        self.made.append(experiment.tracking.run_name or "")
        accuracy = self.accuracy or (0.9 if experiment.aggregation.rule.name == "median" else 0.7)
        return SimpleNamespace(recorded=one_round(accuracy), run_id="run")

    def figures(self, figures: dict[str, float], run_id: str | None = None) -> None:
        self.figured |= figures if run_id is None else {}

    def last(self, journal: Any, run_id: str) -> None:
        pass

    def failed(self, reason: str, begun: list[str], name: str, tags: dict[str, str]) -> None:
        self.failures[name] = reason

    def tag(self, tags: dict[str, str]) -> None:
        self.tagged |= tags

    def upload(self, folder: Path, again: bool = False) -> None:
        pass


@pytest.fixture
def stage(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage()
    Path("base.yaml").write_text(BASE)
    Path("matrix.yaml").write_text(MATRIX)

    @contextmanager
    def parent(*_: Any) -> Iterator[Stage]:
        yield made

    data = SimpleNamespace(label_counts=lambda: np.ones((6, 2), dtype=np.int64), tested=lambda: 2)
    monkeypatch.setattr(teams_room, "run", made.run)
    monkeypatch.setattr(preparation, "hospitals_of", lambda experiment: data)
    monkeypatch.setattr(study_room, "parent_run", parent)
    monkeypatch.setattr("fedrobust.matrices.files.heat_map", lambda *_: Figure((1, 1)))
    return made


def matrix(*overrides: str) -> MatrixResult:
    return run_matrix(load_matrix("matrix.yaml", overrides), pool=SimpleNamespace(teams=2))  # type: ignore[arg-type]


def attacked(experiment: Experiment) -> str:
    return experiment.attacks[0].name if experiment.attacks else "nobody"


def test_what_a_cell_dies_of_is_its_result(stage: Stage) -> None:
    """Those of one attack in one setting die, each of something else; all others are what they would have been."""
    many = "screening=[1,3,4,5,6]"
    whole = matrix("name=whole", many).table
    deaths = iter(list(OWN.values()) * 3)
    stage.failures.clear()

    def dying(experiment: Experiment) -> BaseException | None:
        there = experiment.resolved()["data"]["partition"]["alpha"] == 7.0
        return next(deaths)() if there and attacked(experiment) == "sign_flip" else None

    stage.dies = dying
    found = matrix(many)
    died = (found.table["attack"] == "flip") & (found.table["setting"] == "there")
    assert set(found.table["state"][died]) == {"failed"}
    assert found.table["failed"][died].str.len().gt(0).all()
    alike = whole.merge(found.table[~died], on=["setting", "attack", "defence", "seed", "phase"])
    assert len(alike) > 40
    assert died.sum() > len(OWN)
    assert (alike["balanced_accuracy_x"] == alike["balanced_accuracy_y"]).all()
    assert set(found.table["state"][~died]) == {"done"}
    assert sorted(stage.failures.values()) == sorted(found.table["failed"][died])
    assert stage.figured["cells/failed"] == died.sum()
    page = (found.folder / "table.md").read_text()
    assert f"{died.sum()} failed" in page
    assert pd.read_csv(found.folder / "cells.csv")["state"].value_counts()["failed"] == died.sum()
    stage.dies, stage.made = lambda experiment: None, []
    mended = matrix(many)
    assert set(mended.table["state"]) == {"done"}
    assert all("flip | there" in name for name in stage.made if "seed 2" not in name), (
        "finished cells are not run again"
    )


@pytest.mark.slow
@pytest.mark.parametrize("death", EVERYONES)
def test_what_concerns_all_ends_the_matrix_which_goes_on_afterwards(stage: Stage, death: str) -> None:
    stage.dies = lambda experiment: EVERYONES[death]() if len(stage.made) > 3 else None
    with pytest.raises(BaseException) as caught:
        matrix()
    death_itself = EVERYONES[death]()
    assert type(caught.value) is (FedRobustError if isinstance(death_itself, OSError) else type(death_itself))
    assert stage.failures == {}
    states = pd.read_csv("mlruns/matrix/played/cells.csv")["state"].value_counts()
    assert states["done"] >= 4 and "failed" not in states
    stage.dies = lambda experiment: None
    assert set(matrix().table["state"]) == {"done"}
    assert len(set(stage.made)) == len(stage.made)


def test_a_cell_whose_parts_do_not_go_together_has_failed(stage: Stage) -> None:
    """An attack that leaves two hospitals out is right with the mean, f = 2 with nobody's attack; not both."""
    found = matrix("settings.there.fraction=0.4", "worst=1")
    refused = found.table[found.table["state"] == "failed"]
    assert set(zip(refused["setting"], refused["attack"], refused["defence"], strict=True)) == {
        ("there", "away", "sure")
    }
    assert set(refused["phase"]) == {"screening", "fresh"}
    assert refused["failed"].str.contains("aggregation.f").all()
    assert set(stage.failures) == {f"sure | away | there | seed {seed}" for seed in (1, 2)}
    assert "away, sure, seed 1: " in (found.folder / "table.md").read_text()
    (verdict,) = [each for each in found.verdicts if (each.setting, each.defence) == ("there", "sure")]
    assert (verdict.worst_attack, verdict.unfinished) == ("", 2)
    assert verdict.lacks == {"away": "failed on seed 2"}
    again = found.table[(found.table["phase"] == "fresh") & (found.table["defence"] == "sure")]
    assert set(again["attack"][again["setting"] == "there"]) == {"flip", "away"}, "it took the place of no other attack"


@pytest.mark.slow
def test_where_every_cell_dies_the_end_says_of_what(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.dies = lambda experiment: DataError("data: too few patches")
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)
    monkeypatch.setattr("sys.argv", ["fedrobust", "matrix", "matrix.yaml"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error == f"error: all {CELLS} cells failed: data: too few patches; see mlruns/matrix/played/table.md"
    assert len(pd.read_csv("mlruns/matrix/played/cells.csv")) == CELLS


def test_data_that_no_cell_can_have_end_it_before_the_first(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(experiment: Experiment) -> Any:
        raise DataError("data: damaged")

    def damaged(*_: Any) -> Any:
        raise DataError("damaged")

    monkeypatch.setattr(preparation, "hospitals_of", unread)
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"^data: damaged$"):
        patch.setattr(Histology, "load", damaged)
        patch.setattr(Histology, "outline", damaged)
        matrix()
    assert not Path("mlruns").exists()
    monkeypatch.setattr(Histology, "load", lambda *_: None)
    with pytest.raises(FederationError, match=f"all {CELLS} cells failed"):
        stage.dies = unread  # type: ignore[assignment]
        matrix()


def test_figures_that_cannot_be_made_of_a_run_fail_its_cell(stage: Stage) -> None:
    run = stage.run

    def without(experiment: Experiment, **options: Any) -> Any:
        made = run(experiment, **options)
        return made if attacked(experiment) != "sign_flip" else SimpleNamespace(recorded=None, run_id="run")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teams_room, "run", without)
        table = matrix().table
    assert set(table["state"][table["attack"] == "flip"]) == {"failed"}
    assert set(table["state"][table["attack"] != "flip"]) == {"done"}


def test_a_matrix_whose_oracles_learn_nothing_stops_after_them_unless_told_to_go_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.accuracy = 0.503
    said = "the oracle is at chance (0.503 against 0.5) after 1 round: more rounds or data"

    def command(*options: str) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["fedrobust", "matrix", "matrix.yaml", *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    monkeypatch.setattr(teams_room, "leased_pool", two_teams)
    code, out, err = command()
    assert (code, len(err.splitlines())) == (1, 1)
    assert err.startswith(f"error: {said}; finished cells are kept in mlruns/matrix/played; with --anyway ")
    assert said not in out
    assert len(stage.made) == 2 and all("oracle" in name for name in stage.made)
    page = Path("mlruns/matrix/played/table.md").read_text()
    assert "**Incomplete**" in page and f"**T{said[1:]}.**" in page
    assert "--anyway" in page and "same command" not in page, "the same command would stop there again"
    assert (pd.read_csv("mlruns/matrix/played/cells.csv")["state"] == "done").sum() == 4, (
        "two oracles, which are also `away`"
    )
    assert stage.tagged["unlearnt"] == said
    assert not [name for name in stage.figured if name.endswith("robustness")]
    code, out, err = command("--anyway")
    assert (code, err, out.count(said)) == (0, "", 1)
    assert len(set(stage.made)) == len(stage.made), "finished cells are not run again"
    assert "incomplete, so no least robustness: no attack has a figure: the oracle is at chance on seed 2" in out
    stage.accuracy = 0.0
    found = matrix("changes.federation.rounds=2")
    assert (found.unlearnt, stage.tagged["unlearnt"]) == ("", ""), "the tag of the earlier execution is replaced"


def test_a_matrix_goes_on_where_one_settings_oracle_has_learnt_something(stage: Stage) -> None:
    run = stage.run

    def without(experiment: Experiment, **options: Any) -> Any:
        stage.accuracy = 0.5 if experiment.resolved()["data"]["partition"]["alpha"] == 7.0 else 0.0
        return run(experiment, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teams_room, "run", without)
        found = run_matrix(load_matrix("matrix.yaml"), pool=SimpleNamespace(teams=1))  # type: ignore[arg-type]
    assert found.unlearnt == "the oracle is at chance in there (0.500 against 0.5) after 1 round: more rounds or data"
    assert set(found.table["state"]) == {"done"}
    there = [each for each in found.verdicts if each.setting == "there"]
    assert all(set(each.lacks) == {"flip", "away"} for each in there)
    assert not any(each.lacks for each in found.verdicts if each.setting == "here")
