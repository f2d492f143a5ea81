"""The one form in which image data travels: uint8 patches with labels and, where known, patients and centres."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedrobust.errors import DataError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False, kw_only=True)
class Patches:
    """A labelled set of square RGB patches. The arrays are read-only views; nothing ever writes into them.

    Raises DataError when the arrays do not fit together (types, lengths, labels outside 0..classes-1).
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
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(f"images must be uint8 (N, S, S, 3), not {images.dtype} {images.shape}")
        if images.shape[1] != images.shape[2] or images.shape[1] == 0:
            raise DataError(f"patches must be square, not {images.shape[1]} x {images.shape[2]} pixels")
        if len(images) == 0:
            raise DataError("there are no patches")
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"labels must be integers (N,), not {labels.dtype} {labels.shape}")
        found = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
        if found[0] < 0 or found[1] >= len(self.label_names):
            raise DataError(
                f"labels must be 0..{len(self.label_names) - 1} ({len(self.label_names)} label names), "
                f"found {found[0]}..{found[1]}"
            )
        self._keep("images", images)
        self._keep("labels", labels.astype(np.int64))
        object.__setattr__(self, "label_names", tuple(str(name) for name in self.label_names))
        for key in ("groups", "centres", "split"):
            if getattr(self, key) is not None:
                self._keep(key, np.asarray(getattr(self, key)).astype(np.str_))
        if self.split is not None and not np.isin(self.split, PARTS).all():
            raise DataError(f"split must be one of {', '.join(PARTS)}, found '{np.setdiff1d(self.split, PARTS)[0]}'")

    def _keep(self, key: str, array: np.ndarray) -> None:
        if len(array) != len(self.images):
            raise DataError(f"{len(self.images)} images, but {len(array)} {key}")
        if array.ndim not in (1, 4):
            raise DataError(f"{key} must be one-dimensional, not {array.shape}")
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
