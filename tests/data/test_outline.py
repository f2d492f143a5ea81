"""What a table, file names or headers can tell is checked before the first image is decoded, for every source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import h5py
import numpy as np
import pytest
from PIL import Image
from refused import refused
from sets import MADE, idc, noise, npz

from fedrobust.data import (
    ByCentre,
    ByGroup,
    Dirichlet,
    Iid,
    NoNormalisation,
    Npz,
    Outline,
    Partition,
    Patches,
    Shards,
    Source,
    Split,
    StainShift,
)
from fedrobust.data.foreign import Archive
from fedrobust.data.hospitals import Hospitals, divide
from fedrobust.data.patches import Decoded
from fedrobust.data.sources import FileSource, outline_of
from fedrobust.errors import DataError
from fedrobust.options import members

BY_PATIENT = sorted(MADE.keys() - {"medmnist"})


def forbid_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, no image can be opened, read from an archive or generated."""

    def opened(*_: object, **__: object) -> Any:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(Image, "open", opened)
    monkeypatch.setattr("fedrobust.data.tissue.draw", opened)
    monkeypatch.setattr(Archive, "rows", opened)
    read, get = Archive.read, h5py.Dataset.__getitem__

    def labels_alone(self: Archive, *keys: str) -> dict[str, np.ndarray]:
        return opened() if any("images" in key for key in keys) else read(self, *keys)

    def no_images(self: h5py.Dataset, *at: Any) -> Any:
        return opened() if self.shape[1:3] == (12, 12) else get(self, *at)

    monkeypatch.setattr(Archive, "read", labels_alone)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", no_images)


def divided(source: Source, cache: Path, split: Split, partition: Partition, clients: int = 2) -> Hospitals:
    return divide(source, split, partition, StainShift(), NoNormalisation(), clients, 0, cache)


def test_every_source_is_tested_here() -> None:
    assert set(MADE) == set(members(Source))


@pytest.mark.parametrize("name", sorted(MADE))
def test_an_outline_tells_everything_but_the_pixels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MADE[name](tmp_path)
    whole = source.load(0)
    forbid_images(monkeypatch)
    outline = source.outline(0)
    assert type(outline) is Outline and outline.label_names == whole.label_names
    if name != "idc":  # whose files show their sizes when they are opened
        for key in ("labels", "groups", "centres", "split"):
            told, loaded = getattr(outline, key), getattr(whole, key)
            assert (told is None) == (loaded is None) and (told is None or (told == loaded).all())
    with pytest.raises((AssertionError, DataError), match="an image was decoded"):
        outline.decode()


