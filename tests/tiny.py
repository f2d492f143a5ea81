"""A federation of eight hospitals that trains in seconds: for the tests of whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fedrobust
from fedrobust.data.cache import ABOUT, ARRAY, digest_of, seal
from fedrobust.federation.pool import Pool
from fedrobust.records import read_run
from fedrobust.runner import run as run_experiment

YAML = """
name: tiny
seed: 5
data:
  source: {name: npz, path: patches.npz}
  partition: {name: dirichlet, alpha: 10.0}
federation: {clients: 8, rounds: 8}
learning:
  model: {name: cnn, channels: [8, 16]}
  local: {steps: 3, batch_size: 16, carry_momentum: true, optimizer: {name: sgd, lr: 0.05, momentum: 0.9}}
  server: fedavgm
attacks:
  - {name: patch_backdoor, count: 1, target: 0}
  - {name: sign_flip, count: 1, scale: 4, schedule: {name: sleeper, rounds: 2}}
aggregation: {stages: [clip, nnm], rule: geometric_median, f: 0.25}
"""


def write_patches(path: Path, patches: int = 480, size: int = 12, seed: int = 3) -> None:
    """Two labels that differ in texture, 24 patients."""
    draw = np.random.default_rng(seed)
    labels = np.arange(patches) % 2
    groups = np.array([f"patient {i // 2 % 24}" for i in range(patches)])
    stripes = 60 * (np.arange(size) // 2 % 2)[None, :, None, None] * labels[:, None, None, None]
    images = np.clip(
        draw.normal(140, 25, (patches, size, size, 3)) + stripes - 30 * labels[:, None, None, None], 0, 255
    )
    np.savez(path, images=images.astype(np.uint8), labels=labels.astype(np.int64), groups=groups)


def write_files(folder: Path) -> None:
    """The patches, and the experiment file `tiny.yaml` that reads them."""
    write_patches(folder / "patches.npz")
    (folder / "tiny.yaml").write_text(YAML)


def exchange(entry: Path, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Replace what an entry of the cache keeps, so that the entry itself does not show it; returns what it kept."""
    before, about = np.load(entry / ARRAY), json.loads((entry / ABOUT).read_text())["about"]
    after = np.ascontiguousarray(change(before))
    np.save(entry / "new.npy", after)
    (entry / "new.npy").replace(entry / ARRAY)  # runs of this process may have the old one open
    (entry / ABOUT).write_text(json.dumps(seal(about, after, digest_of(after))))
    return before


def run(*overrides: str, **options: Any) -> fedrobust.Result:
    return run_experiment(fedrobust.load("tiny.yaml", ["tracking.model=false", *overrides]), **options)


def ended_again(overrides: list[str], before: set[Path], pool: Pool) -> fedrobust.Result:
    (folder,) = set(Path("mlruns/runs").iterdir()) - before
    resumed = run(*overrides, resume=folder.name, pool=pool)
    assert (folder / "report.html").exists()
    assert [record.kind for record in read_run(folder).records].count("end") == 1
    return resumed


def journal_without_seconds(result: fedrobust.Result) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in result.rounds]
