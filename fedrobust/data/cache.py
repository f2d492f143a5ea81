"""Arrays that were made once and are kept on disk: decoded patches, normalised ones, features of an encoder.

An entry is a folder `KIND-KEY` with `array.npy`, which is mapped into memory and not read as a whole, and `about.json`.
It appears whole or not at all, and is checked against its digest whenever it is used. Other processes on the same
machine can map the same file (`file_of`). The folder may be deleted at any time.
"""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from blake3 import blake3

from fedrobust.data.cache_room import make_room
from fedrobust.data.foreign import require_memory
from fedrobust.locks import alone
from fedrobust.machine import usable_cores
from fedrobust.private import private_folder

logger = logging.getLogger(__name__)

ARRAY, ABOUT = "array.npy", "about.json"
"""The files of an entry."""
RESTART = "restart.json"
"""The file of an unfinished entry that says which rows are there."""
NOTED = 30.0
"""Seconds of work that may be lost if the process is killed."""
CROWDED = "set `limit` or a smaller `size`"


class Add(Protocol):
    """Takes the next rows: an array of the next patches, or of what was made of them."""

    count: int
    """Rows that it has."""

    def __call__(self, rows: np.ndarray) -> None:
        """Take `rows`."""


_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@dataclass(frozen=True)
class ArrayFile:
    """An array in a file, for other processes of this machine."""

    path: Path
    """Absolute."""
    identity: tuple[int, int, int, int]
    """Device, number, length and time of change of the file that was checked."""
    offset: int
    """Bytes before the array."""
    shape: tuple[int, ...]
    dtype: str
    digest: str
    """BLAKE3 (hexadecimal) of the array."""

    def opened(self) -> np.ndarray | None:
        """The array, read-only and mapped into memory; None if this very file is not here."""
        try:
            with self.path.open("rb") as file:
                return _mapped(file, self) if _identity(file) == self.identity else None
        except (OSError, ValueError):
            return None


@dataclass(frozen=True)
class KeptArray:
    """An array, from the cache or just made."""

    array: np.ndarray
    """(N, ...); mapped from a file, if it is kept in one, and then read-only."""
    about: dict[str, Any]
    """What its maker says of it."""
    digest: str
    """BLAKE3 (hexadecimal) of the array."""


@contextmanager
def keeping_in(folder: Path | None) -> Iterator[None]:
    """Within the block, in this thread, sources keep decoded patches in `folder`; None: nowhere."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def cache_folder() -> Path | None:
    """Where sources keep decoded patches; None if they do not."""
    return _folder.get()


def kept(
    folder: Path | None, name: str, most: int, make: Callable[[Add], dict[str, Any]], goes_on: bool = False
) -> KeptArray:
    """An array from the cache; if it is not there, it is made, and kept.

    folder: the cache; None keeps nothing.
    name: of the entry; it must tell everything that decides the array.
    most: how many rows there may be.
    make: gets a function that takes the rows, block by block, and returns what is kept beside them (JSON). It may be
        called a second time, if the disk was full.
    goes_on: whether `make` can begin after any row: then rows that were made before the process was killed, or `make`
        raised an exception, are not made again, and `count` of the function says how many there are.

    A damaged entry is made again. If several processes ask for it at once, one of them makes it. A cache that cannot be
    written costs time and memory, and is reported in one line. Entries that nobody uses are removed: see `make_room`.

    Raises what `make` raises, and `DataError` if memory cannot hold rows that are not kept.
    """
    if folder is not None:
        place = folder.absolute() / name
        try:
            private_folder(place.parent)
            if (found := _read(place)) is not None:
                return found
            with alone(place) as tell:
                return _read(place, log=logging.DEBUG) or _made(place, most, make, tell, goes_on)
        except OSError as error:  # also for a wait that was too long
            logger.warning("%s: what is made of the patches is not kept: %s", folder, error.strerror or error)
    held = _Held(most)
    about = make(held)
    array = held.array()
    return KeptArray(array, about, digest_of(array))


def file_of(array: np.ndarray) -> ArrayFile | None:
    """The file that holds exactly this array; None if there is none.

    array: may be a view, if it shows all rows.
    """
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    file = base.file if isinstance(base, _Map) else None
    if file is None or (array.shape, array.dtype.str) != (file.shape, file.dtype) or not array.flags.c_contiguous:
        return None
    return file


def digest_of(array: np.ndarray) -> str:
    """BLAKE3 (hexadecimal) of an array's bytes; of one in a file it is known."""
    file = file_of(array)
    return file.digest if file is not None else _digest(array)


