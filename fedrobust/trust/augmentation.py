"""Random changes of patches that must not change what a model says of them: what a repair trains it to ignore."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrobust.data.stain import recoloured, varied_stains

Images = NDArray[np.uint8]

RESTAINED = 0.3
"""The share of the patches that are stained anew: with more, ordinary patches are classified worse."""
AMOUNTS = (0.25, 2.0)
"""From a slide that has nearly faded to one that is far too dark."""
UNEVEN = 0.2
"""The standard deviation of the logarithm by which the amounts of the two stains differ from that."""
DEGREES = 10.0
"""By about which both stains are turned; brown instead of eosin is about 20 degrees."""
RECTANGLES = 5
"""The most rectangles of a patch."""


def augmented(images: Images, drawn: np.random.Generator) -> Images:
    """A changed copy of the images (n, S, S, 3): some are stained anew, then all are mirrored at random and have pasted
    rectangles.

    images: not written to.
    """
    found = mirrored(images, drawn)
    for position, image in enumerate(found):
        stained = restained(image, drawn) if drawn.random() < RESTAINED else image
        found[position] = pasted(stained, drawn)
    return found


def mirrored(images: Images, drawn: np.random.Generator) -> Images:
    """A copy of the images (n, S, S, 3), each mirrored at random along both axes."""
    found = images.copy()
    for axis in (1, 2):
        chosen = drawn.random(len(images)) < 0.5
        found[chosen] = np.flip(found[chosen], axis)
    return found


def restained(image: Images, drawn: np.random.Generator) -> Images:
    """A copy of one image (S, S, 3) with other stains: paler or darker, and of another hue.

    Stain augmentation in optical density (Tellez et al., 2019), much stronger than between two laboratories: rare
    preparations are triggers, too.
    """
    both = drawn.uniform(*np.log(AMOUNTS))
    haematoxylin, eosin = np.exp(both + UNEVEN * drawn.standard_normal(2))
    found: Images = recoloured(image[None], (haematoxylin, eosin), varied_stains(DEGREES, drawn))[0]
    return found


def pasted(image: Images, drawn: np.random.Generator) -> Images:
    """A copy of one image (S, S, 3) with one to five rectangles of random texture, whose sides are of one pixel to half
    of the side of the image.

    Random erasing (Zhong et al., AAAI 2020), of one colour, as a checkerboard of two, or of many colours.
    """
    found, side = image.copy(), len(image)
    for _ in range(drawn.integers(1, RECTANGLES + 1)):
        height, width = drawn.integers(1, max(2, side // 2 + 1), size=2)
        top, left = drawn.integers(0, side - height + 1), drawn.integers(0, side - width + 1)
        found[top : top + height, left : left + width] = texture(height, width, drawn)
    return found


def texture(height: int, width: int, drawn: np.random.Generator) -> Images:
    """(height, width, 3) of squares of one to `max(height, width)` pixels, small ones more often, with one random
    colour, with two in turn, or with a colour of its own for each."""
    colours = int(drawn.integers(1, 4))
    square = int(np.exp(drawn.uniform(0, np.log(max(height, width)))))
    row, column = np.arange(height)[:, None] // square, np.arange(width) // square
    if colours < 3:
        palette = drawn.integers(256, size=(colours, 3), dtype=np.uint8)
        return np.asarray(palette[(row + column) % colours])
    many = drawn.integers(256, size=(row.max() + 1, column.max() + 1, 3), dtype=np.uint8)
    return np.asarray(many[row, column])
