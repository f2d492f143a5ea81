"""What a run costs beside its rounds: the first one in a session, and those after it.

    python benchmarks/session.py [--runs N]

A small federation (three rounds), in an empty folder. The overhead of a run is its time without the seconds of its
rounds: reading data, starting actors, opening MLflow, the last evaluation, report and model.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

import fedrobust

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "quickstart.yaml"
CHANGES = {"federation.rounds": 3, "data.source.patients": 40}


def main() -> None:
    """Print a line for each run, and the median from the second on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="how many runs (default: 5)")
    runs = parser.parse_args().runs
    experiment, overheads = fedrobust.load(EXPERIMENT, CHANGES), list[float]()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        began = time.perf_counter()
        with fedrobust.session():
            for number in range(1, runs + 1):
                rule = {"aggregation.rule": ("mean", "median", "krum")[number % 3]}
                result = fedrobust.run(experiment, rule, progress=False)
                whole, rounds = time.perf_counter() - began, result.final["seconds"]
                overheads.append(whole - rounds)
                print(f"run {number}: {whole:.1f} s, rounds {rounds:.1f} s, overhead {overheads[-1]:.1f} s", flush=True)
                began = time.perf_counter()
    later = statistics.median(overheads[1:])
    print(
        f"overhead: {overheads[0]:.1f} s for the first run, {later:.1f} s for each after it: {later / overheads[0]:.2f}"
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
