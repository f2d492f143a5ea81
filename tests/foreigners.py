"""What stands in the place of data, and how a source refuses it: for the tests of files that others made."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from refused import refused

from fedrobust.data import Source
from fedrobust.errors import DataError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 7127\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"


def refuses(source: Source, **problem: object) -> None:
    """The source must be refused for this problem."""
    with refused(DataError, **problem):
        source.check()
        source.load(0)


@contextmanager
def little_memory() -> Iterator[None]:
    """What is allocated in the block stays below 64 MiB."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def pcam(folder: Path, counts=(8, 4, 4)) -> Path:
    """The six HDF5 files of PCam, with so many patches in each part."""
    for part, count in zip(("train", "valid", "test"), counts, strict=True):
        stem = f"{folder}/camelyonpatch_level_2_split_{part}_"
        with h5py.File(f"{stem}x.h5", "w") as file:
            file["x"] = np.zeros((count, 12, 12, 3), np.uint8)
        with h5py.File(f"{stem}y.h5", "w") as file:
            file["y"] = (np.arange(count) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
    return folder
