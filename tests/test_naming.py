"""What a run is called, and its tags."""

from __future__ import annotations

from pathlib import Path

import pytest
from nasty import NAMES
from tiny import YAML

import fedrobust
from fedrobust.experiment import Experiment
from fedrobust.naming import LONGEST, run_name, tags
from fedrobust.texts import visible


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "tiny.yaml").write_text(YAML, encoding="utf-8")
    return fedrobust.load(tmp_path / "tiny.yaml")


DEFENCE = "clip + nnm + geometric_median"
ATTACKS = "patch_backdoor 1/8 + sign_flip 1/8 (schedule sleeper, scale 4)"


def test_a_name_tells_defence_attacks_partition_seed_and_what_is_not_usual(experiment: Experiment) -> None:
    details = "f 0.25 | fedavgm | cnn (channels 8,16) | rounds 8 | steps 3"
    assert run_name(experiment) == f"{DEFENCE} | {ATTACKS} | dirichlet 10 | {details} | seed 5 | tiny"
    assert run_name(Experiment()) == "mean | none | dirichlet 0.5 | seed 0 | experiment"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("privacy=shares", " | shares | "),
        ("privacy={name: shares, randomness: seed}", " | shares (randomness seed) | "),
        ("learning.local.optimizer.lr=0.01", " | sgd (lr 0.01) | "),
        ("learning.local.optimizer=adam", " | adam | "),
        ("aggregation.rule={name: krum}", "clip + nnm + krum | "),
        ("aggregation.stages=[{name: clip, radius: 2.5}]", "clip (radius 2.5) + geometric_median | "),
        ("aggregation.f=2", " | f 2 | "),
        ("attacks=[{name: alie, fraction: 0.25, z: 1.5}]", " | alie 2/8 (z 1.5) | "),
        ("data.partition.alpha=0.3", " | dirichlet 0.3 | "),
        ("trust.acts=true", " | trust acts | "),
        ("trust.jury={}", " | jury | "),
        ("trust={jury: {patches: 50}}", " | jury (patches 50) | "),
        ("data.root.set_aside=0.1 trust.referee={}", " | referee | "),
        ("data.root.set_aside=0.1 trust.repair.every=5", " | repair (every 5) | "),
        ("learning.local.augment=false", " | no augment | "),
        ("federation.participation=0.75", " | participation 0.75 | "),
        ("seed=6", " | seed 6 | "),
    ],
)
def test_runs_that_differ_have_different_names(
    override: str, told: str, experiment: Experiment, tmp_path: Path
) -> None:
    overrides = override.split(" ") if override.startswith("data.root") else [override]
    changed = fedrobust.load(tmp_path / "tiny.yaml", ["attacks=[]", *overrides])
    assert told in run_name(changed)
    assert run_name(changed) != run_name(fedrobust.load(tmp_path / "tiny.yaml", ["attacks=[]"]))


def test_a_long_name_leaves_out_the_least_important_details(experiment: Experiment, tmp_path: Path) -> None:
    many = [{"name": name, "count": 1} for name in ("alie", "ipm", "sign_flip")]
    given = experiment.model_dump(mode="json", serialize_as_any=True) | {"privacy": {"name": "shares"}}
    given |= {"attacks": many}
    given["learning"]["local"]["optimizer"]["lr"] = 0.0123
    given["name"] = "tiny" * 20
    found = run_name(Experiment.model_validate(given))
    assert len(found) <= LONGEST
    for part in (DEFENCE, "alie 1/8", "shares", "sgd (lr 0.0123)", "seed 5", "tiny"):
        assert part in found
    assert "steps 3" not in found
    given["name"] = "x" * 300
    assert run_name(Experiment.model_validate(given)).endswith(f"| shares | dirichlet 10 | seed 5 | {'x' * 300}")


def test_an_experiment_may_name_its_run(experiment: Experiment, tmp_path: Path) -> None:
    assert run_name(fedrobust.load(tmp_path / "tiny.yaml", ["tracking.run_name=mine"])) == "mine"


@pytest.mark.parametrize("name", [name for name in NAMES if name and "\ud800" not in name])
def test_names_of_runs_and_tags_are_as_written_and_have_no_controls(name: str) -> None:
    for given in ({"name": name}, {"tracking": {"run_name": name}}):
        experiment = Experiment.model_validate({"federation": {"clients": 8}} | given)
        made = [run_name(experiment), *tags(experiment).values()]
        assert any(visible(name) in each for each in made)
        assert all(visible(each) == each for each in made)


def test_tags_say_whether_secrets_are_any(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(YAML, encoding="utf-8")

    def found(*overrides: str) -> tuple[str | None, str]:
        own = tags(fedrobust.load(tmp_path / "tiny.yaml", list(overrides)))
        return own.get("secrecy"), own["deterministic"]

    plain = ["aggregation={rule: mean}"]
    assert found() == found("privacy=masked", *plain) == (None, "true")
    assert found("privacy=shares") == found("privacy=replicated") == ("real", "false")
    assert found("privacy={name: shares, randomness: seed}") == ("not secret", "true")
    assert found("privacy={name: shares, randomness: seed}", "federation.deadline=60") == ("not secret", "false")


def test_tags_of_a_run_without_attack_and_with_a_deadline(experiment: Experiment, tmp_path: Path) -> None:
    changed = tags(fedrobust.load(tmp_path / "tiny.yaml", ["attacks=[]", "federation.deadline=60", "seed=7"]))
    own = tags(experiment)
    assert {key: (own[key], changed[key]) for key in own if own[key] != changed[key]} == {
        "attack": ("patch_backdoor 1/8 + sign_flip 1/8", "none"),
        "deterministic": ("true", "false"),
        "seed": ("5", "7"),
    }
