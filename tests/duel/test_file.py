"""Duel files: the searches and runs that they compose, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dueled import DUEL
from played import BASE
from refused import check

from fedrobust.duels import load_duel
from fedrobust.errors import ExperimentError, Problem

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"


@pytest.fixture(autouse=True)
def _files(workplace: Path) -> None:
    Path("base.yaml").write_text(BASE)
    Path("duel.yaml").write_text(DUEL)


def changed(old: str, new: str) -> None:
    text = Path("duel.yaml").read_text()
    assert old in text
    Path("duel.yaml").write_text(text.replace(old, new))


def wrong(*overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(ExperimentError) as caught:
        load_duel("duel.yaml", overrides)
    return caught.value.problems


def test_the_turns_of_a_duel() -> None:
    match = load_duel("duel.yaml", ["turns=2"])
    assert [(side, number, defence) for side, number, defence in match.turns if defence == "clipping"] == [
        ("fixed", 0, "clipping"),
        ("attacker", 1, "clipping"),
        ("defender", 1, "clipping"),
        ("attacker", 2, "clipping"),
        ("defender", 2, "clipping"),
    ]
    assert [side for side, _, defence in match.turns if defence != "clipping"] == ["fixed", "attacker", "attacker"]


def test_a_run_that_judges_is_the_file_with_the_defence_and_one_attack() -> None:
    match = load_duel("duel.yaml", ["changes={federation.rounds: 3}"])
    begun = match.begin("clipping")
    standing = begun.after("attacker", 1, {"attacks": [{"name": "ipm", "fraction": 0.2}]})
    standing = standing.after("defender", 1, {"aggregation.rule.tau": 0.5})
    found = match.experiment(standing, "searched 1", 7)
    assert [attack.name for attack in found.attacks] == ["ipm"]
    assert found.resolved()["aggregation"]["rule"] == {**found.aggregation.rule.model_dump(), "tau": 0.5}
    assert (found.seed, found.federation.rounds, found.tracking.model) == (7, 3, False)
    assert found.tracking.run_name == "clipping, defender 1 | searched 1 | seed 7 | played"
    assert match.experiment(begun, "nobody", 7).attacks == ()
    assert match.experiment(begun, "nobody", 7).resolved()["aggregation"]["rule"]["tau"] == 0.1


def test_what_is_tuned_later_counts_later_whatever_the_file_says() -> None:
    """A space that replaces an option as a whole leaves nothing of what was below it, in a search and afterwards."""
    changed(
        "space: {aggregation.rule.tau: {log: [0.01, 1.0]}}",
        "space: {aggregation: {choice: {few: {f: 1}, more: {f: 2}}}}",
    )
    changed("aggregation: {rule: {name: centered_clipping, tau: 0.1}}", "aggregation.rule: median, aggregation.f: 3")
    match = load_duel("duel.yaml")
    begun = match.begin("clipping")
    assert match.experiment(begun, "flip", 7).aggregation.f == 3
    chosen = {"aggregation": {"f": 2}}
    searched = match.search(begun, "defender", 1).experiment(chosen, "flip", 7)
    judged = match.experiment(begun.after("defender", 1, chosen), "flip", 7)
    assert judged.digest() == searched.digest()
    assert judged.aggregation.f == 2
    attacked = match.search(begun.after("defender", 1, chosen), "attacker", 2)
    assert (
        attacked.experiment({"attacks": [{"name": "sign_flip", "count": 1}]}, seed=7).aggregation == judged.aggregation
    )


def test_the_search_of_a_side() -> None:
    match = load_duel("duel.yaml", ["objective={metric: test/auroc, rounds: 3, seeds: min}", "seeds=[1,2]"])
    attacker = match.search(match.begin("clipping"), "attacker", 2).sweep
    assert (attacker.name, attacker.trials, attacker.sampler.name) == ("played clipping attacker 2", 4, "random")
    assert (attacker.seeds, attacker.fresh, attacker.parallel, attacker.attacks) == ((1, 2), (), 2, None)
    (objective,) = attacker.objectives
    assert (objective.metric, objective.rounds, objective.seeds) == ("test/auroc", 3, "min")
    assert objective.direction == "minimize", "what the defence wants to be large"
    defender = match.search(match.begin("clipping"), "defender", 1).sweep
    assert (defender.trials, defender.sampler.name, list(defender.attacks or ())) == (3, "qmc", ["nobody", "flip"])
    assert defender.objectives[0].direction == "maximize"
    assert attacker.seed != defender.seed, "another turn, other draws"


EPSILON, TAU = "epsilon: {log: [0.01, 1.0]}", "aggregation.rule.tau: {log: [0.01, 1.0]}"
CLIPPING = "defences.clipping.space"


@pytest.mark.parametrize(
    ("old", "new", "at", "problem"),
    [
        ("name: played", "name: a/b", "name: a/b", {"path": "name", "found": "'a/b'"}),
        ("turns: 1", "turn: 1", "turn: 1", {"path": "turn", "hint": "did you mean 'turns'?"}),
        ("turns: 1", "turns: 0", "turns: 0", {"path": "turns", "found": "0"}),
        ("fresh: [7, 8]", "fresh: [7, 1]", "fresh:", {"path": "fresh", "says": "1 "}),
        ("fresh: [7, 8]", "fresh: [7, 7]", "fresh:", {"path": "fresh", "says": "once"}),
        ("nobody: []", "searched 1: []", "attacks:", {"path": "attacks", "says": "'searched 1'"}),
        ("nobody: []", "own: []", "attacks:", {"path": "attacks", "says": "'own'"}),
        ("nobody: []", "nobody: [3]", "nobody:", {"path": "attacks.nobody"}),
        ("clipping:", "clip.ping:", "defences:", {"path": "defences", "says": "'clip.ping'"}),
        ("name: sign_flip", "name: sign_flop", "flip:", {"entry": "attacks.flip", "found": "'sign_flop'"}),
        (
            "name: sign_flip",
            "name: sign_flip, scale: -1",
            "flip:",
            {"entry": "attacks.flip", "path": "attacks.0.scale"},
        ),
        (
            "rule: mean",
            "rule: meen",
            "meen",
            {"entry": "defences.mean + nothing.options.aggregation", "found": "'meen'"},
        ),
        ("{aggregation: {rule: mean}}", "{seed: 3}", "seed: 3", {"says": "seed"}),
        ("experiment:", "changes: {attacks: []}\nexperiment:", "changes:", {"path": "changes", "says": "attacks"}),
        (
            EPSILON,
            "epsilon: {log: [0, 1]}",
            "epsilon:",
            {"entry": "attacker.space.0.epsilon.log", "says": "logarithmic"},
        ),
        (EPSILON, "epsilon: 1.0", "space:", {"entry": "attacker.space", "says": "searched"}),
        ("epsilon: {log", "epsilom: {log", "space:", {"entry": "attacker.space", "path": "attacks.0.epsilom"}),
        ("name: random", "name: cma_es, population: 2", "sampler:", {"path": "attacker.sampler.population"}),
        ("name: random", "name: grid", "sampler:", {"entry": "attacker.sampler", "says": "grid"}),
        (TAU, TAU.replace("{log: [0.01, 1.0]}", "2.0"), "tau: 2.0", {"entry": CLIPPING, "says": "searched"}),
        (TAU, "seed: {int: [1, 2]}", "int:", {"entry": f"{CLIPPING}.seed", "says": "seed"}),
        (TAU, "attacks: {int: [1, 2]}", "int:", {"entry": f"{CLIPPING}.attacks", "says": "attacks"}),
        (
            TAU,
            "aggregation.rule.tau: {float: [-1, 1]}",
            "float:",
            {"entry": f"{CLIPPING}.aggregation.rule.tau", "path": "aggregation.rule.tau"},
        ),
        ("rounds: 1}", "rounds: 1, attacks: mean}", "objective:", {"path": "objective.attacks", "found": "'mean'"}),
    ],
)
def test_what_is_wrong_is_told_with_its_place(old: str, new: str, at: str, problem: dict[str, Any]) -> None:
    changed(old, new)
    (found,) = wrong()
    line = 1 + next(i for i, text in enumerate(Path("duel.yaml").read_text().splitlines()) if at in text)
    check(found, file="duel.yaml", line=line, **problem)


def test_an_experiment_that_is_not_there_is_told_with_the_line_that_names_it() -> None:
    changed("experiment: base.yaml", "experiment: bas.yaml")
    (found,) = wrong()
    assert [each.file for each in found.origins] == [Path("duel.yaml"), Path("bas.yaml")]
    assert found.origins[0].path == "experiment"


def test_what_an_override_does_wrong_names_the_override() -> None:
    for override, entry in (
        ("attacker.space.0.epsilon.log=[0,1]", "attacker.space.0.epsilon.log"),
        ("attacker.sampler=grid", "attacker.sampler"),
        (f"{CLIPPING}={{aggregation.rule.tau: {{float: [-1.0, 1.0]}}}}", f"{CLIPPING}.aggregation.rule.tau"),
    ):
        (found,) = wrong(override)
        check(found, override=override, entry=entry)


def test_what_is_wrong_with_every_defence_is_told_once_and_with_one_by_its_name() -> None:
    changed("{name: sign_flip, fraction: 0.2}", "{name: sign_flip, fraction: 0.2, scale: -1}")
    assert len(wrong()) == 1
    changed("scale: -1", "scale: 1")
    changed("aggregation: {rule: mean}", "aggregation: {rule: krum, f: 7}")
    (found,) = wrong()
    entry = "defences.mean + nothing.options.aggregation"
    check(found, file="duel.yaml", line=15, entry=entry, note="mean + nothing")


def test_the_shipped_duel_can_be_fought() -> None:
    match = load_duel(EXPERIMENTS / "duel.yaml")
    assert list(match.duel.defences) == ["mean", "nnm + geometric_median", "adaptive"]
    assert len(match.turns) == 3 * 3 + 2 * 2
