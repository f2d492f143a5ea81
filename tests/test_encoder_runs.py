"""Whole runs of a head on a frozen encoder: the patches are looked at once, and the rest is as with every model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from encoded import ENCODER, write_weights
from tiny import ended_again, exchange, journal_without_seconds, run

import fedrobust
from fedrobust.data.cache import ARRAY
from fedrobust.errors import ExperimentError
from fedrobust.federation.pool import Pool
from fedrobust.preparation import hospitals_of
from fedrobust.records import Record, read_run
from fedrobust.runner import run as run_experiment

pytestmark = [pytest.mark.usefixtures("in_place"), pytest.mark.slow]

OVERRIDES = (
    f"learning.model={{name: encoder, encoder: timm:{ENCODER}, weights: encoder.pth, size: 32}}",
    "learning.local.augment=false",
    "learning.local.steps=8",
    "learning.local.optimizer.lr=0.5",
    "federation.rounds=4",
    "name=encoded",
)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def reference(place: Path, pool: Pool, said: list[str]) -> fedrobust.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        write_weights(Path("encoder.pth"))
        return run(*OVERRIDES, "tracking.model=true", pool=pool, say=said.append)


IDC = Path(__file__).parents[2] / "shared/data/idc_breast_48.npz"


def cached() -> list[Path]:
    """The entry with the features of all patches; those with a trigger have entries of their own."""
    return [entry for entry in Path("mlruns/cache").glob("features-*") if len(np.load(entry / ARRAY)) == 480]


def test_patches_are_encoded_once_and_the_head_learns(reference: fedrobust.Result, said: list[str]) -> None:
    told = list(dict.fromkeys(each for each in said if each.startswith("encoding")))
    assert told[0] == "encoding patches: 5 % of 480" and "encoding patches: 100 % of 480" in told
    with_trigger = {len(np.load(entry / ARRAY)) for entry in Path("mlruns/cache").glob("features-*")} - {480}
    assert len(with_trigger) == 1 and told[-1] == f"encoding patches: 100 % of {with_trigger.pop()}"
    assert reference.recorded.start.parameters == 256 * 2 + 2
    (entry,) = cached()
    assert np.load(entry / ARRAY).shape == (480, 256)
    assert reference.final["test/balanced_accuracy"] > 0.6


def test_another_run_reads_them_and_a_damaged_file_is_made_again(reference: fedrobust.Result, pool: Pool) -> None:
    (entry,), told = cached(), list[list[str]]()
    for damaged in (False, True):
        if damaged:
            (entry / ARRAY).unlink()
            (entry / ARRAY).write_bytes(b"damaged")
        pool.data._features.clear()  # as in another process
        said: list[str] = []
        again = run(*OVERRIDES, pool=pool, say=said.append)
        assert journal_without_seconds(again) == journal_without_seconds(reference)
        told.append([each for each in said if each.startswith("encoding")])
    assert not told[0] and told[1]


def test_runs_of_a_study_share_what_is_in_memory(reference: fedrobust.Result, pool: Pool) -> None:
    """Those on the same data, with a backdoor and without."""
    hospitals = hospitals_of(fedrobust.load("tiny.yaml", list(OVERRIDES)))
    for more in ([], ["attacks=[]", "federation.rounds=1"], []):
        said: list[str] = []
        made = run(*OVERRIDES, *more, pool=pool, hospitals=hospitals, say=said.append)
        assert not [each for each in said if each.startswith("encoding")]
    assert journal_without_seconds(made) == journal_without_seconds(reference)


def test_actors_that_die_while_they_encode_change_no_bit(reference: fedrobust.Result, pool: Pool) -> None:
    (entry,), alive = cached(), list[bool]()
    kept, before = (entry / ARRAY).read_bytes(), list(pool._all[0].workers)
    shutil.rmtree(entry)
    pool.data._features.clear()

    def kill(what: str) -> None:
        if what.startswith("encoding") and not alive:
            alive.append(True)
            for actor in before:
                ray.kill(actor)

    again = run(*OVERRIDES, pool=pool, say=kill)
    assert alive and not set(before) & set(pool._all[0].workers)
    assert (entry / ARRAY).read_bytes() == kept
    assert journal_without_seconds(again) == journal_without_seconds(reference)


def test_a_stop_changes_nothing_but_other_weights_are_refused(reference: fedrobust.Result, pool: Pool) -> None:
    def stop(record: Record) -> None:
        if record.kind == "round" and record.round == 2:
            raise KeyboardInterrupt

    before = set(Path("mlruns/runs").iterdir())
    with pytest.raises(KeyboardInterrupt):
        run(*OVERRIDES, hooks=[stop], pool=pool)
    (folder,) = set(Path("mlruns/runs").iterdir()) - before
    kept = Path("encoder.pth").read_bytes()
    write_weights(Path("encoder.pth"), seed=8)
    with pytest.raises(ExperimentError, match="the encoder's weights or features changed"):
        run(*OVERRIDES, resume=folder.name, pool=pool)
    Path("encoder.pth").write_bytes(kept)
    assert ended_again(list(OVERRIDES), before, pool).final["model_sha256"] == reference.final["model_sha256"]
    assert read_run(folder).start.encoder == reference.recorded.start.encoder != ""


def test_features_that_somebody_exchanged_are_noticed(reference: fedrobust.Result, pool: Pool) -> None:
    """They are what training reads: the record has their digest, and a run does not go on with others."""

    def stop(record: Record) -> None:
        if record.kind == "round":
            raise KeyboardInterrupt

    before = set(Path("mlruns/runs").iterdir())
    with pytest.raises(KeyboardInterrupt):
        run(*OVERRIDES, hooks=[stop], pool=pool)
    (folder,) = set(Path("mlruns/runs").iterdir()) - before
    kept = {entry: exchange(entry, lambda table: table[::-1]) for entry in cached()}
    pool.data._features.clear()  # as in another process
    with pytest.raises(ExperimentError, match="weights or features changed"):
        run(*OVERRIDES, resume=folder.name, pool=pool)
    for entry, table in kept.items():
        exchange(entry, lambda _, table=table: table)  # type: ignore[misc]
    pool.data._features.clear()


def test_the_logged_model_takes_patches(reference: fedrobust.Result) -> None:
    """And gives what the run has measured: it has the encoder in it."""
    import mlflow.pytorch
    import torch

    from fedrobust.data.batches import to_tensor

    model = mlflow.pytorch.load_model(str(reference.folder / "model"))
    with np.load("patches.npz") as kept:
        images, labels = kept["images"], kept["labels"]
    with torch.no_grad():
        right = (model(to_tensor(images)).argmax(1).numpy() == labels).mean()
    assert right > 0.6


@pytest.mark.parametrize("privacy", ["shares", "masked"])
def test_protocols_work_on_it(reference: fedrobust.Result, pool: Pool, privacy: str) -> None:
    made = run(
        *OVERRIDES, f"privacy={privacy}", "aggregation={rule: mean}", "federation.rounds=1", "attacks=[]", pool=pool
    )
    assert made.final["test/balanced_accuracy"] is not None
    assert not made.recorded.skips.untrained


def test_what_makes_it_slow_is_said(reference: fedrobust.Result) -> None:
    from fedrobust.cautions import cautions

    def told(*more: str) -> list[str]:
        experiment = fedrobust.load("tiny.yaml", [*OVERRIDES, "attacks=[]", *more])
        return [each for each in cautions(experiment) if "encoder" in each]

    assert told() == []
    assert "learning.local.augment" in told("learning.local.augment=true")[0]
    assert "engine: lean" in told("learning.local.engine=stacked")[0]
    assert told("learning.local.augment=true", "learning.model.trainable=all") == []
    assert told("learning.local.augment=true", "learning.model.views=2") == []


def test_views_of_patches_are_their_augmentation(reference: fedrobust.Result, pool: Pool) -> None:
    """The features of the patches themselves are there already."""
    said, more = list[str](), ["learning.local.augment=true", "learning.model.views=2", "federation.rounds=2"]
    made = run(*OVERRIDES, *more, pool=pool, say=said.append)
    told = [each for each in said if each.startswith("encoding")]
    assert told[0] == "encoding patches: 50 % of 960" and told[-1] == "encoding patches: 100 % of 960"
    assert made.final["model_sha256"] != reference.final["model_sha256"]
    pool.data._features.clear()
    assert run(*OVERRIDES, *more, pool=pool).final["model_sha256"] == made.final["model_sha256"]
    assert made.recorded.start.encoder != reference.recorded.start.encoder


@pytest.mark.long
def test_real_weights_on_real_tissue(place: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of docs/encoders.md, on fewer patches."""
    if not IDC.exists():
        pytest.skip("the IDC patches are not here")
    script = Path(__file__).parents[1] / "experiments/lite0_weights.py"
    subprocess.run([sys.executable, script, "encoder.safetensors"], check=True)
    monkeypatch.setenv("FEDROBUST_DATA", str(IDC))
    changes = ["data.source.limit=1500", "federation.clients=8", "federation.rounds=20", "tracking.model=false"]
    made = run_experiment(fedrobust.load(script.with_name("encoder.yaml"), changes), pool=pool)
    assert made.final["test/balanced_accuracy"] > 0.7
