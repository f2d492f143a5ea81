"""Patches to try the source `table` with: generated tissue as image files, and a table of them.

    python experiments/write_patches.py slides

The folder gets `patches.csv` and, in `tiles`, a PNG file for each of its rows, named from two of the columns. Three
pathologists have labelled each tile: the third one only where the others differ.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fedrobust.data import Histology

HEADER = ("slide", "tile", "hospital", "magnification", "pathologist1", "pathologist2", "pathologist3")


def write_patches(folder: Path, patients: int = 60, seed: int = 1) -> None:
    """Write the tiles and the table: a slide for each patient, twelve tiles of each slide, five hospitals."""
    found = Histology(patients=patients, patches_per_patient=12, size=64).load(seed)
    assert found.centres is not None
    draw = np.random.default_rng(seed)
    (folder / "tiles").mkdir(parents=True, exist_ok=True)
    with (folder / "patches.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(HEADER)
        for number, image in enumerate(found.images):
            slide, tile, label = f"S{number // 12:03}", f"{number % 12:02}", found.labels[number]
            Image.fromarray(image).save(folder / "tiles" / f"{slide}_{tile}.png")
            first, second = (found.label_names[label ^ (draw.random() < 0.05)] for _ in range(2))
            third = found.label_names[label] if first != second else ""
            table.writerow((slide, tile, found.centres[number], 40, first, second, third))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write_patches(Path(sys.argv[1]))
