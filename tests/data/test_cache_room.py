"""What nobody uses leaves the cache; what a run may have open, and other people's files, stay."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from fedrobust.data import cache_room
from fedrobust.data.cache import ARRAY, kept
from fedrobust.data.cache_room import DAY, make_room


def entry(folder: Path, name: str, days: float) -> Path:
    """An entry that was last used so many days ago."""
    place = folder / name
    if "." in name:
        place.write_bytes(bytes(100))
    else:
        place.mkdir()
        (place / ARRAY).write_bytes(bytes(100))
    os.utime(place, (time.time() - days * DAY,) * 2)
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    entry(tmp_path, "decoded-1", 40)
    entry(tmp_path, "decoded-2", 20)
    entry(tmp_path, "features-3", 2)
    entry(tmp_path, "stain-4", 0.5)
    entry(tmp_path, "stain-macenko-5.npz", 40)  # as an earlier version wrote it
    entry(tmp_path, ".decoded-6.lock", 40)
    entry(tmp_path, "decoded-7.lock", 3)
    entry(tmp_path, "my-notes", 400)
    return tmp_path


def left(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


LEFT = {"decoded-2", "features-3", "stain-4", "decoded-7.lock", "my-notes"}


def test_what_is_a_month_old_is_removed(folder):
    make_room(folder, 0)
    assert left(folder) == LEFT


@pytest.mark.parametrize(
    "needed, kept_too",
    [(150, {"features-3", "decoded-7.lock"}), (250, {"features-3"}), (350, set()), (10**6, set())],
)
def test_a_full_disk_takes_the_oldest_first_but_not_what_may_be_in_use(folder, monkeypatch, needed, kept_too):
    def usage(path: object) -> shutil._ntuple_diskusage:
        gone = len(LEFT) - len(LEFT & left(folder))
        return shutil._ntuple_diskusage(0, 0, 100 + 100 * gone)

    monkeypatch.setattr(cache_room.shutil, "disk_usage", usage)
    make_room(folder, needed)
    assert left(folder) == {"stain-4", "my-notes"} | kept_too


def test_an_entry_that_is_used_counts_as_new(tmp_path):
    def make(add):
        add(np.arange(6.0).reshape(2, 3))
        return {}

    kept(tmp_path, "features-x", 2, make)
    os.utime(tmp_path / "features-x", (0, 0))
    assert kept(tmp_path, "features-x", 2, make).array.tolist() == [[0, 1, 2], [3, 4, 5]]
    kept(tmp_path, "features-y", 2, make)
    assert {"features-x", "features-y"} <= left(tmp_path)
    os.utime(tmp_path / "features-x", (0, 0))
    kept(tmp_path, "features-z", 2, make)
    assert "features-x" not in left(tmp_path) and {"features-y", "features-z"} <= left(tmp_path)
