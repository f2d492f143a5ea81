"""Files from elsewhere: what they claim is checked before anything is read, and errors are one line."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from fedrobust.data.object_arrays import contents_of, right_way
from fedrobust.data.packed import packed
from fedrobust.errors import DataError, Problem
from fedrobust.machine import memory_limits

ZIP, HDF = b"PK\x03\x04", b"\x89HDF"
"""The first bytes of such files."""

_PICKLE = "a Python pickle, which is never loaded: save arrays with numpy.savez, and tables with to_csv of pandas"
_WORKBOOK = "a workbook: save its sheet as CSV (UTF-8)"
_WORKBOOKS = (".xlsx", ".xlsm", ".ods")
_OTHERS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"\x93NUMPY", "a single array (.npy), not an archive: save it with numpy.savez(file, images=..., labels=...)"),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04\x95", _PICKLE),
    (b"\x80\x05\x95", _PICKLE),
    (HDF, "an HDF5 file"),
    (b"%PDF", "a PDF document"),
    (b"\xd0\xcf\x11\xe0", _WORKBOOK),
    (b"ARROW1", "an Arrow file: save it as Parquet"),
    (b"SQLite format 3", "an SQLite database: save its table as CSV"),
)
"""Files that people mistake for their data: the first bytes, and what the file is."""

_SMALL, _DENSEST = 2**28, 200
"""Bytes that anybody may claim; beyond, what was packed to less than a 200th is no data of this world, but a bomb."""


@contextmanager
def reading(file: Path, kind: bytes = b"", problem: str = "cannot be read") -> Iterator[None]:
    """Turn any exception of a decoder for a damaged file into one line, which also says what kind of file it is
    instead.

    file: the file that is read.
    kind: the first bytes of a file of the right kind.
    problem: begins the line.

    Raises `DataError`.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(Problem("does not exist").at(file)) from None
    except Exception as error:  # a decoder may raise anything at unexpected bytes
        mistaken = mistaken_for(file, kind)
        reason = f"it is {mistaken}" if mistaken else one_line(error)
        raise DataError(Problem(f"{problem}: {reason}").at(file)) from None


def one_line(error: Exception) -> str:
    """The text of an error in one line; its class if it has no text."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def mistaken_for(file: Path, kind: bytes = b"") -> str:
    """What kind of file this is, if it does not begin with `kind`; empty if that is unknown."""
    if file.is_dir():
        return "a folder, where a file is due"
    try:
        with file.open("rb") as opened:
            head = opened.read(300)
    except OSError:
        return ""
    if not head:
        return "empty"
    if kind and head.startswith(kind):
        return ""
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, as a download that failed leaves it: get the file again"
    if head.startswith(ZIP) and file.suffix.lower() in _WORKBOOKS:
        return _WORKBOOK
    return packed(head, file.name) or next((words for start, words in _OTHERS if head.startswith(start)), "")


# Memory


def require_memory(what: str, size: int, remedy: str = "", file: Path | None = None) -> None:
    """Check, before anything is allocated, that there is enough memory.

    what: begins the error.
    size: bytes.
    remedy: what the user can do.
    file: that the error names.

    Raises `DataError` otherwise.
    """
    free = _free_memory()
    if size > free:
        told = f"{what} need {_gigabytes(size)} of memory, and {_gigabytes(free)} are free here"
        problem = Problem(told, hint=remedy)
        raise DataError(problem.at(file) if file else problem)


def plausible(file: Path, key: str, claimed: int, held: int) -> None:
    """Check that so many bytes can have been packed into the file.

    key: name of the array.
    claimed: bytes of the array.
    held: bytes in the file.

    Raises `DataError` otherwise.
    """
    if claimed > max(_SMALL, _DENSEST * held):
        raise DataError(Problem(f"claims {_gigabytes(claimed)}, but the file holds {held} bytes of it", key).at(file))


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _free_memory() -> int:
    """Bytes that this process could still use: what the machine has available, within the process's own limits."""
    free = min(memory_limits().values())
    with suppress(OSError):  # where there is no /proc
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return min(free, int(line.split()[1]) * 1024)
    return free


# NumPy archives


