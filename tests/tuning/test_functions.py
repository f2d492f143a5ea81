"""A caller's function: whether it is the same as in an earlier sweep, and what is refused beside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from played import Played, two_teams
from refused import refused

import fedrobust
import fedrobust.studies.teams as teams_room
from fedrobust.errors import ExperimentError
from fedrobust.tuning.functions import digest_of

SPACE = {"learning.local.optimizer.lr": {"log": [0.001, 1.0]}}


def first(result: Any, weight: float = 1.0) -> float:
    return weight * float(result)


def second(result: Any, weight: float = 1.0) -> float:
    return -weight * float(result)


def weighted(weight: float) -> Callable[[Any], float]:
    return lambda result: weight * float(result)


class Weighted:
    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, result: Any) -> float:
        return self.weight * float(result)

    def score(self, result: Any) -> float:
        return self.weight + float(result)


class Other(Weighted):
    def __call__(self, result: Any) -> float:
        return -self.weight


DIFFERENT: list[Callable[..., Any]] = [
    first,
    second,
    partial(first, weight=1.0),
    partial(first, weight=9.0),
    partial(second, weight=9.0),
    Weighted(1.0),
    Weighted(2.0),
    Other(1.0),
    Weighted(1.0).score,
    Weighted(2.0).score,
    weighted(1.0),
    weighted(2.0),
    lambda result, weight=1: weight * result,
    lambda result, weight=5: weight * result,
    lambda result, *, weight=5: weight * result,
    lambda result: result < 1,
    lambda result: result > 1,
    lambda result: 1,
    lambda result: 1.0,
    lambda result: True,
    lambda result: (lambda inner: inner + 1)(result),
    lambda result: (lambda inner: inner + 2)(result),
    lambda result: result.first,
    lambda result: result.second,
    lambda result: result in {"a", "b"},
    lambda result: result in {"a", "c"},
    max,
    min,
]


def test_different_functions_have_different_digests() -> None:
    assert len({digest_of(each) for each in DIFFERENT}) == len(DIFFERENT)


def test_the_same_function_has_one_digest_wherever_it_stands() -> None:
    assert digest_of(lambda result: result.final["a"]) == digest_of(lambda result: result.final["a"])
    assert digest_of(weighted(3.0)) == digest_of(weighted(3.0))
    assert digest_of(Weighted(3.0)) == digest_of(Weighted(3.0))


def test_a_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from fedrobust.tuning.functions import digest_of\n"
        "print(digest_of(lambda result: result in {'a', 'b', 'c', 'd', 'e', 'f'}))\n"
    )
    found = set()
    for seed in ("1", "2"):
        run = partial(subprocess.run, capture_output=True, text=True, check=True, timeout=120)
        found.add(run([sys.executable, str(script)], env={"PYTHONHASHSEED": seed}).stdout)
    assert len(found) == 1


def test_scores_of_one_function_are_not_taken_for_those_of_another(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one folder, under another name."""
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)
    options: dict[str, Any] = {"space": SPACE, "trials": 2, "out": "together"}
    fedrobust.sweep("base.yaml", objective=lambda result: 1.0, name="one", **options)
    found = fedrobust.sweep("base.yaml", objective=lambda result: -7.0, name="two", **options)
    assert [trial.outcome.values for trial in found.trials] == [(-7.0,)] * 2  # type: ignore[union-attr]


def test_a_table_has_the_values_that_were_searched_within_a_choice(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)
    rules = {"krum": {"name": "krum"}, "clipping": {"name": "centered_clipping", "tau": {"log": [0.1, 10.0]}}}
    found = fedrobust.sweep("base.yaml", space={"aggregation.rule": {"choice": rules}}, trials=6, name="nested")
    table = found.frame()
    taus = table["aggregation.rule.clipping.tau"]
    chosen = table["aggregation.rule"] == "clipping"
    assert chosen.any() and taus[chosen].between(0.1, 10.0).all() and taus[~chosen].isna().all()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"objectives": [{"metric": "test/auroc"}], "objective": "test/loss"}, {"path": "objectives"}),
        ({"objectives": [{"metric": "test/loss"}], "direction": "minimize"}, {"path": "objectives"}),
        ({"objectives": [{"metric": "test/auroc"}], "objective": first}, {"path": "objective", "says": "score"}),
        ({"objective": ""}, {"entry": "objectives.0.metric"}),
        ({"out": 3}, {"path": "out"}),
        ({"out": "a\0b"}, {"path": "out"}),
        ({"teams": "2"}, {"path": "teams"}),
        ({"teams": 0}, {"path": "teams"}),
        ({"storage": Path("here.db")}, {"path": "storage"}),
    ],
    ids=map(str, range(9)),
)
def test_arguments_that_contradict_each_other_are_refused(
    played: Played, arguments: dict[str, Any], problem: dict[str, str]
) -> None:
    with refused(ExperimentError, **problem):
        fedrobust.sweep("base.yaml", space=SPACE, **arguments)


def test_a_function_for_a_file_without_a_score_is_refused(played: Played) -> None:
    given = {"experiment": "base.yaml", "space": SPACE, "objectives": [{"metric": "test/auroc"}]}
    with refused(ExperimentError, path="objective", says="score"):
        fedrobust.sweep(given, objective=first)


def test_another_experiment_takes_the_place_of_an_object(played: Played) -> None:
    given = {"experiment": fedrobust.load("base.yaml"), "space": SPACE, "objectives": [{"metric": "test/auroc"}]}
    with refused(ExperimentError, says="no such file"):
        fedrobust.sweep(given, {"experiment": "nofile.yaml"})
