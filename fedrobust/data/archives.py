"""Sources that are one or a few large files: npz, MedMNIST, PatchCamelyon."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from fedrobust.data.patches import Patches
from fedrobust.data.sources import FileSource, choose, resized
from fedrobust.errors import DataError

OFFICIAL = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}


class Npz(FileSource):
    """A NumPy archive: images, labels, and if there are any groups (patients), label_names, centres, split."""

    name: Literal["npz"] = "npz"

    home: ClassVar[str] = "your own patches, with numpy.savez"
    layout: ClassVar[str] = (
        "the .npz file, or a folder that holds only one: images uint8 (N, S, S, 3), labels (N,) 0..C-1, and if known "
        "groups (N,), centres (N,), label_names (C,), split (N,) of train, validation, test"
    )

    def locate(self) -> Path:
        place = self.first(Path.exists)
        if place.is_file():
            return place
        archives = sorted(place.glob("*.npz"))
        if len(archives) != 1:
            names = ", ".join(archive.name for archive in archives[:4])
            what = f"{len(archives)} .npz files ({names}): name one" if archives else "no .npz file"
            raise self.missing(f"{place} holds {what}")
        return archives[0]

    def check(self) -> None:
        file = self.locate()
        with _reading(file), np.load(file, allow_pickle=False) as archive:
            self._keys(file, archive)

    def _keys(self, file: Path, archive: Any) -> None:
        files = getattr(archive, "files", [])
        for key in ("images", "labels"):
            if key not in files:
                raise DataError(f"npz: {file} has no '{key}' (keys: {', '.join(files) or 'none'})")

    def load(self, seed: int) -> Patches:
        file = self.locate()
        with _reading(file), np.load(file, allow_pickle=False) as archive:
            self._keys(file, archive)
            optional = ("groups", "centres", "split", "label_names")
            arrays = {key: archive[key] for key in ("images", "labels", *optional) if key in archive.files}
        labels = arrays["labels"]
        names = arrays.pop("label_names", None)
        if names is None:
            top = int(labels.max()) if labels.size and np.issubdtype(labels.dtype, np.integer) else 0
            names = np.arange(top + 1)
        if self.limit is not None:
            self.patches(file, **arrays, label_names=names)  # says what is wrong before anything is picked
            chosen = choose(self.limit, seed, labels, *([arrays["split"]] if "split" in arrays else []))
            arrays = {key: array[chosen] for key, array in arrays.items()}
        return self.patches(file, **arrays, label_names=names)


class Medmnist(FileSource):
    """MedMNIST v2 (Yang et al. 2023): PathMNIST and its kin, with the official split; patients are unknown."""

    name: Literal["medmnist"] = "medmnist"
    dataset: Literal[
        "pathmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist", "breastmnist", "bloodmnist",
        "tissuemnist", "organamnist", "organcmnist", "organsmnist",
    ] = "pathmnist"  # fmt: skip
    """Which of them. PathMNIST is the one of H&E histology; grey images become RGB."""
    size: Literal[28, 64, 128, 224] = 28
    """Pixels a side; each size is a file of its own (224 of PathMNIST needs 16 GB of memory)."""
    download: bool = False
    """Let the medmnist package download the file when it is not there."""

    home: ClassVar[str] = (
        "https://medmnist.com or https://zenodo.org/records/10519652 (CC BY 4.0; DermaMNIST CC BY-NC 4.0) "
        "or with `download: true`"
    )
    layout: ClassVar[str] = "the folder that holds it"

    @property
    def file_name(self) -> str:
        """The name that MedMNIST gives the file."""
        return f"{self.dataset}{'' if self.size == 28 else f'_{self.size}'}.npz"

    def locate(self) -> Path:
        usual = Path.home() / ".medmnist"
        place = self.place()
        folders = [usual] if place is None else [place.parent if place.name == self.file_name else place, usual]
        for folder in folders:
            if (folder / self.file_name).is_file():
                return folder / self.file_name
        raise self.missing(f"there is no {self.file_name} in {' or '.join(map(str, folders))}")

    def check(self) -> None:
        if not self.download:
            self.locate()

    def load(self, seed: int) -> Patches:
        import medmnist

        information = medmnist.INFO[self.dataset]
        dataset = getattr(medmnist, information["python_class"])
        if self.download and self.found() is None:
            folder = self.place() or Path.home() / ".medmnist"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                dataset(split="test", download=True, root=str(folder), size=self.size)
            except (OSError, RuntimeError) as error:
                first = " ".join(str(error).split()).partition("!")[0]
                raise self.missing(f"downloading {self.file_name} to {folder} failed ({first})") from None
        file = self.locate()
        images, labels, split = [], [], []
        with _reading(file):
            for part in ("train", "val", "test"):
                read = dataset(split=part, root=str(file.parent), size=self.size)
                label = np.asarray(read.labels)
                if label.ndim != 2 or label.shape[1] != 1 or len(label) != len(read.imgs):
                    raise DataError(f"medmnist: {file}: {part} has images {read.imgs.shape}, labels {label.shape}")
                share = None if self.limit is None else max(1, round(self.limit * _share(information, part)))
                chosen = choose(share, seed, label[:, 0])
                picked = read.imgs[chosen]
                images.append(picked if picked.ndim == 4 else np.repeat(picked[..., None], 3, axis=3))
                labels.append(label[chosen, 0])
                split += [OFFICIAL[part]] * len(chosen)
        return self.patches(
            file,
            images=np.concatenate(images),
            labels=np.concatenate(labels),
            split=np.array(split),
            label_names=tuple(information["label"][key] for key in sorted(information["label"], key=int)),
        )


def _share(information: dict[str, Any], part: str) -> float:
    counts = information["n_samples"]
    return float(counts[part] / sum(counts.values()))


class Pcam(FileSource):
    """PatchCamelyon (Veeling et al. 2018): lymph node metastases, official split; slides from the meta files."""

    name: Literal["pcam"] = "pcam"

    home: ClassVar[str] = "https://github.com/basveeling/pcam (CC0)"
    layout: ClassVar[str] = (
        "the folder of the unpacked camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5 and, for the slide of "
        "each patch, camelyonpatch_level_2_split_{train,valid,test}_meta.csv"
    )

    def locate(self) -> Path:
        folder = self.first(lambda place: _pcam(place, "train", "x.h5").is_file(), "pcam", "pcamv1")
        for part in ("train", "valid", "test"):
            for end in ("x.h5", "y.h5"):
                if not _pcam(folder, part, end).is_file():
                    raise self.missing(f"{_pcam(folder, part, end)} does not exist")
        return folder

    def load(self, seed: int) -> Patches:
        folder = self.locate()
        parts = ("train", "valid", "test")
        tables = [_pcam(folder, part, "meta.csv") for part in parts]
        labels = [self._labels(_pcam(folder, part, "y.h5")) for part in parts]
        sizes = [len(label) for label in labels]
        split = np.repeat([OFFICIAL[part] for part in parts], sizes)
        every = np.concatenate(labels)
        groups = None
        if all(table.is_file() for table in tables):
            groups = np.concatenate([_slides(table, size) for table, size in zip(tables, sizes, strict=True)])
        chosen = choose(self.limit, seed, every, split)
        starts = np.cumsum([0, *sizes])
        images = [
            self._images(_pcam(folder, part, "x.h5"), size, chosen[(chosen >= start) & (chosen < start + size)] - start)
            for part, size, start in zip(parts, sizes, starts[:-1], strict=True)
        ]
        return Patches(
            images=np.concatenate(images),
            labels=every[chosen],
            label_names=("no tumour", "tumour"),
            groups=None if groups is None else groups[chosen],
            split=split[chosen],
        )

    def _labels(self, file: Path) -> np.ndarray:
        labels = np.asarray(_h5(file, "y")).reshape(-1)
        if not np.issubdtype(labels.dtype, np.integer) or not np.isin(labels, (0, 1)).all():
            raise DataError(f"pcam: {file}: labels must be the integers 0 and 1")
        return labels.astype(np.int64)

    def _images(self, file: Path, size: int, chosen: np.ndarray) -> np.ndarray:
        """The chosen rows, read block by block so that memory holds no more than them."""
        import h5py

        with _reading(file), h5py.File(file, "r") as archive:
            rows = archive.get("x")
            shape: tuple[int, ...] = getattr(rows, "shape", ())
            if rows is None or len(shape) != 4 or shape[3] != 3 or rows.dtype != np.uint8:
                raise DataError(f"pcam: {file}: 'x' must be uint8 (N, 96, 96, 3)")
            if shape[0] != size:
                raise DataError(f"pcam: {file}: {shape[0]} images, but {size} labels")
            side = self.size or shape[1]
            images = np.empty((len(chosen), side, side, 3), dtype=np.uint8)
            block = 512
            for start in np.unique(chosen // block) * block:
                low, high = np.searchsorted(chosen, (start, start + block))
                first, last = chosen[low], chosen[high - 1]
                picked = rows[first : last + 1][chosen[low:high] - first]
                images[low:high] = picked if side == shape[1] else resized(picked, side)
        return images


def _pcam(folder: Path, part: str, end: str) -> Path:
    return folder / f"camelyonpatch_level_2_split_{part}_{end}"


def _h5(file: Path, key: str) -> np.ndarray:
    import h5py

    with _reading(file), h5py.File(file, "r") as archive:
        if key not in archive:
            raise DataError(f"pcam: {file} has no '{key}' (keys: {', '.join(archive) or 'none'})")
        return np.asarray(archive[key])


def _slides(table: Path, size: int) -> np.ndarray:
    import pandas as pd

    with _reading(table):
        slides = pd.read_csv(table, usecols=["wsi"], dtype=str)["wsi"]
    if len(slides) != size:
        raise DataError(f"pcam: {table}: {len(slides)} rows, but {size} labels")
    return np.asarray(slides.to_numpy(dtype=np.str_))


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns what the readers raise about a damaged file into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
