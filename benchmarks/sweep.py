"""Throughput of a sweep: short trials on leased teams against the same trials in two bare processes, in one run.

A trial: 8 hospitals, 10 rounds of 8 steps, batch 32, a small CNN on generated patches of 48 pixels; after every round
the held-out patches are read. Learning rate and width of the network are searched, in batches of eight trials. The bare
processes have one thread each and neither Ray nor MLflow, Optuna, journal, scores or checkpoints: with the network, the
data and the learning rates of the same trials each trains its share of them, a loop over hospitals and steps and a mean
of the updates, and evaluates after every round.

Both are timed in turn, without what comes before the first trial: imports, reading the data, Ray, and a first sweep of
a trial for each team, which has the actors import torch and MLflow make its database. Overhead: wall time × teams less
the seconds of the rounds themselves, for each trial; the evaluation after the last round is part of it. Tracking: CPU
seconds of all that is sent to MLflow, as a share of the teams' time.

    python benchmarks/sweep.py [--trials 32] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

import fedrobust.studies.teams as teams_room
from fedrobust.experiment import Experiment
from fedrobust.experiment_file import dump
from fedrobust.federation.pool import Pool
from fedrobust.preparation import hospitals_of
from fedrobust.records import read_run
from fedrobust.runner import RUNS
from fedrobust.studies.teams import leased_pool
from fedrobust.tracking import Tracker
from fedrobust.tuning.running import run_sweep
from fedrobust.tuning.sweep import SweepPlan, load_sweep

TEAMS, CLIENTS, ROUNDS, STEPS, BATCH = 2, 8, 10, 8, 32
BATCHED = 8
"""Trials that are asked for together: at the end of each batch a team may have to wait for the other one."""

EXPERIMENT = Experiment.model_validate(
    {
        "name": "short",
        "data": {"source": {"name": "histology", "size": 48}, "split": {"validation": 0.0, "test": 0.2}},
        "federation": {"clients": CLIENTS, "rounds": ROUNDS},
        "learning": {
            "model": {"name": "cnn", "channels": [16, 32], "norm": "none", "pool": "flatten", "hidden": 32},
            "local": {"steps": STEPS, "batch_size": BATCH, "augment": False, "optimizer": {"name": "sgd", "lr": 0.05}},
        },
        "aggregation": {"rule": "mean"},
    }
)
SWEEP = """
name: sweep
experiment: experiment.yaml
space:
  learning.local.optimizer.lr: {log: [0.01, 0.1]}
  learning.model.hidden: {choice: [16, 32]}
objectives: [{metric: test/balanced_accuracy}]
"""


@dataclass
class Timed:
    """One measurement of all trials."""

    seconds: float
    """Wall time from the begin of the first trial to the end of the last one."""
    overhead: float = 0.0
    """Seconds of a trial that are not spent in rounds."""
    tracking: float = 0.0
    """Share of the teams' time that goes to MLflow."""


def settings(plan: SweepPlan, trials: Sequence[Any]) -> list[dict[str, Any]]:
    """The learning options of trials."""
    return [plan.experiment(trial.values, seed=1).resolved()["learning"] for trial in trials]


def bare_process(index: int, learning: Sequence[dict[str, Any]], ready: Any, done: Any) -> None:
    """Every TEAMS-th trial, the obvious way."""
    torch.set_num_threads(1)
    hospitals = hospitals_of(EXPERIMENT.model_copy(update={"seed": 1}))
    # Channels last, as the federation trains: NCHW takes one and a half times as long.
    pixels = torch.from_numpy(hospitals.images.copy()).permute(0, 3, 1, 2).float().div_(255).sub_(0.6).div_(0.2)
    labels = torch.from_numpy(hospitals.labels.copy())
    test = torch.from_numpy(hospitals.indices["test"])
    own = [torch.from_numpy(hospitals.training(client)) for client in range(CLIENTS)]
    draw = torch.Generator().manual_seed(index)
    ready.wait()
    for options in learning[index::TEAMS]:
        experiment = EXPERIMENT.model_copy(update={"learning": type(EXPERIMENT.learning).model_validate(options)})
        model = experiment.learning.model.build(len(hospitals.label_names), 48, 1)
        weights = nn.utils.parameters_to_vector(model.parameters()).detach()
        for _ in range(ROUNDS):
            total = torch.zeros_like(weights)
            for patches in own:
                total += trained(model, weights, pixels, labels, patches, options["local"]["optimizer"], draw) - weights
            weights = weights + total / CLIENTS
            nn.utils.vector_to_parameters(weights.clone(), model.parameters())
            with torch.inference_mode():
                accuracy(model, pixels, labels, test)
    done.wait()


