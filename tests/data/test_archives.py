from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import get_args

import h5py
import medmnist
import numpy as np
import pytest
import torchvision.datasets.utils
from refused import refused

from fedrobust.data import Medmnist, Npz, Pcam, Split, sources
from fedrobust.data.cache import file_of, keeping_in
from fedrobust.data.sources import choose
from fedrobust.errors import DataError

REAL = Path(__file__).parents[2].parent / "shared/data/idc_breast_48.npz"


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("FEDROBUST_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# npz


def archive(path: Path, **changes) -> Path:
    arrays = {"images": pixels(1, 12, 10, 10, 3), "labels": np.arange(12) % 3, "groups": np.arange(12) // 2} | changes
    np.savez_compressed(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_npz_reads_a_file_a_folder_or_the_variable(tmp_path, monkeypatch):
    file = archive(tmp_path / "tissue.npz", label_names=np.array(["x", "y", "z"]), centres=np.repeat(["p", "q"], 6))
    patches = Npz(path=str(file)).load(0)
    assert np.array_equal(patches.images, pixels(1, 12, 10, 10, 3))
    assert patches.label_names == ("x", "y", "z") and patches.groups[-1] == "5" and patches.centres[-1] == "q"
    assert patches.split is None and patches.labels.dtype == np.int64
    assert Npz(path=str(tmp_path)).load(0).digest == patches.digest
    monkeypatch.setenv("FEDROBUST_DATA", str(tmp_path))
    assert Npz().load(0).digest == patches.digest and Npz().found() == str(file)
    archive(tmp_path / "other.npz")
    with refused(DataError, file=tmp_path, says="(other.npz, tissue.npz)"):
        Npz().check()


def test_npz_limit_and_size(tmp_path):
    file = archive(tmp_path / "a.npz", groups=None)
    full, some = Npz(path=str(file)).load(0), Npz(path=str(file), limit=6, size=8).load(0)
    assert full.label_names == ("0", "1", "2") and full.groups is None
    assert some.images.shape == (6, 8, 8, 3) and np.bincount(some.labels).tolist() == [2, 2, 2]
    assert Npz(path=str(file), limit=6, size=8).load(0).digest == some.digest
    chequered = np.broadcast_to(
        (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[None, :, :, None], (12, 32, 32, 3)
    )
    shrunk = Npz(path=str(archive(tmp_path / "b.npz", images=chequered)), size=8).load(0).images
    assert np.abs(shrunk.astype(int) - 127).max() <= 10  # antialiased: the mean, not every fourth pixel


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"labels": None}, {"path": "labels", "found": "images, groups"}),
        ({"images": pixels(1, 12, 10, 10, 3).astype(float)}, {"path": "images", "found": "float64 (12, 10, 10, 3)"}),
        ({"labels": np.arange(5)}, {"path": "labels", "found": "5", "says": "12 images"}),
        ({"labels": np.arange(12) - 1}, {"path": "labels", "found": "-1..10, 12 different ones"}),
        ({"label_names": np.array(["x", "y"])}, {"path": "labels", "found": "0..2", "says": "0..1"}),
        ({"groups": np.array([{}] * 12)}, {"path": "groups", "found": "dtype object"}),
        ({"split": np.array(["fit"] * 12)}, {"path": "split", "found": "'fit'", "allows": "validation"}),
    ],
)
def test_damaged_npz_files_are_refused_in_a_line(tmp_path, changes, problem):
    file = archive(tmp_path / "a.npz", **changes)
    for source in (Npz(path=str(file)), Npz(path=str(file), limit=3)):
        with refused(DataError, file=file, **problem):
            source.load(0)


def test_files_that_are_no_npz_or_are_cut_short_are_refused(tmp_path):
    file = tmp_path / "a.npz"
    file.write_bytes(b"not an archive")
    with refused(DataError, file=file, says="read"):
        Npz(path=str(file)).check()
    whole = archive(tmp_path / "b.npz").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with refused(DataError, file=file, says="read"):
        Npz(path=str(file)).load(0)
    middle = len(whole) // 3
    file.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with refused(DataError, file=file, says="read"):
        Npz(path=str(file)).load(0)


@pytest.mark.skipif(not REAL.exists() and os.environ.get("CI") != "true", reason=f"{REAL.name} is not beside this tree")
def test_the_real_idc_file():
    patches = Npz(path=str(REAL)).load(0)
    assert patches.images.shape == (10106, 48, 48, 3)
    assert np.bincount(patches.labels).tolist() == [7413, 2693] and len(patches.label_names) == 2
    assert len(np.unique(patches.groups)) == 279
    indices = Split().indices(patches, 0)
    for index, share in zip(indices.values(), (0.7, 0.1, 0.2), strict=True):
        assert len(index) / 10106 == pytest.approx(share, abs=0.01)
        assert patches.labels[index].mean() == pytest.approx(0.266, abs=0.01)


