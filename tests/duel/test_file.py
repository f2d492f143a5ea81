"""Duel files: the searches and runs that they compose, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from dueled import DUEL
from played import BASE

from fedrobust.duel import load_duel
from fedrobust.errors import ExperimentError

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"


@pytest.fixture(autouse=True)
def _files(workplace: Path) -> None:
    Path("base.yaml").write_text(BASE)
    Path("duel.yaml").write_text(DUEL)


def changed(old: str, new: str) -> None:
    text = Path("duel.yaml").read_text()
    assert old in text
    Path("duel.yaml").write_text(text.replace(old, new))


def wrong(*overrides: str) -> list[str]:
    with pytest.raises(ExperimentError) as caught:
        load_duel("duel.yaml", overrides)
    return str(caught.value).splitlines()


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


@pytest.mark.parametrize(
    ("old", "new", "at", "tells"),
    [
        ("name: played", "name: a/b", "name: a/b", "use letters, digits"),
        ("experiment: base.yaml", "experiment: bas.yaml", "experiment:", "experiment: bas.yaml: no such file"),
        ("turns: 1", "turn: 1", "turn: 1", "did you mean 'turns'"),
        ("turns: 1", "turns: 0", "turns: 0", "turns: expected greater than or equal to 1; found 0"),
        ("fresh: [7, 8]", "fresh: [7, 1]", "fresh:", "fresh: 1 is in seeds"),
        ("fresh: [7, 8]", "fresh: [7, 7]", "fresh:", "fresh: must name each seed once"),
        ("nobody: []", "searched 1: []", "attacks:", "attacks: 'searched 1' cannot be a name here"),
        ("nobody: []", "own: []", "attacks:", "attacks: 'own' cannot be a name here"),
        ("nobody: []", "nobody: [3]", "nobody:", "attacks.nobody: expected an attack, or a list of attacks"),
        ("clipping:", "clip.ping:", "defences:", "defences: 'clip.ping' cannot be a name here"),
        ("name: sign_flip", "name: sign_flop", "flip:", "attacks.flip: attacks.0.name: found 'sign_flop'"),
        ("name: sign_flip", "name: sign_flip, scale: -1", "flip:", "attacks.flip: attacks.0.scale: expected"),
        ("rule: mean", "rule: meen", "meen", "mean + nothing.options.aggregation: aggregation.rule: found 'meen'"),
        ("{aggregation: {rule: mean}}", "{seed: 3}", "seed: 3", "options: seed is given by the duel; leave it out"),
        (
            "experiment:",
            "changes: {attacks: []}\nexperiment:",
            "changes:",
            "attacks is given by the duel; leave it out",
        ),
        ("epsilon: {log: [0.01, 1.0]}", "epsilon: {log: [0, 1]}", "epsilon:", "attacker.space.0.epsilon.log: a logari"),
        ("epsilon: {log: [0.01, 1.0]}", "epsilon: 1.0", "space:", "attacker.space: nothing in it is searched"),
        ("epsilon: {log", "epsilom: {log", "space:", "attacker.space: attacks.0.epsilom: unknown"),
        ("name: random", "name: cma_es, population: 2", "sampler:", "attacker.sampler.population: expected greater"),
        ("name: random", "name: grid", "sampler:", "attacker.sampler: grid tries all values"),
        ("tau: {log: [0.01, 1.0]}", "tau: 2.0", "tau: 2.0", "defences.clipping.space: nothing in it is searched"),
        (
            "aggregation.rule.tau: {log: [0.01, 1.0]}",
            "seed: {int: [1, 2]}",
            "int:",
            "clipping.space.seed: seed is given",
        ),
        ("aggregation.rule.tau: {log: [0.01, 1.0]}", "attacks: {int: [1, 2]}", "int:", "leave one of the two out"),
        ("tau: {log: [0.01, 1.0]}", "tau: {float: [-1, 1]}", "float:", "clipping.space.aggregation.rule.tau: aggreg"),
        ("rounds: 1}", "rounds: 1, attacks: mean}", "objective:", "found 'mean'"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(old: str, new: str, at: str, tells: str) -> None:
    changed(old, new)
    (told,) = wrong()
    line = 1 + next(i for i, text in enumerate(Path("duel.yaml").read_text().splitlines()) if at in text)
    assert told.startswith(f"duel.yaml:{line}: "), told
    assert tells in told


def test_what_an_override_does_wrong_names_the_override() -> None:
    text = "attacker.space.0.epsilon.log=[0,1]"
    assert wrong(text) == [
        f"override '{text}': attacker.space.0.epsilon.log: a logarithmic range must begin above 0; found [0, 1]"
    ]
    (told,) = wrong("attacker.sampler=grid")
    assert told.startswith("override 'attacker.sampler=grid': attacker.sampler: grid tries all values")
    (told,) = wrong("defences.clipping.space={aggregation.rule.tau: {float: [-1.0, 1.0]}}")
    assert told.startswith("override 'defences.clipping.space={"), told


def test_what_is_wrong_with_every_defence_is_told_once_and_with_one_by_its_name() -> None:
    changed("{name: sign_flip, fraction: 0.2}", "{name: sign_flip, fraction: 0.2, scale: -1}")
    assert len(wrong()) == 1
    changed("scale: -1", "scale: 1")
    changed("aggregation: {rule: mean}", "aggregation: {rule: krum, f: 7}")
    (told,) = wrong()
    assert told.startswith("duel.yaml:15: defences.mean + nothing.options.aggregation: ")
    assert told.endswith("(mean + nothing)")


def test_the_shipped_duel_can_be_fought() -> None:
    match = load_duel(EXPERIMENTS / "duel.yaml")
    assert list(match.duel.defences) == ["mean", "nnm + geometric_median", "adaptive"]
    assert len(match.turns) == 3 * 3 + 2 * 2
