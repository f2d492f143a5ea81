"""Shared by the tests of jobs and clusters."""

from __future__ import annotations

from pathlib import Path

import pytest


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