# medmnist


def medmnist_file(folder: Path, name="pathmnist", side=28, grey=False, counts=(30, 6, 9), classes=9, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for seed, (part, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        arrays[f"{part}_images"] = pixels(seed, count, side, side, *(() if grey else (3,)))
        arrays[f"{part}_labels"] = (np.arange(count)[:, None] % classes).astype(np.uint8)
    arrays |= changes
    file = folder / f"{name}.npz"
    np.savez_compressed(file, **{key: value for key, value in arrays.items() if value is not None})
    return file


def test_medmnist_reads_the_official_split(tmp_path, monkeypatch):
    file = medmnist_file(tmp_path)
    patches = Medmnist(path=str(tmp_path)).load(0)
    assert patches.split.tolist() == ["train"] * 30 + ["validation"] * 6 + ["test"] * 9
    assert np.array_equal(patches.images[30:36], pixels(1, 6, 28, 28, 3))
    assert patches.label_names[0] == "adipose" and len(patches.label_names) == 9 and patches.groups is None
    assert Medmnist(path=str(file)).load(0).digest == patches.digest
    assert [len(index) for index in Split(by="official").indices(patches, 0).values()] == [30, 6, 9]
    medmnist_file(Path.home() / ".medmnist")
    assert Medmnist().load(0).digest == patches.digest


def test_medmnist_other_sizes_grey_images_and_limit(tmp_path):
    medmnist_file(tmp_path, "pathmnist_64", side=64)
    medmnist_file(tmp_path, "breastmnist", grey=True, classes=2)
    assert Medmnist(path=str(tmp_path), size=64).load(0).images.shape == (45, 64, 64, 3)
    grey = Medmnist(path=str(tmp_path), dataset="breastmnist").load(0)
    assert np.array_equal(grey.images[0], np.repeat(pixels(0, 30, 28, 28)[0][..., None], 3, axis=2))
    assert grey.classes == 2
    some = Medmnist(path=str(tmp_path), dataset="breastmnist", limit=10).load(0)
    assert len(some) < 16 and set(some.split) == {"train", "validation", "test"}


def test_medmnist_names_are_those_of_the_package():

    allowed = get_args(Medmnist.model_fields["dataset"].annotation)
    flat = {name for name, about in medmnist.INFO.items() if "3d" not in name and "multi-label" not in about["task"]}
    assert set(allowed) == flat


def test_medmnist_is_offline_unless_asked_and_says_when_a_download_fails(tmp_path, monkeypatch):
    asked = []

    def refuse(url, root, filename, md5):
        asked.append((url, root, filename))
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", refuse)
    with refused(DataError, file=None, says="no pathmnist.npz"):
        Medmnist(path=str(tmp_path)).load(0)
    assert asked == []
    source = Medmnist(path=str(tmp_path / "new"), download=True)
    source.check()
    with refused(DataError, file=tmp_path / "new", says="Automatic download failed"):
        source.load(0)
    assert asked[0][1:] == (str(tmp_path / "new"), "pathmnist.npz")
    medmnist_file(tmp_path / "new")
    source.load(0)
    assert len(asked) == 1


def test_medmnist_is_downloaded_once_by_runs_that_start_together(tmp_path, monkeypatch):
    asked = []

    def fetch(url, root, filename, md5):
        asked.append(root)
        sleep(0.1)
        medmnist_file(Path(root))

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fetch)
    source = Medmnist(path=str(tmp_path), download=True)
    with ThreadPoolExecutor(3) as threads:
        found = [each.digest for each in threads.map(lambda _: source.load(0), range(3))]
    assert len(asked) == 1 and len(set(found)) == 1


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"val_images": None}, "val_images"),
        ({"train_labels": np.zeros((4, 1), np.uint8)}, "train"),
        ({"test_labels": np.full((9, 1), 9, np.uint8)}, "labels"),
        ({"train_labels": np.zeros((30, 2), np.uint8)}, "train"),
    ],
)
def test_damaged_medmnist_files_are_refused(tmp_path, changes, path):
    file = medmnist_file(tmp_path, **changes)
    with refused(DataError, file=file, path=path):
        Medmnist(path=str(tmp_path)).load(0)


# pcam


