"""Actors of the node map the file of the cache; where it is not to be had, patches travel, and nothing else changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from tiny import journal_without_seconds, run

import fedrobust
from fedrobust.data import pixels
from fedrobust.data.cache import file_of, kept
from fedrobust.federation import shared_data
from fedrobust.federation.clients import ClientHost
from fedrobust.federation.pool import Pool
from fedrobust.preparation import hospitals_of
from fedrobust.records import Record

pytestmark = [pytest.mark.usefixtures("in_place"), pytest.mark.slow]

OVERRIDES = ("data.source={name: folder, path: slides, patients: '([^/]+)_'}", "federation.rounds=3")


@pytest.fixture(scope="module", autouse=True)
def slides(place: Path) -> None:
    """The patches of `patches.npz`, each in a file."""
    with np.load(place / "patches.npz") as data:
        for number, (image, label, patient) in enumerate(zip(*data.values(), strict=True)):
            (place / f"slides/{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"slides/{label}/{patient}_{number:03}.png")


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what goes into Ray's object store."""
    found: list[tuple[int, ...]] = []
    monkeypatch.setattr(shared_data, "ray", Putting(found))
    return found


class Putting:
    def __init__(self, found: list[tuple[int, ...]]) -> None:
        self._found = found

    def put(self, array: np.ndarray) -> Any:
        self._found.append(array.shape)
        return ray.put(array)


@pytest.fixture(scope="module")
def expected(place: Path, pool: Pool) -> fedrobust.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return run(*OVERRIDES, pool=pool)


LABELS, IMAGES = (480,), (480, 12, 12, 3)


@pytest.mark.parametrize("lost", ["nothing", "before", "while it runs"])
def test_a_run_on_mapped_patches_has_the_same_bits(
    lost: str, expected: fedrobust.Result, pool: Pool, put: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("mlruns/cache", ignore_errors=True)  # the actors may have its file open
    monkeypatch.setattr(pixels, "MANY", 100)
    experiment = fedrobust.load("tiny.yaml", OVERRIDES)
    hospitals = hospitals_of(experiment)
    assert file_of(hospitals.images) is not None
    if lost == "before":
        shutil.rmtree("mlruns/cache")

    def lose(record: Record) -> None:
        if lost == "while it runs" and record.kind == "round" and record.round == 1:
            shutil.rmtree("mlruns/cache")
            ray.kill(pool._all[0].workers[0])

    result = run(*OVERRIDES, pool=pool, hospitals=hospitals, hooks=[lose])
    assert journal_without_seconds(result) == journal_without_seconds(expected)
    assert put == ([LABELS] if lost == "nothing" else [LABELS, IMAGES])


def test_a_file_that_was_exchanged_is_not_opened(tmp_path: Path) -> None:
    def make(add: Any) -> dict[str, int]:
        add(np.arange(12, dtype=np.float32).reshape(4, 3))
        return {}

    file = file_of(kept(tmp_path, "features-x", 4, make).array)
    assert file is not None
    host = ClientHost(1, "cpu")
    assert host.open([file]) == {file}
    np.testing.assert_array_equal(host._opened[file], np.arange(12).reshape(4, 3))
    np.save(tmp_path / "other.npy", np.zeros((4, 3), dtype=np.float32))
    (tmp_path / "other.npy").replace(file.path)
    assert host.open([file]) == {file}, "it is open already, and is still what it was"
    assert host._opened[file][3, 2] == 11
    assert ClientHost(1, "cpu").open([file]) == set()


@pytest.mark.parametrize("view", ["rows", "turned", "other type", "copy"])
def test_a_part_of_a_file_is_not_taken_for_the_whole(view: str, tmp_path: Path) -> None:
    def make(add: Any) -> dict[str, int]:
        add(np.zeros((4, 4), dtype=np.float32))
        return {}

    array = kept(tmp_path, "features-x", 4, make).array
    assert file_of(array) == file_of(array.view()) == file_of(np.asarray(array)[:]) is not None
    views = {"rows": array[1:], "turned": array.T, "other type": array.view(np.int32), "copy": array.copy()}
    assert file_of(views[view]) is None
