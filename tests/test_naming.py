"""What a run is called, and its tags."""

from __future__ import annotations

from pathlib import Path

import pytest
from nasty import NAMES
from tiny import YAML

import fedrobust
from fedrobust.experiment import Experiment
from fedrobust.naming import run_name, tags
from fedrobust.texts import visible


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "tiny.yaml").write_text(YAML, encoding="utf-8")
    return fedrobust.load(tmp_path / "tiny.yaml")


def test_a_name_tells_defence_attacks_partition_and_seed(experiment: Experiment) -> None:
    assert run_name(experiment) == (
        "clip + nnm + geometric_median | patch_backdoor 1/8 + sign_flip 1/8 | dirichlet 10 | seed 5 | tiny"
    )


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
