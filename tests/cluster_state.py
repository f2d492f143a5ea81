"""The folder `cluster/`, and what `make cluster` keeps in a home, whole and damaged."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedrobust.cluster.local_state import STATE, kept

FOLDER = Path(__file__).parent.parent / "cluster"


def began(pid: int) -> str:
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, env={"LC_ALL": "C"})
    return shown.stdout.strip()


def started(folder: Path, address: str, **changes: Any) -> Path:
    """What `make cluster` leaves in the home of who has started it in `folder`; this process plays the head."""
    place = kept(folder / "mlruns" / "cluster")
    place.mkdir(parents=True, mode=0o700)
    names = dict.fromkeys(("gcs", "mlflow", "workplace", "store"), "x") | {"temporary": "/tmp/fedrobust-nowhere"}
    head = {"pid": os.getpid(), "began": began(os.getpid())}
    state = {"host": platform.node(), "address": address, **names, "nodes": {"head": head}} | changes
    for name, text in ((STATE, json.dumps(state)), ("token", "of-the-cluster")):
        (place / name).touch(mode=0o600)
        (place / name).write_text(text)
    return place


def damage(place: Path, how: str) -> None:
    state = place / STATE
    whole = json.loads(state.read_text())
    texts = {
        "not JSON": "{",
        "empty": "",
        "a list": "[]",
        "a number": "3",
        "null": "null",
        "deep": "[" * 100_000,
        "huge": json.dumps(whole | {"store": "x" * 2_000_000}),
        "no address": json.dumps({key: value for key, value in whole.items() if key != "address"}),
        "another address": json.dumps(whole | {"address": "http://example.org:8265"}),
        "https": json.dumps(whole | {"address": "https://127.0.0.1:8265"}),
        "a name in it": json.dumps(whole | {"address": "http://127.0.0.1:1@example.org:80"}),
        "a line's end": json.dumps(whole | {"address": "http://127.0.0.1:1\n"}),
        "a number as address": json.dumps(whole | {"address": 3}),
        "nodes a list": json.dumps(whole | {"nodes": [1]}),
        "node without pid": json.dumps(whole | {"nodes": {"head": {"began": "x"}}}),
        "every process": json.dumps(whole | {"nodes": {"head": {"pid": -1, "began": "x"}}}),
        "every file": json.dumps(whole | {"temporary": "/home"}),
        "init": json.dumps(whole | {"nodes": {"head": {"pid": 1, "began": "x"}}}),
        "pid a text": json.dumps(whole | {"nodes": {"head": {"pid": "7", "began": "x"}}}),
        "escape codes": json.dumps(whole | {"nodes": {"\x1b[31m": 3}}),
    }
    if how in texts:
        state.write_text(texts[how])
    elif how == "not UTF-8":
        state.write_bytes(b"\xff\xfe")
    elif how == "a directory":
        state.unlink()
        state.mkdir()
    elif how == "a pipe":
        state.unlink()
        os.mkfifo(state, 0o600)
    elif how == "a link":
        state.rename(place / "elsewhere")
        state.symlink_to(place / "elsewhere")
    elif how == "open to read":
        state.chmod(0o644)
    elif how == "open to write":
        place.chmod(0o777)
    elif how == "not ours":
        os.chown(state, 12345, -1)


DAMAGES = [
    *("not JSON", "empty", "a list", "a number", "null", "deep", "huge", "not UTF-8", "a directory", "a pipe"),
    *("a link", "no address", "another address", "https", "a name in it", "a line's end", "a number as address"),
    *("nodes a list", "node without pid", "every process", "every file", "init", "pid a text", "escape codes"),
    *("open to read", "open to write"),
    pytest.param("not ours", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")),
]
