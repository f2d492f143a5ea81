"""Speed of a round beside other simulators of federated learning: Flower and pfl-research, in the same run.

The round is that of rounds.py: 20 clients × 4 steps of the small CNN, batch 32, SGD, two processes. Each simulator runs
it the way its own documentation shows: Flower as a ClientApp and a FedAvg strategy on two Ray actors of one core, pfl
as FederatedAveraging in two processes of torchrun. Their clients train as the bare loop of rounds.py does, on uint8
images in memory. Ours also computes the Gram matrix and scores, and writes journal, checkpoint and MLflow; theirs write
nothing and evaluate nothing. A round is the time from one aggregate to the next. The sides take turns, each time in a
process of its own; medians over the rounds.

Both want older versions of some packages than this project does, so `make bench-peers` puts them into .venv/bench, on
top of the project's; a side that is not installed is left out.

    python benchmarks/peers.py [--rounds 20] [--turns 3] [--sides ours flower pfl]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
WARM_UP = 3
GOAL = 1.8
SIDES = {"ours": "fedrobust", "flower": "flwr", "pfl": "pfl"}
"""Side: the package that it needs."""
COMMANDS = {
    "ours": [sys.executable, str(HERE / "peers.py"), "--only-ours"],
    "flower": [sys.executable, str(HERE / "flower_rounds.py")],
    "pfl": [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        str(HERE / "pfl_rounds.py"),
    ],
}


def measured(side: str, rounds: int) -> list[float]:
    """Seconds of each round of a side, run in a process of its own, without the first rounds.

    Raises `RuntimeError` with the end of its output where the process fails.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
    }
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "seconds.json"
        command = [*COMMANDS[side], "--rounds", str(rounds + WARM_UP), "--answer", str(answer)]
        done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
        if done.returncode or not answer.exists():
            raise RuntimeError(f"{side} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        seconds: list[float] = json.loads(answer.read_text())
    return seconds[WARM_UP:]


def main() -> None:
    """Run the sides in turn, and print medians, ratios and whether the goal held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each turn")
    parser.add_argument("--turns", type=int, default=3, help="how often each side is run")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--only-ours", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_ours:
        from rounds import federation

        arguments.answer.write_text(json.dumps(federation(arguments.rounds, Path.cwd())))
        return
    sides = [side for side in arguments.sides if importlib.util.find_spec(SIDES[side])]
    for side in set(arguments.sides) - set(sides):
        print(f"{side} is left out: the package {SIDES[side]} is not installed")
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(arguments.turns):
        for side in sides:
            times[side] += measured(side, arguments.rounds)
    medians = {side: statistics.median(seconds) for side, seconds in times.items()}
    for side, middle in medians.items():
        ratio = f", {middle / medians['ours']:.2f} x ours" if "ours" in medians and side != "ours" else ""
        print(f"{side + ' ' + version(SIDES[side]):16} {middle:7.3f} s a round{ratio}")
    if {"ours", "flower"} <= set(medians):
        ratio = medians["flower"] / medians["ours"]
        print(f"goal: Flower at least {GOAL} x ours: {ratio:.2f}, {'held' if ratio >= GOAL else 'missed'}")


if __name__ == "__main__":
    main()
