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


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them: making one takes seconds."""
    from fedrobust.databases import sqlite_url
    from fedrobust.tracking.tables import prepare

    file = tmp_path_factory.mktemp("bare") / "mlflow.db"
    prepare(sqlite_url(file))
    return file
