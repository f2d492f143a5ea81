"""The titles of a run's figures in tables and pages, and the choice of those that are shown there."""

from __future__ import annotations

from collections.abc import Collection

from fedrobust.metrics import in_tables

OTHERS = {
    "attack/success_rate": "attack success",
    "defense/auroc": "detection AUROC",
    "defense/precision": "suspicion precision",
    "defense/recall": "suspicion recall",
    "rounds_skipped": "rounds skipped",
    "upload_bytes": "uploaded",
}
"""Titles of the figures that are not metrics of a model."""


def titles(names: Collection[str]) -> dict[str, str]:
    """Return name → title of the figures that tables show: metrics on the test patches first.

    names: of the figures, as in MLflow.
    """
    tested = in_tables(name.removeprefix("test/") for name in names if name.startswith("test/"))
    others = {name: title for name, title in OTHERS.items() if name in names}
    return {f"test/{key}": title for key, title in tested.items()} | others


def titles_of_one(names: Collection[str]) -> dict[str, str]:
    """The same for a table of one run: it also has room for accuracy, and the other figures are shown elsewhere."""
    found = {"test/accuracy": "accuracy"} | titles(names)
    return {name: title for name, title in found.items() if name not in ("rounds_skipped", "upload_bytes")}