class Archive:
    """An .npz file: everything that its headers claim is checked when it is opened, before an array is allocated.

    file: its path.
    keys: arrays that may be read; all by default.

    Arrays of Python objects are refused, and so is everything that claims more than its file, or this machine, can
    hold. Raises `DataError` for them.
    """

    def __init__(self, file: Path, keys: Iterable[str] | None = None) -> None:
        """`keys` are those that may be read, by default all."""
        self._file = file
        with reading(file, ZIP), zipfile.ZipFile(file) as members:
            self._members = {info.filename.removesuffix(".npy"): info for info in members.infolist()}
            self.keys = list(self._members)
            """The names of all arrays in the file."""
            wanted = [key for key in self.keys if keys is None or key in keys]
            headers = {key: self._header(members, key) for key in wanted}
            self.shapes = {key: shape for key, (shape, _) in headers.items()}
            """The shape of each array that may be read."""
            self.dtypes = {key: dtype for key, (_, dtype) in headers.items()}
            """Its type."""

    def require(self, *keys: str) -> None:
        """Raises `DataError` if one of these keys is missing."""
        inner = next((key for key in self.keys if key.endswith(".npz")), "")
        for key in keys:
            if key not in self.keys and inner:
                raise DataError(Problem(f"is a zip file that holds {inner}: unpack it first").at(self._file))
            if key not in self.keys:
                raise DataError(Problem("is missing", key, ", ".join(self.keys) or "none").at(self._file))

    def read(self, *keys: str) -> dict[str, np.ndarray]:
        """The arrays with these keys; keys that the file lacks are left out.

        Raises `DataError` if they do not fit into memory or are damaged.
        """
        found = [key for key in keys if key in self.shapes]
        claimed = sum(self._members[key].file_size for key in found)
        require_memory("its arrays", claimed, file=self._file)
        arrays = {}
        with reading(self._file, ZIP), zipfile.ZipFile(self._file) as members:
            for key in found:
                with members.open(self._members[key]) as stream:
                    arrays[key] = np.lib.format.read_array(stream, allow_pickle=False)
        return arrays

    def rows(self, key: str, chosen: np.ndarray) -> np.ndarray:
        """Some rows of an array, read block by block, so that no other rows stay in memory.

        key: its name.
        chosen: (n,) sorted positions.

        Raises `DataError` if they do not fit into memory or the file is damaged.
        """
        shape, dtype = self.shapes[key], self.dtypes[key]
        row = math.prod(shape[1:]) * dtype.itemsize
        if len(chosen) == shape[0]:
            return self.read(key)[key]
        require_memory(f"{len(chosen)} of its {key}", len(chosen) * row, "set a smaller `limit`", self._file)
        picked = np.empty((len(chosen), *shape[1:]), dtype=dtype)
        member = self._members[key]
        with reading(self._file, ZIP), zipfile.ZipFile(self._file) as members, members.open(member) as stream:
            np.lib.format.read_magic(stream)
            if np.lib.format.read_array_header_1_0(stream)[1]:  # column by column
                picked[:] = self.read(key)[key][chosen]
                return picked
            block = max(1, 2**22 // max(1, row))
            for start in range(0, shape[0], block):  # to the end, where zipfile compares the checksum
                low, high = np.searchsorted(chosen, (start, start + block))
                rows = np.frombuffer(stream.read(min(block, shape[0] - start) * row), dtype).reshape(-1, *shape[1:])
                picked[low:high] = rows[chosen[low:high] - start]
        return picked

    def _header(self, members: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], np.dtype]:
        info = self._members[key]
        if info.flag_bits & 1:
            raise self._refused(key, "is encrypted")
        with members.open(info) as stream:
            # Longer headers, of other versions, belong to tables with named columns.
            if np.lib.format.read_magic(stream) != (1, 0):
                raise self._refused(key, "must be a plain array, without named columns")
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            start = stream.tell()
            if dtype.hasobject:
                plausible(self._file, key, info.file_size, info.compress_size)
                reason = "holds Python objects and cannot be read without pickle"
                remedy = right_way(key, shape, contents_of(stream))
                raise self._refused(key, reason, f"dtype {dtype}", f"to save it rightly: {remedy}")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size > info.file_size - start:
            raise self._refused(key, f"claims {dtype} {shape}, {size} bytes", str(info.file_size - start))
        held = self._file.stat().st_size
        plausible(self._file, key, info.file_size, min(info.compress_size, held))
        if info.compress_type == zipfile.ZIP_STORED and info.file_size > held:
            raise self._refused(key, f"claims {info.file_size} bytes", f"a file of {held}")
        return shape, dtype

    def _refused(self, key: str, message: str, found: str = "", hint: str = "") -> DataError:
        return DataError(Problem(message, key, found, hint=hint).at(self._file))


# HDF5


def checked_dataset(file: Path, archive: Any, key: str) -> Any:
    """The dataset under `key` of an open h5py file.

    file: its path, for errors.
    archive: the open file.

    Raises `DataError` if it is missing or claims an impossible size.
    """
    import h5py

    rows = archive.get(key)
    if rows is None:
        raise DataError(Problem("is missing", key, ", ".join(archive) or "none").at(file))
    if not isinstance(rows, h5py.Dataset):
        raise DataError(Problem("must be an array", key).at(file))
    if rows.external or rows.is_virtual:
        raise DataError(Problem("lies in other files", key).at(file))
    plausible(file, key, rows.size * rows.dtype.itemsize, rows.id.get_storage_size())
    return rows
