"""Sources that are folders of image files: IDC, class folders, CAMELYON17 in the WILDS layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import field_validator

from fedrobust.data.patches import Patches
from fedrobust.data.sources import FileSource, choose, decode, text
from fedrobust.errors import DataError
from fedrobust.options import refusal

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


class Idc(FileSource):
    """Breast Histopathology Images (Cruz-Roa et al. 2014; Janowczyk and Madabhushi 2016): IDC or not, by patient."""

    name: Literal["idc"] = "idc"
    edges: Literal["drop", "pad"] = "drop"
    """Patches that the slide's edge cuts to less than 50 x 50: leave them out, or pad them with white."""

    home: ClassVar[str] = "Kaggle: paultimothymooney/breast-histopathology-images (marked CC0 there)"
    layout: ClassVar[str] = (
        "the folder IDC_regular_ps50_idx5, which holds PATIENT/0 and PATIENT/1 with PATIENT_idx5_xX_yY_classC.png"
    )
    _side: ClassVar[int] = 50
    _file: ClassVar[re.Pattern[str]] = re.compile(r"(?P<patient>.+)_idx5_x\d+_y\d+_class(?P<label>[01])\.png")

    def locate(self) -> Path:
        def fits(folder: Path) -> bool:
            return any((patient / label).is_dir() for patient in _folders(folder) for label in "01")

        # Kaggle's archive holds the patients twice: at its top, and again in this folder.
        return self.first(fits, "IDC_regular_ps50_idx5")

    def load(self, seed: int) -> Patches:
        root = self.locate()
        files, labels, groups = [], [], []
        for patient in _folders(root):
            for label in "01":
                for file in sorted((patient / label).glob("*.png")):
                    match = self._file.fullmatch(file.name)
                    if match is None or match["patient"] != patient.name or match["label"] != label:
                        raise DataError(
                            f"idc: {file}: its name must be {patient.name}_idx5_xX_yY_class{label}.png in this folder"
                        )
                    files.append(file)
                    labels.append(int(label))
                    groups.append(match["patient"])
        if not files:
            raise self.missing(f"{root} holds no .png files")
        chosen = choose(self.limit, seed, np.array(labels))
        images, kept = decode([files[index] for index in chosen], self.size, self._whole)
        kept = chosen[kept]
        return self.patches(
            root,
            images=images,
            labels=np.array(labels)[kept],
            groups=text(groups)[kept],
            label_names=("no IDC", "IDC"),
        )

    def _whole(self, image: Image) -> Image | None:
        """The image if it is 50 x 50; else None or, with `edges: pad`, on a white ground."""
        side = self._side
        if image.size == (side, side):
            return image
        if image.width > side or image.height > side:
            raise ValueError(f"{image.width} x {image.height} pixels, but patches of this data set are 50 x 50")
        if self.edges == "drop":
            return None
        from PIL import Image as Images

        padded = Images.new("RGB", (side, side), "white")
        padded.paste(image.convert("RGB"), (0, 0))
        return padded


