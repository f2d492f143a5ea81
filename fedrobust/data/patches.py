"""The one form in which image data travels: uint8 patches with labels and, where known, patients and centres."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedrobust.errors import DataError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False, kw_only=True)
class Patches:
    """A labelled set of square RGB patches. The arrays are read-only views; nothing ever writes into them.

    Raises DataError when the arrays do not fit together (types, lengths, labels outside 0..classes-1), or values are
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

    def __post_init__(self) -> None:
        images = np.asarray(self.images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(f"images must be uint8 (N, S, S, 3), not {images.dtype} {images.shape}")
        if images.shape[1] != images.shape[2] or images.shape[1] == 0:
            raise DataError(f"patches must be square, not {images.shape[1]} x {images.shape[2]} pixels")
        if len(images) == 0:
            raise DataError("there are no patches")
        object.__setattr__(self, "label_names", _names(self.label_names))
        self._keep("images", images)
        self._keep("labels", _labels(self.labels, self.label_names).astype(np.int64))
        for key in ("groups", "centres", "split"):
            if getattr(self, key) is not None:
                self._keep(key, _texts(key, getattr(self, key)))
        if self.split is not None and not np.isin(self.split, PARTS).all():
            raise DataError(f"split must be one of {', '.join(PARTS)}, found '{np.setdiff1d(self.split, PARTS)[0]}'")

    def _keep(self, key: str, array: np.ndarray) -> None:
        if len(array) != len(self.images):
            raise DataError(f"{len(self.images)} images, but {len(array)} {key}")
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
        """SHA-256 (hexadecimal) over everything that is in the set."""
        digest = hashlib.sha256(repr((self.images.shape, self.label_names)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        for key in ("groups", "centres", "split"):
            array = getattr(self, key)
            digest.update(b"none" if array is None else "\0".join([key, *array.tolist()]).encode())
        return digest.hexdigest()


def numbering(labels: np.ndarray) -> tuple[str, ...]:
    """Names "0", "1", ... for labels (N,) that come without. Raises DataError where they leave numbers out.

    A gap would be a class without a patch; two labels 0 and 255 would be 256 classes.
    """
    known = _labels(labels)
    found = np.unique(known)
    if len(found) == 1:
        raise DataError(f"labels: all {len(known)} are {found[0]}: there is nothing to tell apart")
    if not np.array_equal(found, np.arange(len(found))):
        told = f"found {found[0]}..{found[-1]}, {len(found)} different ones"
        remedy = "number them with numpy.unique(labels, return_inverse=True)[1], or give label_names"
        raise DataError(f"labels must be 0..C-1 without a gap, {told}: {remedy}")
    return tuple(str(label) for label in found)


def nothing(texts: np.ndarray) -> np.ndarray:
    """(N,) bool: which of the texts (N,) stand for a value that is missing, as NaN, None or an empty cell do."""
    return np.isin(np.char.lower(np.char.strip(texts)), _NOTHING)


_NOTHING = ("", "nan", "none", "null", "<na>", "na", "n/a", "#n/a", "nat", "--")


def _missing(key: str, values: Any, missing: np.ndarray) -> None:
    """Refuse values of which some are missing, and those that a masked array hides."""
    missing = missing | np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else missing
    if missing.any():
        first = int(missing.argmax())
        raise DataError(
            f"{key}: {int(missing.sum())} of {len(missing)} are missing (first: number {first}, "
            f"'{np.asarray(values)[first]}'): give each patch its own value, or leave those patches out"
        )


def _labels(values: Any, names: tuple[str, ...] | None = None) -> np.ndarray:
    """The labels (N,), integers, checked against the names."""
    labels = np.asarray(values)
    if labels.ndim == 1 and labels.dtype.kind in "fOUS":
        _missing("labels", values, nothing(labels.astype(np.str_)))
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels must be integers (N,), not {labels.dtype} {labels.shape}")
    _missing("labels", values, np.zeros(len(labels), dtype=bool))
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if names is not None and (low < 0 or high >= len(names)):
        raise DataError(f"labels must be 0..{len(names) - 1} ({len(names)} label names), found {low}..{high}")
    return labels


def _names(values: Any) -> tuple[str, ...]:
    """The names of the labels, each one's own."""
    names = _texts("label_names", values)
    distinct, counts = np.unique(names, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"label_names: {counts.max()} labels are called '{distinct[counts.argmax()]}'")
    return tuple(names.tolist())


def _texts(key: str, values: Any) -> np.ndarray:
    """(N,) str of texts or numbers; blanks around them set nobody apart."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{key} must be one-dimensional, not {array.shape}")
    if array.dtype.kind == "V":
        raise DataError(f"{key} must be texts or numbers, not {array.dtype}")
    try:
        texts = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array.astype(np.str_)
    except UnicodeDecodeError as error:
        raise DataError(f"{key} must be texts in UTF-8: {error}") from None
    texts = np.char.strip(texts)
    infinite = ~np.isfinite(array) if array.dtype.kind in "fc" else np.zeros(len(array), dtype=bool)
    # A label may well be called "none".
    _missing(key, values, infinite | (texts == "" if key == "label_names" else nothing(texts)))
    return texts
