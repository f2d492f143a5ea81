"""`fedrobust run FILE seed=1,2,3`: a grid on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refused import refused

import fedrobust.report as report
import fedrobust.runner as runner
import fedrobust.sessions as sessions
from fedrobust.cli import main
from fedrobust.cli.grid import combinations
from fedrobust.errors import FederationError, Interrupted


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("1,2,3", ["1", "2", "3"]),
        ("mean, median", ["mean", "median"]),
        ("[sign_flip,ipm]", ["[sign_flip,ipm]"]),
        ("[a,b],[c,d]", ["[a,b]", "[c,d]"]),
        ("{name: krum, f: 1},mean", ["{name: krum, f: 1}", "mean"]),
        ("'a,b'", ["'a,b'"]),
        ('"a,b",c', ['"a,b"', "c"]),
        (r"^(\d{2,3})_", [r"^(\d{2,3})_"]),
        ("it's,he's", ["it's", "he's"]),
        ("]1,2", ["]1", "2"]),
        ("", [""]),
    ],
)
def test_where_values_are_separated(value: str, parts: list[str]) -> None:
    assert combinations([f"a.b={value}"]) == [(f"a.b={part}",) for part in parts]


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), max_size=4))
def test_every_combination_once(values: list[list[int]]) -> None:
    overrides = [f"a{place}={','.join(map(str, each))}" for place, each in enumerate(values)]
    made = combinations(overrides)
    expected = 1
    for each in values:
        expected *= len(each)
    assert len(set(made)) == len(made) == expected
    assert all(len(words) == len(values) for words in made)


def test_a_path_with_several_values_is_not_given_once_more() -> None:
    """The runs would have the last one, and the names of the others."""
    for overrides in (["seed=1,2", "seed=3"], ["seed=3", "seed=1,2"], ["seed=1,2", "seed=3,4"]):
        with refused(path="seed", says="once more"):
            combinations(overrides)
    assert combinations(["seed=1", "seed=3"]) == [("seed=1", "seed=3")]  # the later one counts


@pytest.mark.parametrize("override", ["seed=1,,2", "seed=1,", "seed=,1", "seed=1,1"])
def test_an_empty_or_repeated_value_is_refused(override: str) -> None:
    with refused(override=override, path="seed"):
        combinations([override])


class Stage:
    """Stands in for the runs, the session and the comparison."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.pools: set[int] = set()
        self.compared: list[list[str]] = []
        self.dies: dict[int, BaseException] = {}

    def run(self, experiment: Any, hooks: Any = (), say: Any = None, pool: Any = None, **_: Any) -> Any:
        self.made.append(experiment)
        self.pools.add(id(pool))
        if error := self.dies.get(len(self.made)):
            raise error
        final = {"test/accuracy": experiment.seed / 10}
        return SimpleNamespace(run_id=f"run{len(self.made)}", final=final, folder=Path("x"))


@pytest.fixture
def stage(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage()
    (workplace / "e.yaml").write_text("name: e\nfederation: {rounds: 2}\n")
    monkeypatch.setattr(runner, "run", made.run)
    monkeypatch.setattr(sessions, "ray_session", lambda: pytest.MonkeyPatch.context())
    monkeypatch.setattr(sessions, "Pool", lambda *_: pytest.MonkeyPatch.context())
    monkeypatch.setattr(sessions.Shelf, "get", lambda *_: None)

    def compare(names: list[str], *_: Any) -> Any:
        made.compared.append(names)
        raise RuntimeError("no picture")

    monkeypatch.setattr(report, "write_comparison", compare)
    return made


def command(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr("sys.argv", ["fedrobust", "run", "e.yaml", *words])
        main()
    return int(end.value.code or 0)


def test_a_run_of_each_combination_with_one_start(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("seed=1,2", "aggregation.rule=mean,median", "federation.rounds=3", "--json", "out.json") == 0
    found = [(each.seed, each.aggregation.rule.name, each.federation.rounds) for each in stage.made]
    assert found == [(1, "mean", 3), (1, "median", 3), (2, "mean", 3), (2, "median", 3)]
    assert len(stage.pools) == 1
    assert stage.compared == [["run1", "run2", "run3", "run4"]]
    assert "3/4 runs: seed=2 aggregation.rule=mean\n" in capsys.readouterr().out
    written = json.loads(Path("out.json").read_text())
    assert [each["run_id"] for each in written] == ["run1", "run2", "run3", "run4"]
    assert written[2]["overrides"] == ["seed=2", "aggregation.rule=mean", "federation.rounds=3"]


def test_wrong_values_are_refused_before_the_first_run(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("seed=1,2", "aggregation.rule=mean,medain") == 2
    assert command("seed=1,2", "--resume", "run1") == 2
    assert stage.made == []
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "did you mean 'median'?" in first and "one value" in second
    assert not Path("mlruns").exists()


def test_a_run_that_fails_costs_no_other(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.dies[2] = FederationError("round 1: no update arrived")
    assert command("seed=1,2,3") == 1
    assert stage.compared == [["run1", "run3"]]
    assert "failed: seed=2: round 1: no update arrived" in capsys.readouterr().err


def test_a_stopped_grid_says_what_is_there_and_goes_on(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.dies[3] = Interrupted("abc")
    assert command("seed=1,2,3,4") == 130
    said = capsys.readouterr().err
    assert "2 of 4 runs are made; compare them with: fedrobust compare run1 run2" in said
    assert "fedrobust run e.yaml seed=3 --resume abc" in said
    assert len(stage.made) == 3
