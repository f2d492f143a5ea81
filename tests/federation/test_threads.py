"""Runs and sweeps at once in the threads of one process, each with a Ray of its own, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_files

pytestmark = pytest.mark.long

START = """
import os, threading
import fedrobust, ray
from fedrobust.errors import FedRobustError
from fedrobust.federation import pool

def experiment(*overrides):
    return fedrobust.load("tiny.yaml", ["tracking.model=false", *overrides])

def beside(name, work):
    def do():
        try:
            work()
            print(name, "done", flush=True)
        except FedRobustError as error:
            print(name, type(error).__name__, error, flush=True)
    thread = threading.Thread(target=do)
    thread.start()
    return thread
"""
END = """
print("ended", ray.is_initialized(), oct(os.umask(0)))
"""
TOGETHER = """
pool.PATIENCE = 3.0  # whoever has to wait waits longer than that
os.umask(0o022)
search = {"aggregation.f": {"int": [1, 3]}}
threads = [
    beside("first", lambda: fedrobust.run(experiment("federation.rounds=2", "seed=1"))),
    beside("second", lambda: fedrobust.run(experiment("federation.rounds=2", "seed=2"))),
    beside("sweep", lambda: fedrobust.sweep(experiment("federation.rounds=1"), space=search, trials=1, parallel=1)),
]
for thread in threads:
    thread.join()
"""
LEFT = """
from fedrobust.federation.session import ray_session

def work():
    os.umask(0o022)
    with ray_session():
        begun.set()
        threading.Event().wait()

begun = threading.Event()
threading.Thread(target=work, daemon=True).start()
assert begun.wait(300)
"""
SHORT_OF_MEMORY = """
pool.PATIENCE = 3.0
beside("run", lambda: fedrobust.run(experiment("federation.rounds=2"))).join()
"""


def run(script: str, folder: Path, **environment: str) -> list[str]:
    """What a process prints that ends by itself."""
    write_files(folder)
    done = subprocess.run(
        [sys.executable, "-c", START + script + END],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout.splitlines()


def test_they_share_one_ray(workplace: Path) -> None:
    printed = run(TOGETHER, workplace)
    assert {"first done", "second done", "sweep done"} <= set(printed)
    assert printed[-1] == "ended False 0o22"


def test_ray_ends_what_needs_memory(workplace: Path) -> None:
    """As if every program needed too much: Ray ends whatever it has started."""
    printed = run(SHORT_OF_MEMORY, workplace, RAY_memory_usage_threshold="0.01", RAY_memory_monitor_refresh_ms="200")
    (told,) = (line for line in printed if line.startswith("run "))
    assert told.startswith("run NoPlaceError")
    assert "memory was short on" in told
    assert "workers.count" in told


def test_a_process_that_ends_leaves_nothing_of_its_threads(workplace: Path, short: Path) -> None:
    assert run(LEFT, workplace, RAY_TMPDIR=str(short)) == ["ended True 0o22"]
    assert not list(short.glob("ray-*"))
