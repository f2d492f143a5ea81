"""Errors as data: what a problem holds, how it is shown, and how it is passed on."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from fedrobust.errors import DataError, ExperimentError, FedRobustError, Origin, Problem

RULE = Problem("", "aggregation.rule", "'krumm'", ("mean", "krum"), "did you mean 'krum'?")


def test_a_problem_is_one_line_made_of_its_data() -> None:
    said = "aggregation.rule: found 'krumm'; allowed: mean, krum; did you mean 'krum'?"
    assert str(RULE) == said
    assert str(RULE.at(Origin(Path("e.yaml"), 12))) == f"e.yaml:12: {said}"
    assert str(RULE.at(Origin(Path("m.yaml"), 7, path="defences.mine"))) == f"m.yaml:7: defences.mine: {said}"
    assert str(RULE.at(Origin(text="override 'x=1'")).noting("few, flip")) == f"override 'x=1': {said} (few, flip)"
    assert str(Problem("no such file").at(Origin(Path("e.yaml")))) == "e.yaml: no such file"


@pytest.mark.parametrize("field", ["message", "path", "found", "hint", "note"])
def test_a_problem_is_printable_whatever_it_quotes(field: str) -> None:
    problem = Problem(**{"message": "a", field: "\x1b]0;x\x07\n\u202e\udcff"}).at(Origin(Path("a\nb")))
    assert str(problem).isprintable() and r"\x1b]0;x\x07\n\u202e\udcff" in str(problem)


def test_problems_are_equal_where_their_data_are() -> None:
    here = Origin(Path("e.yaml"), 3)
    assert len({RULE.at(here), RULE.at(Origin(Path("e.yaml"), 3)), RULE.at(Origin(Path("e.yaml"), 4))}) == 2


def test_where_a_problem_is_grows_from_the_inside() -> None:
    inner = Problem("not square", "size").below("source").below("data")
    assert inner == Problem("not square", "data.source.size")
    there = Problem("empty").at(Origin(Path("a.npz"))).below("data.source").at(Origin(Path("m.yaml"), 2, path="few"))
    assert str(there) == "m.yaml:2: few: data.source: a.npz: empty"
    assert (there.file, there.line) == (Path("a.npz"), None)


def test_what_moves_takes_along_all_that_is_below_it() -> None:
    problem = Problem("", "attacks.0.scale").at(Origin(Path("d.yaml"), 9, path="space.attacks"))
    assert problem.moved("space.attacks", "attacker.space").origin.path == "attacker.space"
    assert problem.moved("attacks", "a").path == "a.0.scale"
    assert problem.moved("attack", "a") == problem, "no part of a name is a path"


def test_an_error_keeps_its_kind_and_its_problems() -> None:
    class MineError(ExperimentError):
        pass

    error = MineError(RULE, Problem("two"))
    assert error.problems == (RULE, Problem("two")) and str(error) == f"{RULE}\ntwo"
    below = error.each(lambda each: each.below("a"))
    assert type(below) is MineError and [each.path for each in below.problems] == ["a.aggregation.rule", "a"]
    advised = error.advising("go on with: x").advising("or: y")
    assert type(advised) is MineError and str(advised) == f"{RULE}\ntwo; go on with: x; or: y"
    assert str(FedRobustError("one\ntwo")) == r"one\ntwo", "what others have written begins no line"
    again = pickle.loads(pickle.dumps(DataError(RULE)))
    assert type(again) is DataError and again.problems == (RULE,)
