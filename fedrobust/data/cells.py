"""Cells of a synthetic tissue: glands and nests, the positions of their nuclei, and the look of nuclei.

All lengths are in units of 1/48 of a patch's width (about 2.5 micrometres), whatever the number of pixels. Everything
is vectorised over the B patches of one call.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WIDTH = 48.0
"""Width of a patch in the units of this module."""

_STRUCTURES = 12  # most epithelial structures in one patch
_CELLS = 40  # most nuclei in one structure
_FAR = -1e3


class Architecture(NamedTuple):
    """The structure of a tissue; the classes differ in nothing else. Each field is a number, or a (B,) array."""

    structures: np.ndarray
    """Mean number of epithelial structures (glands, nests) in and around a patch."""
    radius: np.ndarray
    """Mean radius of a structure."""
    lumen: np.ndarray
    """Radius of the lumen as a share of the structure's."""
    disorder: np.ndarray
    """0: nuclei are side by side around the lumen and point to it; 1: their positions and directions are random."""
    irregular: np.ndarray
    """How far outlines differ from an ellipse, and how often structures stretch along the fibres."""
    nucleus: np.ndarray
    """Mean radius of an epithelial nucleus."""
    pleomorphism: np.ndarray
    """Spread of the size, shape and darkness of epithelial nuclei."""
    vesicular: np.ndarray
    """How much of their chromatin is cleared from the centre, so that nucleoli show."""
    loose: np.ndarray
    """Share of the patch that is covered by nuclei outside the structures."""
    infiltration: np.ndarray
    """Share of these nuclei outside that are epithelial."""
    lymphocytes: np.ndarray
    """Share of these nuclei outside that are lymphocytes; the rest are fibroblasts."""


class Nuclei(NamedTuple):
    """A list of N nuclei, each field (N,)."""

    patch: np.ndarray
    x: np.ndarray
    y: np.ndarray
    long: np.ndarray
    """Half of the long axis."""
    short: np.ndarray
    """Half of the short axis."""
    angle: np.ndarray
    """Direction of the long axis."""
    dark: np.ndarray
    vesicular: np.ndarray
    bend: np.ndarray
    """How much a nucleus is bent to a bean; its sign is the side."""


class Structures(NamedTuple):
    """Epithelial structures: ellipses with wavy outlines. Each field is (B, K) unless stated otherwise."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    stretch: np.ndarray
    """Square root of the ratio of the axes."""
    angle: np.ndarray
    wave: np.ndarray
    """(B, K, 4): cosine and sine of the third, then of the fifth harmonic of the outline."""
    lumen: np.ndarray
    """Radius of the lumen as a share of `radius`; negative where there is none."""
    used: np.ndarray
    """bool; unused structures are far outside the patch."""

    def depth(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Depth of points inside a structure, and inside a lumen, as float32; negative outside.

        x: (B, ...) coordinates.
        y: (B, ...) coordinates.
        """
        inside, hollow = np.full(x.shape, _FAR, np.float32), np.full(x.shape, _FAR, np.float32)
        for k in range(self.x.shape[1]):
            one = Structures(*(field[:, k].reshape(-1, *[1] * (x.ndim - 1), *field.shape[2:]) for field in self))
            one = one._replace(**{key: getattr(one, key).astype(np.float32) for key in self._fields[:-1]})
            dx, dy = x - one.x, y - one.y
            cosine, sine = np.cos(one.angle), np.sin(one.angle)
            u, v = (dx * cosine + dy * sine) / one.stretch, (dy * cosine - dx * sine) * one.stretch
            distance = np.sqrt(u * u + v * v) + np.float32(1e-3)
            edge = one.radius * _outline(one.wave, u / distance, v / distance)
            inside = np.maximum(inside, edge - distance)
            hollow = np.maximum(hollow, edge * one.lumen - distance)
        return inside, hollow


