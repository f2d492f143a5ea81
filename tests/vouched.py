"""A run's folder with an audit log, as it is after any of its commits, and what a forger does to it."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrobust.audit.verification import seal_files
from fedrobust.experiment import Experiment
from fedrobust.experiment_file import dump
from fedrobust.federation.journal import Journal
from fedrobust.records import FORMAT, Checkpoint, EvaluationRecord, Record, RoundRecord, RunEnd, RunStart

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
ROUNDS = 4
EXPERIMENT = Experiment(name="tiny", seed=1)
MLMODEL = """flavors:
  python_function:
    data: data
    loader_module: mlflow.pytorch
  pytorch:
    code: null
    model_data: data
model_id: null
model_uuid: 019f6262bdbc4f72bb9d0a1751e513cb
prompts: null
signature:
  inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3,
    8, 8]}}]'
utc_time_created: '2026-01-29 11:43:33.463305'
"""
UPLOADED = "artifact_path: file:///home/me/mlruns/artifacts/models/m-fc12/artifacts\n" + MLMODEL.replace(
    "model_id: null", "model_id: m-fc12"
).replace("signature:", "run_id: r1\nsignature:")
"""The same after an upload, as MLflow writes it."""
MADE = {
    "report.html": b"<p>a report</p>",
    "partition.png": b"who holds what",
    "figures/curves.png": b"curves",
    "figures/misread.png": b"patches",
    "model/MLmodel": MLMODEL.encode(),
    "model/conda.yaml": b"dependencies: []\n",
    "model/data/model.pt2": b"a model",
}
"""What a run writes after its end."""
CHANGED = "was changed after the run ended"
"""What is said of a file that was changed in the folder of an ended run."""


def weights(round: int, run: str = "r1") -> np.ndarray:
    return np.full(5, round + len(run), dtype=np.float32)


def digest(array: np.ndarray) -> str:
    return sha256(array.tobytes()).hexdigest()


def evaluation(round: int, accuracy: float) -> EvaluationRecord:
    return EvaluationRecord.of({"round": round, "metrics": {"test/accuracy": accuracy}})


def commits(run: str, seconds: float = 1.0) -> list[tuple[list[Record], Checkpoint]]:
    """What a run of four rounds commits, in order."""
    start = {"format": FORMAT, "run": run, "clients": 2, "digest": "d", "model": digest(weights(0, run))}
    start |= {"experiment": EXPERIMENT.resolved(), "configuration": EXPERIMENT.digest(), "parameters": 5}
    start |= {"label_names": ["benign", "tumour"], "attackers": {}, "hospital_labels": [[3, 4], [5, 6]]}
    found: list[tuple[list[Record], Checkpoint]] = [([RunStart.of(start)], Checkpoint(0, {"weights": weights(0, run)}))]
    for round in range(1, ROUNDS + 1):
        record: dict[str, Any] = {"round": round, "participants": [0, 1], "weights": {0: 0.5, 1: np.float64(0.5)}}
        record |= {"anomaly": {0: np.nan, 1: 0.1}, "model": digest(weights(round, run)), "seconds": {"round": seconds}}
        evaluated = [evaluation(round - 1, 0.5)] if round > 1 else []
        arrays = {"weights": weights(round, run), "trust/reputation": np.full(2, round / 10), "seen": np.array(round)}
        found.append(([RoundRecord.of(record), *evaluated], Checkpoint(round, arrays, pending=round)))
    end = RunEnd.of({"round": ROUNDS, "final": {"test/accuracy": 0.75, "seconds": seconds}})
    return [*found, ([evaluation(ROUNDS, 0.75), end], Checkpoint(ROUNDS, {"weights": weights(ROUNDS, run)}))]


def ended(
    folder: Path, key: Ed25519PrivateKey = KEY, steps: int = ROUNDS + 2, run: str = "r1", sealed: bool = True
) -> Path:
    """A run's folder after some of its commits; after the last one, with report, model and seal."""
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(dump(EXPERIMENT))
    journal = Journal(folder, key)
    for records, checkpoint in commits(run)[:steps]:
        journal.commit(records, checkpoint)
    journal.close()
    if steps == ROUNDS + 2 and sealed:
        for name, data in MADE.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        seal_files(folder, key, MADE)
    return folder


def lines(folder: Path) -> list[bytes]:
    return (folder / "audit.jsonl").read_bytes().splitlines(keepends=True)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def exchange(folder: Path, **arrays: np.ndarray) -> None:
    """Put arrays into the checkpoint."""
    with np.load(folder / "checkpoint.npz") as saved:
        found = {name: saved[name] for name in saved.files}
    np.savez(folder / "checkpoint.npz", **(found | arrays))


def restate(folder: Path, **facts: Any) -> None:
    """Change what the checkpoint says of lengths, head and digests."""
    with np.load(folder / "checkpoint.npz") as saved:
        stated = json.loads(saved["facts"].tobytes())
    exchange(folder, facts=np.frombuffer(json.dumps(stated | facts).encode(), dtype=np.uint8))


def edit(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new))


def swapped(folder: Path, name: str) -> None:
    """A file of another run in the place of this one's."""
    other = folder.parent / "other"
    ended(other, run="other")
    (other / name).write_bytes((other / name).read_bytes() + b"of another run")
    shutil.copy(other / name, folder / name)


def seconds(folder: Path) -> None:
    """Change how long a round took."""
    edit(folder / "journal.jsonl", b'"seconds":{"round":1.0}', b'"seconds":{"round":2.0}')
