"""Overrides of study files: below mappings whose keys are dotted paths they change one option, and replace none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refused import refused

from fedrobust.duels import load_duel
from fedrobust.experiment import Experiment
from fedrobust.experiment_file import load
from fedrobust.matrices import load_matrix
from fedrobust.tuning import load_sweep

BASE = """
data: {source: {name: histology, patients: 20, size: 24}}
federation: {clients: 7, rounds: 12}
aggregation: {stages: [nnm], rule: mean}
"""
MATRIX = """
experiment: base.yaml
settings: {here: {fraction: 0.2}}
attacks: {flip: sign_flip}
defences: {mean: {trust.acts: true}}
quick: {fresh: [11]}
"""
SWEEP = """
experiment: base.yaml
space: {trust.acts: {choice: [true, false]}}
objectives: [{metric: test/balanced_accuracy}]
"""
DUEL = """
experiment: base.yaml
attacks: {flip: {name: sign_flip, fraction: 0.2}}
attacker: {space: [{name: ipm, epsilon: {float: [0.1, 1.0]}, fraction: 0.2}]}
defences: {mean: {options: {trust.acts: true}}}
"""


@pytest.fixture(autouse=True)
def _files(workplace: Path) -> None:
    for name, text in (("base", BASE), ("matrix", MATRIX), ("sweep", SWEEP), ("duel", DUEL)):
        Path(f"{name}.yaml").write_text(text)


def of_matrix(*overrides: str, quick: bool = False) -> Experiment:
    (cell,) = load_matrix("matrix.yaml", overrides, quick).screening()
    assert cell.experiment is not None
    return cell.experiment


def of_sweep(*overrides: str) -> Experiment:
    plan = load_sweep("sweep.yaml", overrides)
    return plan.experiment(plan.space.chosen(plan.space.middle), next(iter(plan.attacks)), 1)


@pytest.mark.parametrize(
    ("made", "override"),
    [
        (of_matrix, "changes.{}"),
        (of_matrix, "settings.here.{}"),
        (of_matrix, "defences.mean.{}"),
        (lambda override: of_matrix(override, quick=True), "quick.changes.{}"),
        (of_sweep, "changes.{}"),
    ],
)
def test_an_override_changes_one_option_and_no_others_beside_it(made: Any, override: str) -> None:
    found = made(override.format("federation.rounds=3"))
    assert (found.federation.rounds, found.federation.clients) == (3, 7)
    source = made(override.format("data.source.patients=30")).resolved()["data"]["source"]
    assert (source["patients"], source["size"]) == (30, 24)
    found = made(override.format("aggregation.rule=median"))
    assert (found.aggregation.rule.name, [each.name for each in found.aggregation.stages]) == ("median", ["nnm"])


def test_a_whole_option_is_replaced_where_the_override_gives_a_mapping() -> None:
    found = of_matrix("changes.federation={rounds: 3}")
    assert (found.federation.rounds, found.federation.clients) == (3, 10)


@pytest.mark.parametrize("override", ["space.federation.clients.int=[4,6]", "space.federation.clients={int: [4, 6]}"])
def test_a_searched_option_is_one_option(override: str) -> None:
    found = of_sweep(override)
    assert (found.federation.clients, found.federation.rounds) == (5, 12)


def test_a_duels_defence_gets_one_option() -> None:
    plan = load_duel("duel.yaml", ["defences.mean.options.aggregation.rule=median", "changes.federation.rounds=3"])
    assert plan.duel.defences["mean"].options == {"trust.acts": True, "aggregation.rule": "median"}
    assert plan.duel.changes == {"federation.rounds": 3}


@pytest.mark.parametrize("override", ["changes.federation.roundz=3", "chances.federation.rounds=3"])
def test_a_wrong_override_is_named(override: str) -> None:
    with refused(override=override, file=None):
        of_matrix(override)


@pytest.mark.parametrize(
    ("override", "hint"), [("federation.rounds=3", "changes.federation"), ("seed=3", "screening and fresh")]
)
def test_an_option_of_the_experiment_is_shown_its_way(override: str, hint: str) -> None:
    with refused(override=override, file=None, says="unknown key") as caught:
        of_matrix(override)
    assert hint in str(caught.value)


def test_a_matrix_is_no_experiment() -> None:
    with refused(file="matrix.yaml", line=2, says="unknown key") as caught:
        load("matrix.yaml")
    assert "fedrobust matrix" in str(caught.value)


def test_nothing_is_smaller_without_the_key_that_says_so() -> None:
    Path("matrix.yaml").write_text(MATRIX.replace("quick: {fresh: [11]}\n", ""))
    with refused(file="matrix.yaml", path="quick", says="is missing"):
        load_matrix("matrix.yaml", quick=True)