def seal(about: dict[str, Any], array: np.ndarray, digest: str) -> dict[str, Any]:
    """The content of `about.json`.

    about: what the maker says of the array.
    digest: of the array.
    """
    content = {"about": about, "shape": list(array.shape), "dtype": array.dtype.str, "digest": digest}
    return content | {"check": sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


class _Map(mmap.mmap):
    """A map that knows its file: arrays that show it have it as their base."""

    file: ArrayFile


def _mapped(source: BinaryIO, file: ArrayFile) -> np.ndarray:
    memory = _Map(source.fileno(), 0, access=mmap.ACCESS_READ)
    memory.file = file
    array: np.ndarray = np.ndarray(file.shape, np.dtype(file.dtype), memory, file.offset)
    return array


def _identity(source: BinaryIO) -> tuple[int, int, int, int]:
    status = os.fstat(source.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _opened(path: Path, digest: str) -> np.ndarray:
    """The array in an .npy file, mapped. Raises `OSError` or `ValueError`."""
    with path.open("rb") as source:
        if np.lib.format.read_magic(source) != (1, 0):
            raise ValueError("another version")
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(source)
        if columns_first or dtype.hasobject:
            raise ValueError("another layout")
        return _mapped(source, ArrayFile(path, _identity(source), source.tell(), shape, dtype.str, digest))


def _digest(array: np.ndarray) -> str:
    return blake3(_bytes(array), max_threads=usable_cores()).hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _read(place: Path, log: int = logging.WARNING) -> KeptArray | None:
    """The entry; None if there is none, or it is damaged, which is logged."""
    try:
        content = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        about, digest = content["about"], content["digest"]
        array = _opened(place / ARRAY, digest)
        if content == seal(about, array, digest) and _digest(array) == digest:
            with suppress(OSError):
                os.utime(place)  # for `make_room`
            return KeptArray(array, about, digest)
    except FileNotFoundError:
        if not place.exists():
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        pass
    logger.log(log, "%s is damaged, and made again", place)
    return None


def _made(
    place: Path,
    most: int,
    make: Callable[[Add], dict[str, Any]],
    tell: Callable[[str], None],
    goes_on: bool,
) -> KeptArray:
    """Make an entry; `tell` is told how far it is."""
    partial, unfinished = place.with_name(f".{place.name}.{secrets.token_hex(8)}"), False
    for left in place.parent.glob(f".{place.name}.*/"):  # by a process that was killed
        if goes_on and not partial.exists():
            with suppress(OSError):
                left.rename(partial)
        shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir(mode=0o700, exist_ok=True)
        for file in partial.iterdir():
            if file.name not in (ARRAY, RESTART):  # a process was killed when it was nearly ready
                file.unlink()
        (partial / ARRAY).touch(mode=0o600)
        with (partial / ARRAY).open("r+b") as out:
            written = _Written(out, most, tell, partial / RESTART if goes_on else None)
            try:
                about = make(written)
            except OSError:  # of the disk, it may be
                raise
            except BaseException:
                unfinished = written.note()
                raise
            written.end()
        (partial / RESTART).unlink(missing_ok=True)
        digest = written.digest.hexdigest()
        array = _opened(partial / ARRAY, digest)
        content = json.dumps(seal(about, array, digest))
        with (partial / ABOUT).open("x", encoding="utf-8") as text:
            text.write(content)
            text.flush()
            os.fsync(text.fileno())
        for file in (partial / ARRAY, partial / ABOUT):
            file.chmod(0o600)
        if place.is_dir() and not place.is_symlink():  # a damaged one
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        partial.rename(place)
        return KeptArray(_opened(place / ARRAY, digest), json.loads(content)["about"], digest)
    finally:
        if not unfinished:
            shutil.rmtree(partial, ignore_errors=True)


class _Written:
    """Rows that are written to a file one block after the other: a full disk is an error, not the process's end."""

    def __init__(self, out: BinaryIO, most: int, tell: Callable[[str], None], restart: Path | None) -> None:
        """`restart`: a file that says which rows are there, so that another process can go on; None: none can."""
        self._out, self._most, self._tell, self._restart = out, most, tell, restart
        self._row: np.ndarray | None = None
        self._noted = time.monotonic()
        self.count, self.digest = 0, blake3()
        if restart is None or not self._went_on(restart):
            out.truncate(0)
            out.seek(0)

    def __call__(self, rows: np.ndarray) -> None:
        self.add(rows)

    def add(self, rows: np.ndarray) -> None:
        if self._row is None:
            self._row = rows[0]
            cache = Path(os.fspath(self._out.name)).parent.parent
            needed, free = self._most * rows[0].nbytes, make_room(cache, self._most * rows[0].nbytes)
            if needed > free:
                reason = f"it may need {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free"
                raise OSError(errno.ENOSPC, reason)
            self._header(self._most)
        data = _bytes(rows)
        self._out.write(data)
        self.digest.update(data)
        self.count += len(rows)
        self._tell(f"{self.count:,} of {self._most:,}")
        if time.monotonic() - self._noted >= NOTED:
            self.note()

    def end(self) -> None:
        """Complete the file."""
        self._out.seek(0)
        self._header(self.count)  # as long as the first one: NumPy leaves room for a longer number
        self._out.flush()
        os.fsync(self._out.fileno())

    def note(self) -> bool:
        """Write which rows are there, for another process; returns whether it can go on with them."""
        if self._restart is None or not self.count:
            return False
        self._out.flush()
        os.fsync(self._out.fileno())
        new = self._restart.with_suffix(".new")
        new.write_text(json.dumps({"count": self.count, "digest": self.digest.hexdigest()}), encoding="utf-8")
        new.replace(self._restart)
        self._noted = time.monotonic()
        return True

    def _went_on(self, restart: Path) -> bool:
        """Take over the rows that another process has written; returns False if there are none, or not the right
        ones."""
        try:
            noted = json.loads(restart.read_text(encoding="utf-8"))
            np.lib.format.read_magic(self._out)
            shape, _, dtype = np.lib.format.read_array_header_1_0(self._out)
            row = np.empty(shape[1:], dtype)
            begin, digest, left = self._out.tell(), blake3(), noted["count"] * row.nbytes
            while left and (data := self._out.read(min(left, 1 << 24))):
                digest.update(data)
                left -= len(data)
            if left or shape[0] != self._most or digest.hexdigest() != noted["digest"]:
                return False
            self._out.truncate(begin + noted["count"] * row.nbytes)
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return False
        self.count, self.digest, self._row = noted["count"], digest, row
        return True

    def _header(self, count: int) -> None:
        assert self._row is not None
        shape, dtype = (count, *self._row.shape), np.lib.format.dtype_to_descr(self._row.dtype)
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._out, header)


class _Held:
    """Rows that are held in memory."""

    def __init__(self, most: int) -> None:
        self._most, self.count = most, 0
        self._array: np.ndarray | None = None

    def __call__(self, rows: np.ndarray) -> None:
        if self._array is None:
            shape = " x ".join(str(length) for length in rows.shape[1:])
            require_memory(f"{self._most} patches of {shape} {rows.dtype}", self._most * rows[0].nbytes, CROWDED)
            self._array = np.empty((self._most, *rows.shape[1:]), dtype=rows.dtype)
        self._array[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    def array(self) -> np.ndarray:
        assert self._array is not None
        return self._array[: self.count]
