"""Data sources: the base of every source, and what all sources that read files share."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from blake3 import blake3
from pydantic import Field

from fedrobust.data.cache import Add, cache_folder, kept
from fedrobust.data.foreign import mistaken_for, one_line
from fedrobust.data.listing import entries_of
from fedrobust.data.packed import packed_inside, packed_twin
from fedrobust.data.patches import PATIENTS_FROM, Decoded, Outline, Patches, Pixels, refuse_images
from fedrobust.data.pixels import MANY, decode, files_key, resized
from fedrobust.errors import DataError, Problem
from fedrobust.options import Options, nearest
from fedrobust.seeds import generator

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

VARIABLE = "FEDROBUST_DATA"


class Source(Options):
    """Base of every data source. It needs `load`; with `outline`, data that a run cannot use are refused sooner."""

    name: str

    def outline(self, seed: int) -> Outline:
        """What tables, file names or headers tell of the patches, before the first image is decoded.

        seed: as for `load`.

        Labels, patients, centres and the split are checked with it, then its pixels are decoded. By default all
        patches, decoded.

        Raises `DataError` if files are missing or are not what they should be.
        """
        return self.load(seed)

    @abstractmethod
    def load(self, seed: int) -> Patches:
        """All patches. With an `outline`, this is `self.outline(seed).decode()`.

        seed: draws what is random (synthetic tissue, the subset that `limit` asks for).

        Raises `DataError` if files are missing or are not what they should be.
        """

    def check(self) -> None:
        """Check that `outline` or `load` could begin; reads no images.

        Raises `DataError` for missing files or another layout.
        """

    def found(self) -> str | None:
        """What `fedrobust doctor` says about this source on this machine; None when its files are not here."""
        return None


def outline_of(source: Source, seed: int) -> Outline:
    """The outline of a source; all its patches if only its `load` is its own.

    source: may be a user's subclass of another source, with a `load` that does more than the `outline` there.
    seed: as for `Source.load`.
    """
    own = next(each for each in type(source).__mro__ if {"outline", "load"} & set(vars(each)))
    return source.outline(seed) if "outline" in vars(own) else source.load(seed)


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
    """The contents that the folder must have."""
    patients_from: ClassVar[str] = PATIENTS_FROM
    """What the user can do where the patients are unknown; see `Patches.patients_from`."""

    def load(self, seed: int) -> Patches:
        return self.outline(seed).decode()

    @abstractmethod
    def locate(self) -> Path:
        """The file or folder with the data.

        Raises `DataError` if it is not there.
        """

    def check(self) -> None:
        self.locate()

    def found(self) -> str | None:
        try:
            self.check()
            return str(self.locate())
        except DataError:
            return None

    def location(self) -> Path | None:
        """Where the user said that the data is, unchecked."""
        text = self.path or os.environ.get(VARIABLE)
        return self.named(text) if text else None

    def first(self, fits: Callable[[Path], bool], *below: str) -> Path:
        """The first of `place()/below...` and `place()` that `fits`.

        fits: whether a folder holds the data.
        below: names of folders inside it.

        Raises `DataError`, which says where to get the data, if there is none.
        """
        place = self.location()
        if place is None:
            raise self.missing(f"neither `path` nor the environment variable {VARIABLE} says where the data are")
        for candidate in [*(place / name for name in below), place]:
            if fits(candidate):
                return candidate
        given = "`path`" if self.path else VARIABLE
        state = packed_twin(place) or "does not exist"
        if place.is_dir():
            state = ", but ".join(filter(None, (self.lacking(place), packed_inside(place))))
        elif place.exists():
            state = f"is {mistaken_for(place) or 'a file'}, where a folder is due"
        near = "" if place.exists() else nearest(place.name, _names(place.parent))
        raise self.missing(f"{state}, and {given} names it", place, near)

    def one_file(self, endings: tuple[str, ...]) -> Path:
        """The file that the user named, or the only one with such an ending in the folder that the user named.

        endings: in lower case, such as `.npz`; for a named file they do not matter.

        Raises `DataError` if there is none, or more than one.
        """
        place = self.first(Path.exists)
        if place.is_file():
            return place
        if not place.is_dir():
            raise self.missing("is neither a file nor a folder", place)
        paths = [Path(entry.path) for entry in entries_of(place) if entry.name.lower().endswith(endings)]
        found = [path for path in paths if path.is_file()]
        if len(found) != 1:
            kind = " or ".join(endings)
            names = ", ".join(each.name for each in found[:4])
            what = f"holds {len(found)} {kind} files ({names}): name one" if found else f"holds no {kind} file"
            raise self.missing((not found and packed_inside(place)) or what, place)
        return found[0]

    def lacking(self, place: Path) -> str:
        """What is wrong with an existing folder that does not hold the data."""
        return "does not hold the data"

    def named(self, text: str) -> Path:
        """The path that a user wrote.

        Raises `DataError` if the system cannot even look for it.
        """
        try:
            place = Path(text).expanduser()
            place.exists()
        except (OSError, RuntimeError, ValueError) as error:  # too long, forbidden, or the home of an unknown user
            raise DataError(Problem(one_line(error)).at(Path(text[:100]))) from None
        return place

    def missing(self, what: str, where: Path | None = None, near: str = "") -> DataError:
        """The error for missing data: what is missing, where to get it, and what `path` must name.

        what: is wrong.
        where: the file or folder that the error names.
        near: asks for the file or folder that may have been meant.
        """
        remedy = (
            f"{near} " * bool(near) + f"`path` or {VARIABLE} must name {self.layout}; get {self.name} from {self.home}"
        )
        problem = Problem(what, hint=remedy)
        return DataError(problem.at(where) if where else problem)

    def outlined(self, where: Path, pixels: Pixels, files: Sequence[Path] = (), **arrays: Any) -> Outline:
        """`Outline(**arrays)`, whose pixels are resized.

        where: file or folder that errors name.
        pixels: decodes patches.
        files: large ones that hold all pixels: what is made of them is kept in the cache, if there is one
            (`keeping_in`), and if these are many patches. None: `pixels` sees to that.

        Raises `DataError` if the arrays are not what they should be.
        """

        def decoded(chosen: np.ndarray) -> Decoded:
            folder = cache_folder() if files and len(chosen) >= MANY else None
            if folder is None:
                return at_once(chosen)
            options = self.model_dump_json(exclude={"path", "limit"})
            try:
                key = files_key(files, type(self), options, blake3(chosen.tobytes()).hexdigest())
            except OSError:  # a file is missing: reading it says so
                return at_once(chosen)

            def make(add: Add) -> dict[str, Any]:
                images = at_once(chosen).images
                for start in range(0, len(images), MANY):
                    add(images[start : start + MANY])
                return {}

            return Decoded(kept(folder, f"decoded-{key}", len(chosen), make).array)

        def at_once(chosen: np.ndarray) -> Decoded:
            found = pixels(chosen)
            with self.naming(where):
                refuse_images(found.images.shape, found.images.dtype)
            if self.size is None or self.size == found.images.shape[1]:
                return found
            return found._replace(images=resized(found.images, self.size))

        with self.naming(where):
            return Outline(**{"patients_from": self.patients_from} | arrays, pixels=decoded)

    @contextmanager
    def naming(self, where: Path) -> Iterator[None]:
        """Errors in the data, raised in the block, name the file or folder `where`."""
        try:
            yield
        except DataError as error:
            raise error.each(lambda each: each.at(where)) from None


class ImageFileSource(FileSource):
    """Base of the sources that read one image file for each patch."""

    unreadable: Literal["refuse", "skip"] = "refuse"
    """Image files that cannot be read, or whose pixels cannot be read rightly: refuse the first one, or leave them out;
    how many were left out is said, and kept in the run's record."""

    def decoded(
        self, files: Sequence[Path], accept: Callable[[Image], Image | None] = lambda image: image, rule: str = ""
    ) -> Decoded:
        """The images of the files; see `fedrobust.data.pixels.decode` for arguments and errors.

        What was left out as unreadable is logged.
        """
        found = decode(files, self.size, accept, self.unreadable == "skip", rule)
        for note in found.notes:
            logger.warning("%s: %s", self.name, note)
        return found


def _names(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir())
    except OSError:
        return []


def choose(limit: int | None, seed: int, *strata: np.ndarray) -> np.ndarray:
    """Sorted indices of a random subset; each stratum keeps its share, and at least one item.

    limit: how many; None keeps all.
    strata: (N,) arrays; items that agree in all of them are one stratum.
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
    # The k-th of a stratum of m comes at k/m: the first items of this order have all strata in proportion.
    chosen = order[np.argsort(rank / np.repeat(sizes, sizes), kind="stable")[:limit]]
    return np.sort(chosen)


def text(values: Iterable[Any]) -> np.ndarray:
    """An (N,) array of str."""
    return np.array([str(value) for value in values], dtype=np.str_)
