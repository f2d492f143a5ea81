"""Hospitals trained together against hospital after hospital: the stacked engine against the lean one, on one actor.

A round of 100 hospitals × 4 steps of the small CNN of rounds.py, batch 32, SGD with momentum, augmented, on the GPU if
there is one. The engines take turns in one process, without Ray; medians. The goal is one for a GPU; on a CPU the ratio
is information: there the kernels are busy in any case.

    python benchmarks/stacked.py [--hospitals 100] [--repeat 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rounds import BATCH, CLASSES, PER_CLIENT, SIZE, STEPS

from fedrobust.experiment import Experiment
from fedrobust.federation.clients import ClientHost, Layout

GOAL = 8.0


def a_round(engine: str, hospitals: int, device: str) -> Callable[[], np.ndarray]:
    """A function that trains all hospitals once from the first weights, and returns their updates."""
    experiment = Experiment.model_validate(
        {
            "federation": {"clients": hospitals},
            "learning": {
                "model": {"name": "cnn", "channels": [32, 64], "hidden": 128, "norm": "none", "pool": "flatten"},
                "local": {"engine": engine, "stack": hospitals, "steps": STEPS, "batch_size": BATCH},
            },
        }
    )
    draw = np.random.default_rng(0)
    patches = hospitals * PER_CLIENT
    images = draw.integers(0, 256, (patches, SIZE, SIZE, 3), dtype=np.uint8)
    indices = tuple(np.arange(patches).reshape(hospitals, PER_CLIENT))
    layout = Layout(indices, indices[0], indices[0], CLASSES)
    host, people = ClientHost(1, device), list(range(hospitals))
    host.setup(experiment, layout, np.arange(patches) % CLASSES, images)
    weights = host.initial_weights()
    d = len(weights)

    def run() -> np.ndarray:
        updates, *_ = host.train(1, people, [], weights, {}, people, None, [slice(0, d)])
        assert isinstance(updates, np.ndarray)
        return updates

    return run


def main() -> None:
    """Run both engines in turn, and print medians, their ratio, and how far their updates differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hospitals", type=int, default=100, help="how many are trained together (default: 100)")
    parser.add_argument("--repeat", type=int, default=7, help="rounds of each engine")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # both engines in float32
    engines = {engine: a_round(engine, arguments.hospitals, device) for engine in ("lean", "stacked")}
    found = {engine: run() for engine, run in engines.items()}
    lengths = np.linalg.norm(found["lean"], axis=1)
    differences = np.linalg.norm(found["stacked"] - found["lean"], axis=1) / lengths
    seconds: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(arguments.repeat):
        for engine, run in engines.items():
            start = time.perf_counter()
            run()
            seconds[engine].append(time.perf_counter() - start)
    medians = {engine: statistics.median(each) for engine, each in seconds.items()}
    print(f"{arguments.hospitals} hospitals x {STEPS} steps, batch {BATCH}, one actor on {device}")
    for engine, middle in medians.items():
        print(f"{engine:8} {middle:8.3f} s a round")
    ratio = medians["lean"] / medians["stacked"]
    verdict = ("held" if ratio >= GOAL else "missed") if device == "cuda" else "a goal for a GPU, not judged on a CPU"
    # The largest one is of an update in which rounding decided a ReLU or a maximum the other way.
    print(f"difference of an update, in its norm: median {np.median(differences):.0e}, largest {differences.max():.0e}")
    print(f"goal: stacked at least {GOAL:.0f} x as fast as lean: {ratio:.2f}, {verdict}")


if __name__ == "__main__":
    main()
