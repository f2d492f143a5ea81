"""Sources that are folders of image files: IDC, class folders, CAMELYON17 in the WILDS layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import field_validator

from fedrobust.data.listing import (
    IMAGES,
    Account,
    FileIdentity,
    below,
    first_file,
    fits,
    folders,
    refuse_second_names,
    walk,
)
from fedrobust.data.patches import Decoded, Outline
from fedrobust.data.pixels import rgb
from fedrobust.data.sources import ImageFileSource, choose, text
from fedrobust.data.table_file import read_table
from fedrobust.errors import DataError, Problem
from fedrobust.options import refusal

if TYPE_CHECKING:
    from PIL.Image import Image


class Idc(ImageFileSource):
    """Breast Histopathology Images (Cruz-Roa et al. 2014; Janowczyk and Madabhushi 2016): IDC or not, by patient."""

    name: Literal["idc"] = "idc"
    edges: Literal["drop", "pad"] = "drop"
    """Patches that the slide's edge cuts to less than 50 x 50: leave them out, or pad them with white."""

    home: ClassVar[str] = "Kaggle: paultimothymooney/breast-histopathology-images (marked CC0 there)"
    layout: ClassVar[str] = (
        "the folder IDC_regular_ps50_idx5, which holds PATIENT/0 and PATIENT/1 with PATIENT_idx5_xX_yY_classC.png"
    )
    _side: ClassVar[int] = 50
    _file: ClassVar[re.Pattern[str]] = re.compile(r"(?P<patient>.+)_idx5_x\d+_y\d+_class(?P<label>[01])\.(?i:png)")

    def locate(self) -> Path:
        def holds(folder: Path) -> bool:
            return any((patient / label).is_dir() for patient in folders(folder) for label in "01")

        # Kaggle's archive has the patients twice: at its top, and again in this folder.
        return self.first(holds, "IDC_regular_ps50_idx5")

    def outline(self, seed: int) -> Outline:
        root, account = self.locate(), Account()
        files, labels, groups = [], [], []
        for file in sorted(file for file, _ in walk(root, {".png"}, account, depth=2)):
            place = below(root, file)
            if len(place) != 3 or place[1] not in ("0", "1"):
                account.add("not in PATIENT/0 or PATIENT/1", file.name)
                continue
            patient, label, name = place
            match = self._file.fullmatch(name)
            if match is None or match["patient"] != patient or match["label"] != label:
                must = f"its name must be {patient}_idx5_xX_yY_class{label}.png in this folder"
                raise DataError(Problem(must).at(file))
            files.append(file)
            labels.append(int(label))
            groups.append(patient)
        refuse_second_names(root, account, depth=2)
        if not files:
            account.tell(self.name, root)
            raise self.missing("holds no .png files", root)

        def pixels(chosen: np.ndarray) -> Decoded:
            read = self.decoded([files[index] for index in chosen], self._whole, f"idc {self.edges}")
            used = [*([] if read.kept is None else read.kept), *read.unreadable]
            cut = [files[index].name for index in np.delete(chosen, used)]
            Account(account.left_out | ({"cut by the slide's edge": cut} if cut else {})).tell(self.name, root)
            return read

        names = ("no IDC", "IDC")
        found = self.outlined(root, pixels, labels=np.array(labels), groups=text(groups), label_names=names)
        return found.only(choose(self.limit, seed, np.array(labels)))

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
        padded.paste(rgb(image), (0, 0))
        return padded


