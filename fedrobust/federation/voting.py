"""What a hospital votes by: its patches, and its losses at them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrobust.data.majorities import VOTES
from fedrobust.seeds import generator
from fedrobust.trust.referee import WORST
from fedrobust.updates import Floats


def ballot(
    indices: NDArray[np.integer], labels: NDArray[np.integer], most: int, seed: int, client: int
) -> NDArray[np.integer]:
    """Sorted positions of the patches by which a hospital votes: of each label of which it has enough.

    indices: positions of its training patches.
    labels: (N,) of all patches.
    most: how many of a label.
    seed: the experiment's.
    client: the hospital.
    """
    drawn, found = generator(seed, "jury", client), [np.empty(0, dtype=np.int64)]
    for label in np.unique(labels[indices]):
        own = indices[labels[indices] == label]
        if len(own) >= VOTES:
            found.append(drawn.permutation(own)[:most])
    return np.sort(np.concatenate(found))


def mean_losses(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """(C,) the mean cross entropy at the patches of each label; NaN where there are none.

    probabilities: (n, C) of a model.
    labels: (n,).
    """
    right = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    with np.errstate(divide="ignore"):
        losses = np.minimum(np.nan_to_num(-np.log(right), nan=WORST), WORST)
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, losses, minlength=classes)
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))


def votes_of(losses: NDArray[np.float64]) -> Floats:
    """(K, C) how much less a hospital loses with each model than with the first.

    losses: (1 + K, C) for each model and label.
    """
    return losses[:1] - losses[1:]
