"""Shared by the tests of jobs and clusters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_server import TOKEN, Server

EXPERIMENT = "name: small\ndata: {source: {name: npz, path: nowhere.npz}}\n"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home, and no cluster, token or proxy of whoever runs the tests."""
    for name in ("API_SERVER_ADDRESS", "ADDRESS", "AUTH_MODE", "AUTH_TOKEN", "AUTH_TOKEN_PATH"):
        monkeypatch.delenv(f"RAY_{name}", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def server(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with Server() as started:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", started.address)
        yield started


@pytest.fixture
def folder(workplace: Path) -> Path:
    """A working folder with an experiment, a class of one's own, and things that must stay."""
    for name in ("experiments/small.yaml", "experiments/mine.py", "data/patches.npz", "mlruns/mlflow.db", ".venv/x"):
        (workplace / name).parent.mkdir(exist_ok=True)
        (workplace / name).write_text(EXPERIMENT if name.endswith("yaml") else name, encoding="utf-8")
    (workplace / "experiments" / "__pycache__").mkdir()
    (workplace / "experiments" / "__pycache__" / "mine.pyc").touch()
    return workplace
