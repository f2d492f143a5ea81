"""Sources that are one or a few large files: npz, MedMNIST, PatchCamelyon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from fedrobust.data.foreign import HDF, Archive, checked_dataset, reading, require_memory
from fedrobust.data.packed import packed_twin
from fedrobust.data.patches import SPLIT_NAMES, Decoded, Outline, numbering, refuse_images, refuse_uneven
from fedrobust.data.pixels import resized
from fedrobust.data.sources import FileSource, choose
from fedrobust.data.table_file import read_table
from fedrobust.errors import DataError, Problem
from fedrobust.locks import alone


class Npz(FileSource):
    """A NumPy archive: images and labels; optionally groups (patients), label_names, centres and split."""

    name: Literal["npz"] = "npz"

    home: ClassVar[str] = "your own patches, with numpy.savez"
    layout: ClassVar[str] = (
        "the .npz file, or a folder that holds only one: images uint8 (N, S, S, 3), labels (N,) 0..C-1, and if known "
        "groups (N,), centres (N,), label_names (C,), split (N,) of train, validation, test"
    )
    patients_from: ClassVar[str] = "add the array groups, the patient of each patch, to the .npz file"
    _optional: ClassVar[tuple[str, ...]] = ("groups", "centres", "split")

    def locate(self) -> Path:
        return self.one_file((".npz",))

    def check(self) -> None:
        self._opened(self.locate())

    def _opened(self, file: Path) -> Archive:
        archive = Archive(file, ("images", "labels", *self._optional, "label_names"))
        archive.require("images", "labels")
        counts = {key: shape[0] if shape else 0 for key, shape in archive.shapes.items()}
        for key in ("labels", *self._optional):
            with self.naming(file):
                refuse_uneven(key, counts.get(key, counts["images"]), counts["images"])
        return archive

    def outline(self, seed: int) -> Outline:
        file = self.locate()
        archive = self._opened(file)
        arrays = archive.read("labels", *self._optional, "label_names")
        labels = arrays["labels"]
        with self.naming(file):
            refuse_images(archive.shapes["images"], archive.dtypes["images"])
            names = arrays.pop("label_names") if "label_names" in arrays else numbering(labels)

        def pixels(chosen: np.ndarray) -> Decoded:
            images = archive.rows("images", chosen)
            if images[:256].max() == 1:  # the first ones show it
                reason = "the brightest pixel is 1 of 255: scale images of 0..1 by 255 before .astype"
                raise DataError(Problem(reason, "images").at(file))
            return Decoded(images)

        found = self.outlined(file, pixels, (file,), **arrays, label_names=names)
        return found.only(choose(self.limit, seed, labels, *([arrays["split"]] if "split" in arrays else [])))


class Medmnist(FileSource):
    """MedMNIST v2 (Yang et al. 2023): PathMNIST and its kin, with the official split; patients are unknown."""

    name: Literal["medmnist"] = "medmnist"
    dataset: Literal[
        "pathmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist", "breastmnist", "bloodmnist",
        "tissuemnist", "organamnist", "organcmnist", "organsmnist",
    ] = "pathmnist"  # fmt: skip
    """Name of the data set. PathMNIST has H&E histology; grey images become RGB."""
    size: Literal[28, 64, 128, 224] = 28
    """Pixels a side; each size is a file of its own (PathMNIST at 224 needs 16 GB of memory)."""
    download: bool = False
    """Let the medmnist package download the file if it is not there."""

    home: ClassVar[str] = (
        "https://medmnist.com or https://zenodo.org/records/10519652 (CC BY 4.0; DermaMNIST CC BY-NC 4.0) "
        "or with `download: true`"
    )
    layout: ClassVar[str] = "the folder that holds it"
    patients_from: ClassVar[str] = (
        "MedMNIST does not tell them: if you have them, make an .npz file with groups and use data.source.name=npz"
    )

    @property
    def file_name(self) -> str:
        """The name that MedMNIST gives the file."""
        return f"{self.dataset}{'' if self.size == 28 else f'_{self.size}'}.npz"

    def locate(self) -> Path:
        usual = Path.home() / ".medmnist"
        place = self.location()
        folders = [usual] if place is None else [place.parent if place.name == self.file_name else place, usual]
        for folder in folders:
            if (folder / self.file_name).is_file():
                return folder / self.file_name
            if twin := packed_twin(folder / self.file_name):
                raise self.missing(twin, folder / self.file_name)
        raise self.missing(f"there is no {self.file_name} in {' or '.join(map(str, folders))}")

    def check(self) -> None:
        if not self.download:
            self.locate()

    def outline(self, seed: int) -> Outline:
        import medmnist

        information = medmnist.INFO[self.dataset]
        if self.download and self.found() is None:
            folder = self.location() or Path.home() / ".medmnist"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                dataset = getattr(medmnist, information["python_class"])
                with alone(folder / self.file_name):  # several runs may be started at once
                    if self.found() is None:
                        dataset(split="test", download=True, root=str(folder), size=self.size)
            except (OSError, RuntimeError) as error:
                first = " ".join(str(error).split()).partition("!")[0]
                raise self.missing(f"downloading {self.file_name} failed ({first})", folder) from None
        file, parts = self.locate(), ("train", "val", "test")
        keys = [f"{part}_{what}" for part in parts for what in ("images", "labels")]
        archive = Archive(file, keys)
        archive.require(*keys)
        for part in parts:
            shape, of_labels = (archive.shapes[f"{part}_{what}"] for what in ("images", "labels"))
            if len(shape) not in (3, 4) or of_labels != (shape[0], 1):
                raise DataError(Problem(f"images {shape}, labels {of_labels}", part).at(file))
        labels = [each[:, 0] for each in archive.read(*(f"{part}_labels" for part in parts)).values()]
        sizes = [len(each) for each in labels]

        def pixels(chosen: np.ndarray) -> Decoded:
            picked = [
                archive.rows(f"{part}_images", own) for part, own in zip(parts, _by_file(chosen, sizes), strict=True)
            ]
            return Decoded(np.concatenate([_colour(images) for images in picked]))

        found = self.outlined(
            file,
            pixels,
            (file,),
            labels=np.concatenate(labels),
            split=np.repeat([SPLIT_NAMES[part] for part in parts], sizes),
            label_names=tuple(information["label"][key] for key in sorted(information["label"], key=int)),
        )
        chosen = []
        for part, each, start in zip(parts, labels, np.cumsum([0, *sizes]), strict=False):
            share = None if self.limit is None else max(1, round(self.limit * _share(information, part)))
            chosen.append(start + choose(share, seed, each))
        return found.only(np.concatenate(chosen))


def _colour(images: np.ndarray) -> np.ndarray:
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)


def _by_file(chosen: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """Sorted positions of patches that lie in several files, as the positions in each file.

    sizes: patches in each file.
    """
    ends = np.cumsum(sizes)
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    return [part - end + size for part, end, size in zip(parts, ends, sizes, strict=True)]


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
    patients_from: ClassVar[str] = (
        "put camelyonpatch_level_2_split_{train,valid,test}_meta.csv of the same page, which name the slides, beside "
        "the .h5 files"
    )

    def locate(self) -> Path:
        folder = self.first(lambda place: _pcam(place, "train", "x.h5").is_file(), "pcam", "pcamv1")
        for part in ("train", "valid", "test"):
            for end in ("x.h5", "y.h5", "meta.csv"):
                file = _pcam(folder, part, end)
                twin = "" if file.is_file() else packed_twin(file)
                if twin or (end != "meta.csv" and not file.is_file()):
                    raise self.missing("is a folder" if file.is_dir() else twin or "does not exist", file)
        return folder

    def outline(self, seed: int) -> Outline:
        folder = self.locate()
        parts = ("train", "valid", "test")
        tables = [_pcam(folder, part, "meta.csv") for part in parts]
        sizes = [self._size(_pcam(folder, part, "x.h5")) for part in parts]
        files = [_pcam(folder, part, "y.h5") for part in parts]
        labels = [self._labels(file, size) for file, size in zip(files, sizes, strict=True)]
        split = np.repeat([SPLIT_NAMES[part] for part in parts], sizes)
        every = np.concatenate(labels)
        groups = None
        if all(table.is_file() for table in tables):
            groups = np.concatenate([self._slides(table, size) for table, size in zip(tables, sizes, strict=True)])

        def pixels(chosen: np.ndarray) -> Decoded:
            own = zip(parts, _by_file(chosen, sizes), strict=True)
            return Decoded(np.concatenate([self._images(_pcam(folder, part, "x.h5"), rows) for part, rows in own]))

        names = ("no tumour", "tumour")
        images = [_pcam(folder, part, "x.h5") for part in parts]
        found = self.outlined(folder, pixels, images, labels=every, label_names=names, groups=groups, split=split)
        return found.only(choose(self.limit, seed, every, split))

    def _size(self, file: Path) -> int:
        """How many images a file holds."""
        with self._rows(file, "x") as rows:
            if rows.ndim != 4 or rows.shape[1] != rows.shape[2] or rows.shape[3] != 3 or rows.dtype != np.uint8:
                found = f"{rows.dtype} {rows.shape}"
                raise DataError(Problem("must be uint8 (N, 96, 96, 3)", "x", found).at(file))
            return int(rows.shape[0])

    def _labels(self, file: Path, size: int) -> np.ndarray:
        with self._rows(file, "y") as rows:
            with self.naming(file):
                refuse_uneven("y", rows.size, size)
            if not np.issubdtype(rows.dtype, np.integer):
                raise DataError(Problem("must be the integers 0 and 1", "y", str(rows.dtype)).at(file))
            labels = np.asarray(rows).reshape(-1)
        if not np.isin(labels, (0, 1)).all():
            raise DataError(Problem("must be 0 and 1", "y", f"{labels.min()}..{labels.max()}").at(file))
        return labels.astype(np.int64)

    def _slides(self, table: Path, size: int) -> np.ndarray:
        slides = read_table(table, ["wsi"])["wsi"]
        with self.naming(table):
            refuse_uneven("wsi", len(slides), size)
        return slides

    def _images(self, file: Path, chosen: np.ndarray) -> np.ndarray:
        """The chosen rows, read block by block, so that no other rows stay in memory."""
        with self._rows(file, "x") as rows:
            side = self.size or rows.shape[1]
            what = f"{len(chosen)} patches of {side} x {side} pixels"
            require_memory(what, 3 * len(chosen) * side**2, "set `limit` or a smaller size", file)
            images = np.empty((len(chosen), side, side, 3), dtype=np.uint8)
            block = 512
            for start in np.unique(chosen // block) * block:
                low, high = np.searchsorted(chosen, (start, start + block))
                first, last = chosen[low], chosen[high - 1]
                picked = rows[first : last + 1][chosen[low:high] - first]
                images[low:high] = picked if side == rows.shape[1] else resized(picked, side)
        return images

    @contextmanager
    def _rows(self, file: Path, key: str) -> Iterator[Any]:
        import h5py

        with reading(file, HDF), h5py.File(file, "r") as archive:
            yield checked_dataset(file, archive, key)


def _pcam(folder: Path, part: str, end: str) -> Path:
    return folder / f"camelyonpatch_level_2_split_{part}_{end}"
