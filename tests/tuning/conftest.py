"""The stage on which sweeps are played."""

from __future__ import annotations

from pathlib import Path

import pytest
from played import BASE, SWEEP, Played, staged


@pytest.fixture
def played(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    """No Ray, no MLflow, no data; `sweep.yaml` and `base.yaml` lie in the working folder."""
    Path("base.yaml").write_text(BASE)
    Path("sweep.yaml").write_text(SWEEP)
    return staged(monkeypatch)
