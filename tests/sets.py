"""A small set of files for each data source, with twelve patients or more where a source names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from fedrobust.data import Camelyon17, Folder, Histology, Idc, Medmnist, Npz, PatchTable, Pcam, Source


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def histology(folder: Path) -> Histology:
    return Histology(patients=12, patches_per_patient=5, size=16)


def npz(folder: Path) -> Npz:
    numbers = np.arange(60)
    optional = {"groups": numbers // 3, "centres": numbers // 20, "split": np.repeat(["train", "test"], [42, 18])}
    np.savez(folder / "set.npz", images=noise(0, 60, 8, 8, 3), labels=numbers % 2, **optional)
    return Npz(path=str(folder))


def idc(folder: Path) -> Idc:
    """One of five files of each patient is cut by the slide's edge."""
    for patient in range(12):
        for tile in range(5):
            side, label = (20 if tile == 4 else 50), tile % 2
            file = folder / f"{patient}/{label}/{patient}_idx5_x{51 * tile}_y1_class{label}.png"
            picture(file, noise(100 * patient + tile, side, 50, 3))
    return Idc(path=str(folder))


def folder(folder: Path) -> Folder:
    for number in range(60):
        picture(folder / "ab"[number % 2] / f"P{number // 3}_{number}.png", noise(number, 8, 8, 3))
    return Folder(path=str(folder), patients="/([^/_]+)_[^/]*$")


def camelyon17(folder: Path) -> Camelyon17:
    rows = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for number in range(60):
        patient, x = number // 3, 10 * number
        rows.append(f"{number},{patient},0,{x},7,{number % 2},0,{patient % 5},0")
        here = folder / "patches" / f"patient_{patient}_node_0"
        picture(here / f"patch_patient_{patient}_node_0_x_{x}_y_7.png", noise(number, 8, 8, 3))
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return Camelyon17(path=str(folder))


def medmnist(folder: Path) -> Medmnist:
    arrays = {}
    for part, count in (("train", 30), ("val", 6), ("test", 10)):
        arrays[f"{part}_images"] = noise(count, count, 28, 28)
        arrays[f"{part}_labels"] = (np.arange(count)[:, None] % 2).astype(np.uint8)
    np.savez(folder / "breastmnist.npz", **arrays)
    return Medmnist(path=str(folder), dataset="breastmnist")


def pcam(folder: Path) -> Pcam:
    for part, count in (("train", 60), ("valid", 20), ("test", 30)):
        stem = f"{folder}/camelyonpatch_level_2_split_{part}_"
        with h5py.File(f"{stem}x.h5", "w") as file:
            file["x"] = noise(count, count, 12, 12, 3)
        with h5py.File(f"{stem}y.h5", "w") as file:
            file["y"] = (np.arange(count) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
        rows = "".join(f"{number},{part}_{number // 5}\n" for number in range(count))
        Path(f"{stem}meta.csv").write_text(f",wsi\n{rows}")
    return Pcam(path=str(folder))


def table(folder: Path) -> PatchTable:
    rows = ["image,label,patient,centre,split"]
    for number in range(60):
        picture(folder / "patches" / f"{number}.png", noise(number, 8, 8, 3))
        part = "train" if number < 42 else "test"
        rows.append(f"patches/{number}.png,{number % 2},{number // 3},{number // 20},{part}")
    (folder / "patches.csv").write_text("\n".join(rows) + "\n")
    return PatchTable(path=str(folder))


MADE: dict[str, Callable[[Path], Source]] = {
    each.__name__: each for each in (histology, npz, idc, folder, medmnist, pcam, camelyon17, table)
}
"""Name of a source → writes a set of its files into a folder, and returns the source."""
