"""Drawing of synthetic tissue: the amounts of haematoxylin and eosin in every pixel of a patch.

Units and shapes are those of `fedrobust.data.cells`.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from fedrobust.data.cells import (
    WIDTH,
    Architecture,
    Nuclei,
    loose_nuclei,
    place_structures,
    push_apart,
    sigmoid,
    stamp,
    structured_nuclei,
)

_TILE = 128  # side of the periodic noise that all textures are read from; a power of two
_FAT_CELLS = 14  # in one patch


def draw(kind: Architecture, pixels: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin, each (B, pixels, pixels) float32.

    kind: its fields have one entry for each of the B patches.
    pixels: of a patch's side.

    Neither mean separates tissues: the amounts of a patch are scaled to means that are drawn from one distribution,
    whatever the tissue. Fat and bare slide come with the same chance everywhere.
    """
    patches = len(kind.radius)
    noise = Noise(patches, random)
    axis = ((np.arange(pixels) + 0.5) * (WIDTH / pixels)).astype(np.float32)
    column, row = (np.repeat(grid[None], patches, axis=0) for grid in np.meshgrid(axis, axis))
    x, y = column + 1.1 * noise(column, row, 5), row + 1.1 * noise(column, row, 5)  # no tissue is straight

    def uniform(low: float, high: float) -> np.ndarray:
        return random.uniform(low, high, (patches, 1, 1)).astype(np.float32)

    direction = random.uniform(0, np.pi, patches)
    structures = place_structures(kind, direction, random)
    depth, depth_of_lumen = structures.depth(x, y)
    sharp = 2.5 * pixels / WIDTH
    inside, lumen = sigmoid(depth * sharp), sigmoid(depth_of_lumen * sharp)
    # Disordered nests shrink away from their stroma when they are fixed.
    shrunk = np.clip(kind.disorder * random.uniform(-0.6, 1.0, patches), 0, 1)[:, None, None]
    fibres, cleft = _stroma(x, y, direction, noise, random)
    around = shrunk * np.exp(-(((depth + 0.9) / 0.6) ** 2)) * (noise(x, y, 4) > -0.2)
    between = (1 - inside) * (1 - np.maximum(cleft, around))
    cytoplasm = inside * (1 - lumen) * (1 + 0.18 * noise(x, y, 1.2))
    secretion = lumen * uniform(0, 1) ** 6

    nuclei = structured_nuclei(kind, structures, random), loose_nuclei(kind, structures, direction, random)
    chromatin = stamp(Nuclei(*map(np.concatenate, zip(*nuclei, strict=True))), patches, pixels)
    chromatin *= 1 + 0.22 * noise(x, y, 0.7)
    haematoxylin = chromatin + uniform(0.02, 0.10) * between + uniform(0.18, 0.34) * cytoplasm
    eosin = (0.05 + fibres * between + 0.42 * cytoplasm + 0.35 * secretion) * (1 - 0.35 * np.minimum(chromatin, 1))

    fat, membranes = _fat(x, y, noise, random)
    tissue = 1 - np.maximum(fat, _bare_slide(x, y, noise, random))
    haematoxylin, eosin = haematoxylin * tissue, eosin * tissue + 0.3 * membranes
    share, thickness = tissue.mean((1, 2), keepdims=True), 1 + 0.06 * noise(x, y, 14)
    return (
        _with_mean(haematoxylin, share * uniform(0.27, 0.38)) * thickness,
        _with_mean(eosin, share * uniform(0.33, 0.42)) * thickness,
    )


