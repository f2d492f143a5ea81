"""Variants of attacks: what a search tries."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrobust.errors import ExperimentError
from fedrobust.matrix import load_matrix
from fedrobust.matrix.variants import varied

BASE = "name: base\nfederation: {clients: 10, rounds: 12}\n"
MATRIX = """
name: search
experiment: base.yaml
settings: {few: {fraction: 0.2}}
attacks:
  ipm:
    name: ipm
    vary: {epsilon: [0.1, 0.5], noise: [0.0, 1.0]}
  betrayer:
    name: sign_flip
    schedule: {name: on_off, start: 5}
    vary: {schedule.off: [1, 2, 3], scale: [1, 4], knowledge: [own, all]}
    draw: 5
  plain: gaussian
defences: {mean: {aggregation: {rule: mean}}}
"""


@pytest.fixture(autouse=True)
def _files(workplace: Path) -> None:
    Path("base.yaml").write_text(BASE)
    Path("search.yaml").write_text(MATRIX)


def test_every_combination_is_an_attack_of_its_own() -> None:
    found = {cell.attack: cell.experiment.attacks[0] for cell in load_matrix("search.yaml").screening()}
    assert [name for name in found if name.startswith("ipm")] == [
        "ipm: epsilon=0.1, noise=0.0",
        "ipm: epsilon=0.1, noise=1.0",
        "ipm: epsilon=0.5, noise=0.0",
        "ipm: epsilon=0.5, noise=1.0",
    ]
    assert found["ipm: epsilon=0.5, noise=1.0"].model_dump()["epsilon"] == 0.5
    assert found["ipm: epsilon=0.5, noise=1.0"].model_dump()["noise"] == 1.0
    assert found["plain"].name == "gaussian"


def test_a_draw_takes_so_many_and_always_the_same() -> None:
    names = [[cell.attack for cell in load_matrix("search.yaml").screening()] for _ in range(2)]
    betrayers = [name for name in names[0] if name.startswith("betrayer")]
    assert names[0] == names[1]
    assert len(set(betrayers)) == len(betrayers) == 5
    found = {cell.attack: cell.experiment.attacks[0] for cell in load_matrix("search.yaml").screening()}
    for name in betrayers:
        schedule = found[name].schedule.model_dump()
        assert schedule["start"] == 5  # what is not varied stays
        assert f"off={schedule['off']}," in name
        assert f"knowledge={found[name].knowledge}" in name


def test_only_takes_an_attack_with_all_its_variants_or_one_of_them() -> None:
    assert len(load_matrix("search.yaml", ["only.attacks=[ipm]"]).screening()) == 4
    one = ['only.attacks=["ipm: epsilon=0.1, noise=0.0"]']
    assert len(load_matrix("search.yaml", one).screening()) == 1
    with pytest.raises(ExperimentError, match=r"no 'imp' in this matrix; did you mean 'ipm'\?"):
        load_matrix("search.yaml", ["only.attacks=[imp]"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("vary: {epsilon: 0.1}", r"attacks\.ipm\.vary\.epsilon: expected a list of values; found 0\.1"),
        ("vary: [0.1]", r"attacks\.ipm\.vary: expected a list of values for each option"),
        ("draw: 3", r"attacks\.ipm\.vary: expected a list of values for each option"),
        ("vary: {epsilon: [0.1, 0.1]}", r"attacks\.ipm\.vary\.epsilon: must name each value once"),
        ("vary: {epsilon: [0.1, 0.2]}, draw: 3", r"attacks\.ipm\.draw: expected a number from 1 to 2.*found 3"),
        ("vary: {epsilon: [0.1, -1]}", r"attacks\.ipm: epsilon=-1"),
        ("vary: {espilon: [0.1]}", r"espilon"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(change: str, told: str) -> None:
    text = MATRIX.replace("    vary: {epsilon: [0.1, 0.5], noise: [0.0, 1.0]}\n", "").replace(
        "  ipm:\n    name: ipm\n", f"  ipm: {{name: ipm, {change}}}\n"
    )
    Path("search.yaml").write_text(text)
    with pytest.raises(ExperimentError, match=told) as error:
        load_matrix("search.yaml")
    assert "search.yaml:6" in str(error.value)


def test_the_given_attacks_stay_as_they_are() -> None:
    attacks = {"a": {"name": "ipm", "schedule": {"name": "on_off"}, "vary": {"schedule.on": [1, 2]}}}
    made = varied(attacks)
    assert attacks["a"]["schedule"] == {"name": "on_off"}
    assert made["a: on=2"] == {"name": "ipm", "schedule": {"name": "on_off", "on": 2}}