NO_CENTRES, NO_DIVISION = ("folder", "idc", "pcam"), ("folder", "histology", "idc")
OFFICIAL = Split(by="official")
ANY = Dirichlet(minimum=1)
REFUSALS: list[tuple[str, dict[str, Any], Split, Partition, int, dict[str, Any]]] = [
    *((name, {}, Split(), Iid(minimum=100), 20, {"path": "partition", "says": "100 or more"}) for name in BY_PATIENT),
    *((name, {}, Split(by="patch"), ANY, 2, {"path": "split.by", "says": "both sides"}) for name in BY_PATIENT),
    *((name, {}, Split(), ByGroup(), 999, {"path": "partition", "says": "patients"}) for name in BY_PATIENT),
    *((name, {}, Split(), Shards(minimum=1), 999, {"path": "partition"}) for name in BY_PATIENT),
    *((name, {}, Split(), Dirichlet(alpha=0.01, minimum=30), 40, {"path": "partition"}) for name in BY_PATIENT),
    *((name, {}, Split(), ByCentre(), 2, {"path": "partition", "says": "centres"}) for name in NO_CENTRES),
    *((name, {}, OFFICIAL, ANY, 2, {"path": "split.by", "found": "official"}) for name in NO_DIVISION),
    ("medmnist", {}, Split(), ANY, 2, {"path": "split.by", "says": "patients of these data are unknown"}),
    ("medmnist", {}, OFFICIAL, ByGroup(), 2, {"path": "partition", "says": "patients are unknown"}),
    ("folder", {"patients": None}, Split(), ANY, 2, {"path": "split.by", "says": "unknown"}),
    ("folder", {"patients": "(Q)"}, Split(), ANY, 2, {"path": "source.patients"}),
    ("npz", {"limit": 2}, Split(), ANY, 2, {"path": "split"}),
    ("histology", {"patients": 1}, Split(), ANY, 2, {"path": "split", "says": "3 parts"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "split", "partition", "clients", "problem"), REFUSALS)
def test_what_a_run_cannot_use_is_refused_before_an_image_is_opened(
    name: str,
    changes: dict[str, Any],
    split: Split,
    partition: Partition,
    clients: int,
    problem: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = MADE[name](tmp_path).model_copy(update=changes)
    forbid_images(monkeypatch)
    with refused(DataError, **problem):
        divided(source, tmp_path, split, partition, clients)


@pytest.mark.parametrize("key", ["images", "labels"])
def test_an_npz_that_cannot_be_used_is_refused_by_its_header(key: str, tmp_path: Path, monkeypatch) -> None:
    arrays = {"images": noise(0, 6, 8, 8, 3), "labels": np.arange(6) % 2, "groups": np.arange(6)}
    np.savez(tmp_path / "a.npz", **arrays | {key: arrays[key].astype(np.float32)})
    forbid_images(monkeypatch)
    with refused(DataError, path=key, file=tmp_path / "a.npz", says="must be"):
        Npz(path=str(tmp_path)).outline(0)


def test_hospitals_are_those_of_the_patches_that_can_be_used(tmp_path: Path) -> None:
    """The files of IDC show when they are opened that a slide's edge cuts them."""
    source = idc(tmp_path / "set")
    outline, patches = source.outline(0), source.load(0)
    assert (len(outline), len(patches)) == (60, 48)
    found = divided(source, tmp_path, Split(), ByGroup(minimum=1))
    assert np.array_equal(found.labels, patches.labels)
    expected = Split().indices(patches, 0)
    assert all(np.array_equal(found.indices[part], index) for part, index in expected.items())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("chosen", [[], [0], [3, 4, 2998], list(range(3000))])
def test_the_rows_of_an_archive(order: str, save: Callable[..., None], chosen: list[int], tmp_path: Path) -> None:
    array = np.asarray(noise(0, 3000, 30, 30, 3), order=order)  # type: ignore[call-overload]
    save(tmp_path / "a.npz", images=array)
    assert np.array_equal(Archive(tmp_path / "a.npz").rows("images", np.array(chosen, dtype=int)), array[chosen])


def test_only_narrows_what_is_decoded() -> None:
    asked = []

    def pixels(chosen: np.ndarray) -> Decoded:
        asked.append(chosen.tolist())
        images = np.repeat(chosen[::2].astype(np.uint8), 48).reshape(-1, 4, 4, 3)
        return Decoded(images, np.arange(0, len(chosen), 2), notes=("half",))

    labels = np.arange(9) % 3
    outline = Outline(labels=labels, label_names=("a", "b", "c"), groups=np.arange(9), pixels=pixels)
    some = outline.only(np.array([1, 3, 4, 7, 8])).only(np.array([0, 1, 3, 4]))
    assert some.groups is not None and some.groups.tolist() == ["1", "3", "7", "8"] and asked == []
    patches = some.decode()
    assert patches.notes == ("half",)
    assert asked == [[1, 3, 7, 8]]
    assert patches.groups is not None and patches.groups.tolist() == ["1", "7"]
    assert patches.images[:, 0, 0, 0].tolist() == [1, 7] and patches.labels.tolist() == [1, 1]
    assert patches.decode() is patches and patches.only(np.array([1])).decode().images[0, 0, 0, 0] == 7


# sources of users


class Loads(Source):
    """A source as users write it: it only has `load`."""

    name: Literal["loads"] = "loads"

    def load(self, seed: int) -> Patches:
        images, labels = noise(seed, 40, 8, 8, 3), np.arange(40) % 2
        return Patches(images=images, labels=labels, label_names=("a", "b"), groups=np.arange(40) // 2)


class Darker(Npz):
    """A source of the package, whose `load` does more."""

    def load(self, seed: int) -> Patches:
        found = super().load(seed)
        return Patches(
            images=found.images // 2, labels=found.labels, label_names=found.label_names, groups=found.groups
        )


class Outlines(Loads):
    """A source with an outline of its own, below one that loads."""

    asked: ClassVar[list[int]] = []

    def outline(self, seed: int) -> Outline:
        self.asked.append(seed)
        return super().load(seed)


def test_a_source_that_only_loads_is_divided(tmp_path: Path) -> None:
    assert divided(Loads(), tmp_path, Split(), ANY).digest == Loads().load(0).digest
    npz(tmp_path)
    darker = Darker(path=str(tmp_path))
    assert divided(darker, tmp_path, Split(), ANY).images.max() == 127
    assert outline_of(darker, 0).decode().digest == darker.load(0).digest
    divided(Outlines(), tmp_path, Split(), ANY)
    assert Outlines.asked == [0]


def test_file_sources_share_one_way_to_load() -> None:
    assert not [each for each in members(FileSource).values() if "load" in vars(each)]
