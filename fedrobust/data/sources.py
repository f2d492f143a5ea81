"""Where patches come from: the base of every source, and what all sources that read files share."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from fedrobust.data.patches import Patches
from fedrobust.errors import DataError
from fedrobust.options import Options
from fedrobust.seeds import generator

if TYPE_CHECKING:
    from PIL.Image import Image

VARIABLE = "FEDROBUST_DATA"


class Source(Options):
    """Base of every data source."""

    name: str

    @abstractmethod
    def load(self, seed: int) -> Patches:
        """All patches; `seed` draws what is random (synthetic tissue, the subset that `limit` asks for).

        Raises DataError when files are missing or not what they should be.
        """

    def check(self) -> None:
        """Raises DataError when `load` could not begin: missing files, another layout. Reads no images."""

    def found(self) -> str | None:
        """What `fedrobust doctor` says about this source on this machine; None when its files are not here."""
        return None


class FileSource(Source):
    """Base of the sources that read files."""

    path: str | None = None
    """The file or folder; when null, the environment variable FEDROBUST_DATA names it."""
    size: int | None = Field(default=None, ge=8)
    """Resize patches to this many pixels a side; null keeps the size of the files."""
    limit: int | None = Field(default=None, ge=1)
    """Load only a random subset of about this many patches, with the proportions of the labels kept."""

    home: ClassVar[str]
    """The project page that offers the data, and its licence."""
    layout: ClassVar[str]
    """What the folder holds."""

    @abstractmethod
    def locate(self) -> Path:
        """The file or folder that holds the data. Raises DataError when it is not there."""

    def check(self) -> None:
        self.locate()

    def found(self) -> str | None:
        try:
            self.check()
            return str(self.locate())
        except DataError:
            return None

    def place(self) -> Path | None:
        """Where the user said that the data is, unchecked."""
        text = self.path or os.environ.get(VARIABLE)
        return Path(text).expanduser() if text else None

    def first(self, fits: Callable[[Path], bool], *below: str) -> Path:
        """The first of `place()/below...`, `place()` that `fits`, or a DataError that says where to get the data."""
        place = self.place()
        if place is None:
            raise self.missing(f"neither `path` nor the environment variable {VARIABLE} says where the data is")
        for candidate in [*(place / name for name in below), place]:
            if fits(candidate):
                return candidate
        given = "`path`" if self.path else VARIABLE
        raise self.missing(f"{place} ({given}) {'does not hold the data' if place.exists() else 'does not exist'}")

    def missing(self, what: str) -> DataError:
        """The error for data that is not there: what and where, where to get it, and what `path` has to name."""
        return DataError(
            f"{self.name}: {what}; get the data from {self.home}; `path` or {VARIABLE} must name {self.layout}"
        )

    def patches(self, where: Path, **arrays: Any) -> Patches:
        """`Patches(**arrays)`, resized; what is wrong with them is said of the file or folder `where`."""
        try:
            found = Patches(**arrays)
        except DataError as error:
            raise DataError(f"{self.name}: {where}: {error}") from None
        if self.size in (None, found.size):
            return found
        return Patches(**{**arrays, "images": resized(found.images, self.size)})


def choose(limit: int | None, seed: int, *strata: np.ndarray) -> np.ndarray:
    """Sorted indices of a random subset of `limit` items; each stratum keeps its share, and at least one item.

    Every entry of `strata` is an (N,) array; items that agree in all of them are one stratum. None keeps all.
    """
    count = len(strata[0])
    if limit is None or limit >= count:
        return np.arange(count)
    codes = np.zeros(count, dtype=np.int64)
    for values in strata:
        distinct, inverse = np.unique(values, return_inverse=True)
        codes = codes * len(distinct) + inverse
    order = generator(seed, "limit").permutation(count)
    order = order[np.argsort(codes[order], kind="stable")]
    _, start, sizes = np.unique(codes[order], return_index=True, return_counts=True)
    rank = np.arange(count) - np.repeat(start, sizes)
    # The k-th of a stratum of m comes at k/m: any beginning of this order has all strata in proportion.
    chosen = order[np.argsort(rank / np.repeat(sizes, sizes), kind="stable")[:limit]]
    return np.sort(chosen)


def square(image: Image, size: int | None) -> np.ndarray:
    """(size, size, 3) uint8 RGB: the central square of an image, resized when `size` is given."""
    from PIL.Image import Resampling

    if size is not None:
        image.draft("RGB", (size, size))  # a JPEG may be decoded at a half, quarter or eighth, if still >= size
    rgb = image.convert("RGB")
    side = min(rgb.size)
    if rgb.width != rgb.height:
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        rgb = rgb.crop((left, top, left + side, top + side))
    if size is not None and side != size:
        rgb = rgb.resize((size, size), Resampling.BILINEAR)
    return np.asarray(rgb)


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """(N, S, S, 3) uint8 to (N, size, size, 3), antialiased."""
    from PIL import Image

    return np.stack([square(Image.fromarray(image), size) for image in images])


def decode(
    files: Sequence[Path], size: int | None, accept: Callable[[Image], Image | None] = lambda image: image
) -> tuple[np.ndarray, np.ndarray]:
    """The images (n, S, S, 3) uint8 of the files, each read once, and the positions (n,) of those kept.

    `accept` sees each opened image before it is decoded, and may change it or return None to leave it out.
    Raises DataError for a file that is no image, and for sizes that differ while `size` is None.
    """
    from PIL import Image, UnidentifiedImageError

    images: np.ndarray | None = None
    kept: list[int] = []
    for position, file in enumerate(files):
        try:
            with Image.open(file) as opened:
                accepted = accept(opened)
                pixels = None if accepted is None else square(accepted, size)
        except FileNotFoundError:
            raise DataError(f"{file} does not exist") from None
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{file} is not a readable image: {error}") from None
        if pixels is None:
            continue
        if images is None:
            images = np.empty((len(files), *pixels.shape), dtype=np.uint8)
        if pixels.shape != images.shape[1:]:
            raise DataError(
                f"{file} gives a square of {len(pixels)} pixels, the files before it {images.shape[1]}: set `size`"
            )
        images[len(kept)] = pixels
        kept.append(position)
    if images is None:
        raise DataError(f"none of the {len(files)} image files is usable")
    return images[: len(kept)], np.array(kept, dtype=np.int64)


def text(values: Iterable[Any]) -> np.ndarray:
    """An (N,) array of str."""
    return np.array([str(value) for value in values], dtype=np.str_)