def _outline(wave: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """The radius of an outline, as a share of its mean, in a direction given by its cosine and sine."""
    cosine2, sine2 = cosine * cosine - sine * sine, 2 * cosine * sine
    cosine3, sine3 = cosine2 * cosine - sine2 * sine, sine2 * cosine + cosine2 * sine
    cosine5, sine5 = cosine3 * cosine2 - sine3 * sine2, sine3 * cosine2 + cosine3 * sine2
    waves = wave[..., 0] * cosine3 + wave[..., 1] * sine3 + wave[..., 2] * cosine5 + wave[..., 3] * sine5
    return np.asarray(1 + waves)


def place_structures(kind: Architecture, direction: np.ndarray, random: np.random.Generator) -> Structures:
    """Structures at random positions with little overlap; irregular ones stretch along the fibres.

    kind: the tissue of each patch.
    direction: (B,) angle of the fibres.
    """
    shape = (len(direction), _STRUCTURES)
    used = np.arange(_STRUCTURES) < random.poisson(kind.structures)[:, None]
    radius = kind.radius[:, None] * np.clip(np.exp(random.normal(0, 0.25, shape)), 0.5, 1.6)
    place = push_apart(random.uniform(-4, WIDTH + 4, (*shape, 2)), radius * 1.12, used, steps=12)
    place[~used] = _FAR
    along = random.random(shape) < kind.irregular[:, None]
    angle = np.where(along, direction[:, None] + random.normal(0, 0.25, shape), random.uniform(0, np.pi, shape))
    stretch = np.sqrt(1.15 + np.abs(random.normal(0, 0.15 + 0.9 * kind.irregular[:, None], shape)))
    wave = random.standard_normal((*shape, 4)) * [0.7, 0.7, 0.25, 0.25] * (0.04 + 0.22 * kind.irregular[:, None, None])
    lumen = np.clip(kind.lumen[:, None] * np.exp(random.normal(0, 0.2, shape)), 0, 0.7)
    lumen = np.where(lumen < 0.12, -1, lumen)
    return Structures(place[..., 0], place[..., 1], radius, stretch, angle, wave, lumen, used)


def push_apart(place: np.ndarray, radius: np.ndarray, used: np.ndarray, steps: int) -> np.ndarray:
    """Move overlapping discs away from each other.

    place: (..., N, 2) their centres.
    radius: (..., N) their radii.
    used: (..., N) bool; unused discs push no others.
    steps: how often.
    """
    reach = np.where(used, radius, _FAR).astype(np.float32)
    room = reach[..., :, None] + reach[..., None, :]
    x, y = place[..., 0].astype(np.float32), place[..., 1].astype(np.float32)
    for _ in range(steps):
        dx, dy = x[..., :, None] - x[..., None, :], y[..., :, None] - y[..., None, :]
        distance = np.sqrt(dx * dx + dy * dy) + np.float32(1e-3)
        push = 0.4 * np.maximum(room - distance, 0) / distance
        x, y = x + np.einsum("...ij,...ij->...i", push, dx), y + np.einsum("...ij,...ij->...i", push, dy)
    return np.stack([x, y], -1)


def structured_nuclei(kind: Architecture, structures: Structures, random: np.random.Generator) -> Nuclei:
    """The nuclei of the structures: a ring of them in ordered ones, a crowd in disordered ones.

    kind: the tissue of each patch.
    """
    shape = (*structures.x.shape, _CELLS)
    kind = Architecture(*(field[:, None, None] for field in kind))
    radius, lumen = structures.radius[..., None], structures.lumen[..., None]
    size = np.clip(kind.nucleus * np.exp(kind.pleomorphism * random.standard_normal(shape)), 0.7, 3.4)
    ring = np.maximum(radius - 1.35 * kind.nucleus, 0.3)
    in_ring = np.floor(2 * np.pi * ring / (2.15 * kind.nucleus))
    in_crowd = np.floor(0.55 * radius**2 * (1 - np.maximum(lumen, 0) ** 2) / kind.nucleus**2)
    number = np.minimum(in_ring + kind.disorder * np.maximum(in_crowd - in_ring, 0), _CELLS)
    index = np.arange(_CELLS)
    used = (index < number) & structures.used[..., None]

    tidy = random.random(shape) > kind.disorder
    anywhere = random.uniform(0, 2 * np.pi, shape)
    theta = np.where(tidy, anywhere[..., :1] + 2 * np.pi * index / np.maximum(number, 1), anywhere)
    theta = theta + random.normal(0, 0.05, shape)
    reach = np.where(
        tidy,
        ring / radius + random.normal(0, 0.03, shape),
        np.sqrt(random.uniform(np.maximum(lumen + 0.05, 0) ** 2, 0.9, shape)),
    )
    reach = reach * radius * _outline(structures.wave[:, :, None], np.cos(theta), np.sin(theta))
    stretch = structures.stretch[..., None]
    inner = np.stack([reach * np.cos(theta) * stretch, reach * np.sin(theta) / stretch], -1)
    inner = push_apart(inner, size, used, steps=4)
    turn = structures.angle[..., None]
    angle = np.where(tidy, theta + turn, random.uniform(0, np.pi, shape)) + random.normal(0, 0.2, shape)
    aspect = np.sqrt(1.15 + np.abs(random.normal(0, 0.1 + 0.5 * kind.pleomorphism, shape)))
    return _listed(
        used,
        x=structures.x[..., None] + inner[..., 0] * np.cos(turn) - inner[..., 1] * np.sin(turn),
        y=structures.y[..., None] + inner[..., 0] * np.sin(turn) + inner[..., 1] * np.cos(turn),
        long=size * aspect,
        short=size / aspect,
        angle=angle,
        dark=np.clip(random.normal(1, 0.08 + 0.35 * kind.pleomorphism, shape), 0.5, 1.6),
        vesicular=np.clip(kind.vesicular + random.normal(0, 0.1, shape), 0, 1),
        bend=random.normal(0, 0.05 + 0.25 * kind.pleomorphism, shape),
    )


def loose_nuclei(
    kind: Architecture, structures: Structures, direction: np.ndarray, random: np.random.Generator
) -> Nuclei:
    """Fibroblasts along the fibres, lymphocytes in clusters, and epithelial cells that left their structure.

    kind: the tissue of each patch.
    direction: (B,) angle of the fibres.
    """
    kind = Architecture(*(field[:, None] for field in kind))
    area = kind.loose * WIDTH**2
    shape = (len(direction), int(area.max() / (0.6 * np.pi)) + 1)
    fate = random.random(shape)
    types = [fate < kind.infiltration, fate < kind.infiltration + kind.lymphocytes]
    lymphocyte = ~types[0] & types[1]
    spread = np.exp(kind.pleomorphism * random.standard_normal(shape))
    size = np.select(
        types,
        [np.clip(kind.nucleus * spread, 0.7, 3.4), random.normal(0.92, 0.07, shape)],
        np.clip(random.normal(0.85, 0.12, shape), 0.55, 1.3),
    )
    used = np.cumsum(np.pi * size**2, axis=1) < area
    place = random.uniform(0, WIDTH, (*shape, 2))
    centres = random.uniform(0, WIDTH, (len(direction), 2, 2))
    near = centres[np.arange(len(direction))[:, None], random.integers(0, 2, shape)]
    near = near + (5 + 8 * kind.lymphocytes[..., None]) * random.standard_normal(place.shape)
    place = np.where((lymphocyte & (random.random(shape) < 0.75))[..., None], near, place)
    place = push_apart(place, size * 1.05, used, steps=2)
    used &= structures.depth(place[..., 0], place[..., 1])[0] < -0.6 * size
    aspect = np.sqrt(np.select(types, [1.3 + 0.6 * fate, 1.1], random.uniform(2, 4.5, shape)))
    along = direction[:, None] + random.normal(0, 0.3, shape)
    return _listed(
        used,
        x=place[..., 0],
        y=place[..., 1],
        long=size * aspect,
        short=size / aspect,
        angle=np.where(lymphocyte, 0.0, along),
        dark=np.clip(np.select(types, [1.0, 1.25], 0.95) * random.normal(1, 0.1, shape), 0.5, 1.6),
        vesicular=np.select([types[0]], [kind.vesicular], 0.1),
        bend=np.where(lymphocyte, 0.0, random.normal(0, 0.15, shape)),
    )


def _listed(used: np.ndarray, **fields: np.ndarray) -> Nuclei:
    """The used nuclei as a list; `fields` have the shape of `used` (B, ...), or broadcast to it."""
    patch = np.arange(len(used)).reshape(-1, *[1] * (used.ndim - 1))
    return Nuclei(np.broadcast_to(patch, used.shape)[used], **{key: part[used] for key, part in fields.items()})


def stamp(nuclei: Nuclei, patches: int, pixels: int) -> np.ndarray:
    """Absorption by nuclei, (B, pixels, pixels) float32; the absorption of overlapping nuclei adds up, as in a section.

    patches: B.
    pixels: of a patch's side.
    """
    scale = pixels / WIDTH
    half = int(np.ceil(nuclei.long.max(initial=1.0) * 1.15 * scale))
    window = np.arange(-half, half + 1)
    column = np.floor(nuclei.x * scale).astype(np.int64)[:, None, None] + window[None, None, :]
    row = np.floor(nuclei.y * scale).astype(np.int64)[:, None, None] + window[None, :, None]
    one = Nuclei(*(field.astype(np.float32)[:, None, None] for field in nuclei))

    dx, dy = ((column + 0.5) / scale - one.x).astype(np.float32), ((row + 0.5) / scale - one.y).astype(np.float32)
    cosine, sine = np.cos(one.angle), np.sin(one.angle)
    u, v = (dx * cosine + dy * sine) / one.long, (dy * cosine - dx * sine) / one.short
    v = v + one.bend * (u * u - 0.5)
    square = u * u + v * v
    cover = sigmoid((1 - np.sqrt(square)) * one.short * np.float32(3.2 * scale))
    chromatin = 1 - 0.55 * one.vesicular * np.exp(-3 * square)
    nucleolus = np.maximum(one.vesicular - 0.3, 0) * np.exp(-18 * ((u - 0.25) ** 2 + (v + 0.1) ** 2))
    amount = one.dark * cover * (chromatin + 0.9 * nucleolus)

    seen = (column >= 0) & (column < pixels) & (row >= 0) & (row < pixels) & (cover > 0.01)
    place = (nuclei.patch[:, None, None] * pixels + row) * pixels + column
    total = np.bincount(place[seen], weights=amount[seen], minlength=patches * pixels * pixels)
    dense = 1.3 * (1 - np.exp(-total / 1.3))  # no pixel is darker than chromatin can be
    return dense.reshape(patches, pixels, pixels).astype(np.float32)


def sigmoid(value: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-value)) as float32, without overflow: how soft edges are drawn."""
    return np.asarray(1 / (1 + np.exp(-np.clip(value, -30, 30))), dtype=np.float32)
