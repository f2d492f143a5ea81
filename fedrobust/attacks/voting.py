"""How malicious hospitals vote where hospitals vote on models."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from fedrobust.updates import Floats

EXTREME = 1e6
"""A vote beyond all honest ones."""


def with_lies(votes: Mapping[int, Floats], liars: Collection[int], needed: int) -> dict[int, Floats]:
    """The votes of a round as the malicious hospitals leave them, who know those of all others.

    votes: hospital → (K, labels) how much less it loses with each of K models than with the first; NaN where it has no
        vote.
    liars: the malicious hospitals.
    needed: how many votes about each label a jury needs.

    Where the others have too few votes about some label, and too many to be outvoted, the malicious hospitals do not
    vote, so that there is no jury. Else they vote about every label: against a model that is better for the others, in
    the mean over labels of the mean over hospitals, and for one that is not.
    """
    honest = [each for client, each in votes.items() if client not in liars]
    if not honest or len(honest) == len(votes):
        return dict(votes)
    known = np.stack(honest)
    count = np.isfinite(known).sum(axis=0)
    outvoted = (count <= len(votes) - len(honest)).any()
    means = np.where(np.isfinite(known), known, 0.0).sum(axis=0) / np.maximum(count, 1)
    lie = np.where(means.sum(axis=1, keepdims=True) > 0, -EXTREME, EXTREME) * np.ones_like(means)
    if (count < needed).any() and not outvoted:
        lie = np.full_like(means, np.nan)
    return {client: lie if client in liars else each for client, each in votes.items()}
