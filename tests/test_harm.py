"""Every attack on data and local training, and most on updates, do harm to a federation without a defence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import fedrobust
from fedrobust.attacks import Attack, Backdoor
from fedrobust.data.stain import HAEMATOXYLIN_EOSIN, transmitted
from fedrobust.federation.pool import Pool
from fedrobust.options import members
from fedrobust.records import Record
from fedrobust.runner import run as run_experiment

YAML = """
name: harm
seed: 1
data:
  source: {name: npz, path: tissue.npz}
  partition: iid
federation: {clients: 5, rounds: 12}
learning:
  model: {name: cnn, channels: [8, 16]}
  local: {steps: 8, batch_size: 24, optimizer: {name: sgd, lr: 0.02, momentum: 0.5}}
aggregation: {rule: mean}
tracking: {model: false}
"""


def write_tissue(path: Path, patches: int = 600, size: int = 16) -> None:
    """Two labels in the colours of H&E: fine nuclei and coarse ones, 30 patients."""
    draw = np.random.default_rng(3)
    labels = np.arange(patches) % 2

    def texture(widths: np.ndarray) -> np.ndarray:
        noise = [gaussian_filter(draw.standard_normal((size, size)), width, mode="wrap") for width in widths]
        return np.array([smooth / smooth.std() for smooth in noise])

    haematoxylin, eosin = 0.6 + 0.3 * texture(np.where(labels, 1.4, 0.6)), 0.5 + 0.15 * texture(np.ones(patches))
    density = np.maximum(np.stack([haematoxylin, eosin], axis=-1), 0) @ np.array(HAEMATOXYLIN_EOSIN)
    images = transmitted(density + 0.03 * draw.standard_normal(density.shape))
    groups = np.array([f"patient {i // 2 % 30}" for i in range(patches)])
    np.savez(path, images=images, labels=labels, groups=groups)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harm")
    write_tissue(folder / "tissue.npz")
    (folder / "harm.yaml").write_text(YAML)
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def run(pool: Pool, attacks: str, *overrides: str, **options: Any) -> fedrobust.Result:
    return run_experiment(fedrobust.load("harm.yaml", [f"attacks=[{attacks}]", *overrides]), pool=pool, **options)


def course(result: fedrobust.Result, metric: str) -> np.ndarray:
    """A metric round by round."""
    return np.array([record["metrics"][metric] for record in result.rounds])


BACKDOORS = {
    "patch_backdoor": (2, ""),
    "blended_backdoor": (2, ", alpha: 0.4"),
    "dba": (2, ""),
    "stain_backdoor": (2, ""),
    "edge_case": (2, ""),
    "model_replacement": (1, ""),
    "constrain_and_scale": (1, ", schedule: {name: sleeper, rounds: 9}"),
    "neurotoxin": (2, ""),
}
"""Attackers, and further options."""


def backdoor(name: str, count: int | None = None) -> str:
    usual, options = BACKDOORS[name]
    return f"{{name: {name}, target: 1, ratio: 0.4, count: {usual if count is None else count}{options}}}"


@pytest.fixture(scope="module")
def honest(place: Path, pool: Pool) -> fedrobust.Result:
    """Nobody attacks, but the success of every backdoor is measured: the highest of them is recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return run(pool, ", ".join(backdoor(name, count=0) for name in BACKDOORS))


def test_all_backdoors_are_here() -> None:
    assert set(BACKDOORS) == {name for name, kind in members(Attack).items() if issubclass(kind, Backdoor)}


def test_without_attackers_there_is_neither_harm_nor_success(honest: fedrobust.Result) -> None:
    assert not honest.attackers
    assert course(honest, "test/balanced_accuracy")[2:].mean() > 0.97
    assert course(honest, "attack/success_rate")[-3:].mean() < 0.1


QUICK = ("patch_backdoor", "stain_backdoor")
"""The others are tried among the long tests."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in BACKDOORS]
)
def test_a_backdoor_gets_in_and_is_not_noticed(honest: fedrobust.Result, pool: Pool, name: str) -> None:
    found = run(pool, backdoor(name))
    assert course(found, "attack/success_rate")[-3:].mean() > 0.6
    assert course(found, "test/balanced_accuracy")[-3:].mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "loss"),
    [
        pytest.param("{name: label_flip, count: 2}", 0.08, marks=pytest.mark.long),
        ("{name: targeted_flip, count: 2}", 0.3),
        ("{name: artefacts, count: 3, kinds: [blur]}", 0.03),
    ],
)
def test_poisoned_data_cost_accuracy(honest: fedrobust.Result, pool: Pool, attack: str, loss: float) -> None:
    before, after = (course(each, "test/balanced_accuracy")[2:].mean() for each in (honest, run(pool, attack)))
    assert after < before - loss


CRAFTED = {
    "optimal_ipm, identity: sybil": 10.0,
    "optimal_alie, direction: minus": 1.4,
    "ipm, epsilon: 4, noise: 0.5": 10.0,
    "alie, z: 1.5": 1.05,
    "gaussian, sigma: 0.3": 2.0,
    "fang_krum": 1.5,
    "fang_trim": 1.1,
    "min_max, direction: unit": 1.1,
    "min_sum, direction: unit": 1.1,
    "rop, z: 4": 1.25,
    "free_rider, update: zero": 1.25,
    "sign_flip, scale: 4, identity: {name: whitewash, every: 3}": 10.0,
    "label_flip, identity: {name: sybil, noise: 0.3}": 1.5,
}
"""With how many times the honest loss at least, over all rounds."""
QUICK = "optimal_ipm, identity: sybil"


@pytest.mark.parametrize(
    "attack", [QUICK, *(pytest.param(attack, marks=pytest.mark.long) for attack in CRAFTED if attack != QUICK)]
)
def test_crafted_updates_raise_the_loss(honest: fedrobust.Result, pool: Pool, attack: str) -> None:
    before, after = (course(each, "test/loss").mean() for each in (honest, run(pool, f"{{name: {attack}, count: 2}}")))
    assert after > CRAFTED[attack] * before


@pytest.mark.long
def test_absent_attackers_do_no_harm(pool: Pool) -> None:
    assert course(run(pool, "{name: absent, count: 2}"), "test/balanced_accuracy")[4:].mean() > 0.95


@pytest.mark.long
@pytest.mark.parametrize("name", ["neurotoxin", "edge_case"])
def test_what_attackers_know_of_the_last_step_survives_a_crash(pool: Pool, name: str) -> None:
    attack, short = backdoor(name), ["federation.rounds=4", "federation.participation=0.8"]
    whole = run(pool, attack, *short)
    before = set(Path("mlruns/runs").iterdir())

    def stop(record: Record) -> None:
        if record.kind == "round" and record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pool, attack, *short, hooks=[stop])
    (folder,) = set(Path("mlruns/runs").iterdir()) - before
    assert "previous_weights" in np.load(folder / "checkpoint.npz").files
    resumed = run(pool, attack, *short, resume=folder.name)
    assert resumed.final["model_sha256"] == whole.final["model_sha256"]
    other = run(pool, backdoor("patch_backdoor"), *short)
    assert other.final["model_sha256"] != whole.final["model_sha256"]
