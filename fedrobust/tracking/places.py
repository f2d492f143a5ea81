"""Locations of artifacts: MLflow's database contains absolute paths, which are wrong once its folder is moved or
copied."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fedrobust.databases import BUSY
from fedrobust.tracking.tables import artifacts_beside

logger = logging.getLogger(__name__)

PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns that contain locations of artifacts."""
BESIDE = {"fedrobust.artifacts": "beside the database"}
"""Tag of the experiments whose artifacts are stored there."""
BEFORE = "mlflow.sharedViewState.fedrobust"
"""The corresponding tag of earlier versions of this project."""


def mend_places(file: Path) -> None:
    """Correct the locations of artifacts beside the database `file` after a move, and log a warning if they changed.

    Without this, MLflow would create the old location again and write there; and a copied folder would write into the
    original. Experiments with artifacts elsewhere are not changed. Raises `sqlite3.Error`.
    """
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    now = artifacts_beside(file)
    with closing(sqlite3.connect(file, timeout=BUSY, isolation_level=None)) as database:
        query = (
            "select distinct artifact_location from experiments join experiment_tags using (experiment_id) "
            "where key in (?, ?) and artifact_location like 'file:%/artifacts'"
        )
        for (location,) in database.execute(query, [*BESIDE, BEFORE]).fetchall():
            before = Path(unquote(urlsplit(location).path))
            if _same(before.parent, now.parent):
                continue
            database.execute("begin immediate")
            for old, new in ((before.parent.as_uri(), now.parent.as_uri()), (str(before.parent), str(now.parent))):
                for table, column in PLACES:
                    database.execute(
                        f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                        [new, len(old) + 1, len(old) + 1, f"{old}/"],
                    )
            database.execute("commit")
            _artifact_repos_cache.clear()  # MLflow's cache of the locations in this process
            logger.warning(
                "this folder was moved or copied from %s: artifacts are written to %s now, and looked for there",
                before.parent,
                now,
            )


def _same(before: Path, now: Path) -> bool:
    """Return whether both are the same folder, perhaps with two names."""
    try:
        return before == now or before.samefile(now)
    except OSError:
        return False
