"""The one format of image data: uint8 patches with labels and, where known, patients and centres; and the same
without pixels, before any image is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from fedrobust.errors import DataError, Problem

PARTS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What data sets call the parts of their split."""
PATIENTS_FROM = "give the Patches of your source their groups, the patient of each patch"


class Decoded(NamedTuple):
    """The images of some patches."""

    images: np.ndarray
    """(m, S, S, 3) uint8."""
    kept: np.ndarray | None = None
    """(m,) int64: which of the n patches that were asked for these are; None: all of them."""
    unreadable: tuple[int, ...] = ()
    """Which of them were left out because their files could not be read."""
    notes: tuple[str, ...] = ()
    """What the user should know: how many files were left out as unreadable, and the first of them."""


Pixels = Callable[[np.ndarray], Decoded]
"""Decodes the patches at sorted positions (n,)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Outline:
    """What a source can tell of its patches before it decodes any: everything but the pixels. The arrays are read-only.

    Raises `DataError` if the arrays do not fit together (types, lengths, labels outside 0..classes-1), or if values are
    missing.
    """

    labels: np.ndarray
    """(N,) int64, 0..classes-1."""
    label_names: tuple[str, ...]
    """The name of each label."""
    groups: np.ndarray | None = None
    """(N,) str: the patient of each patch; None when unknown."""
    centres: np.ndarray | None = None
    """(N,) str: the hospital or scanner of origin; None when unknown."""
    split: np.ndarray | None = None
    """(N,) str in PARTS: the official split of the data set; None when it has none."""
    patients_from: str = PATIENTS_FROM
    """What the user can do where `groups` is None: how this source is given the patients."""
    notes: tuple[str, ...] = ()
    """What a reader of a run's record should know of these data, such as files that were left out; no part of the
    digest."""
    pixels: Pixels = field(repr=False)
    """Decodes patches. Sources may leave out patches whose images turn out to be unusable."""

    def __post_init__(self) -> None:
        if self._images() == 0:
            raise DataError(Problem("there are no patches", "images"))
        object.__setattr__(self, "label_names", _names(self.label_names))
        self._keep("labels", _labels(self.labels, self.label_names).astype(np.int64))
        for key in ("groups", "centres", "split"):
            if getattr(self, key) is not None:
                self._keep(key, _texts(key, getattr(self, key)))
        if self.split is not None and not np.isin(self.split, PARTS).all():
            raise DataError(Problem("", "split", f"'{np.setdiff1d(self.split, PARTS)[0]}'", PARTS))

    def _keep(self, key: str, array: np.ndarray) -> None:
        refuse_uneven(key, len(array), self._images())
        view = array.view()
        view.flags.writeable = False
        object.__setattr__(self, key, view)

    def _images(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """The number of labels."""
        return len(self.label_names)

    def only(self, chosen: np.ndarray) -> Outline:
        """The outline of some of the patches; nothing is decoded.

        chosen: (n,) sorted positions.
        """
        if len(chosen) == len(self):
            return self
        return Outline(**self._told(chosen), pixels=lambda further: self.pixels(chosen[further]))

    def decode(self) -> Patches:
        """The patches, decoded; fewer than in the outline if the source leaves out images that it cannot use.

        Raises `DataError` for images that cannot be read, and if memory cannot hold them.
        """
        every = np.arange(len(self))
        found = self.pixels(every)
        told = self._told(every if found.kept is None else found.kept)
        return Patches(images=found.images, **told | {"notes": self.notes + found.notes})

    def _told(self, chosen: np.ndarray) -> dict[str, Any]:
        """Everything but the pixels of the chosen patches, as arguments."""
        arrays = {key: getattr(self, key) for key in ("labels", "groups", "centres", "split")}
        picked = {key: None if array is None else array[chosen] for key, array in arrays.items()}
        texts = {key: getattr(self, key) for key in ("label_names", "patients_from", "notes")}
        return picked | texts


@dataclass(frozen=True, eq=False, kw_only=True)
class Patches(Outline):
    """A labelled set of square RGB patches: an outline with its pixels. The arrays are read-only views.

    Raises `DataError` if the arrays do not fit together (types, lengths, labels outside 0..classes-1), or if values are
    missing.
    """

    images: np.ndarray
    """(N, S, S, 3) uint8, RGB."""
    pixels: Pixels = field(init=False, repr=False)
    """The images at some positions."""

    def __post_init__(self) -> None:
        images = np.asarray(self.images)
        refuse_images(images.shape, images.dtype)
        super().__post_init__()
        self._keep("images", images)
        object.__setattr__(self, "pixels", partial(_picked, self.images))

    def _images(self) -> int:
        return len(self.images)

    def decode(self) -> Patches:
        """These patches: they are decoded already."""
        return self

    @property
    def size(self) -> int:
        """The side of a patch in pixels."""
        return int(self.images.shape[1])

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) over everything in the set."""
        digest = hashlib.sha256(repr((self.images.shape, self.label_names)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        for key in ("groups", "centres", "split"):
            array = getattr(self, key)
            digest.update(b"none" if array is None else "\0".join([key, *array.tolist()]).encode())
        return digest.hexdigest()


def _picked(images: np.ndarray, chosen: np.ndarray) -> Decoded:
    return Decoded(images[chosen])


def refuse_images(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Check that an array can hold patches, as its header tells before it is read.

    Raises `DataError` otherwise.
    """
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise DataError(Problem("must be uint8 (N, S, S, 3)", "images", f"{dtype} {shape}"))
    if shape[1] != shape[2] or shape[1] == 0:
        raise DataError(Problem("patches must be square", "images", f"{shape[1]} x {shape[2]} pixels"))
    if shape[0] == 0:
        raise DataError(Problem("there are no patches", "images"))


def refuse_uneven(key: str, count: int, images: int) -> None:
    """Check that there is one value of `key` for each image.

    count: values.
    images: how many there are.

    Raises `DataError` otherwise.
    """
    if count != images:
        raise DataError(Problem(f"must be one for each of {images} images", key, str(count)))


def numbering(labels: np.ndarray) -> tuple[str, ...]:
    """Names "0", "1", ... for labels that come without names.

    labels: (N,) whole numbers.

    Raises `DataError` if numbers are left out: a gap would be a class without a patch, and the two labels 0 and 255
    would be 256 classes.
    """
    known = _labels(labels)
    found = np.unique(known)
    if len(found) == 1:
        raise DataError(Problem(f"all {len(known)} are {found[0]}: there is nothing to tell apart", "labels"))
    if not np.array_equal(found, np.arange(len(found))):
        told = f"{found[0]}..{found[-1]}, {len(found)} different ones"
        remedy = "number them with numpy.unique(labels, return_inverse=True)[1], or give label_names"
        raise DataError(Problem("must be 0..C-1 without a gap", "labels", told, hint=remedy))
    return tuple(str(label) for label in found)


def nothing(texts: np.ndarray) -> np.ndarray:
    """(N,) bool: which texts mean a missing value, such as NaN, None or an empty cell.

    texts: (N,) str.
    """
    return np.isin(np.char.lower(np.char.strip(texts)), _NOTHING)


_NOTHING = ("", "nan", "none", "null", "<na>", "na", "n/a", "#n/a", "nat", "--")


def _missing(key: str, values: Any, missing: np.ndarray) -> None:
    """Raise `DataError` if some values are missing, or are hidden by a masked array."""
    missing = missing | np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else missing
    if missing.any():
        first = int(missing.argmax())
        reason, found = f"{int(missing.sum())} of {len(missing)} are missing", np.asarray(values)[first]
        remedy = "give each patch its own value, or leave those patches out"
        raise DataError(Problem(reason, key, f"'{found}' as number {first}", hint=remedy))


def _labels(values: Any, names: tuple[str, ...] | None = None) -> np.ndarray:
    """The labels (N,), integers, checked against the names."""
    labels = np.asarray(values)
    if labels.ndim == 1 and labels.dtype.kind in "fOUS":
        _missing("labels", values, nothing(labels.astype(np.str_)))
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(Problem("must be integers (N,)", "labels", f"{labels.dtype} {labels.shape}"))
    _missing("labels", values, np.zeros(len(labels), dtype=bool))
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if names is not None and (low < 0 or high >= len(names)):
        reason = f"must be 0..{len(names) - 1} ({len(names)} label names)"
        raise DataError(Problem(reason, "labels", f"{low}..{high}"))
    return labels


def _names(values: Any) -> tuple[str, ...]:
    """The names of the labels, which must differ."""
    names = _texts("label_names", values)
    distinct, counts = np.unique(names, return_counts=True)
    if (counts > 1).any():
        reason = f"{counts.max()} labels have the same name"
        raise DataError(Problem(reason, "label_names", f"'{distinct[counts.argmax()]}'"))
    return tuple(names.tolist())


def _texts(key: str, values: Any) -> np.ndarray:
    """(N,) str of texts or numbers, without blanks around them."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(Problem("must be one-dimensional", key, str(array.shape)))
    if array.dtype.kind == "V":
        raise DataError(Problem("must be texts or numbers", key, str(array.dtype)))
    try:
        texts = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array.astype(np.str_)
    except UnicodeDecodeError as error:
        raise DataError(Problem("must be texts in UTF-8", key, hint=str(error))) from None
    texts = np.char.strip(texts)
    infinite = ~np.isfinite(array) if array.dtype.kind in "fc" else np.zeros(len(array), dtype=bool)
    # A label may well be called "none".
    _missing(key, values, infinite | (texts == "" if key == "label_names" else nothing(texts)))
    return texts