def trained(
    model: nn.Module,
    weights: torch.Tensor,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    patches: torch.Tensor,
    optimizer: dict[str, Any],
    draw: torch.Generator,
) -> torch.Tensor:
    """The weights after a hospital's steps."""
    nn.utils.vector_to_parameters(weights.clone(), model.parameters())
    steps = torch.optim.SGD(model.parameters(), lr=optimizer["lr"], momentum=optimizer["momentum"])
    for _ in range(STEPS):
        batch = patches[torch.randint(len(patches), (BATCH,), generator=draw)]
        steps.zero_grad()
        nn.functional.cross_entropy(model(pixels[batch]), labels[batch]).backward()
        steps.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def accuracy(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, test: torch.Tensor) -> float:
    """On the held-out patches."""
    right = [(model(pixels[part]).argmax(1) == labels[part]).sum() for part in test.split(64)]
    return float(torch.stack(right).sum() / len(test))


def bare(learning: Sequence[dict[str, Any]]) -> Timed:
    """All trials in TEAMS processes."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(TEAMS + 1), context.Barrier(TEAMS + 1)
    processes = [context.Process(target=bare_process, args=(index, learning, ready, done)) for index in range(TEAMS)]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    return Timed(seconds)


@contextmanager
def tracking_seconds() -> Iterator[Callable[[], float]]:
    """Count the CPU seconds of all calls to MLflow while the block runs."""
    total, lock = [0.0], threading.Lock()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                with lock:
                    total[0] += time.thread_time() - start

        return wrapper

    kept = Tracker.__dict__["open"], Tracker.__dict__["_attempt"]
    Tracker.open = classmethod(counted(kept[0].__func__))  # type: ignore[method-assign, assignment]
    Tracker._attempt = counted(kept[1])  # type: ignore[method-assign]
    try:
        yield lambda: total[0]
    finally:
        Tracker.open, Tracker._attempt = kept  # type: ignore[method-assign, assignment]


def sweep(trials: int, name: str, pool: Pool) -> tuple[Timed, list[dict[str, Any]]]:
    """All trials on the teams of the pool, in the working folder; and their learning options."""
    plan = load_sweep("sweep.yaml", [f"trials={trials}", f"parallel={BATCHED}", f"name={name}"])
    begun: list[float] = []
    ended: list[float] = []
    run = teams_room.run

    def noted(*arguments: Any, **options: Any) -> Any:
        begun.append(time.perf_counter())
        result = run(*arguments, **options)
        ended.append(time.perf_counter())
        return result

    teams_room.run = noted
    try:
        with tracking_seconds() as tracked:
            found = run_sweep(plan, pool=pool)
            sent = tracked()
    finally:
        teams_room.run = run
    seconds = ended[-1] - begun[0]
    rounds = [_seconds_of_rounds(json.loads(line)["run_id"]) for line in (found.folder / "runs.jsonl").open()]
    overhead = (TEAMS * seconds - sum(rounds)) / len(rounds)
    learning = settings(plan, found.trials)
    return Timed(seconds, overhead, sent / (TEAMS * seconds)), learning


def _seconds_of_rounds(run_id: str) -> float:
    return sum(record.seconds["round"] or 0.0 for record in read_run(RUNS / run_id).rounds)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run both in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=32, help="trials of each measurement")
    parser.add_argument("--repeat", type=int, default=2, help="how often both are measured")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    given = parser.parse_args(arguments)
    ours: list[Timed] = []
    theirs: list[Timed] = []
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("experiment.yaml").write_text(dump(EXPERIMENT), encoding="utf-8")
            Path("sweep.yaml").write_text(SWEEP, encoding="utf-8")
            with leased_pool(EXPERIMENT, print, TEAMS) as pool:
                sweep(TEAMS, "first", pool)
                for index in range(given.repeat):
                    timed, learning = sweep(given.trials, f"sweep {index}", pool)
                    ours.append(timed)
                    theirs.append(bare(learning))
        finally:
            os.chdir(home)
    ratio = statistics.median(b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True))
    overhead, tracking = (statistics.median(getattr(each, name) for each in ours) for name in ("overhead", "tracking"))
    print(
        f"{given.trials} trials of {ROUNDS} rounds and {CLIENTS} hospitals, {TEAMS} teams; {given.repeat} measurements"
    )
    for name, many in (("sweep", ours), ("bare processes", theirs)):
        middle = statistics.median(each.seconds for each in many)
        print(f"{name:16} {middle:7.1f} s, {middle / given.trials * TEAMS:6.3f} s a trial on its team")
    goals = (
        ("throughput, of the bare processes'", ratio, "≥", 0.95),
        ("overhead of a later trial, s", overhead, "≤", 0.2),
    )
    for what, figure, sign, goal in (*goals, ("share of tracking", tracking, "≤", 0.02)):
        held = figure >= goal if sign == "≥" else figure <= goal
        print(f"{'PASS' if held else 'MISS'}  {what:36} {figure:7.3f}  {sign} {goal:g}")
    figures = {"ratio": ratio, "overhead": overhead, "tracking": tracking}
    if given.json:
        both = {"sweep": [asdict(each) for each in ours], "bare": [asdict(each) for each in theirs]}
        given.json.write_text(json.dumps(figures | both, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
