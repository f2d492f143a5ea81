"""Tables of small image files, for the tests of the source `table`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
from sets import noise, picture

from fedrobust.data import PatchTable

Frame = pandas.DataFrame


def images(folder: Path, *names: str) -> list[str]:
    """Files whose first pixel tells which one they are."""
    for number, name in enumerate(names):
        pixels = noise(number, 8, 8, 3)
        pixels[0, 0] = number
        picture(folder / name, pixels)
    return list(names)


def frame(folder: Path, count: int = 12) -> Frame:
    numbers = np.arange(count)
    names = images(folder, *(f"p{number:02}.png" for number in numbers))
    return Frame(
        {
            "image": names,
            "label": np.where(numbers % 2, "tumour", "normal"),
            "patient": [f"P{number // 2}" for number in numbers],
            "centre": np.where(numbers < 6, "A", "B"),
            "split": np.where(numbers < 8, "train", "test"),
        }
    )


def saved(table: Frame, folder: Path, **options: Any) -> PatchTable:
    table.to_csv(folder / "t.csv", index=False)
    return PatchTable(path=str(folder / "t.csv"), **options)
