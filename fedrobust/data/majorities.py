"""What a partition alone says about votes and defences: whether the honest hospitals have the majority within each
label, and from which share of malicious hospitals on no defence can promise anything. Pure functions of label
counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrobust.seeds import generator

VOTES = 20
"""Patches of a label that a hospital needs for a say about it: fewer do not show a difference between two models."""
DRAWS = 10_000
"""Draws of the malicious hospitals: a share of them is exact to about one in a hundred."""
BLOCK = 10_000_000
"""Numbers of one block of draws."""

Counts = NDArray[np.int64]


def majority_share(counts: Counts, liars: int, seed: int) -> float:
    """In which share of draws of the malicious hospitals the honest ones have the majority within each label.

    counts: (hospitals, labels) training patches.
    liars: how many hospitals are malicious, 1 or more and fewer than all; every draw of them is as likely as any other.
    seed: of the draws.

    A hospital with `VOTES` patches of a label has a say about it. A malicious one claims to have a say about every
    label, and nobody can look: so the honest hospitals with a say must be more than all malicious ones.
    """
    kinds, hospitals = np.unique(counts >= VOTES, axis=0, return_counts=True)
    voters, drawn, kept = kinds.T @ hospitals, generator(seed, "majority", liars), 0
    at_once = max(1, BLOCK // len(kinds))
    for first in range(0, DRAWS, at_once):
        # Hospitals with a say about the same labels are alike: only their number is drawn.
        size = min(at_once, DRAWS - first)
        malicious = drawn.multivariate_hypergeometric(hospitals, liars, size=size, method="marginals")
        kept += int((voters - malicious @ kinds > liars).all(axis=1).sum())
    return kept / DRAWS


def safe_liars(counts: Counts) -> int:
    """The largest number of malicious hospitals with which the honest ones have the majority within each label,
    whichever hospitals are malicious.

    counts: (hospitals, labels) training patches.
    """
    return max(0, (int((counts >= VOTES).sum(axis=0).min()) - 1) // 2)


def dissimilarity(counts: Counts) -> float:
    """A lower bound of B² of the partition, from its labels alone.

    counts: (hospitals, labels) training patches; every hospital has some.

    Losses L_i of n hospitals, with the mean L, are (G, B)-dissimilar if everywhere

        1/n · Σ ‖∇L_i − ∇L‖² ≤ G² + B² · ‖∇L‖²

    (Allouah et al., NeurIPS 2023). Let patches of a label look alike at all hospitals, and let a model err on one label
    only. Then ∇L_i = π_i · g, where π_i is the share of this label among the hospital's patches, and g the same for
    all, and the left side is Var(π) / mean(π)² · ‖∇L‖². So B² is at least that, for the label where it is largest, as
    long as g may be large against G. Whatever else differs between hospitals comes on top.
    """
    shares = (counts / counts.sum(axis=1, keepdims=True))[:, counts.any(axis=0)]
    return float((shares.var(axis=0) / shares.mean(axis=0) ** 2).max())


def breakdown(dissimilarity: float) -> float:
    """The share of malicious hospitals from which on no rule can bound the error: 1 / (2 + B²) (Allouah et al., 2023,
    theorem 1).

    dissimilarity: B², 0 or more.
    """
    return 1.0 / (2.0 + dissimilarity)
