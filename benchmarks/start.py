"""How long a run takes until its first trained round, and in all, against what it cannot do without.

    python benchmarks/start.py [--times N] [--processes]

The run trains for a tenth of a second, on 480 patches from a file. The floor is a script that imports torch, starts
Ray as a run does, and has two actors that import torch. Both are processes of their own, in turn, N times; figures are
medians. A round counts as trained when its record is in the journal. Also measured: the second run in a folder, whose
MLflow store is there already, the second `fedrobust.run` in a process, and the runs after the first one in a session.

Last, where the CPU seconds of one run in an empty folder go, process by process (on Linux); `--processes` prints only
that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

EXPERIMENT = """\
name: tiny
data: {source: {name: npz, path: ../patches.npz}}
federation: {clients: 4, rounds: 1}
learning: {model: cnn, local: {steps: 1, batch_size: 8}}
workers: {count: 2}
"""
FLOOR = """\
import ray, torch
from fedrobust.federation.session import ray_session

class Actor:
    def __init__(self):
        import torch
        torch.set_num_threads(1)
    def ready(self):
        return True

with ray_session():
    actors = [ray.remote(Actor).remote() for _ in range(2)]
    ray.get([actor.ready.remote() for actor in actors])
"""
IN_ONE_PROCESS = """\
import contextlib, json, sys, time
import fedrobust

found = []

def made(file, changes=()):
    began, first = time.perf_counter(), []

    def trained(record):
        if isinstance(record, fedrobust.RoundRecord) and not first:
            first.append(time.perf_counter() - began)

    fedrobust.run(file, changes, hooks=trained, progress=False)
    found.append((first[0], time.perf_counter() - began))

with fedrobust.session() if sys.argv[2] == "session" else contextlib.nullcontext():
    for rule in ("mean", "median", "krum"):
        made(sys.argv[1], {"aggregation.rule": rule})
print(json.dumps(found))
"""
GOALS = {
    "first round": 1.5,
    "first round, second run in a process": 1.2,
    "whole command": 1.8,
}
"""Each as a multiple of the floor."""
KINDS = {
    r"ray::(\w+)": r"\1",
    r"gcs_server|raylet|dashboard|log_monitor|runtime_env|monitor\.py|ray-": "Ray's own",
    r"floor\.py|-m fedrobust ": "driver",
}
"""Command line of a process, as a regular expression → what the table calls it."""


def main() -> None:
    """Print each time, the ratios to the floor, and whether the goals are held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="how often each side is measured (default: 3)")
    parser.add_argument("--processes", action="store_true", help="print only the CPU seconds of the processes")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        draw, labels = np.random.default_rng(1), np.arange(480) % 2
        images = draw.integers(0, 256, (480, 48, 48, 3), dtype=np.uint8)
        np.savez("patches.npz", images=images, labels=labels, groups=[f"patient {i // 2 % 24}" for i in range(480)])
        Path("tiny.yaml").write_text(EXPERIMENT, encoding="utf-8")
        Path("floor.py").write_text(FLOOR, encoding="utf-8")
        Path("in_one_process.py").write_text(IN_ONE_PROCESS, encoding="utf-8")
        if not chosen.processes:
            compare(chosen.times)
        if Path("/proc/self/stat").exists():
            print()
            processes()


def compare(times: int) -> None:
    """Measure both sides in turn, and print the ratios of the medians."""
    took: dict[str, list[float]] = defaultdict(list)
    for number in range(times):
        took["floor"].append(finished([sys.executable, "floor.py"]))
        for again in ("", ", second run in a folder"):
            first, whole = command(Path(f"run-{number}"))
            took[f"first round{again}"].append(first)
            took[f"whole command{again}"].append(whole)
        for session in ("", "session"):
            _, (first, whole), (third, last) = in_one_process(Path(f"process-{number}{session}"), session)
            name = "second run in a session" if session else "second run in a process"
            took[f"first round, {name}"] += [first, third]
            took[f"whole run, {name}"] += [whole, last]
        print(f"{number + 1}: " + ", ".join(f"{name} {each[-1]:.1f} s" for name, each in took.items()), flush=True)
    floor = statistics.median(took["floor"])
    print(f"\n{'':42} {'median':>8}  of the floor")
    for name, each in took.items():
        ratio, goal = statistics.median(each) / floor, GOALS.get(name)
        verdict = "" if goal is None else f"  goal ≤ {goal}: {'held' if ratio <= goal else 'missed'}"
        print(f"{name:42} {statistics.median(each):6.1f} s  {ratio:.2f}{verdict}")


