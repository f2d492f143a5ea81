"""Seconds of a round in the coordinator of many hospitals, beside what the same numbers cost in torch, in one run.

The coordinator checks and digests the updates, judges them (Gram matrix, anomaly scores, reputations), applies a
defence and steps the model. Beside it, with all cores too: `updates @ updates.T` and `weights @ updates` in torch's
float32. Medians of several rounds, the sides in turn.

    python benchmarks/coordinator.py [--clients 1000] [--coordinates 240000] [--sketch 4096] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fedrobust.experiment import Experiment
from fedrobust.federation.coordinator import Coordinator
from fedrobust.machine import usable_cores

GOALS = {"exact": 6.0, "sketch": 2.0}
"""Seconds for 1,000 hospitals with 240,000 coordinates on two cores."""


def coordinator(clients: int, d: int, sketch: int | None) -> Coordinator:
    """A coordinator that is ready for the first round."""
    experiment = Experiment.model_validate(
        {
            "federation": {"clients": clients},
            "aggregation": {"stages": ["nnm"], "rule": "geometric_median", "sketch": sketch},
        }
    )
    found = Coordinator()
    found.setup(experiment, np.full(clients, 100), np.zeros(d, dtype=np.float32), {})
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--coordinates", type=int, default=240_000)
    parser.add_argument("--sketch", type=int, default=4096, help="columns of the sketch")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    n, d = given.clients, given.coordinates
    torch.set_num_threads(usable_cores())
    blocks = [np.empty((n - n // 2, d), dtype=np.float32), np.empty((n // 2, d), dtype=np.float32)]
    draw = np.random.default_rng(0)
    for block in blocks:
        draw.standard_normal(out=block, dtype=np.float32)
    ids, whole = [list(range(0, n, 2)), list(range(1, n, 2))], torch.from_numpy(np.concatenate(blocks))
    weights = torch.full((n,), 1 / n)
    sides: dict[str, Callable[[int], Any]] = {"torch": lambda number: (whole @ whole.T, weights @ whole)}
    for name, sketch in (("exact", None), ("sketch", given.sketch)):
        own = coordinator(n, d, sketch)
        sides[name] = lambda number, own=own: own.aggregate(number, ids, [], None, *blocks)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1, given.rounds + 2):
        for name, side in sides.items():
            start = time.perf_counter()
            side(number)
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(each[1:]) for name, each in seconds.items()}  # the first one warms up
    print(f"{n} hospitals, {d:,} coordinates, {usable_cores()} cores, nnm and geometric_median, medians")
    for name, each in middle.items():
        told = f"{name:7} {each:6.2f} s, {each / middle['torch']:5.2f} × torch"
        if name in GOALS and (n, d) == (1000, 240_000):
            told += f"   goal ≤ {GOALS[name]:g} s: {'held' if each <= GOALS[name] else 'missed'}"
        print(told)


if __name__ == "__main__":
    main()
