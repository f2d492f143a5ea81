"""Speed of a round: the federation against a bare two-process loop, in one run.

The round: 20 clients × 4 steps, CNN 3×28×28 → 32 → 64 → 128 → 9 (422,089 parameters), batch 32, SGD. The loop it is
held against has no Ray, no journal, no scores: two processes with shared memory, each training ten clients the obvious
way (NCHW), and a mean of the updates. The federation's time is from one committed round to the next: training,
Gram matrix, scores, reputation, aggregation, journal and checkpoint on disk, MLflow. Medians over the rounds; the last
lines say whether the goals held.

    python benchmarks/rounds.py [--rounds 30]
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

import fedrobust
from fedrobust.experiment import Experiment
from fedrobust.records import Record, RoundRecord

CLIENTS, STEPS, BATCH, SIZE, CLASSES, PROCESSES = 20, 4, 32, 28, 9, 2
PARAMETERS = 422_089
PER_CLIENT = 200
GOALS = (
    ("federation, lean", "bare loop, NCHW", 0.80),
    ("federation, trainer", "federation, lean", 1.15),
)
"""A side, the side that it is held against, and the largest ratio of their medians."""


def network() -> nn.Module:
    """The network of the comparison, written out."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )


def patches(clients: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """Images (clients, n, 3, SIZE, SIZE) uint8 and labels (clients, n), and the generator that they were drawn with."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (clients, PER_CLIENT, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)
    return images, torch.randint(0, CLASSES, (clients, PER_CLIENT), generator=draw), draw


def pixels(images: torch.Tensor) -> torch.Tensor:
    """The input of the network for uint8 images."""
    return images.float() / 255 - 0.5


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    draw: torch.Generator,
    form: torch.memory_format = torch.contiguous_format,
) -> None:
    """A step on a batch of one client's images, the obvious way."""
    chosen = torch.randint(0, PER_CLIENT, (BATCH,), generator=draw)
    batch = pixels(images[chosen]).contiguous(memory_format=form)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(batch), labels[chosen]).backward()
    optimizer.step()


def loop_process(
    index: int, weights: torch.Tensor, updates: torch.Tensor, barrier: Barrier, rounds: int, memory: str
) -> None:
    """Half of the clients, the obvious way; `memory`: "nchw" or "channels_last"."""
    torch.set_num_threads(1)
    own = range(index, CLIENTS, PROCESSES)
    images, labels, draw = patches(len(own), index)
    form = torch.channels_last if memory == "channels_last" else torch.contiguous_format
    model = network().to(memory_format=form)
    for _ in range(rounds):
        barrier.wait()
        for position, client in enumerate(own):
            with torch.no_grad():
                pieces = weights.split([parameter.numel() for parameter in model.parameters()])
                for parameter, piece in zip(model.parameters(), pieces, strict=True):
                    parameter.copy_(piece.view_as(parameter))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            for _ in range(STEPS):
                step(model, optimizer, images[position], labels[position], draw, form)
            with torch.no_grad():
                updates[client] = torch.cat([each.reshape(-1) for each in model.parameters()]) - weights
        barrier.wait()


def bare_loop(rounds: int, memory: str) -> list[float]:
    """Seconds of each round of the two-process loop."""
    context = multiprocessing.get_context("spawn")
    weights = nn.utils.parameters_to_vector(network().parameters()).detach().clone().share_memory_()
    updates = torch.zeros((CLIENTS, PARAMETERS)).share_memory_()
    barrier = context.Barrier(PROCESSES + 1)
    arguments = [(i, weights, updates, barrier, rounds, memory) for i in range(PROCESSES)]
    processes = [context.Process(target=loop_process, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        barrier.wait()
        barrier.wait()
        weights += updates.mean(0)
        seconds.append(time.perf_counter() - start)
    for process in processes:
        process.join()
    return seconds


def federation(rounds: int, folder: Path, **local: Any) -> list[float]:
    """Seconds from one committed round to the next."""
    draw = np.random.default_rng(0)
    patches = CLIENTS * PER_CLIENT + 200
    np.savez(
        folder / "patches.npz",
        images=draw.integers(0, 256, (patches, SIZE, SIZE, 3), dtype=np.uint8),
        labels=np.arange(patches) % CLASSES,
        groups=np.arange(patches).astype(str),
    )
    experiment = Experiment.model_validate(
        {
            "data": {
                "source": {"name": "npz", "path": str(folder / "patches.npz")},
                "split": {"validation": 0.0, "test": 200 / patches},
                "partition": "iid",
            },
            "federation": {"clients": CLIENTS, "rounds": rounds},
            "learning": {
                "model": {"name": "cnn", "channels": [32, 64], "hidden": 128, "norm": "none", "pool": "flatten"},
                "local": {
                    "steps": STEPS,
                    "batch_size": BATCH,
                    "augment": False,
                    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.0},
                    **local,
                },
            },
            "aggregation": {"rule": "mean"},
            "evaluation": {"every": rounds},
            "workers": {"count": PROCESSES},
            "tracking": {"model": False},
        }
    )
    committed: list[float] = []

    def note(record: Record) -> None:
        if isinstance(record, RoundRecord):
            committed.append(time.perf_counter())

    home = Path.cwd()
    os.chdir(folder)  # the run's folder and tracking store go there
    try:
        result = fedrobust.run(experiment, hooks=[note])
    finally:
        os.chdir(home)
    assert sum(value.numel() for value in result.state_dict.values()) == PARAMETERS
    return [late - early for early, late in itertools.pairwise(committed)]


def main() -> None:
    """Run all, interleaved, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="rounds of each measurement")
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {}
    for _ in range(2):  # twice, interleaved: a machine's mood changes
        for name, memory in (("bare loop, NCHW", "nchw"), ("bare loop, channels-last", "channels_last")):
            times.setdefault(name, []).extend(bare_loop(rounds, memory)[3:])
        for name, local in (
            ("federation, lean", {"engine": "lean"}),
            ("federation, lean, NCHW", {"engine": "lean", "channels_last": False}),
            ("federation, trainer", {"engine": "trainer"}),
        ):
            with tempfile.TemporaryDirectory() as folder:
                times.setdefault(name, []).extend(federation(rounds, Path(folder), **local)[3:])
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    base = medians["bare loop, NCHW"]
    print(f"{CLIENTS} clients x {STEPS} steps, batch {BATCH}, {PARAMETERS:,} parameters, {PROCESSES} processes")
    for name, middle in medians.items():
        print(f"{name:28} {middle:7.3f} s a round, ratio to the bare NCHW loop {middle / base:5.2f}")
    for name, other, goal in GOALS:
        ratio = medians[name] / medians[other]
        print(f"goal: {name} at most {goal:.2f} x {other}: {ratio:.2f}, {'held' if ratio <= goal else 'missed'}")


if __name__ == "__main__":
    main()
