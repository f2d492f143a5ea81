"""Runs the recorded experiment files in the current folder, and prints what came of them as JSON.

`python tests/recorded/play.py` in an empty folder. `tests/test_recorded.py` says what it is for.
"""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

# The arithmetic that every x86 processor has: with their own, two processors may differ in the last bit.
os.environ |= {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
}
sys.path.insert(0, str(Path(__file__).parent.parent))

import pandas as pd
import ray
from tiny import write_patches

from fedrobust import cli

RUNS = ("plain", "shared", "masked")
LEFT_OUT = ("seconds", "format", "run_id", "commitments", "products")
"""What of a record is not the same in every run: times, ids, and digests of messages that hold real secrets; and what
is newer than the recorded digests."""


def digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def compared(record: Any) -> Any:
    """A record without what differs from run to run."""
    if isinstance(record, dict):
        return {name: compared(value) for name, value in record.items() if name not in LEFT_OUT}
    return record


def processor() -> str:
    """What Linux calls it; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def command(*args: str) -> None:
    sys.argv = ["fedrobust", *args]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise


def played_run(name: str) -> dict[str, Any]:
    """The digest of each kind of record, and what people can compare by eye."""
    before = set(Path("mlruns/runs").glob("*"))
    command("run", f"{name}.yaml")
    (folder,) = set(Path("mlruns/runs").glob("*")) - before
    return figures(folder)


def figures(folder: Path) -> dict[str, Any]:
    """Of a run's folder."""
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    kinds = ("round", "evaluation", "end")
    digests = {kind: digest([compared(each) for each in records if each["kind"] == kind]) for kind in kinds}
    start, final = records[0], records[-1]["final"]
    return {
        "configuration": start["configuration"],
        "attackers": start["attackers"],
        "model": final["model_sha256"],
        "balanced accuracy": final["test/balanced_accuracy"],
        **digests,
    }


def played_matrix() -> list[dict[str, Any]]:
    command("matrix", "matrix.yaml")
    table = pd.read_csv("mlruns/matrix/recorded/cells.csv", dtype=str, keep_default_na=False)
    return [compared(dict(row)) for _, row in table.iterrows()]


def played_sweep() -> list[dict[str, Any]]:
    command("sweep", "sweep.yaml")
    table = pd.read_csv("mlruns/sweeps/recorded/trials.csv", dtype=str, keep_default_na=False)
    return [dict(row) for _, row in table.iterrows()]


def main() -> None:
    here = Path(__file__).parent
    for file in here.glob("*.yaml"):
        Path(file.name).write_text(file.read_text())
    write_patches(Path("patches.npz"))
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR")
    found = {name: played_run(name) for name in RUNS}
    found |= {"matrix": played_matrix(), "sweep": played_sweep()}  # type: ignore[dict-item]
    found["processor"] = processor()  # type: ignore[assignment]
    found["versions"] = {package: version(package) for package in ("numpy", "scipy", "torch", "optuna")}
    ray.shutdown()
    Path("found.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