def finished(words: list[str]) -> float:
    """Run a command to its end; return the seconds."""
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - began


def command(folder: Path, watch: Callable[[int], None] = lambda process: None) -> tuple[float, float]:
    """Run `fedrobust run` in a folder; return the seconds until its first round is recorded, and until it has ended.

    watch: called again and again with the id of its process.
    """
    folder.mkdir(exist_ok=True)
    before = set(folder.glob("mlruns/runs/*"))
    began, first = time.perf_counter(), None
    words = [sys.executable, "-m", "fedrobust", "run", "../tiny.yaml"]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for journal in folder.glob("mlruns/runs/*/journal.jsonl") if first is None else ():
                if journal.parent not in before and '"kind":"round"' in journal.read_text(encoding="utf-8"):
                    first = time.perf_counter() - began
            watch(process.pid)
            time.sleep(0.02)
        whole = time.perf_counter() - began
        if process.returncode or first is None:
            raise SystemExit(f"the run has failed: {process.stderr.read() if process.stderr else ''}")
    return first, whole


def in_one_process(folder: Path, session: str) -> list[tuple[float, float]]:
    """Make three runs in one process; return the seconds of each until its first round, and in all.

    session: `session`: in a session of FedRobust; empty: each by itself.
    """
    folder.mkdir()
    words = [sys.executable, "../in_one_process.py", "../tiny.yaml", session]
    done = subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True)
    return [(first, whole) for first, whole in json.loads(done.stdout.splitlines()[-1])]


def processes() -> None:
    """Print the CPU seconds of each process of one run, up to its first round and in all, and of the floor."""
    seen: dict[int, tuple[str, float]] = {}
    first: dict[int, float] = {}
    folder = Path("run")

    def watch(process: int) -> None:
        for each, (kind, seconds) in spent(process).items():
            # A worker that Ray has started ahead becomes an actor, and a process that has ended has no command line.
            seen[each] = (kind if kind not in ("IDLE", "other") else seen.get(each, (kind,))[0], seconds)
        journals = folder.glob("mlruns/runs/*/journal.jsonl")
        if not first and any('"kind":"round"' in each.read_text(encoding="utf-8") for each in journals):
            first.update({each: seconds for each, (_, seconds) in seen.items()})

    with subprocess.Popen([sys.executable, "floor.py"], stderr=subprocess.DEVNULL) as floor:
        while floor.poll() is None:
            watch(floor.pid)
            time.sleep(0.02)
    print_spent("the floor", seen)
    seen.clear()
    seconds = command(folder, watch)
    print_spent(f"to the first round, after {seconds[0]:.1f} s", {each: (seen[each][0], first[each]) for each in first})
    print_spent(f"the whole command, {seconds[1]:.1f} s", seen)


def print_spent(what: str, seen: Mapping[int, tuple[str, float]]) -> None:
    """Print CPU seconds by kind of process.

    seen: id → kind, seconds.
    """
    kinds: dict[str, list[float]] = defaultdict(list)
    for kind, seconds in seen.values():
        kinds[kind].append(seconds)
    told = [
        f"{kind}{f' ({len(each)})' if len(each) > 1 else ''} {sum(each):.1f}"
        for kind, each in sorted(kinds.items(), key=lambda item: -sum(item[1]))
    ]
    print(f"{what}: {sum(map(sum, kinds.values())):.1f} CPU seconds: {', '.join(told)}")


def spent(root: int) -> Mapping[int, tuple[str, float]]:
    """The CPU seconds of a process and of all below it: id → what it is, and its seconds."""
    stats: dict[int, tuple[int, float]] = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            stats[int(file.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / ticks
    below, todo = dict[int, tuple[str, float]](), [root]
    while todo:
        each = todo.pop()
        if each in stats:
            below[each] = kind_of(each), stats[each][1]
        todo += [child for child, (parent, _) in stats.items() if parent == each]
    return below


def kind_of(process: int) -> str:
    """What a process is, from its command line."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for pattern, name in KINDS.items():
            if found := re.search(pattern, words):
                return found.expand(name)
        return Path(words.split(" ")[0]).name or "other"
    return "other"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the second process of a user reads compiled modules
    main()