def pcam_files(folder: Path, counts=(600, 40, 50), meta=True, **changes) -> None:
    folder.mkdir(exist_ok=True)
    for seed, (part, count) in enumerate(zip(("train", "valid", "test"), counts, strict=True)):
        stem = f"camelyonpatch_level_2_split_{part}_"
        with h5py.File(folder / f"{stem}x.h5", "w") as file:
            file["x"] = pixels(seed, count, 12, 12, 3)
        with h5py.File(folder / f"{stem}y.h5", "w") as file:
            file[changes.get("key", "y")] = (np.arange(count) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
        if meta:
            rows = [f"{i},{i},{i},{i % 2},{i % 2},camelyon16_{part}_{i // 10:03d}" for i in range(count)]
            header = ",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi"
            (folder / f"{stem}meta.csv").write_text("\n".join([header, *rows]) + "\n")


def test_pcam_reads_the_official_split_and_the_slides(tmp_path):
    pcam_files(tmp_path)
    patches = Pcam(path=str(tmp_path)).load(0)
    assert patches.images.shape == (690, 12, 12, 3)
    assert np.array_equal(patches.images[600:640], pixels(1, 40, 12, 12, 3))
    assert patches.labels[:4].tolist() == [0, 1, 0, 1] and patches.label_names == ("no tumour", "tumour")
    assert patches.groups[0] == "camelyon16_train_000" and len(np.unique(patches.groups)) == 69
    assert [len(index) for index in Split(by="official").indices(patches, 0).values()] == [600, 40, 50]


def test_pcam_limit_picks_the_same_rows_as_a_full_reading(tmp_path):
    pcam_files(tmp_path, meta=False)
    full = Pcam(path=str(tmp_path)).load(0)
    some = Pcam(path=str(tmp_path), limit=70).load(3)
    assert full.groups is None and len(some) == 70
    chosen = choose(70, 3, full.labels, full.split)
    assert np.array_equal(some.images, full.images[chosen]) and np.array_equal(some.labels, full.labels[chosen])
    assert Pcam(path=str(tmp_path), limit=20, size=8).load(0).images.shape == (20, 8, 8, 3)


def test_damaged_pcam_files_are_refused(tmp_path):
    pcam_files(tmp_path)
    table = tmp_path / "camelyonpatch_level_2_split_test_meta.csv"
    table.write_text(",wsi\n0,slide\n")
    with refused(DataError, file=table, path="wsi", found="1", says="50 images"):
        Pcam(path=str(tmp_path)).load(0)
    table.write_text(",slide\n0,slide\n")
    with refused(DataError, file=table, path="wsi", found="slide"):
        Pcam(path=str(tmp_path)).load(0)
    pcam_files(tmp_path, key="labels")
    with refused(DataError, path="y", found="labels"):
        Pcam(path=str(tmp_path)).load(0)
    pcam_files(tmp_path)
    images = tmp_path / "camelyonpatch_level_2_split_valid_x.h5"
    with h5py.File(images, "w") as file:
        file["x"] = pixels(0, 3, 12, 12, 3)
    with refused(DataError, path="y", found="40", says="3 images"):
        Pcam(path=str(tmp_path)).load(0)
    images.write_bytes(b"not hdf5")
    with refused(DataError, file=images, says="read"):
        Pcam(path=str(tmp_path)).load(0)
    images.unlink()
    with refused(DataError, file=images, says="exist"):
        Pcam(path=str(tmp_path)).check()


# the cache


@pytest.mark.parametrize("kind", [Npz, Medmnist, Pcam])
@pytest.mark.parametrize("options", [{}, {"limit": 20}])
def test_what_is_read_from_archives_is_kept(tmp_path, monkeypatch, kind, options):
    monkeypatch.setattr(sources, "MANY", 5)
    if kind is not Medmnist:
        options = options | {"size": 8}
    make = {Npz: lambda: archive(tmp_path / "a.npz"), Medmnist: lambda: medmnist_file(tmp_path)}
    make.get(kind, lambda: pcam_files(tmp_path, counts=(60, 40, 50)))()
    source, looked = kind(path=str(tmp_path), **options), []
    plain = source.load(0)
    outlined = kind.outlined

    def counting(self, where, pixels, files, **arrays):
        return outlined(self, where, lambda chosen: looked.append(1) or pixels(chosen), files, **arrays)

    monkeypatch.setattr(kind, "outlined", counting)
    for _ in range(2):
        with keeping_in(tmp_path / "cache"):
            patches = source.load(0)
        assert looked == [1] and patches.digest == plain.digest and file_of(patches.images) is not None
    for file in [*tmp_path.glob("*.npz"), *tmp_path.glob("*train_x.h5")]:
        os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    with keeping_in(tmp_path / "cache"):
        assert source.load(0).digest == plain.digest and looked == [1, 1]