def _with_mean(stain: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The stain (B, S, S), each patch scaled to its mean (B, 1, 1), but no more than twofold."""
    gain = np.clip(mean / np.maximum(stain.mean((1, 2), keepdims=True), 1e-6), 0.5, 2)
    return np.asarray(stain * gain, dtype=np.float32)


class Noise:
    """Smooth noise of mean 0 and variance about 1; every patch and call reads another part of one tile.

    patches: B.
    """

    def __init__(self, patches: int, random: np.random.Generator) -> None:
        smooth = ndimage.gaussian_filter(random.standard_normal((_TILE, _TILE)), 1.0, mode="wrap")
        here = (1.25 / smooth.std() * smooth).astype(np.float32)
        right, below = np.roll(here, -1, axis=1) - here, np.roll(here, -1, axis=0) - here
        both = np.roll(right, -1, axis=0) - right
        self._terms = here.ravel(), right.ravel(), below.ravel(), both.ravel()  # of bilinear interpolation
        self._patches, self._random = patches, random

    def __call__(self, x: np.ndarray, y: np.ndarray, length: float, across: float | None = None) -> np.ndarray:
        """Noise at points (B, S, S), as float32.

        length: the distance over which it changes along x.
        across: the same along y; `length` by default.
        """
        (u, column), (v, row) = self._cells(x, length), self._cells(y, across or length)
        cell = row * _TILE + column
        here, right, below, both = (term.take(cell) for term in self._terms)
        both *= u  # in place: fresh memory costs more than the arithmetic
        both += below
        both *= v
        right *= u
        both += right
        both += here
        return np.asarray(both)

    def _cells(self, value: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
        """The position of coordinates in a cell of the tile (0 to 1), and the cell."""
        start = self._random.uniform(0, _TILE, (self._patches, 1, 1)).astype(np.float32)
        scaled = (value * np.float32(1.4 / length)).astype(np.float32, copy=False)
        scaled += start
        whole = np.floor(scaled)
        scaled -= whole
        return scaled, whole.astype(np.intp) & (_TILE - 1)


def _stroma(
    x: np.ndarray, y: np.ndarray, direction: np.ndarray, noise: Noise, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Eosin of collagen fibres that run, and wave, along `direction` (B,), and the clefts between them; (B, S, S)."""
    shape = (len(direction), 1, 1)
    bent = (direction[:, None, None] + 0.25 * noise(x, y, 22)).astype(np.float32)
    x, y = x - np.float32(WIDTH / 2), y - np.float32(WIDTH / 2)
    along, across = x * np.cos(bent) + y * np.sin(bent), y * np.cos(bent) - x * np.sin(bent)
    across = across + random.uniform(0.2, 1.6, shape).astype(np.float32) * noise(along, across, 6)
    fibres = 0.7 * noise(along, across, 6, 0.6) + 0.5 * noise(along, across, 16, 2.2)
    contrast = random.uniform(0.12, 0.34, shape)
    eosin = 0.55 * (1 + contrast * fibres + 0.08 * noise(x, y, 0.8))
    gaps = noise(along, across, 8, 0.9) + 0.6 * noise(x, y, 9)
    return np.maximum(eosin, 0.05), sigmoid((gaps - random.uniform(1.8, 3.6, shape)) * 6)


def _fat(x: np.ndarray, y: np.ndarray, noise: Noise, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fat, in parts of some patches: how empty each pixel is, and how much membrane of fat cells it has; (B, S, S)."""
    shape = (len(x), 1, 1)
    place = random.uniform(-3, WIDTH + 3, (len(x), _FAT_CELLS, 2))
    place = push_apart(place, np.full(place.shape[:2], 5.5), np.ones(place.shape[:2], dtype=bool), steps=8)
    first, second = np.full(x.shape, 1e3, np.float32), np.full(x.shape, 1e3, np.float32)
    for k in range(_FAT_CELLS):  # distances to the nearest and the second nearest centre: cells as in foam
        distance = np.hypot(x - place[:, k, 0, None, None], y - place[:, k, 1, None, None])
        first, second = np.minimum(first, distance), np.minimum(second, np.maximum(first, distance))
    to_membrane = (second - first) / 2
    extent = np.where(random.random(shape) < 0.18, random.uniform(-1, 1, shape), -9)
    here = sigmoid((extent + noise(x, y, 16)) * 8)
    empty = here * sigmoid(np.minimum(to_membrane - 0.45, 6.2 - first) * 5)
    return empty, here * np.exp(-((to_membrane / 0.45) ** 2)) * (first < 7)


def _bare_slide(x: np.ndarray, y: np.ndarray, noise: Noise, random: np.random.Generator) -> np.ndarray:
    """1 beyond the ragged edge that the tissue has in a few patches, else 0; (B, S, S)."""
    shape = (len(x), 1, 1)
    angle = random.uniform(0, 2 * np.pi, shape)
    edge = np.where(random.random(shape) < 0.07, random.uniform(4, 20, shape), 2 * WIDTH)
    beyond = (x - WIDTH / 2) * np.cos(angle) + (y - WIDTH / 2) * np.sin(angle) - edge
    return sigmoid((beyond + 2.5 * noise(x, y, 4)) * 2)
