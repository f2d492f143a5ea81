"""Arrays of Python objects in an npz: the error has the lines that save them rightly, and these lines do."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from refused import refused

from fedrobust.data import Npz
from fedrobust.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), dtype=np.uint8)
LABELS = np.arange(12) % 2
NAMES = np.array(["a", "b"])[LABELS]


def objects(values: Any, *gaps: Any) -> np.ndarray:
    """An array of objects whose first ones are `gaps`."""
    found = np.empty(len(values), dtype=object)
    found[:] = [*gaps, *list(values)[len(gaps) :]]
    return found


RAGGED = objects([image[: 40 + 4 * number, : 40 + 4 * number] for number, image in enumerate(IMAGES)])


@pytest.mark.parametrize(
    ("key", "array", "patches"),
    [
        ("images", objects(IMAGES), 12),
        ("images", RAGGED, 12),
        ("images", IMAGES.astype(object), 12),
        ("labels", objects(LABELS), 12),
        ("labels", objects(LABELS.tolist()), 12),
        ("labels", objects(NAMES.tolist()), 12),
        ("labels", objects(LABELS.tolist(), None), 11),
        ("labels", objects(LABELS.tolist(), float("nan"), None), 10),
        ("labels", objects(NAMES.tolist(), None), 11),
        ("groups", objects(list("abcdefghijkl")), 12),
        ("groups", objects(list("abcdefghijkl"), 3, 4.5), 12),
        ("groups", objects(list("abcdefghijkl"), None, None, float("nan")), 9),
        ("groups", objects([[letter] for letter in "abcdefghijkl"]), 12),
        ("groups", objects(np.array(list("abcdefghijkl"))), 12),
        ("centres", objects(["Aachen", "Bonn"] * 6), 12),
        ("split", objects(["train"] * 8 + ["test"] * 4, None), 11),
        ("label_names", objects(["a", "b"]), 12),
    ],
)
def test_the_error_has_the_lines_that_save_the_array(key: str, array: np.ndarray, patches: int, tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    names: dict[str, Any] = {"images": IMAGES, "labels": LABELS, key: array}
    np.savez(file, allow_pickle=True, **names)
    for _ in range(2):  # what has lost its gaps is still an array of objects
        with suppress(DataError):
            Npz(path=str(file)).load(0)
            break
        names = saved_as_told(file, key, names)
    found = Npz(path=str(file)).load(0)
    assert len(found) == patches and found.images.shape[1:] == (96, 96, 3)
    if array is not RAGGED:
        assert (found.images == IMAGES[12 - patches :]).all()
    if key == "groups":
        assert found.groups is not None and len(set(found.groups)) == patches


def saved_as_told(file: Path, key: str, names: dict[str, Any]) -> dict[str, Any]:
    """Do what the error says; the arrays that are then in the file."""
    with refused(DataError, path=key, file=file, says="without pickle") as caught:
        Npz(path=str(file)).check()
    (problem,) = caught.value.problems  # type: ignore[attr-defined]
    told = problem.hint.partition("to save it rightly: ")[2]
    code, _, before = told.partition("; if their sizes differ, before it ")
    if before and len({image.shape for image in names["images"]}) > 1:
        code = f"{before}\n{code}"
    code = code.rpartition("without these patches: ")[2].partition(" for one text")[0].replace("; ", "\n")
    code = code.replace("...", ", ".join(f"{name}={name}" for name in names if f"{name}=" not in code))
    exec(code, {"numpy": np, "PIL": PIL, "file": file, **names})
    with np.load(file, allow_pickle=True) as written:
        return dict(written)


def test_an_array_of_nothing_is_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=True, images=IMAGES, labels=LABELS, centres=objects([None] * 12))
    with refused(DataError, path="centres") as caught:
        Npz(path=str(tmp_path)).check()
    assert "leave centres out" in str(caught.value)


@pytest.mark.parametrize("cut", [1, 40, 100])
def test_a_damaged_array_of_objects_is_refused_all_the_same(cut: int, tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, objects(["a"] * 12), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        np.savez(tmp_path / "b.npz", images=IMAGES)
        file.writestr("images.npy", zipfile.ZipFile(tmp_path / "b.npz").read("images.npy"))
        file.writestr("labels.npy", stream.getvalue()[:-cut])
    with refused(DataError, path="labels", says="without pickle"):
        Npz(path=str(tmp_path / "a.npz")).check()