class Folder(ImageFileSource):
    """One folder of image files for each class: NCT-CRC-HE, Kather 2016, BreakHis, LC25000 and similar ones.

    Images that are not square are cropped to their central square. BreakHis: `path` ends in `histology_slides/breast`,
    `files: "**/200X/*.png"`, `patients: "SOB_[BM]_[A-Z]+_([^/]+)/"`. LC25000 has augmented copies of 1,250 images: its
    test scores say little, because copies are on both sides of any split.
    """

    name: Literal["folder"] = "folder"
    files: str = "**/*"
    """A glob pattern for the files of a class folder."""
    patients: str | None = None
    """A regular expression with one group that finds the patient in a file's path below the folder of the classes;
    null: patients are unknown."""
    test: str | None = None
    """A second folder with the same classes, the official test set (CRC-VAL-HE-7K for NCT-CRC-HE-100K)."""

    home: ClassVar[str] = (
        "NCT-CRC-HE: https://zenodo.org/records/1214456 (CC BY 4.0); "
        "Kather 2016: https://zenodo.org/records/53169 (CC BY 4.0); "
        "BreakHis: https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis "
        "(CC BY 4.0, as its page says); LC25000: https://github.com/tampapath/lung_colon_image_set (see there)"
    )
    layout: ClassVar[str] = "a folder with one folder of image files for each class"
    patients_from: ClassVar[str] = (
        "say where they are in the paths of the files, with a regular expression that has one group: "
        "data.source.patients=REGEX, e.g. '/([^/_]+)_[^/]*$' where P07 is the patient of tumour/P07_tile3.png"
    )

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

    def lacking(self, place: Path) -> str:
        if classes := self._classes(place):
            return f"holds only one class, {classes[0]}"
        depths = {len(below(place, file)) for file, _ in walk(place, IMAGES)}
        if 1 in depths:
            return "holds image files itself, where one folder for each class is due"
        return f"holds no images that `files` ({self.files}) matches" if depths else super().lacking(place)

    def _classes(self, root: Path) -> list[str]:
        """The folders that hold at least one image."""
        return [
            folder.name
            for folder in folders(root)
            if any(fits(below(folder, file), self.files) for file, _ in walk(folder, IMAGES))
        ]

    def check(self) -> None:
        classes = self._classes(self.locate())
        if self.test is not None:
            test = self.named(self.test)
            if not test.is_dir():
                raise DataError(Problem("is not a folder").at(test).below("test"))
            if not set(self._classes(test)) <= set(classes):
                found = ", ".join(self._classes(test)) or "none"
                problem = Problem("must hold folders of the same classes", "", found, tuple(classes))
                raise DataError(problem.at(test).below("test"))

    def outline(self, seed: int) -> Outline:
        self.check()
        root = self.locate()
        parts = {"train": self._images(root)} | ({"test": self._images(self.named(self.test))} if self.test else {})
        if twice := sorted(set(parts["train"]) & set(parts.get("test", ()))):
            there, here = (parts[part][twice[0]] for part in ("train", "test"))
            reason = f"is {there}, which is there to train on ({len(twice)} files are)"
            raise DataError(Problem(reason).at(here).below("test"))
        classes = sorted({below(root, file)[0] for file in parts["train"].values()})
        files, labels, split, groups = [], [], [], []
        for part, found in parts.items():
            folder = root if part == "train" else self.named(str(self.test))
            for file in sorted(found.values()):
                place = below(folder, file)
                files.append(file)
                labels.append(classes.index(place[0]))
                split.append(part)
                if self.patients is not None:
                    groups.append(self._patient("/".join(place)))
        outline = self.outlined(
            root,
            lambda chosen: self.decoded([files[index] for index in chosen]),
            labels=np.array(labels),
            groups=text(groups) if groups else None,
            split=text(split) if self.test else None,
            label_names=tuple(classes),
        )
        return outline.only(choose(self.limit, seed, np.array(labels), text(split)))

    def _images(self, root: Path) -> dict[FileIdentity, Path]:
        """The images in the folders of the classes; everything else in them is logged."""
        found, account = {}, Account()
        for file, identity in walk(root, IMAGES, account, depth=1):
            if fits(below(root, file)[1:], self.files):
                found[identity] = file
            else:
                account.add("not asked for by `files`", file.name)
        refuse_second_names(root, account, depth=1)
        account.tell(self.name, root)
        return found

    def _patient(self, path: str) -> str:
        match = re.search(self.patients or "", path)
        if match is None or not match[1]:
            raise DataError(Problem(f"finds no patient in {path}", "patients", f"'{self.patients}'"))
        return match[1]


class Camelyon17(ImageFileSource):
    """CAMELYON17-WILDS (Bándi et al. 2018; Koh et al. 2021): lymph node metastases from five hospitals.

    The official split has hospital 1 as validation and hospital 2 as test. The in-distribution validation patches of
    WILDS come from training patients, and belong to the training part here.
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
        read_table(self.locate() / "metadata.csv", self._columns)

    def outline(self, seed: int) -> Outline:
        root = self.locate()
        rows = read_table(root / "metadata.csv", self._columns)
        if not np.isin(rows["tumor"], ("0", "1")).all():
            raise DataError(Problem("must hold 0 and 1", "tumor").at(root / "metadata.csv"))
        labels, centres = rows["tumor"].astype(np.int64), rows["center"]
        chosen = choose(self.limit, seed, labels, centres)
        named = [
            root / f"patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png"
            for patient, node, x, y in zip(*(rows[name][chosen] for name in self._columns[:4]), strict=True)
        ]
        files, once = self._files(root, named)
        chosen = chosen[once]
        split = np.select([centres == "1", centres == "2"], ["validation", "test"], "train")
        return self.outlined(
            root,
            lambda chosen: self.decoded([files[index] for index in chosen]),
            labels=labels[chosen],
            groups=rows["patient"][chosen],
            centres=centres[chosen],
            split=split[chosen],
            label_names=("no tumour", "tumour"),
        )

    def _files(self, root: Path, named: list[Path]) -> tuple[list[Path], list[int]]:
        """The files that the table names, each once, and the positions of their names; second names are logged."""
        found: dict[FileIdentity, tuple[Path, int]] = {}
        account, absent = Account(), []
        for place, path in enumerate(named):
            if file := first_file((str(path), str(path.with_suffix(".PNG")))):
                first, _ = found.setdefault(file[1], (file[0], place))
                if first is not file[0]:
                    account.add("named twice", path.name)
            else:
                absent.append(path)
        if absent:
            raise DataError(Problem(f"does not exist ({len(absent)} of {len(named)} patches do not)").at(absent[0]))
        account.tell(self.name, root)
        return [file for file, _ in found.values()], [place for _, place in found.values()]
