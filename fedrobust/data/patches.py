"""The one format of image data: uint8 patches with labels and, where known, patients and centres."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedrobust.errors import DataError, Problem

PARTS = ("train", "validation", "test")
PATIENTS_FROM = "give the Patches of your source their groups, the patient of each patch"


@dataclass(frozen=True, eq=False, kw_only=True)
class Patches:
    """A labelled set of square RGB patches. The arrays are read-only views.

    Raises `DataError` if the arrays do not fit together (types, lengths, labels outside 0..classes-1), or if values are
    missing.
    """

    images: np.ndarray
    """(N, S, S, 3) uint8, RGB."""
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

    def __post_init__(self) -> None:
        images = np.asarray(self.images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(Problem("must be uint8 (N, S, S, 3)", "images", f"{images.dtype} {images.shape}"))
        if images.shape[1] != images.shape[2] or images.shape[1] == 0:
            found = f"{images.shape[1]} x {images.shape[2]} pixels"
            raise DataError(Problem("patches must be square", "images", found))
        if len(images) == 0:
            raise DataError(Problem("there are no patches", "images"))
        object.__setattr__(self, "label_names", _names(self.label_names))
        self._keep("images", images)
        self._keep("labels", _labels(self.labels, self.label_names).astype(np.int64))
        for key in ("groups", "centres", "split"):
            if getattr(self, key) is not None:
                self._keep(key, _texts(key, getattr(self, key)))
        if self.split is not None and not np.isin(self.split, PARTS).all():
            raise DataError(Problem("", "split", f"'{np.setdiff1d(self.split, PARTS)[0]}'", PARTS))

    def _keep(self, key: str, array: np.ndarray) -> None:
        refuse_uneven(key, len(array), len(self.images))
        view = array.view()
        view.flags.writeable = False
        object.__setattr__(self, key, view)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """The number of labels."""
        return len(self.label_names)

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