class Folder(FileSource):
    """One folder of image files for each class: NCT-CRC-HE, Kather 2016, BreakHis, LC25000 and their like.

    Images that are not square lose what lies outside their central square. BreakHis: `path` ends in
    `histology_slides/breast`, `files: "**/200X/*.png"`, `patients: "SOB_[BM]_[A-Z]+_([^/]+)/"`. LC25000 holds
    augmented copies of 1,250 images: its test scores say little, because copies fall on both sides of any split.
    """

    name: Literal["folder"] = "folder"
    files: str = "**/*"
    """Which files of a class folder to take, as a glob pattern."""
    patients: str | None = None
    """A regular expression with one group, which finds the patient in a file's path below the folder of the classes;
    null: unknown."""
    test: str | None = None
    """A second folder with the same classes, the official test set (CRC-VAL-HE-7K for NCT-CRC-HE-100K)."""

    home: ClassVar[str] = (
        "NCT-CRC-HE: https://zenodo.org/records/1214456 (CC BY 4.0); "
        "Kather 2016: https://zenodo.org/records/53169 (CC BY 4.0); "
        "BreakHis: https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis "
        "(CC BY 4.0, as its page says); LC25000: https://github.com/tampapath/lung_colon_image_set (see there)"
    )
    layout: ClassVar[str] = "a folder with one folder of image files for each class"

    @field_validator("patients")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                groups = re.compile(value).groups
            except re.error as error:
                raise refusal(f"is not a regular expression: {error}") from error
            if groups != 1:
                raise refusal(f"needs exactly one group in parentheses, the patient; it has {groups}")
        return value

    def locate(self) -> Path:
        return self.first(lambda place: len(self._classes(place)) > 1)

    def _classes(self, root: Path) -> list[str]:
        """The folders that hold at least one image."""
        return [folder.name for folder in _folders(root) if any(True for _ in self._images(folder))]

    def _images(self, folder: Path) -> Iterator[Path]:
        return (file for file in folder.glob(self.files) if file.suffix.lower() in IMAGES and file.is_file())

    def check(self) -> None:
        classes = self._classes(self.locate())
        if self.test is not None:
            test = Path(self.test).expanduser()
            if not test.is_dir():
                raise DataError(f"folder: test: {test} is not a folder")
            if not set(self._classes(test)) <= set(classes):
                raise DataError(
                    f"folder: test: {test} must hold the classes {', '.join(classes)}, "
                    f"found {', '.join(self._classes(test)) or 'none'}"
                )

    def load(self, seed: int) -> Patches:
        self.check()
        root = self.locate()
        classes = self._classes(root)
        parts = {"train": root} | ({"test": Path(self.test).expanduser()} if self.test else {})
        files, labels, split, groups = [], [], [], []
        for part, folder in parts.items():
            for label, name in enumerate(classes):
                for file in sorted(self._images(folder / name)):
                    files.append(file)
                    labels.append(label)
                    split.append(part)
                    if self.patients is not None:
                        groups.append(self._patient(file.relative_to(folder).as_posix()))
        chosen = choose(self.limit, seed, np.array(labels), text(split))
        images, kept = decode([files[index] for index in chosen], self.size)
        kept = chosen[kept]
        return self.patches(
            root,
            images=images,
            labels=np.array(labels)[kept],
            groups=text(groups)[kept] if groups else None,
            split=text(split)[kept] if self.test else None,
            label_names=tuple(classes),
        )

    def _patient(self, path: str) -> str:
        match = re.search(self.patients or "", path)
        if match is None or not match[1]:
            raise DataError(f"folder: patients: '{self.patients}' finds no patient in {path}")
        return match[1]


class Camelyon17(FileSource):
    """CAMELYON17-WILDS (Bándi et al. 2018; Koh et al. 2021): lymph node metastases from five hospitals.

    The official split has hospital 1 as validation and hospital 2 as test. The in-distribution validation patches
    of WILDS come from training patients, and belong to the training part here.
    """

    name: Literal["camelyon17"] = "camelyon17"

    home: ClassVar[str] = "https://wilds.stanford.edu/datasets (CC0; its downloader needs the wilds package)"
    layout: ClassVar[str] = (
        "the folder camelyon17_v1.0, which holds metadata.csv and "
        "patches/patient_XXX_node_Y/patch_patient_XXX_node_Y_x_X_y_Y.png"
    )
    _columns: ClassVar[tuple[str, ...]] = ("patient", "node", "x_coord", "y_coord", "tumor", "center")

    def locate(self) -> Path:
        return self.first(
            lambda place: (place / "metadata.csv").is_file() and (place / "patches").is_dir(), "camelyon17_v1.0"
        )

    def check(self) -> None:
        table = self.locate() / "metadata.csv"
        with table.open(encoding="utf-8", errors="replace") as lines:
            found = [name.strip() for name in lines.readline().split(",")]
        absent = [name for name in self._columns if name not in found]
        if absent:
            raise DataError(f"camelyon17: {table} has no column {', '.join(absent)} (columns: {', '.join(found)})")

    def load(self, seed: int) -> Patches:
        import pandas as pd

        self.check()
        root = self.locate()
        try:
            table = pd.read_csv(root / "metadata.csv", usecols=list(self._columns), dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise DataError(f"camelyon17: {root / 'metadata.csv'} cannot be read: {error}") from None
        rows = {name: table[name].to_numpy(dtype=np.str_) for name in self._columns}
        if len(table) == 0 or not np.isin(rows["tumor"], ("0", "1")).all():
            raise DataError(f"camelyon17: {root / 'metadata.csv'}: column tumor must hold 0 and 1")
        labels, centres = rows["tumor"].astype(np.int64), rows["center"]
        chosen = choose(self.limit, seed, labels, centres)
        files = [
            root / f"patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png"
            for patient, node, x, y in zip(*(rows[name][chosen] for name in self._columns[:4]), strict=True)
        ]
        images, _ = decode(files, self.size)
        split = np.select([centres == "1", centres == "2"], ["validation", "test"], "train")
        return self.patches(
            root,
            images=images,
            labels=labels[chosen],
            groups=rows["patient"][chosen],
            centres=centres[chosen],
            split=split[chosen],
            label_names=("no tumour", "tumour"),
        )


def _folders(root: Path) -> list[Path]:
    """The folders in `root`, by name, without hidden ones."""
    if not root.is_dir():
        return []
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
