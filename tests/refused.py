"""What a test expects of an error: its problems as data, at most one word of what it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedrobust.errors import ExperimentError, FedRobustError, Problem
from fedrobust.validation import shown


def fields(problem: Problem) -> dict[str, object]:
    """All that a test may compare: the problem's own fields, and those of the place that it is in."""
    origin = problem.origin
    override = origin.text.removeprefix("override '").removesuffix("'")
    return {**vars(problem), **vars(origin), "path": problem.path, "entry": origin.path, "override": override}


def check(problem: Problem, *, says: str = "", allows: str = "", **expected: object) -> None:
    """Assert that the given fields of a problem are what is expected, and that it is one printable line.

    says: a word of its message, a number or a name at best. allows: one of what is allowed.
    """
    assert says or allows or expected, "nothing is expected of the problem"
    if isinstance(expected.get("file"), str):
        expected["file"] = Path(str(expected["file"]))
    found = fields(problem)
    assert {name: found[name] for name in expected} == expected, problem
    assert says in problem.message, problem
    assert not allows or allows in problem.allowed, problem
    assert str(problem).isprintable() and str(problem), problem


def problems(error: Exception) -> list[Problem]:
    """Those of an error; of options that are made in Python, what pydantic says is the message."""
    if not isinstance(error, ValidationError):
        assert isinstance(error, FedRobustError)
        return list(error.problems)
    found = []
    for each in error.errors():
        raised = each.get("ctx", {}).get("problem", Problem(each["msg"], found=shown(each["input"])))
        found.append(raised.below(".".join(map(str, each["loc"]))))
    return found


@contextmanager
def refused(
    kind: type[Exception] = ExperimentError, *, says: str = "", allows: str = "", **expected: object
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """The block must raise an error of this kind with one problem, e.g. `with refused(path="seed", line=1):`."""
    with pytest.raises(kind) as caught:
        yield caught
    assert len(problems(caught.value)) == 1, caught.value
    check(problems(caught.value)[0], says=says, allows=allows, **expected)
