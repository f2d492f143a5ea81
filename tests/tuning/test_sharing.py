"""A value that stands in two places, or is somebody else's, changes in one alone: sweeps, matrices and duels copy."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from dueled import DUEL
from played import BASE, Played, two_teams

import fedrobust
import fedrobust.studies.teams as teams_room
from fedrobust.duels import load_duel
from fedrobust.matrices import load_matrix
from fedrobust.tuning.sweep import load_sweep

SHARED = "attacks: [&a {name: sign_flip, count: 1, scale: 4}, *a]\n"
SWEEP = """
name: shared
experiment: base.yaml
space: {attacks.1.scale: {choice: [2, 9]}}
objectives: [{metric: test/balanced_accuracy}]
"""
MATRIX = """
name: shared
experiment: base.yaml
settings: {here: {fraction: 0.2}}
attacks: {flip: sign_flip}
defences:
  mean: {aggregation: {rule: mean}}
  own: {aggregation: &b {rule: {name: centered_clipping, tau: 1.0}}, aggregation.rule.tau: 2.0}
  other: {aggregation: *b, aggregation.rule.tau: 3.0}
  plain: {aggregation: *b}
"""


@pytest.fixture(autouse=True)
def _files(workplace: Path) -> None:
    Path("base.yaml").write_text(BASE + SHARED)


def scales(experiment: fedrobust.Experiment) -> list[float]:
    return [each["scale"] for each in experiment.resolved()["attacks"]]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("changes.name=other", [4, 9]),
        ("changes={attacks.0.scale: 3}", [3, 9]),
        ("changes={attacks: [&c {name: sign_flip, count: 1, scale: 5}, *c], attacks.0.scale: 6}", [6, 9]),
        ("changes={attacks: [&c {name: sign_flip, count: 1, scale: 5}, *c]}", [5, 9]),
    ],
)
def test_what_a_sweep_searches_changes_one_entry(override: str, expected: list[float]) -> None:
    Path("sweep.yaml").write_text(SWEEP)
    plan = load_sweep("sweep.yaml", [override])
    assert scales(plan.experiment({"attacks.1.scale": 9})) == expected
    assert scales(plan.experiment({"attacks.1.scale": 2})) == [expected[0], 2], "no trial changes another"


def test_attacks_and_templates_that_share_their_entries() -> None:
    Path("sweep.yaml").write_text(
        SWEEP.replace("{attacks.1.scale: {choice: [2, 9]}}", "{trust.acts: {choice: [true, false]}}")
    )
    plan = load_sweep("sweep.yaml", ["attacks={two: [&c {name: sign_flip, count: 1, scale: 5}, *c]}"])
    attacks = deepcopy(plan.attacks)
    for seed in (1, 2):
        assert scales(plan.experiment({"trust.acts": True}, "two", seed)) == [5, 5]
    assert plan.attacks == attacks
    Path("sweep.yaml").write_text(
        SWEEP.replace(
            "{attacks.1.scale: {choice: [2, 9]}}",
            "{attacks: [&d {name: ipm, count: 1, epsilon: {float: [0.1, 1]}}, *d]}",
        )
    )
    plan = load_sweep("sweep.yaml")
    values = plan.space.chosen({"attacks.0.epsilon": 0.25, "attacks.1.epsilon": 0.75})
    assert [each["epsilon"] for each in plan.experiment(values).resolved()["attacks"]] == [0.25, 0.75]


def test_cells_of_defences_that_share_a_mapping() -> None:
    Path("matrix.yaml").write_text(MATRIX)
    grid = load_matrix("matrix.yaml")
    cells = [cell for _ in range(2) for cell in grid.screening()]
    radii = {
        cell.defence: cell.experiment.resolved()["aggregation"]["rule"].get("tau") for cell in cells if cell.experiment
    }
    assert radii == {"mean": None, "own": 2.0, "other": 3.0, "plain": 1.0}
    assert [grid.defences[name]["aggregation"]["rule"]["tau"] for name in ("own", "other", "plain")] == [1.0] * 3


def test_turns_of_a_duel_leave_what_they_were_given() -> None:
    Path("duel.yaml").write_text(
        DUEL.replace(
            "  flip: {name: sign_flip, fraction: 0.2}",
            "  flip: &f {name: sign_flip, fraction: 0.2}\n  both: [{name: ipm, count: 1}, *f]",
        )
    )
    match = load_duel("duel.yaml")
    before = match.duel.model_dump()
    found: dict[str, Any] = {"attacks": [{"name": "ipm", "fraction": 0.2, "epsilon": 0.5}]}
    tuned = {"aggregation.rule.tau": 0.25}
    standing = match.begin("clipping").after("attacker", 1, found).after("defender", 1, tuned)
    for attack in standing.attacks:
        made = match.experiment(standing, attack, 7).resolved()
        assert made["aggregation"]["rule"]["tau"] == 0.25
    match.search(standing, "attacker", 2)
    assert match.duel.model_dump() == before
    assert found == {"attacks": [{"name": "ipm", "fraction": 0.2, "epsilon": 0.5}]}
    assert match.experiment(match.begin("clipping"), "flip", 7).resolved()["aggregation"]["rule"]["tau"] == 0.1


def test_what_a_caller_hands_over_stays_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not changed, and what the caller makes of it later changes no trial."""
    from played import staged

    stage: Played = staged(monkeypatch)
    monkeypatch.setattr(teams_room, "leased_pool", two_teams)
    attack = {"name": "sign_flip", "count": 1, "scale": 5}
    changes: dict[str, Any] = {"attacks": [attack, attack], "attacks.0.scale": 6}
    space: dict[str, Any] = {"attacks.1.scale": {"choice": [2, 9]}}
    given = deepcopy((changes, space))
    made: list[list[float]] = []

    def accuracy(experiment: fedrobust.Experiment, round: int) -> float:
        made.append(scales(experiment))
        attack["scale"] = 100  # while the sweep is under way
        space["attacks.1.scale"]["choice"].append(50)
        return 0.5

    stage.accuracy = accuracy
    found = fedrobust.sweep("base.yaml", space=space, changes=changes, trials=4, sampler="random")
    assert {tuple(each) for each in made} <= {(6.0, 2.0), (6.0, 9.0)}
    assert len(found.trials) == 4
    assert changes["attacks.0.scale"] == given[0]["attacks.0.scale"]
    assert changes["attacks"][0] is changes["attacks"][1] is attack
    assert attack == {"name": "sign_flip", "count": 1, "scale": 100}, "nobody else has changed it"
