"""Options that are made or changed in Python: the same errors as in a file, and no change that changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedrobust
from fedrobust.aggregation import Aggregation
from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from tests.refused import problems, refused

WRONG: list[dict[str, Any]] = [
    {"seed": "x"},
    {"federatoin": 3},
    {"aggregation": {"rule": "krumm"}},
    {"aggregation": {"rule": "krum", "f": 9}},
    {"attacks": [{"name": "sign_flip", "fraction": 3}]},
    {"attacks": [{"name": "sign_flip", "scal": 3}]},
    {"attacks": "sign_flip"},
    {"data": {"source": {"name": "folder", "patients": "("}}},
    {"learning": {"local": {"optimizer": {"momentum": 1.0}}}},
]

LOOP: dict[str, Any] = {}
LOOP["again"] = LOOP


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_the_same_errors_as_in_a_file(options: dict[str, Any], tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    with (tmp_path / "e.yaml").open("w") as file:
        YAML().dump(options, file)
    with pytest.raises(ExperimentError) as in_file:
        fedrobust.load(tmp_path / "e.yaml")
    with pytest.raises(ExperimentError) as in_python:
        Experiment(**options)
    said = [[(each.path, each.message, each.found, each.hint) for each in problems(error.value)]
            for error in (in_file, in_python)]  # fmt: skip
    assert said[0] == said[1]


def test_errors_of_a_part_name_its_class() -> None:
    with refused(path="stages.0", found="'x'", text="Aggregation"):
        Aggregation(rule="krum", stages=["x"])  # type: ignore[arg-type, list-item]


def test_changed_is_a_new_checked_experiment(tmp_path: Path) -> None:
    before = Experiment()
    changes = {
        "aggregation": Aggregation(rule="krum"),  # type: ignore[arg-type]
        "aggregation.f": np.int64(1),
        "data.source": {"name": "folder", "path": tmp_path},
        "attacks.0": {"name": "sign_flip", "count": 1},
    }
    after = before.changed(changes)
    assert (after.aggregation.rule.name, after.aggregation.f, after.attacks[0].name) == ("krum", 1, "sign_flip")
    assert after.resolved()["data"]["source"]["path"] == str(tmp_path)
    assert before == Experiment()
    assert after.changed(["seed=3", "aggregation.rule=mean"]) == after.changed({"seed": 3, "aggregation.rule": "mean"})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"aggregation.rul": "krum"}, {"path": "aggregation.rul", "override": "aggregation.rul"}),
        ({"seed": "3"}, {"path": "seed", "override": "seed"}),
        ({"federation.clients": 10, "aggregation.rule": "krum", "aggregation.f": 9}, {"path": "aggregation.f"}),
        ({"attacks.3.scale": 4}, {"found": "'3'"}),
        ({"seed": complex(1)}, {"path": "seed"}),
        ({3: 4}, {"found": "3"}),
        ({"": 4}, {"found": "''"}),
        (["seed"], {"override": "seed"}),
        ("seed=3", {"path": "overrides", "found": "'seed=3'"}),
        ([3], {"path": "overrides", "found": "3"}),
    ],
    ids=str,
)
def test_wrong_changes_name_themselves(changes: Any, problem: dict[str, Any], tmp_path: Path) -> None:
    with refused(**problem):
        Experiment().changed(changes)
    (tmp_path / "e.yaml").write_text("attacks: []\n")
    with refused(**problem):
        fedrobust.load(tmp_path / "e.yaml", changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 10**5000},
        {"attacks." + "1" * 5000: 3},
        {"data": {"source": LOOP}},
        {"federation": {1: {2: 3}}},
        {"attacks": [[[LOOP]]]},
    ],
    ids=["seed", "place", "loop", "number", "list"],
)
def test_changes_that_no_file_could_have_are_refused_in_a_line(changes: Any) -> None:
    with pytest.raises(ExperimentError) as caught:
        Experiment().changed(changes)
    assert all(len(line) < 500 for line in str(caught.value).splitlines())


def test_keys_that_are_no_texts_are_unknown() -> None:
    for make in (lambda: fedrobust.session({1: 2}), lambda: Experiment().model_copy(update={1: 2})):  # type: ignore[dict-item]
        with refused(ExperimentError, path="1", says="unknown key"):
            make()


def test_a_copy_with_other_values_is_checked() -> None:
    assert Experiment().model_copy(update={"seed": 3}) == Experiment(seed=3)
    assert Experiment().model_copy() == Experiment()
    with refused(path="aggregation.f", hint="for a dotted path: experiment.changed({…})"):
        Experiment().model_copy(update={"aggregation.f": 3})
    with refused(path="seed", found="-3"):
        Experiment().model_copy(update={"seed": -3})


WRONG_CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a number for a file": (lambda: fedrobust.run(3), {"path": "experiment", "found": "3"}),  # type: ignore[arg-type]
    "nothing for a file": (lambda: fedrobust.run(None), {"path": "experiment"}),  # type: ignore[arg-type]
    "a file that is not there": (lambda: fedrobust.run("nowhere.yaml"), {"file": "nowhere.yaml"}),
    "nothing for overrides": (
        lambda: fedrobust.run(Experiment(), None),  # type: ignore[arg-type]
        {"path": "overrides", "found": "None"},
    ),
    "a number for overrides": (
        lambda: fedrobust.run(Experiment(), 3),  # type: ignore[arg-type]
        {"path": "overrides", "found": "3"},
    ),
    "no hook": (lambda: fedrobust.run(Experiment(), hooks=[3]), {"path": "hooks", "found": "3"}),  # type: ignore[list-item]
    "no hooks": (lambda: fedrobust.run(Experiment(), hooks=3), {"path": "hooks", "found": "3"}),  # type: ignore[arg-type]
    "no progress": (
        lambda: fedrobust.run(Experiment(), progress=3),  # type: ignore[arg-type]
        {"path": "progress", "found": "3"},
    ),
    "an experiment for a matrix": (
        lambda: fedrobust.matrix(Experiment()),  # type: ignore[arg-type]
        {"path": "file", "found": "an Experiment"},
    ),
    "a number for a duel": (lambda: fedrobust.duel(3), {"path": "file", "found": "3"}),  # type: ignore[arg-type]
    "a function for a sweep": (
        lambda: fedrobust.sweep(len, space={}),  # type: ignore[arg-type]
        {"path": "experiment", "found": "a builtin_function_or_method"},
    ),
}


@pytest.mark.parametrize("call", list(WRONG_CALLS))
def test_wrong_arguments_of_the_functions(call: str, workplace: Path) -> None:
    made, problem = WRONG_CALLS[call]
    with refused(**problem):
        made()
    assert not Path("mlruns").exists()
