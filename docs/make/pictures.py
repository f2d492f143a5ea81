"""Draws docs/pictures/histology.png: generated patches, a row for each class. `python docs/make/pictures.py`"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from fedrobust.data import Histology

COLUMNS = 11

if __name__ == "__main__":
    patches = Histology(patients=20, patches_per_patient=20, size=96, classes=4, difficulty=0).load(seed=4)
    random = np.random.default_rng(0)
    figure, rows = plt.subplots(patches.classes, 1, figsize=(11.4, 4.1), layout="constrained")
    for label, row in enumerate(rows):
        chosen = random.choice(np.flatnonzero(patches.labels == label), COLUMNS, replace=False)
        framed = np.pad(patches.images[chosen], ((0, 0), (0, 0), (2, 2), (0, 0)), constant_values=255)
        row.imshow(np.concatenate(list(framed), axis=1), interpolation="none")
        row.set_ylabel(patches.label_names[label], fontsize=9)
        row.set(xticks=[], yticks=[])
        row.spines[:].set_visible(False)
    file = Path(__file__).parents[1] / "pictures" / "histology.png"
    figure.savefig(file, dpi=100)
    Image.open(file).convert("RGB").quantize(256).save(file, optimize=True)  # a third of the bytes
