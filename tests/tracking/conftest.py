"""One store for the tests of tracking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sqlite store of all these tests lies: making one takes seconds."""
    return tmp_path_factory.mktemp("tracking") / "mlflow.db"


@pytest.fixture(scope="module", autouse=True)
def database(store: Path) -> Iterator[Path]:
    """The store is the one in use, and nobody waits between attempts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
        patch.setattr("fedrobust.tracking.tracker.PAUSES", (0.0, 0.0))
        yield store
