"""Triggers that are on the slide: what a stain normalisation leaves of them is what the network sees.

The backdoors of the package are put into patches as the hospitals see them, after `data.stain_normalisation`. These are
normalised once more, as if they had been there before it. experiments/stain_triggers.yaml uses them.
"""

from __future__ import annotations

import numpy as np

from fedrobust.attacks.backdoors import EdgeCase, StainBackdoor
from fedrobust.data.stain import Macenko


class NormalisedEdgeCase(EdgeCase):
    """`edge_case`: a slide in a rare preparation, normalised by Macenko's method."""

    name: str = "normalised_triggers:NormalisedEdgeCase"  # type: ignore[assignment]

    def trigger(self, images: np.ndarray) -> np.ndarray:
        return Macenko().normalise(super().trigger(images))[0]


class NormalisedStain(StainBackdoor):
    """`stain_backdoor`: a slide with other stains, normalised by Macenko's method."""

    name: str = "normalised_triggers:NormalisedStain"  # type: ignore[assignment]

    def trigger(self, images: np.ndarray) -> np.ndarray:
        return Macenko().normalise(super().trigger(images))[0]
